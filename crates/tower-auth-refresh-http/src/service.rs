//! `tower`'s `Service` for every call of this crate, by one method of its own.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tower_auth_refresh::{RefreshError, RefreshRequest, RevokeRequest, Tokens};
use tower_service::Service;

use crate::{AuthServerError, ClientCredentials, CookieRefresh, JsonLogout, JsonRefresh, OAuthRefresh, OAuthRevoke};

macro_rules! impl_service {
    ($service:ty, $request:ty => Result<$response:ty, $error:ty>, |$this:ident, $argument:ident| $call:expr) => {
        impl Service<$request> for $service {
            type Response = $response;
            type Error = $error;
            type Future = Pin<Box<dyn Future<Output = Result<$response, $error>> + Send>>;

            /// Always ready: the client's own readiness is part of the call and bounded with it.
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), $error>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, $argument: $request) -> Self::Future {
                let $this = self;
                Box::pin($call)
            }
        }
    };
}

impl_service!(JsonRefresh, RefreshRequest => Result<Tokens, RefreshError>, |this, request| this.refresh(request.tokens()));
impl_service!(CookieRefresh, RefreshRequest => Result<Tokens, RefreshError>, |this, request| this.refresh(request.tokens()));
impl_service!(OAuthRefresh, RefreshRequest => Result<Tokens, RefreshError>, |this, request| this.refresh(request.tokens()));
impl_service!(ClientCredentials, RefreshRequest => Result<Tokens, RefreshError>, |this, _request| this.request_tokens());
impl_service!(JsonLogout, RevokeRequest => Result<(), AuthServerError>, |this, request| this.revoke(request.tokens()));
impl_service!(OAuthRevoke, RevokeRequest => Result<(), AuthServerError>, |this, request| this.revoke(request.tokens()));
