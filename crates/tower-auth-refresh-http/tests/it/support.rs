//! A client with scripted answers, which records its requests.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use tower::Service;
use tower_auth_refresh::{
    AccessToken, RefreshError, RefreshErrorKind, RefreshToken, Session, SessionState, SkipAuth, Tokens,
};
use tower_auth_refresh_http::{AuthClient, AuthServerError};

/// The answer of a server.
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

/// A request that the client was sent.
#[derive(Clone, Debug)]
pub(crate) struct SentRequest {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) skips_auth: bool,
}

impl SentRequest {
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

/// A tower HTTP client with scripted answers, the last of which is repeated.
#[derive(Clone, Default)]
pub(crate) struct Scripted {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    requests: Arc<Mutex<Vec<SentRequest>>>,
}

impl Scripted {
    pub(crate) fn with(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self { answers: Arc::new(Mutex::new(answers.into_iter().collect())), ..Self::default() }
    }

    pub(crate) fn client(&self) -> AuthClient {
        AuthClient::new(self.clone())
    }

    pub(crate) fn requests(&self) -> Vec<SentRequest> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn only(&self) -> SentRequest {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1);
        requests.remove(0)
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
        self.requests.lock().unwrap().push(SentRequest {
            method: head.method,
            uri: head.uri,
            headers: head.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
            skips_auth: head.extensions.get::<SkipAuth>().is_some(),
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

/// The outcome of a call, in a word.
pub(crate) fn outcome(result: &Result<Tokens, RefreshError>) -> String {
    match result {
        Ok(_) => "tokens".to_owned(),
        Err(error) => match error.kind() {
            RefreshErrorKind::Rejected => "rejected".to_owned(),
            RefreshErrorKind::Misconfigured => "misconfigured".to_owned(),
            RefreshErrorKind::Unavailable => match error.retry_after() {
                None => "unavailable".to_owned(),
                Some(delay) => format!("unavailable for {} s", delay.as_secs()),
            },
            RefreshErrorKind::InDoubt => "in doubt".to_owned(),
            other => format!("{other:?}"),
        },
    }
}

/// The kind of the failure of a session that is signed in and whose last refresh failed.
pub(crate) fn failing(session: &Session) -> RefreshErrorKind {
    match session.state() {
        SessionState::Failing(failure) => failure.kind(),
        other => panic!("the session is {other:?}"),
    }
}

/// The refresh token that a failed call issued.
pub(crate) fn issued(result: &Result<Tokens, RefreshError>) -> Option<&str> {
    result.as_ref().err()?.refresh_token().map(RefreshToken::expose_secret)
}

/// The source that this crate gives a `RefreshError`.
pub(crate) fn cause(error: &RefreshError) -> &AuthServerError {
    std::error::Error::source(error).unwrap().downcast_ref().unwrap()
}

/// The parameters of a form.
pub(crate) fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
