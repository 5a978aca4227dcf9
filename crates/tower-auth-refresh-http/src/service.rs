//! `tower`'s `Service` for every call of this crate, by one method of its own.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tower_auth_refresh::refresh::RevokeRequest;
use tower_auth_refresh::{RefreshError, RefreshRequest, Tokens};
use tower_service::Service;

use crate::{ClientCredentials, JsonLogout, JsonRefresh, OAuthRefresh, OAuthRevoke};

macro_rules! impl_service {
    (|$request:ident: $Request:ty| -> Result<$Response:ty, $Error:ty>, $($Call:ty: $method:ident($($argument:expr)?),)*) => {$(
        impl Service<$Request> for $Call {
            type Response = $Response;
            type Error = $Error;
            type Future = Pin<Box<dyn Future<Output = Result<$Response, $Error>> + Send>>;

            /// Always ready: the client's own readiness is part of the call and bounded with it.
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), $Error>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, $request: $Request) -> Self::Future {
                let _ = &$request;
                let called = self.$method($($argument)?);
                Box::pin(async move { called.await.map_err(RefreshError::from) })
            }
        }
    )*};
}

impl_service!(
    |request: RefreshRequest| -> Result<Tokens, RefreshError>,
    JsonRefresh: refresh(request.tokens()),
    OAuthRefresh: refresh(request.tokens()),
    ClientCredentials: request_tokens(),
);

impl_service!(
    |request: RevokeRequest| -> Result<(), RefreshError>,
    JsonLogout: revoke(request.tokens()),
    OAuthRevoke: revoke(request.tokens()),
);
