//! [`AuthRefresh`]: the middleware, which passes each request to a [`ResponseFuture`].

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::credentials::LastCredentials;
use crate::future::ResponseFuture;
use crate::options::{Options, SessionSource};
use crate::replay::ReplayBody;
use crate::shared_setup::{PerClone, Setup};

/// A service that refreshes expired access tokens and replays the requests.
///
/// It is made by an [`AuthRefreshLayer`](crate::AuthRefreshLayer), and transparent: its responses and errors are the
/// inner service's own.
///
/// There is no `get_mut`: replays are sent through clones of the inner service as it was when the middleware was made,
/// which a later change of the inner service wouldn't reach.
#[derive(Debug)]
pub struct AuthRefresh<Svc, S> {
    inner: Svc,
    setup: PerClone<Setup<Svc, S>>,
    last: LastCredentials,
}

impl<Svc: Clone, S> AuthRefresh<Svc, S> {
    pub(crate) fn new(inner: Svc, source: S, options: Arc<Options>) -> Self {
        let setup = Setup::new(inner.clone(), source, options);
        Self { inner, setup: PerClone::new(setup), last: LastCredentials::default() }
    }
}

impl<Svc, S> AuthRefresh<Svc, S> {
    /// Gets a reference to the inner service.
    pub fn get_ref(&self) -> &Svc {
        &self.inner
    }

    /// Consumes `self`, returning the inner service.
    pub fn into_inner(self) -> Svc {
        self.inner
    }
}

impl<Svc: Clone, S> Clone for AuthRefresh<Svc, S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), setup: self.setup.clone(), last: LastCredentials::default() }
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
        ResponseFuture::begin(&mut self.inner, &mut self.last, self.setup.reference(), request)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;
    use tower::BoxError;
    use tower_layer::Layer;

    use super::*;
    use crate::{AuthRefreshLayer, Origins};

    #[tokio::test]
    async fn a_clone_has_a_count_of_its_own_for_its_requests_and_the_same_setup() {
        type Request = http::Request<ReplayBody<Empty<bytes::Bytes>>>;
        let inner = tower::service_fn(|_: Request| async { Ok::<_, BoxError>(Response::new(String::new())) });
        let mut service = AuthRefreshLayer::per_request(Origins::default()).layer(inner);
        let request = || http::Request::new(Empty::new());
        let count = |service: &AuthRefresh<_, _>| service.setup.references();

        let first = service.call(request());
        let mut clone = service.clone();
        let second = service.call(request());
        assert_eq!((count(&service), count(&clone)), (2, 0));
        let third = clone.call(request());
        assert_eq!((count(&service), count(&clone)), (2, 1));
        assert!(Arc::ptr_eq(service.setup.value(), clone.setup.value()));
        assert_eq!(Arc::strong_count(service.setup.value()), 2, "one for each of the two services");
        for answer in [first.await, second.await, third.await] {
            assert_eq!(answer.unwrap().status(), 200);
        }
        assert_eq!((count(&service), count(&clone)), (0, 0));
    }
}
