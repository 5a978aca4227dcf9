//! [`JsonLogout`]: signing out of an app.

use std::future::Future;
use std::time::SystemTime;

use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::Value;
use tower_auth_refresh::Tokens;

use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::cookie::CookieNames;
use crate::endpoint::InvalidEndpoint;
use crate::error::{AuthServerError, Kind};
use crate::json_call::{JsonCall, JsonRequest, bearer};
use crate::path::Path;

/// Reports the user's sign-out to an app: `POST /auth/logout` with `{"refresh_token": …}`.
///
/// It is a [`RevokeService`](tower_auth_refresh::RevokeService): a session (`Session::builder(…).revoke(…)`) calls it
/// on `sign_out`, and for tokens that arrive later. The session is signed out locally whatever the server answers.
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
    cookies: CookieNames,
    placement: Placement,
    with_access_token: bool,
}

/// The place of the refresh token in the request.
#[derive(Clone, Debug)]
enum Placement {
    Member(Path),
    Bearer,
}

impl JsonLogout {
    /// Creates the call to `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str) -> Result<Self, InvalidEndpoint> {
        Ok(Self {
            call: JsonCall::new(client, url)?,
            cookies: CookieNames::default(),
            placement: Placement::Member(Path::parse("refresh_token")),
            with_access_token: false,
        })
    }

    /// Sets the path of the refresh token in the request. Default: `refresh_token`.
    #[must_use]
    pub fn refresh_token_field(mut self, path: impl AsRef<str>) -> Self {
        self.placement = Placement::Member(Path::parse(path.as_ref()));
        self
    }

    /// Sends the refresh token as `Authorization: Bearer …`, not in the body. Default: in the body.
    #[must_use]
    pub fn refresh_token_as_bearer(mut self) -> Self {
        self.placement = Placement::Bearer;
        self
    }

    /// Sends the refresh token as this cookie, not in the body. Default: in the body.
    #[must_use]
    pub fn cookie(mut self, name: impl Into<String>) -> Self {
        self.cookies.refresh = Some(name.into());
        self
    }

    /// Repeats the value of a kept cookie in a header, as in
    /// [`CookieRefresh`](crate::CookieRefresh::header_from_cookie). Default: none.
    #[must_use]
    pub fn header_from_cookie(mut self, header: HeaderName, cookie: impl Into<String>) -> Self {
        self.cookies.header(header, cookie.into());
        self
    }

    /// Adds a member to the request. Default: none. May be called more than once.
    #[must_use]
    pub fn member(mut self, path: impl AsRef<str>, value: impl Into<Value>) -> Self {
        self.call.member(path.as_ref(), value.into());
        self
    }

    /// Sends a header. Default: none.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.call.header(name, value);
        self
    }

    /// Sends the access token too, as `Authorization: Bearer …`. Default: it isn't sent.
    ///
    /// The server may refuse an expired one, and leave the refresh token as it is. If the expiry is known to have
    /// passed, a 401 is an error.
    #[must_use]
    pub fn with_access_token(mut self) -> Self {
        self.call.access_token_as_bearer();
        self.with_access_token = true;
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`AuthServerError`], if the server may still accept the refresh token. 401, 403 and 404 are no errors: the user
    /// is signed out already. They are errors if the answer is the page of a proxy or firewall (HTML, a challenge with
    /// `Basic` and the like), or says that the client is wrong (`invalid_client`).
    pub fn revoke(&self, tokens: &Tokens) -> impl Future<Output = Result<(), AuthServerError>> + Send + use<> {
        let sent = self.request(tokens).map(|request| self.call.send(request));
        let endpoint = self.call.endpoint.clone();
        let expired = tokens.expires_at().is_some_and(|at| at <= SystemTime::now());
        let may_blame_access_token = self.with_access_token && expired;
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

    fn request(&self, tokens: &Tokens) -> Result<JsonRequest, AuthServerError> {
        let mut request = self.call.request(tokens)?;
        if let Some(refresh) = tokens.refresh_token() {
            self.cookies.apply(tokens, &self.call.endpoint, &mut request)?;
            match &self.placement {
                _ if self.cookies.refresh.is_some() => {}
                Placement::Member(path) => request.member(path, refresh.expose_secret().into())?,
                Placement::Bearer => request.authorization(bearer(refresh.expose_secret())?)?,
            }
        }
        Ok(request)
    }
}
