//! [`AuthRefresh`]: the middleware itself, which hands each request to a [`ResponseFuture`].

use std::sync::{Arc, Mutex, PoisonError};
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
    setup: OwnSetup<Svc, S>,
    last: LastCredentials,
}

/// A service's reference to what requests share: one or the other.
#[derive(Debug)]
struct OwnSetup<Svc, S> {
    /// Before its first request. Many a clone never makes one: it is only cloned from.
    unused: Option<Arc<Setup<Svc, S>>>,
    used: Option<SharedSetup<Svc, S>>,
}

/// Counted twice: each clone of a service has a count of its own for its requests, so that clones on different threads
/// share no cache line; and to clone a service is to count one reference that all share.
pub(crate) type SharedSetup<Svc, S> = Arc<Arc<Setup<Svc, S>>>;

/// What the requests of all clones of a service share.
#[derive(Debug)]
pub(crate) struct Setup<Svc, S> {
    /// A clone that was never made ready, and reserves nothing: the few requests that are sent again, or later, take
    /// theirs from it. One for each request would cost more than all the rest of this crate.
    spare: Mutex<Svc>,
    pub(crate) source: S,
    pub(crate) options: Arc<Options>,
}

impl<Svc, S> OwnSetup<Svc, S> {
    fn new(setup: Arc<Setup<Svc, S>>) -> Self {
        Self { unused: Some(setup), used: None }
    }

    fn get(&self) -> &Arc<Setup<Svc, S>> {
        self.used.as_deref().or(self.unused.as_ref()).expect("it moves from one to the other")
    }

    /// For one more request.
    #[inline]
    fn share(&mut self) -> SharedSetup<Svc, S> {
        match &self.used {
            Some(setup) => Arc::clone(setup),
            None => self.share_first(),
        }
    }

    /// Moves it, so that the count that all clones share isn't touched.
    #[inline(never)]
    fn share_first(&mut self) -> SharedSetup<Svc, S> {
        let setup = Arc::new(self.unused.take().expect("it moves from one to the other"));
        Arc::clone(self.used.insert(setup))
    }
}

impl<Svc: Clone, S> Setup<Svc, S> {
    /// The inner service, not made ready.
    pub(crate) fn inner(&self) -> Svc {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<Svc: Clone, S> AuthRefresh<Svc, S> {
    pub(crate) fn new(inner: Svc, source: S, options: Arc<Options>) -> Self {
        let setup = Setup { spare: Mutex::new(inner.clone()), source, options };
        Self { inner, setup: OwnSetup::new(Arc::new(setup)), last: LastCredentials::default() }
    }
}

impl<Svc, S> AuthRefresh<Svc, S> {
    /// The inner service.
    pub fn get_ref(&self) -> &Svc {
        &self.inner
    }

    /// Takes the inner service out.
    pub fn into_inner(self) -> Svc {
        self.inner
    }
}

impl<Svc: Clone, S> Clone for AuthRefresh<Svc, S> {
    fn clone(&self) -> Self {
        let setup = OwnSetup::new(Arc::clone(self.setup.get()));
        Self { inner: self.inner.clone(), setup, last: LastCredentials::default() }
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
        ResponseFuture::begin(&mut self.inner, &mut self.last, self.setup.share(), request)
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
        let count =
            |service: &AuthRefresh<_, _>| service.setup.used.as_ref().map_or(0, |own| Arc::strong_count(own) - 1);

        let first = service.call(request());
        let mut clone = service.clone();
        let second = service.call(request());
        assert_eq!((count(&service), count(&clone)), (2, 0));
        let third = clone.call(request());
        assert_eq!((count(&service), count(&clone)), (2, 1));
        assert!(Arc::ptr_eq(service.setup.get(), clone.setup.get()));
        assert_eq!(Arc::strong_count(service.setup.get()), 2, "one for each of the two services");
        for answer in [first.await, second.await, third.await] {
            assert_eq!(answer.unwrap().status(), 200);
        }
        assert_eq!((count(&service), count(&clone)), (0, 0));
    }
}
