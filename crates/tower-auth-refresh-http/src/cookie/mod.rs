//! The refresh token in a cookie: [`CookieRefresh`].

mod set_cookie;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::COOKIE;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};
use tower_auth_refresh::{RefreshError, RefreshRequest, Tokens};
use tower_service::Service;

pub(crate) use self::set_cookie::RefreshCookie;
use self::set_cookie::{Attributes, Found, deleted};
use crate::app::{AppCall, unsendable};
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;
use crate::fields::TokenFields;
use crate::verdict::{Call, Judge};

/// The refresh call to an app that keeps its refresh token in an HTTP-only cookie.
///
/// The cookie's value *is* the session's refresh token: it is stored, claimed and rotated like any other, and there is
/// no jar besides. The access token comes in the answer's body, as for [`JsonRefresh`](crate::JsonRefresh), whose table
/// of answers holds here too. A `Set-Cookie` of the cookie's name rotates the refresh token; without one the old one is
/// kept.
///
/// # The cookie's attributes
///
/// They are honoured as RFC 6265 says, and kept in [`Tokens::extra`]`("refresh_cookie")`, so that they outlive
/// the process:
///
/// - `Domain` must cover the endpoint's host, or the cookie is ignored. Without it the cookie goes to this host alone.
/// - `Path` (by default the directory of the endpoint that set it) must cover the endpoint's path, or the cookie is
///   for other endpoints and ignored. Of several that do, the longest wins.
/// - `Secure` keeps it off `http://`, loopback aside. The name prefixes `__Secure-` and `__Host-` are checked.
/// - `Max-Age` goes before `Expires`. A cookie that is set with one in the past is deleted: the server's own word that
///   the session is over, so the session ends, if it comes with 2xx, 400 or 401. Once a kept cookie has expired it
///   isn't sent any more: the session ends too.
///
/// A session that is signed in with a cookie's bare value (`Tokens::new(access, RefreshToken::new(value)?)`) knows no
/// attributes; the cookie then goes to the endpoint until the server says more.
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
    call: AppCall,
    cookie: RefreshCookie,
    members: Map<String, Value>,
    fields: TokenFields,
    judge: Judge,
}

impl CookieRefresh {
    /// The call to `url`, with the refresh token in the cookie `name`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str, name: impl Into<String>) -> Result<Self, InvalidEndpoint> {
        Ok(Self {
            call: AppCall::new(client, url)?,
            cookie: RefreshCookie::named(name.into()),
            members: Map::new(),
            fields: TokenFields::default(),
            judge: Judge::new(Call::Refresh),
        })
    }

    /// A member of the request's body, a JSON object. Default: none, and no body. May be called more than once.
    #[must_use]
    pub fn member(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.members.insert(name.into(), value.into());
        self
    }

    /// Where the access token stands in the answer. Default: [`TokenFields::default`]. A refresh token in the body is
    /// not looked at.
    #[must_use]
    pub fn fields(mut self, fields: TokenFields) -> Self {
        self.fields = fields;
        self
    }

    /// Says which answers mean that the refresh token is no good, and so end the session, besides those of
    /// [`JsonRefresh`](crate::JsonRefresh). It is asked first, about every answer; the body is `null` where it isn't
    /// JSON. Default: none.
    #[must_use]
    pub fn rejected_when(mut self, says: impl Fn(StatusCode, &Value) -> bool + Send + Sync + 'static) -> Self {
        self.judge = self.judge.rejected_when(says);
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`RefreshError`], with a [`AuthServerError`] as its source.
    pub fn refresh(&self, tokens: &Tokens) -> impl Future<Output = Result<Tokens, RefreshError>> + Send + use<> {
        let sent = self.headers(tokens).map(|headers| self.call.post(headers, &self.members));
        let kept = Attributes::kept(tokens);
        let this = self.clone();
        async move {
            let answer = sent?.await?;
            let status = answer.status;
            let found = this.cookie.rotated(&answer.headers, &this.call.endpoint, kept.as_ref());
            if matches!(found, Found::Deleted) && (status.is_success() || matches!(status.as_u16(), 400 | 401)) {
                return Err(deleted(status).into());
            }
            let mut granted = this.fields.read(this.judge.judge(answer)?, status)?;
            granted.refresh_cookie(found, status)?;
            Ok(granted.into_tokens())
        }
    }

    fn headers(&self, tokens: &Tokens) -> Result<HeaderMap, AuthServerError> {
        let refresh = tokens.refresh_token().ok_or_else(|| unsendable("the session holds no refresh token"))?;
        let cookie = self.cookie.header(tokens, refresh, &self.call.endpoint)?;
        Ok(HeaderMap::from_iter([(COOKIE, cookie)]))
    }
}

impl Service<RefreshRequest> for CookieRefresh {
    type Response = Tokens;
    type Error = RefreshError;
    type Future = Pin<Box<dyn Future<Output = Result<Tokens, RefreshError>> + Send>>;

    /// Always ready: the client's own readiness is part of the call and bounded with it.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RefreshError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RefreshRequest) -> Self::Future {
        Box::pin(self.refresh(request.tokens()))
    }
}
