//! [`JsonLogout`]: signing out of an app.

use std::future::Future;
use std::time::SystemTime;

use http::StatusCode;
use tower_auth_refresh::Tokens;

use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::error::{AuthServerError, Kind};
use crate::json_call::JsonCall;
use crate::setters::setters;

/// Reports the user's sign-out to an app: `POST /auth/logout` with `{"refresh_token": …}`.
///
/// It is a [`RevokeService`](tower_auth_refresh::refresh::RevokeService): a session (`Session::builder(…).revoke(…)`) calls it
/// on `sign_out`, and for tokens that arrive later. The session is signed out locally whatever the server answers.
///
/// # Outcomes
///
/// | answer | outcome |
/// | --- | --- |
/// | 2xx; 401, 403 or 404, unless it is the page of a proxy or firewall or blames the client | signed out |
/// | nothing was sent, no answer, a broken one, 5xx, 429, `temporarily_unavailable` | an error: the session [repeats the call](tower_auth_refresh::SessionBuilder::revoke) |
/// | any other | an error, which is not repeated |
///
/// # Examples
///
/// ```
/// use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonLogout};
///
/// # fn configure(client: AuthClient) -> Result<JsonLogout, InvalidEndpoint> {
/// let logout = JsonLogout::new(client, "https://api.example.com/auth/logout")?.with_access_token();
/// # Ok(logout) }
/// ```
#[derive(Clone, Debug)]
pub struct JsonLogout {
    call: JsonCall,
}

impl JsonLogout {
    /// Creates the call to `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str) -> Result<Self, InvalidEndpoint> {
        Ok(Self { call: JsonCall::new(client, url)? })
    }

    setters!(refresh_token_field, refresh_token_as_bearer);

    /// Sends the refresh token as this cookie, not in the body. Default: in the body.
    #[must_use]
    pub fn cookie(mut self, name: impl Into<String>) -> Self {
        self.call.cookies.refresh = Some(name.into());
        self
    }

    setters!(header_from_cookie, member, header, content_type, client_auth);

    /// Sends the access token too, as `Authorization: Bearer …`. Default: it isn't sent.
    ///
    /// The server may refuse an expired one, and leave the refresh token as it is. If the expiry is known to have
    /// passed, a 401 is an error.
    #[must_use]
    pub fn with_access_token(mut self) -> Self {
        self.call.access_token_as_bearer = true;
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`AuthServerError`], if the server may still accept the refresh token. 401, 403 and 404 are no errors: the user
    /// is signed out already. They are errors if the answer is the page of a proxy or firewall (HTML, a challenge with
    /// `Basic` and the like), or says that the client is wrong (`invalid_client`). As a service for a session, the call
    /// fails with a [`RefreshError`](tower_auth_refresh::RefreshError) of that source, whose kind decides whether the
    /// call is repeated.
    pub fn revoke(&self, tokens: &Tokens) -> impl Future<Output = Result<(), AuthServerError>> + Send + use<> {
        let sent = self.call.request(tokens).map(|request| self.call.send(request));
        let endpoint = self.call.endpoint.clone();
        let expired = tokens.expires_at().is_some_and(|at| at <= SystemTime::now());
        let may_blame_access_token = self.call.access_token_as_bearer && expired;
        async move {
            let signed_out = async {
                let answer = sent?.await?;
                if may_blame_access_token && answer.status == StatusCode::UNAUTHORIZED {
                    let problem = "the server refused the logout, whose access token has expired";
                    return Err(AuthServerError::new(Kind::Rejected, problem).with_status(answer.status));
                }
                Classifier::new(Call::Refresh).signed_out(answer)
            };
            signed_out.await.map_err(|error| error.at(&endpoint))
        }
    }
}
