//! The `tower` service.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::TestKit;
use crate::body::{BoxError, ResponseBody};
use crate::exchange::Exchange;

/// The future of a call to a [`TestKit`].
pub type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, ConnectionDropped>> + Send>>;

impl<B> Service<Request<B>> for TestKit
where
    B: Body<Data: Buf + Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = ConnectionDropped;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(Exchange::begin(self, &request).run(request))
    }
}

/// A [`Fault`](crate::Fault) dropped the connection: what a call without a socket gets instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionDropped(pub(crate) ());

impl fmt::Display for ConnectionDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was dropped without an answer")
    }
}

impl Error for ConnectionDropped {}
