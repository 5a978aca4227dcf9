//! [`ClientCredentials`]: the client credentials grant.

use std::future::Future;

use http::{HeaderName, HeaderValue};
use tower_auth_refresh::{RefreshError, Tokens};

use super::{ClientAuth, OAuthCall};
use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;
use crate::fields::TokenFields;

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
    fields: TokenFields,
}

impl ClientCredentials {
    /// Creates the call to the token endpoint `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no secret may be sent there.
    pub fn new(client: AuthClient, url: &str, auth: ClientAuth) -> Result<Self, InvalidEndpoint> {
        Ok(Self { call: OAuthCall::new(client, url, auth)?, fields: TokenFields::default() })
    }

    /// Requests scopes, separated by spaces. Default: the server's choice.
    #[must_use]
    pub fn scope(self, scope: impl Into<String>) -> Self {
        self.param("scope", scope)
    }

    /// Adds a parameter: `audience`, `resource` (RFC 8707). Default: none. May be called more than once.
    ///
    /// A `grant_type` replaces the usual one.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.call.param(name, value);
        self
    }

    /// Sends a header. Default: none.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.call.header(name, value);
        self
    }

    /// Sets the places of the tokens in the answer. Default: [`TokenFields::default`].
    #[must_use]
    pub fn fields(mut self, fields: TokenFields) -> Self {
        self.fields = fields;
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`RefreshError`], with an [`AuthServerError`] as its source.
    pub fn request_tokens(&self) -> impl Future<Output = Result<Tokens, RefreshError>> + Send + use<> {
        let sent = self.call.post(&[("grant_type", "client_credentials")]);
        let this = self.clone();
        async move {
            let granted = async { Classifier::new(Call::OAuth).tokens(sent.await?, &this.fields, None, None) };
            let failed = |error: AuthServerError| error.of_repeatable_call().at(&this.call.endpoint);
            let mut granted = granted.await.map_err(failed)?;
            // RFC 6749 §4.4.3 advises against a refresh token here, and the session would have to present it.
            granted.refresh = None;
            Ok(granted.into_tokens())
        }
    }
}
