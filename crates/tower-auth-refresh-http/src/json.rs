//! [`JsonRefresh`]: the refresh call to an app's own JSON endpoint.

use std::future::Future;

use tower_auth_refresh::{RefreshError, Tokens};

use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::json_call::{JsonCall, no_refresh_token};
use crate::setters::setters;

/// The refresh call to an app's own endpoint: `POST /auth/refresh` with `{"refresh_token": …}`.
///
/// It is a [`RefreshService`](tower_auth_refresh::RefreshService): give it to a session, bare or layered.
/// [`recipes`](crate::recipes) has settings for many servers.
///
/// # Outcomes
///
/// | answer | outcome |
/// | --- | --- |
/// | 2xx, a JSON object with an access token | the new tokens |
/// | 401 with a JSON object, unless it challenges with the schemes of proxies only (`Basic`, `Digest`, `Negotiate`, `NTLM`, `Kerberos`) | the session ends |
/// | 401 without a body, unless it challenges with other schemes than `Bearer` and `DPoP` only | the session ends |
/// | 4xx with the JSON `error` `invalid_grant` and its like; a match of [`rejected_when`](Self::rejected_when) | the session ends |
/// | 3xx, any other 4xx, a body that isn't JSON; `invalid_client` and its like, at any status | misconfigured: the tokens are kept |
/// | 2xx with a JSON object, but no access token at its path | misconfigured; a new refresh token in it is kept |
/// | 503 with `Retry-After`; `temporarily_unavailable` | unavailable: tried again, no earlier than the server asked for |
/// | 429 | as above; without `Retry-After`, not within the same flight |
/// | nothing was sent | unavailable: tried again |
/// | any other 5xx, no answer, a broken one, any other 2xx | in doubt: the session's rotation policy decides; a new refresh token in a 2xx is kept |
///
/// # Paths
///
/// The names of members, here and in [`TokenFields`](crate::TokenFields), are paths: `variables.refreshToken`, or the JSON Pointer
/// `/variables/refreshToken`. Objects on the way are created.
///
/// # Cookies
///
/// With [`cookie`](Self::cookie) the value of the cookie *is* the session's refresh token: it is stored, claimed and
/// rotated like any other, and there is no jar besides. A `Set-Cookie` of the cookie's name rotates the refresh token;
/// without one the old one is kept, and a refresh token in the body is ignored. A request without members has no body.
///
/// The cookie's attributes are honoured as RFC 6265 says, and kept in [`Tokens::extra`]`("refresh_cookie")`, so that
/// they outlive the process:
///
/// - `Domain` must cover the endpoint's host, or the cookie is ignored. Without it the cookie is sent to this host
///   alone.
/// - `Path` (by default the directory of the endpoint that set it) must cover the endpoint's path, or the cookie is
///   for other endpoints and ignored. Of several that do, the longest takes precedence.
/// - `Secure` keeps it off `http://`, except for loopback. The name prefixes `__Secure-` and `__Host-` are checked.
/// - `Max-Age` takes precedence over `Expires`. A cookie that is set with an expiry in the past is deleted: in a 2xx or
///   4xx the session ends, by the app's own word. The deletion of a cookie of the same name for another domain or path
///   is ignored. A kept cookie that has expired isn't sent any more: the session ends too.
///
/// A session that is signed in with a cookie's bare value (`Tokens::new(access, RefreshToken::new(value)?)`) knows no
/// attributes; the cookie is then sent to the endpoint until an answer sets them.
/// [`JsonLogin::cookie`](crate::JsonLogin::cookie) signs in with them.
///
/// # Examples
///
/// ```
/// use serde_json::json;
/// use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonRefresh, TokenFields};
///
/// # fn configure(client: AuthClient) -> Result<JsonRefresh, InvalidEndpoint> {
/// let refresh = JsonRefresh::new(client, "https://api.example.com/auth/refresh")?
///     .refresh_token_field("refreshToken")
///     .member("device_id", json!("7f9c"))
///     .fields(TokenFields::camel_case())
///     .rejected_when(|status, body| status == 403 && body["code"] == "REFRESH_TOKEN_REVOKED");
/// # Ok(refresh) }
/// ```
///
/// Both tokens in cookies, and a CSRF token that is repeated in a header:
///
/// ```
/// # use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonRefresh};
/// # fn configure(client: AuthClient) -> Result<JsonRefresh, InvalidEndpoint> {
/// use http::HeaderName;
///
/// let refresh = JsonRefresh::new(client, "https://app.example.com/auth/refresh")?
///     .cookie("refresh_token_cookie")
///     .access_token_cookie("access_token_cookie")
///     .header_from_cookie(HeaderName::from_static("x-csrf-token"), "csrf_refresh_token");
/// # Ok(refresh) }
/// ```
///
/// By itself, without a session:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
/// # use tower_auth_refresh_http::{AuthClient, JsonRefresh};
/// # let client = AuthClient::new(tower::service_fn(|_: http::Request<http_body_util::Full<bytes::Bytes>>| async {
/// #     Ok::<_, tower::BoxError>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(
/// #         r#"{"access_token":"a2","refresh_token":"r2","expires_in":300}"#,
/// #     ))))
/// # }));
/// use tower_auth_refresh::{RefreshToken, Tokens};
///
/// let refresh = JsonRefresh::new(client, "https://api.example.com/auth/refresh")?;
/// let tokens = refresh.refresh(&Tokens::from_refresh_token(RefreshToken::new("r1")?)).await?;
/// assert_eq!(tokens.access_token().unwrap().expose_secret(), "a2");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct JsonRefresh {
    call: JsonCall,
    classifier: Classifier,
}

impl JsonRefresh {
    /// Creates the call to `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str) -> Result<Self, InvalidEndpoint> {
        Ok(Self { call: JsonCall::new(client, url)?, classifier: Classifier::new(Call::Refresh) })
    }

    setters!(refresh_token_field, refresh_token_as_bearer);

    /// Sends and receives the refresh token as this cookie, not in the body. Default: in the body.
    ///
    /// See [Cookies](Self#cookies).
    #[must_use]
    pub fn cookie(mut self, name: impl Into<String>) -> Self {
        self.call.cookies.refresh = Some(name.into());
        self
    }

    setters!(access_token_cookie, header_from_cookie);

    /// Sends the expired access token too, at this path of the request. Default: it isn't sent.
    #[must_use]
    pub fn access_token_field(mut self, path: impl AsRef<str>) -> Self {
        self.call.access_token_field(path.as_ref());
        self
    }

    /// Sends the expired access token too, as `Authorization: Bearer …`. Default: it isn't sent.
    #[must_use]
    pub fn access_token_as_bearer(mut self) -> Self {
        self.call.access_token_as_bearer = true;
        self
    }

    setters!(member, header, content_type, client_auth, fields, rejected_when);

    /// Applies the table of [`OAuthRefresh`](crate::OAuthRefresh): a 401 without `invalid_grant` keeps the tokens.
    /// Default: a 401 of the app ends the session.
    ///
    /// For a server that answers 401 for other reasons too: a wrong API key, a CSRF token that doesn't match. Name the
    /// answers that reject the refresh token by [`rejected_when`](Self::rejected_when).
    #[must_use]
    pub fn with_oauth_rules(mut self) -> Self {
        self.classifier.oauth_rules();
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`RefreshError`], with an [`AuthServerError`](crate::AuthServerError) as its source.
    pub fn refresh(&self, tokens: &Tokens) -> impl Future<Output = Result<Tokens, RefreshError>> + Send + use<> {
        let presented = tokens.refresh_token().ok_or_else(no_refresh_token);
        let sent = presented.and_then(|_| Ok(self.call.send(self.call.request(tokens)?)));
        let (this, tokens) = (self.clone(), tokens.clone());
        async move {
            let granted = async {
                let answer = sent?.await?;
                let received = this.call.cookies.rotated(&answer.headers, &this.call.endpoint, &tokens);
                this.classifier.tokens(answer, received, tokens.refresh_token())
            };
            let granted = granted.await.map_err(|error| error.at(&this.call.endpoint))?;
            Ok(granted.into_tokens())
        }
    }
}
