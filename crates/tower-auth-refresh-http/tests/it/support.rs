//! A client that answers by itself, and keeps what it was asked.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use tower::Service;
use tower_auth_refresh::{AccessToken, RefreshError, RefreshErrorKind, RefreshToken, SkipAuth, Tokens};
use tower_auth_refresh_http::{AuthClient, AuthServerError};

/// What a server answers.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

pub(crate) fn answer(status: u16, body: impl Into<Bytes>) -> Answer {
    Answer { status, headers: Vec::new(), body: body.into() }
}

impl Answer {
    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// What the client was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) opted_out: bool,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn form(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(self.body.as_bytes()).into_owned().collect()
    }
}

/// A tower HTTP client with its answers ready: the last one again and again.
#[derive(Clone, Default)]
pub(crate) struct Scripted {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Scripted {
    pub(crate) fn with(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self { answers: Arc::new(Mutex::new(answers.into_iter().collect())), ..Self::default() }
    }

    pub(crate) fn client(&self) -> AuthClient {
        AuthClient::new(self.clone())
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn only(&self) -> Asked {
        let mut asked = self.asked();
        assert_eq!(asked.len(), 1);
        asked.remove(0)
    }
}

impl Service<Request<Full<Bytes>>> for Scripted {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let (head, body) = request.into_parts();
        let body = body.collect();
        let body = futures_now(body).unwrap().to_bytes();
        self.asked.lock().unwrap().push(Asked {
            method: head.method,
            uri: head.uri,
            headers: head.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
            opted_out: head.extensions.get::<SkipAuth>().is_some(),
        });
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        let answer = answer.expect("an answer is scripted");
        let mut response = Response::new(Full::new(answer.body));
        *response.status_mut() = answer.status.try_into().unwrap();
        for (name, value) in answer.headers {
            response.headers_mut().append(HeaderName::from_static(name), HeaderValue::try_from(value).unwrap());
        }
        ready(Ok(response))
    }
}

/// The output of a future that is ready at once.
pub(crate) fn futures_now<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("not ready"),
    }
}

pub(crate) fn old_tokens() -> Tokens {
    Tokens::new(AccessToken::new("old-access").unwrap(), RefreshToken::new("old-refresh").unwrap())
}

pub(crate) fn access(tokens: &Tokens) -> &str {
    tokens.access_token().unwrap().expose_secret()
}

pub(crate) fn refresh(tokens: &Tokens) -> Option<&str> {
    tokens.refresh_token().map(RefreshToken::expose_secret)
}

/// What became of a call, in a word.
pub(crate) fn outcome(result: &Result<Tokens, RefreshError>) -> String {
    match result {
        Ok(_) => "tokens".to_owned(),
        Err(error) => match (error.kind(), error.retry_after()) {
            (RefreshErrorKind::Rejected, _) => "rejected".to_owned(),
            (RefreshErrorKind::Misconfigured, _) => "misconfigured".to_owned(),
            (RefreshErrorKind::Unavailable, None) => "unavailable".to_owned(),
            (RefreshErrorKind::Unavailable, Some(delay)) => format!("unavailable for {} s", delay.as_secs()),
            (RefreshErrorKind::InDoubt, _) => "in doubt".to_owned(),
            (other, _) => format!("{other:?}"),
        },
    }
}

/// The cause that this crate gives.
pub(crate) fn cause(error: &RefreshError) -> &AuthServerError {
    std::error::Error::source(error).unwrap().downcast_ref().unwrap()
}
