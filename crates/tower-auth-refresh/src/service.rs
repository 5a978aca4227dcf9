//! [`AuthRefresh`]: the middleware itself, which hands each request to a [`ResponseFuture`].

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::credentials::LastCredentials;
use crate::future::ResponseFuture;
use crate::layer::{Options, SessionSource};
use crate::replay::ReplayBody;

/// The service of an [`AuthRefreshLayer`](crate::AuthRefreshLayer).
///
/// It is transparent: its responses and its errors are the inner service's own.
#[derive(Debug)]
pub struct AuthRefresh<Svc, S> {
    inner: Svc,
    setup: Arc<Setup<S>>,
    last: LastCredentials,
}

/// What the requests of one service share.
#[derive(Debug)]
pub(crate) struct Setup<S> {
    pub(crate) source: S,
    pub(crate) options: Arc<Options>,
}

impl<Svc, S> AuthRefresh<Svc, S> {
    pub(crate) fn new(inner: Svc, source: S, options: Arc<Options>) -> Self {
        Self { inner, setup: Arc::new(Setup { source, options }), last: LastCredentials::default() }
    }

    /// The inner service.
    pub fn get_ref(&self) -> &Svc {
        &self.inner
    }

    /// The inner service, to be changed.
    pub fn get_mut(&mut self) -> &mut Svc {
        &mut self.inner
    }

    /// Takes the inner service out.
    pub fn into_inner(self) -> Svc {
        self.inner
    }
}

impl<Svc: Clone, S: Clone> Clone for AuthRefresh<Svc, S> {
    /// Each clone counts its own requests' references: clones on different threads share no cache line.
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.setup.source.clone(), Arc::clone(&self.setup.options))
    }
}

impl<Svc, S, B, ResB> Service<Request<B>> for AuthRefresh<Svc, S>
where
    Svc: Service<Request<ReplayBody<B>>, Response = Response<ResB>> + Clone,
    S: SessionSource,
    B: Body + Send + Unpin + 'static,
    ResB: Body,
{
    type Response = Svc::Response;
    type Error = Svc::Error;
    type Future = ResponseFuture<Svc, S, B, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ResponseFuture::begin(&mut self.inner, &mut self.last, Arc::clone(&self.setup), request)
    }
}
