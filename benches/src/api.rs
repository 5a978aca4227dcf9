//! [`Api`]: the service at the bottom of every stack.

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

/// Reads the request's body to its end and answers 200 at once.
pub struct Api<E = Infallible>(PhantomData<fn() -> E>);

impl<E> Api<E> {
    /// An API whose error type is the stack's choice: it never fails.
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
    type Future = Answer<B, E>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Answer { request, error: PhantomData }
    }
}

/// The future of a call to an [`Api`].
pub struct Answer<B, E> {
    request: Request<B>,
    error: PhantomData<fn() -> E>,
}

impl<B: Body + Unpin, E> Future for Answer<B, E> {
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
