//! The authorization server and the API, which tell the [`Judge`] what they see.

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
use tower_auth_refresh::{RefreshError, RefreshRequest, ReplayBody, RevokeRequest, Tokens};

use crate::gates::{Gate, Gates, Pass};
use crate::judge::{Judge, Pair, Sent};

type Answering<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// The refresh service of one session.
pub(crate) struct Auth {
    pub(crate) session: usize,
    pub(crate) gates: Gates,
    pub(crate) judge: Judge,
    pub(crate) ready: Option<oneshot::Receiver<Pass>>,
}

impl Clone for Auth {
    fn clone(&self) -> Self {
        Self { session: self.session, gates: self.gates.clone(), judge: self.judge.clone(), ready: None }
    }
}

impl Service<RefreshRequest> for Auth {
    type Response = Tokens;
    type Error = RefreshError;
    type Future = Answering<Tokens, RefreshError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RefreshError>> {
        let gates = &self.gates;
        let opened = self.ready.get_or_insert_with(|| gates.stand_at(Gate::RefreshReady));
        Pin::new(opened).poll(cx).map(|pass| match pass {
            Ok(Pass::Go) => Ok(()),
            _ => Err(RefreshError::unavailable("not now")),
        })
    }

    fn call(&mut self, request: RefreshRequest) -> Self::Future {
        let Self { session, gates, judge, .. } = self.clone();
        let presented = Pair::of(request.tokens()).unwrap();
        // From the moment of the call, for as long as somebody waits for it.
        let mut call = judge.called(session, presented, &request);
        Box::pin(async move {
            match gates.pass(Gate::Refresh).await {
                Pass::Go => {}
                Pass::Reject => {
                    judge.revoke_family(presented.user);
                    return Err(RefreshError::rejected("invalid_grant"));
                }
                Pass::Misconfigured => return Err(RefreshError::misconfigured("invalid_client")),
                Pass::Fail | Pass::Panic => return Err(RefreshError::unavailable("nothing was sent")),
            }
            let Some(bought) = call.rotate(&request) else {
                return Err(RefreshError::rejected("invalid_grant"));
            };
            match gates.pass(Gate::RefreshAnswer).await {
                Pass::Go => Ok(call.deliver(bought)),
                _ => Err(RefreshError::in_doubt("the answer was lost")),
            }
        })
    }
}

/// The revoke service.
#[derive(Clone)]
pub(crate) struct Revoke {
    pub(crate) gates: Gates,
    pub(crate) judge: Judge,
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
        self.judge.revoked(Pair::of(request.tokens()).unwrap());
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
    pub(crate) judge: Judge,
    pub(crate) ready: Option<oneshot::Receiver<Pass>>,
}

impl Clone for Api {
    fn clone(&self) -> Self {
        Self { caller: self.caller, gates: self.gates.clone(), judge: self.judge.clone(), ready: None }
    }
}

impl Service<Request<ReplayBody<Full<Bytes>>>> for Api {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Answering<Response<Full<Bytes>>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        let gates = &self.gates;
        let opened = self.ready.get_or_insert_with(|| gates.stand_at(Gate::ApiReady(self.caller)));
        Pin::new(opened).poll(cx).map(|_| Ok(()))
    }

    fn call(&mut self, request: Request<ReplayBody<Full<Bytes>>>) -> Self::Future {
        self.ready = None;
        let Self { caller, gates, judge, .. } = self.clone();
        let token = request.headers().get(AUTHORIZATION).map(|value| {
            let token = value.to_str().unwrap().strip_prefix("Bearer a").unwrap();
            Pair::parse(token).unwrap()
        });
        let sent: Sent = *request.extensions().get().unwrap();
        judge.sent(sent, token);
        Box::pin(async move {
            gates.pass(Gate::Api(caller)).await;
            let _ = request.into_body().collect().await;
            let accepted = judge.accepts(sent, token);
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
