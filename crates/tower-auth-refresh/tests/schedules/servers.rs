//! The authorization server and the API. Both report what they see to the [`Oracle`].

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::sync::oneshot;
use tower::Service;
use tower_auth_refresh::refresh::RevokeRequest;
use tower_auth_refresh::{RefreshError, RefreshRequest, ReplayBody, Tokens};

use crate::gates::{Gate, Gates, Outcome};
use crate::oracle::{Oracle, Pair, Sent};

type Answering<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// The refresh service of one session.
pub(crate) struct Auth {
    pub(crate) session: usize,
    pub(crate) gates: Gates,
    pub(crate) oracle: Oracle,
    pub(crate) ready: Option<oneshot::Receiver<Outcome>>,
}

impl Clone for Auth {
    fn clone(&self) -> Self {
        Self { session: self.session, gates: self.gates.clone(), oracle: self.oracle.clone(), ready: None }
    }
}

impl Service<RefreshRequest> for Auth {
    type Response = Tokens;
    type Error = RefreshError;
    type Future = Answering<Tokens, RefreshError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RefreshError>> {
        let gates = &self.gates;
        let opened = self.ready.get_or_insert_with(|| gates.wait_at(Gate::RefreshReady));
        Pin::new(opened).poll(cx).map(|pass| match pass {
            Ok(Outcome::Proceed) => Ok(()),
            _ => Err(RefreshError::unavailable("the service is not ready")),
        })
    }

    fn call(&mut self, request: RefreshRequest) -> Self::Future {
        let Self { session, gates, oracle, .. } = self.clone();
        let presented = Pair::of(request.tokens()).unwrap();
        // Lasts from the call until its future is dropped.
        let mut call = oracle.called(session, presented, &request);
        Box::pin(async move {
            match gates.pass(Gate::Refresh).await {
                Outcome::Proceed => {}
                Outcome::Reject => {
                    oracle.revoke_family(presented.user);
                    return Err(RefreshError::rejected("invalid_grant"));
                }
                Outcome::Misconfigured => return Err(RefreshError::misconfigured("invalid_client")),
                Outcome::Fail | Outcome::Panic => return Err(RefreshError::unavailable("the request was not sent")),
            }
            let Some(successor) = call.rotate(&request) else {
                return Err(RefreshError::rejected("invalid_grant"));
            };
            match gates.pass(Gate::RefreshAnswer).await {
                Outcome::Proceed => Ok(call.deliver(successor)),
                _ => Err(RefreshError::in_doubt("the answer was lost")),
            }
        })
    }
}

/// The revoke service.
#[derive(Clone)]
pub(crate) struct Revoke {
    pub(crate) gates: Gates,
    pub(crate) oracle: Oracle,
}

impl Service<RevokeRequest> for Revoke {
    type Response = ();
    type Error = Infallible;
    type Future = Answering<(), Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RevokeRequest) -> Self::Future {
        let gates = self.gates.clone();
        self.oracle.revoked(Pair::of(request.tokens()).unwrap());
        Box::pin(async move {
            gates.pass(Gate::Revoke).await;
            Ok(())
        })
    }
}

/// The API, at the end of one caller's stack.
pub(crate) struct Api {
    pub(crate) caller: usize,
    pub(crate) gates: Gates,
    pub(crate) oracle: Oracle,
    pub(crate) ready: Option<oneshot::Receiver<Outcome>>,
}

impl Clone for Api {
    fn clone(&self) -> Self {
        Self { caller: self.caller, gates: self.gates.clone(), oracle: self.oracle.clone(), ready: None }
    }
}

impl Service<Request<ReplayBody<Full<Bytes>>>> for Api {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Answering<Response<Full<Bytes>>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        let gates = &self.gates;
        let opened = self.ready.get_or_insert_with(|| gates.wait_at(Gate::ApiReady(self.caller)));
        Pin::new(opened).poll(cx).map(|_| Ok(()))
    }

    fn call(&mut self, request: Request<ReplayBody<Full<Bytes>>>) -> Self::Future {
        self.ready = None;
        let Self { caller, gates, oracle, .. } = self.clone();
        let token = request.headers().get(AUTHORIZATION).map(|value| {
            let token = value.to_str().unwrap().strip_prefix("Bearer a").unwrap();
            Pair::parse(token).unwrap()
        });
        let sent: Sent = *request.extensions().get().unwrap();
        oracle.sent(sent, token);
        Box::pin(async move {
            gates.pass(Gate::Api(caller)).await;
            let _ = request.into_body().collect().await;
            let accepted = oracle.accepts(sent, token);
            gates.pass(Gate::ApiAnswer(caller)).await;
            let mut response = Response::new(Full::default());
            if !accepted {
                *response.status_mut() = StatusCode::UNAUTHORIZED;
                let challenge = "Bearer error=\"invalid_token\"".parse().unwrap();
                response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            }
            Ok(response)
        })
    }
}
