use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tower_auth_refresh::{RefreshError, RefreshRequest, Tokens};
use tower_service::Service;

use super::{ClientAuth, OAuthCall};
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;
use crate::fields::TokenFields;
use crate::verdict::{Call, Judge};

/// The client credentials grant (RFC 6749 §4.4): for a service that acts for itself, and has no refresh token.
///
/// It is a [`RefreshService`](tower_auth_refresh::RefreshService). The call uses nothing up, so that it is never in
/// doubt: what would be is unavailable, and tried again. Nor does it ever end the session: a service has nobody to
/// sign in again, and refused credentials are a matter of configuration.
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
}

impl ClientCredentials {
    /// The call to the token endpoint `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no secret may be sent there.
    pub fn new(client: AuthClient, url: &str, auth: ClientAuth) -> Result<Self, InvalidEndpoint> {
        Ok(Self { call: OAuthCall::new(client, url, auth)? })
    }

    /// The scopes to ask for, separated by spaces. Default: the server's choice.
    #[must_use]
    pub fn scope(self, scope: impl Into<String>) -> Self {
        self.param("scope", scope)
    }

    /// A further parameter: `audience`, `resource` (RFC 8707). Default: none. May be called more than once.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.call.param(name, value);
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`RefreshError`], with a [`AuthServerError`] as its source.
    pub fn request_tokens(&self) -> impl Future<Output = Result<Tokens, RefreshError>> + Send + use<> {
        let sent = self.call.post(&[("grant_type", "client_credentials")]);
        async move {
            let granted = async {
                let answer = sent.await?;
                let status = answer.status;
                TokenFields::default().read(Judge::new(Call::OAuth).judge(answer)?, status)
            };
            let mut granted = granted.await.map_err(AuthServerError::of_harmless_call)?;
            // Should not be there (RFC 6749 §4.4.3), and would have to be presented from then on.
            granted.refresh = None;
            Ok(granted.into_tokens())
        }
    }
}

impl Service<RefreshRequest> for ClientCredentials {
    type Response = Tokens;
    type Error = RefreshError;
    type Future = Pin<Box<dyn Future<Output = Result<Tokens, RefreshError>> + Send>>;

    /// Always ready: the client's own readiness is part of the call and bounded with it.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RefreshError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: RefreshRequest) -> Self::Future {
        Box::pin(self.request_tokens())
    }
}
