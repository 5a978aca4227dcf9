use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tower_auth_refresh::{RevokeRequest, Tokens};
use tower_service::Service;

use super::{ClientAuth, OAuthCall};
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;
use crate::verdict::{Call, Judge};

/// Token revocation (RFC 7009).
///
/// It is a [`RevokeService`](tower_auth_refresh::RevokeService): given to a session (`Session::builder(…).revoke(…)`),
/// it is called by `sign_out`, and for tokens that arrive after that. It revokes the refresh token, and with it all
/// access tokens of the same grant (RFC 7009 §2.1); without a refresh token, the access token.
///
/// ```
/// use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRevoke};
///
/// # fn configure(client: AuthClient) -> Result<OAuthRevoke, InvalidEndpoint> {
/// let revoke = OAuthRevoke::new(client, "https://auth.example.com/revoke", ClientAuth::public("app"))?;
/// # Ok(revoke) }
/// ```
#[derive(Clone, Debug)]
pub struct OAuthRevoke {
    call: OAuthCall,
}

impl OAuthRevoke {
    /// The call to the revocation endpoint `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str, auth: ClientAuth) -> Result<Self, InvalidEndpoint> {
        Ok(Self { call: OAuthCall::new(client, url, auth)? })
    }

    /// Makes the call by itself, without a session. Without any token there is nothing to do.
    ///
    /// # Errors
    ///
    /// [`AuthServerError`] for any answer but 2xx. A token that the server doesn't know is revoked: that is 200.
    pub fn revoke(&self, tokens: &Tokens) -> impl Future<Output = Result<(), AuthServerError>> + Send + use<> {
        let sent = match (tokens.refresh_token(), tokens.access_token()) {
            (Some(token), _) => Some((token.expose_secret(), "refresh_token")),
            (None, Some(token)) => Some((token.expose_secret(), "access_token")),
            (None, None) => None,
        };
        let sent = sent.map(|(token, hint)| self.call.post(&[("token", token), ("token_type_hint", hint)]));
        async move {
            match sent {
                Some(sent) => Judge::new(Call::OAuth).acknowledged(sent.await?),
                None => Ok(()),
            }
        }
    }
}

impl Service<RevokeRequest> for OAuthRevoke {
    type Response = ();
    type Error = AuthServerError;
    type Future = Pin<Box<dyn Future<Output = Result<(), AuthServerError>> + Send>>;

    /// Always ready: the client's own readiness is part of the call and bounded with it.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), AuthServerError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RevokeRequest) -> Self::Future {
        Box::pin(self.revoke(request.tokens()))
    }
}
