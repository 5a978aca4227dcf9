//! [`RequireTokenLayer`] and [`RequireToken`]: refuse requests that would be sent without a token.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Request;
use pin_project_lite::pin_project;
use tower::BoxError;
use tower_service::Service;

use crate::report::RefreshReport;

/// A service inside the middleware that refuses requests for which there is no token.
///
/// It is made by a [`RequireTokenLayer`](crate::layer::RequireTokenLayer). The middleware marks such requests.
#[derive(Clone, Debug)]
pub struct RequireToken<Svc> {
    inner: Svc,
}

/// The mark in the extensions of a request that would be sent without a token.
#[derive(Clone, Debug)]
pub(crate) struct TokenMissing(pub(crate) RefreshReport);

pin_project! {
    /// The response future of [`RequireToken`].
    #[derive(Debug)]
    #[project = RequireTokenFutureProj]
    pub enum RequireTokenFuture<F> {
        /// Sent.
        #[doc(hidden)]
        Sent { #[pin] future: F },
        /// Refused.
        #[doc(hidden)]
        Refused { why: Option<RefreshReport> },
    }
}

impl<Svc> RequireToken<Svc> {
    pub(crate) fn new(inner: Svc) -> Self {
        Self { inner }
    }

    /// Gets a reference to the inner service.
    pub fn get_ref(&self) -> &Svc {
        &self.inner
    }

    /// Consumes `self`, returning the inner service.
    pub fn into_inner(self) -> Svc {
        self.inner
    }
}

impl<Svc, B> Service<Request<B>> for RequireToken<Svc>
where
    Svc: Service<Request<B>, Error: Into<BoxError>> + Clone,
{
    type Response = Svc::Response;
    type Error = BoxError;
    type Future = RequireTokenFuture<Svc::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match request.extensions_mut().remove::<TokenMissing>() {
            None => RequireTokenFuture::Sent { future: self.inner.call(request) },
            Some(TokenMissing(why)) => {
                // Returns the capacity that is reserved for the request. A clone has reserved nothing.
                self.inner = self.inner.clone();
                RequireTokenFuture::Refused { why: Some(why) }
            }
        }
    }
}

impl<F, Res, E> Future for RequireTokenFuture<F>
where
    F: Future<Output = Result<Res, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Res, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            RequireTokenFutureProj::Sent { future } => future.poll(cx).map_err(Into::into),
            RequireTokenFutureProj::Refused { why } => {
                Poll::Ready(Err(why.take().expect("a future is not polled after it has completed").into()))
            }
        }
    }
}
