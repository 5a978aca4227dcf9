//! [`OAuthRevoke`]: token revocation.

use std::future::Future;

use tower_auth_refresh::Tokens;

use super::{ClientAuth, OAuthCall};
use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;

/// Token revocation (RFC 7009).
///
/// It is a [`RevokeService`](tower_auth_refresh::refresh::RevokeService): a session (`Session::builder(…).revoke(…)`) calls it
/// on `sign_out`, and for tokens that arrive later. It revokes the refresh token, and with it all access tokens of the
/// same grant (RFC 7009 §2.1); without a refresh token, the access token.
///
/// # Outcomes
///
/// | answer | outcome |
/// | --- | --- |
/// | 2xx; `invalid_grant`, `invalid_token` | revoked |
/// | nothing was sent, no answer, a broken one, 5xx, 429, `temporarily_unavailable` | an error: the session [repeats the call](tower_auth_refresh::SessionBuilder::revoke) |
/// | any other: `invalid_client`, `unsupported_token_type`, 401, 403 and 404 without such a code | an error, which is not repeated |
///
/// # Examples
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
    /// Creates the call to the revocation endpoint `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str, auth: ClientAuth) -> Result<Self, InvalidEndpoint> {
        Ok(Self { call: OAuthCall::new(client, url, auth)? })
    }

    /// Makes the call by itself, without a session. Without any token, it sends nothing.
    ///
    /// # Errors
    ///
    /// [`AuthServerError`] for any answer but 2xx. An unknown token counts as revoked: the server answers 200, or refuses
    /// it by `invalid_grant` or `invalid_token`. As a service for a session, the call fails with a
    /// [`RefreshError`](tower_auth_refresh::RefreshError) of that source, whose kind decides whether the call is
    /// repeated.
    pub fn revoke(&self, tokens: &Tokens) -> impl Future<Output = Result<(), AuthServerError>> + Send + use<> {
        let sent = match (tokens.refresh_token(), tokens.access_token()) {
            (Some(token), _) => Some((token.expose_secret(), "refresh_token")),
            (None, Some(token)) => Some((token.expose_secret(), "access_token")),
            (None, None) => None,
        };
        let sent = sent.map(|(token, hint)| self.call.post(&[("token", token), ("token_type_hint", hint)]));
        let endpoint = self.call.endpoint.clone();
        async move {
            let Some(sent) = sent else { return Ok(()) };
            let revoked = async { Classifier::new(Call::OAuth).revoked(sent.await?) };
            revoked.await.map_err(|error| error.at(&endpoint))
        }
    }
}
