//! An inner service that strictly enforces tower's contract, and a client over it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::Full;
use tokio::task::JoinHandle;
use tower::{Service, ServiceExt};
use tower_auth_refresh::{AuthRefresh, AuthRefreshLayer, ReplayBody, Session, Tokens};
use tower_layer::Layer;

use crate::support::*;

/// A service that panics if it is called without being ready, and that becomes ready only at the second poll. Clones
/// are not ready.
pub struct Strict<S> {
    inner: S,
    prompt: bool,
    readiness: Readiness,
    shared: Arc<Shared>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Idle,
    Polled,
    Ready,
}

/// The state shared by the clones of a [`Strict`] service.
#[derive(Default)]
pub struct Shared {
    reserved: AtomicUsize,
    broken: AtomicBool,
}

impl Shared {
    /// The number of clones that are ready and not yet called.
    pub fn reserved(&self) -> usize {
        self.reserved.load(Ordering::SeqCst)
    }

    /// Makes the next clone that is polled fail to become ready.
    pub fn break_one(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }
}

impl<S> Strict<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, prompt: false, readiness: Readiness::Idle, shared: Arc::default() }
    }

    /// Makes the service ready at the first poll.
    pub fn prompt(mut self) -> Self {
        self.prompt = true;
        self
    }

    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    fn give_up_readiness(&mut self) {
        if std::mem::replace(&mut self.readiness, Readiness::Idle) == Readiness::Ready {
            self.shared.reserved.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl<S: Clone> Clone for Strict<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), prompt: self.prompt, readiness: Readiness::Idle, shared: self.shared() }
    }
}

impl<S> Drop for Strict<S> {
    fn drop(&mut self) {
        self.give_up_readiness();
    }
}

/// An error of the inner service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    Unready,
    Called,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Error for Broken {}

impl<S, Req> Service<Req> for Strict<S>
where
    S: Service<Req, Error: From<Broken>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match self.readiness {
            Readiness::Idle if !self.prompt => {
                self.readiness = Readiness::Polled;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Readiness::Idle | Readiness::Polled => {
                if self.shared.broken.swap(false, Ordering::SeqCst) {
                    return Poll::Ready(Err(Broken::Unready.into()));
                }
                ready!(self.inner.poll_ready(cx))?;
                self.readiness = Readiness::Ready;
                self.shared.reserved.fetch_add(1, Ordering::SeqCst);
                Poll::Ready(Ok(()))
            }
            Readiness::Ready => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Req) -> S::Future {
        assert!(self.readiness == Readiness::Ready, "called without having been made ready");
        self.give_up_readiness();
        self.inner.call(request)
    }
}

pub type Req = Request<ReplayBody<Full<Bytes>>>;

/// A client over a strict service, with its API and authorization server.
pub struct Contract<ResB> {
    pub session: Session,
    pub client: AuthRefresh<Strict<Script<Req, Response<ResB>, Broken>>, Session>,
    pub within: Arc<Shared>,
    pub api: Calls<Req, Response<ResB>, Broken>,
    pub auth: AuthCalls,
}

pub type Answer<ResB> = JoinHandle<Result<Response<ResB>, Broken>>;

impl<ResB: Body + Send + 'static> Contract<ResB> {
    pub async fn new() -> Self {
        Self::signed_in_with(pair(1)).await
    }

    pub async fn signed_in_with(tokens: Tokens) -> Self {
        let (service, auth) = script();
        let session = Session::builder(service).tokens(tokens).build().await.unwrap();
        let (service, api) = script();
        let strict = Strict::new(service);
        let within = strict.shared();
        Self { client: AuthRefreshLayer::new(session.clone(), origin()).layer(strict), session, within, api, auth }
    }

    pub fn get(&self) -> Answer<ResB> {
        self.send(Request::get(ORIGIN).body(Full::default()).unwrap())
    }

    pub fn send(&self, request: Request<Full<Bytes>>) -> Answer<ResB> {
        tokio::spawn(self.client.clone().oneshot(request))
    }

    /// Waits for the next call, asserts that it carries this token, and answers it.
    pub async fn answer(&mut self, token: &str, answer: Result<Response<ResB>, Broken>) {
        let call = self.api.next().await;
        let value = call.request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        assert_eq!(value, Some(format!("Bearer {token}").as_bytes()));
        call.answer(answer);
    }
}
