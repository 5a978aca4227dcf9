//! [`ClientCredentials`]: the client credentials grant.

use std::future::Future;

use tower_auth_refresh::{RefreshError, Tokens};

use super::{ClientAuth, OAuthCall};
use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::cookie::ReceivedCookies;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;
use crate::setters::setters;

/// The client credentials grant (RFC 6749 §4.4), for a service that acts for itself and has no refresh token.
///
/// It is a [`RefreshService`](tower_auth_refresh::RefreshService). The call consumes nothing, so it is never in doubt:
/// a lost answer counts as unavailable, and the call is repeated. Nor does it ever end the session: no user could sign
/// in again, and refused credentials are a matter of configuration.
///
/// ```
/// use tower_auth_refresh_http::{AuthClient, ClientAuth, ClientCredentials, InvalidEndpoint};
///
/// # fn configure(client: AuthClient) -> Result<ClientCredentials, InvalidEndpoint> {
/// let auth = ClientAuth::basic("billing", "s3cret");
/// let refresh = ClientCredentials::new(client, "https://auth.example.com/token", auth)?.scope("invoices:read");
/// # Ok(refresh) }
/// ```
#[derive(Clone, Debug)]
pub struct ClientCredentials {
    call: OAuthCall,
    classifier: Classifier,
}

impl ClientCredentials {
    /// Creates the call to the token endpoint `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no secret may be sent there.
    pub fn new(client: AuthClient, url: &str, auth: ClientAuth) -> Result<Self, InvalidEndpoint> {
        Ok(Self { call: OAuthCall::new(client, url, auth)?, classifier: Classifier::new(Call::OAuth) })
    }

    /// Requests scopes, separated by spaces. Default: the server's choice.
    #[must_use]
    pub fn scope(self, scope: impl Into<String>) -> Self {
        self.param("scope", scope)
    }

    setters!(param, header, fields);

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`RefreshError`], with an [`AuthServerError`] as its source.
    pub fn request_tokens(&self) -> impl Future<Output = Result<Tokens, RefreshError>> + Send + use<> {
        let sent = self.call.post(&[("grant_type", "client_credentials")]);
        let this = self.clone();
        async move {
            let granted = async { this.classifier.tokens(sent.await?, ReceivedCookies::default(), None) };
            let failed = |error: AuthServerError| error.of_repeatable_call().at(&this.call.endpoint);
            let mut granted = granted.await.map_err(failed)?;
            // RFC 6749 §4.4.3 advises against a refresh token here, and the session would have to present it.
            granted.refresh = None;
            Ok(granted.into_tokens())
        }
    }
}
