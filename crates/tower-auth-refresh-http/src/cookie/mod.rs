//! [`CookieRefresh`]: the refresh call with the refresh token in a cookie.

mod names;
mod set_cookie;

use std::future::Future;

use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::Value;
use tower_auth_refresh::{RefreshError, Tokens};

pub(crate) use self::names::{CookieNames, ReceivedCookies};
pub(crate) use self::set_cookie::CookieChange;
use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;
use crate::fields::TokenFields;
use crate::json_call::{JsonCall, JsonRequest};

/// The refresh call to an app that keeps its refresh token in an HTTP-only cookie.
///
/// The value of the cookie *is* the session's refresh token: it is stored, claimed and rotated like any other, and
/// there is no jar besides. The access token is in the body of the answer, or in [another
/// cookie](Self::access_token_cookie). The table of [`JsonRefresh`](crate::JsonRefresh) applies here too. A
/// `Set-Cookie` of the cookie's name rotates the refresh token; without one the old one is kept.
///
/// # The cookie's attributes
///
/// They are honoured as RFC 6265 says, and kept in [`Tokens::extra`]`("refresh_cookie")`, so that they outlive
/// the process:
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
/// use tower_auth_refresh_http::{AuthClient, CookieRefresh, InvalidEndpoint, TokenFields};
///
/// # fn configure(client: AuthClient) -> Result<CookieRefresh, InvalidEndpoint> {
/// let refresh = CookieRefresh::new(client, "https://app.example.com/auth/refresh", "refresh_token")?
///     .fields(TokenFields::camel_case());
/// # Ok(refresh) }
/// ```
///
/// By itself, without a session:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
/// # use tower_auth_refresh_http::{AuthClient, CookieRefresh};
/// # let client = AuthClient::new(tower::service_fn(|_: http::Request<http_body_util::Full<bytes::Bytes>>| async {
/// #     http::Response::builder()
/// #         .header("set-cookie", "rt=r2; Path=/auth; Max-Age=86400; Secure; HttpOnly")
/// #         .body(http_body_util::Full::new(bytes::Bytes::from(r#"{"access_token":"a2"}"#)))
/// # }));
/// use tower_auth_refresh::{RefreshToken, Tokens};
///
/// let refresh = CookieRefresh::new(client, "https://app.example.com/auth/refresh", "rt")?;
/// let tokens = refresh.refresh(&Tokens::from_refresh_token(RefreshToken::new("r1")?)).await?;
/// assert_eq!(tokens.refresh_token().unwrap().expose_secret(), "r2");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct CookieRefresh {
    call: JsonCall,
    cookies: CookieNames,
    fields: TokenFields,
    classifier: Classifier,
}

impl CookieRefresh {
    /// Creates the call to `url`, with the refresh token in the cookie `name`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str, name: impl Into<String>) -> Result<Self, InvalidEndpoint> {
        Ok(Self {
            call: JsonCall::new(client, url)?,
            cookies: CookieNames::with_refresh(name.into()),
            fields: TokenFields::default(),
            classifier: Classifier::new(Call::Refresh),
        })
    }

    /// Takes the access token from the cookie `name` of the answer. Default: from the body.
    ///
    /// The body is then optional. The cookie's expiry is that of the access token, if nothing else is known of it.
    #[must_use]
    pub fn access_token_cookie(mut self, name: impl Into<String>) -> Self {
        self.cookies.access = Some(name.into());
        self
    }

    /// Repeats the value of another cookie in a header, against CSRF ("double submit"). Default: none.
    ///
    /// The cookie is kept in [`Tokens::extra`]`("kept_cookies")`, sent back, and replaced by each answer that sets it.
    /// The header holds its percent-decoded value. May be called more than once.
    ///
    /// Without the cookie the call fails as misconfigured, before anything is sent.
    /// [`JsonLogin::keep_cookie`](crate::JsonLogin::keep_cookie) signs in with it; an app that signs in otherwise adds
    /// `{"kept_cookies": {"csrf_token": {"value": "…"}}}` by [`Tokens::with_extra`].
    ///
    /// ```
    /// # use tower_auth_refresh_http::{AuthClient, CookieRefresh, InvalidEndpoint};
    /// # fn configure(client: AuthClient) -> Result<CookieRefresh, InvalidEndpoint> {
    /// use http::HeaderName;
    ///
    /// let refresh = CookieRefresh::new(client, "https://app.example.com/auth/refresh", "refresh_token_cookie")?
    ///     .access_token_cookie("access_token_cookie")
    ///     .header_from_cookie(HeaderName::from_static("x-csrf-token"), "csrf_refresh_token");
    /// # Ok(refresh) }
    /// ```
    #[must_use]
    pub fn header_from_cookie(mut self, header: HeaderName, cookie: impl Into<String>) -> Self {
        self.cookies.header(header, cookie.into());
        self
    }

    /// Adds a member to the request's body, a JSON object. Default: none, and no body. May be called more than once.
    ///
    /// The name is a path, as in [`TokenFields`].
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

    /// Sets the `Content-Type` of a request that has a body. Default: `application/json`.
    #[must_use]
    pub fn content_type(mut self, value: HeaderValue) -> Self {
        self.call.content_type(value);
        self
    }

    /// Sends the expired access token too, as `Authorization: Bearer …`. Default: it isn't sent.
    #[must_use]
    pub fn access_token_as_bearer(mut self) -> Self {
        self.call.access_token_as_bearer();
        self
    }

    /// Sets the place of the access token in the answer's body. Default: [`TokenFields::default`].
    ///
    /// A refresh token in the body is ignored.
    #[must_use]
    pub fn fields(mut self, fields: TokenFields) -> Self {
        self.fields = fields;
        self
    }

    /// Adds a rule by which an answer rejects the refresh token and ends the session. Default: the table of
    /// [`JsonRefresh`](crate::JsonRefresh).
    ///
    /// The predicate sees every answer first, with a body of `null` where it isn't JSON.
    #[must_use]
    pub fn rejected_when(mut self, predicate: impl Fn(StatusCode, &Value) -> bool + Send + Sync + 'static) -> Self {
        self.classifier = self.classifier.rejected_when(predicate);
        self
    }

    /// Applies the table of [`OAuthRefresh`](crate::OAuthRefresh): a 401 without `invalid_grant` keeps the tokens.
    /// Default: a 401 of the app ends the session.
    ///
    /// For a server that answers 401 for other reasons too: a wrong API key, a CSRF token that doesn't match. Name the
    /// answers that reject the refresh token by [`rejected_when`](Self::rejected_when).
    #[must_use]
    pub fn with_oauth_rules(mut self) -> Self {
        self.classifier = self.classifier.with_oauth_rules();
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`RefreshError`], with an [`AuthServerError`] as its source.
    pub fn refresh(&self, tokens: &Tokens) -> impl Future<Output = Result<Tokens, RefreshError>> + Send + use<> {
        let sent = self.request(tokens).map(|request| self.call.send(request));
        let (this, tokens) = (self.clone(), tokens.clone());
        async move {
            let granted = async {
                let answer = sent?.await?;
                let received = this.cookies.rotated(&answer.headers, &this.call.endpoint, &tokens);
                this.classifier.tokens(answer, &this.fields, Some(received), tokens.refresh_token())
            };
            let granted = granted.await.map_err(|error| error.at(&this.call.endpoint))?;
            Ok(granted.into_tokens())
        }
    }

    fn request(&self, tokens: &Tokens) -> Result<JsonRequest, AuthServerError> {
        let mut request = self.call.request(tokens)?;
        self.cookies.apply(tokens, &self.call.endpoint, &mut request)?;
        Ok(request)
    }
}
