//! [`Api`]: the innermost service of every stack.

use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Empty;
use tower::Service;

/// A service that reads the request's body to its end and responds with 200 immediately.
pub struct Api<E = Infallible>(PhantomData<fn() -> E>);

impl<E> Api<E> {
    /// Creates a service that never fails; the stack chooses its error type.
    #[must_use]
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E> Default for Api<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> Clone for Api<E> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<B: Body + Unpin, E> Service<Request<B>> for Api<E> {
    type Response = Response<Empty<Bytes>>;
    type Error = E;
    type Future = ResponseFuture<B, E>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ResponseFuture { request, error: PhantomData }
    }
}

/// The response future of [`Api`].
pub struct ResponseFuture<B, E> {
    request: Request<B>,
    error: PhantomData<fn() -> E>,
}

impl<B: Body + Unpin, E> Future for ResponseFuture<B, E> {
    type Output = Result<Response<Empty<Bytes>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let body = self.request.body_mut();
        while !body.is_end_stream() {
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                Some(frame) => drop(frame),
                None => break,
            }
        }
        Poll::Ready(Ok(Response::new(Empty::new())))
    }
}
