//! Signing in and out of an app: [`JsonLogin`] and [`JsonLogout`].

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use serde_core::Serialize;
use serde_json::{Map, Value};
use tower_auth_refresh::{RevokeRequest, Session, SessionError, Tokens};
use tower_service::Service;

use crate::app::{AppCall, bearer};
use crate::client::AuthClient;
use crate::cookie::RefreshCookie;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;
use crate::fields::TokenFields;
use crate::verdict::{Call, Judge};

/// Trades credentials for tokens: `POST /auth/login` with whatever the app asks for, as JSON.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
/// # use tower_auth_refresh_http::AuthClient;
/// # let client = AuthClient::new(tower::service_fn(|_: http::Request<http_body_util::Full<bytes::Bytes>>| async {
/// #     Ok::<_, tower::BoxError>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(
/// #         r#"{"access_token":"a1","refresh_token":"r1","expires_in":300}"#,
/// #     ))))
/// # }));
/// use serde_json::json;
/// use tower_auth_refresh::{Session, SessionState};
/// use tower_auth_refresh_http::{JsonLogin, JsonRefresh, LoginError};
///
/// let refresh = JsonRefresh::new(client.clone(), "https://api.example.com/auth/refresh")?;
/// let session = Session::builder(refresh).build().await?;
///
/// let login = JsonLogin::new(client, "https://api.example.com/auth/login")?;
/// let credentials = json!({"email": "ada@example.com", "password": "correct horse"});
/// match login.sign_in(&session, &credentials).await {
///     Ok(()) => {}
///     Err(LoginError::Call(error)) if error.is_rejected() => println!("wrong e-mail or password"),
///     Err(error) => println!("{error}"),
/// }
/// assert_eq!(session.state(), SessionState::Active);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct JsonLogin {
    call: AppCall,
    cookie: Option<RefreshCookie>,
    fields: TokenFields,
    judge: Judge,
}

impl JsonLogin {
    /// The call to `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no credentials may be sent there.
    pub fn new(client: AuthClient, url: &str) -> Result<Self, InvalidEndpoint> {
        Ok(Self {
            call: AppCall::new(client, url)?,
            cookie: None,
            fields: TokenFields::default(),
            judge: Judge::new(Call::Login),
        })
    }

    /// Where the tokens stand in the answer. Default: [`TokenFields::default`].
    #[must_use]
    pub fn fields(mut self, fields: TokenFields) -> Self {
        self.fields = fields;
        self
    }

    /// The refresh token comes as this cookie, for a [`CookieRefresh`](crate::CookieRefresh) to use. Default: it comes
    /// in the body.
    #[must_use]
    pub fn cookie(mut self, name: impl Into<String>) -> Self {
        self.cookie = Some(RefreshCookie::named(name.into()));
        self
    }

    /// Signs a session in.
    ///
    /// # Errors
    ///
    /// [`LoginError`]: from the call, and then the session is as it was; or from the session's store.
    pub fn sign_in<T>(
        &self,
        session: &Session,
        credentials: &T,
    ) -> impl Future<Output = Result<(), LoginError>> + Send + use<T>
    where
        T: Serialize + ?Sized,
    {
        let (call, session) = (self.request_tokens(credentials), session.clone());
        async move {
            let tokens = call.await.map_err(LoginError::Call)?;
            session.sign_in(tokens).await.map_err(LoginError::Session)
        }
    }

    /// Trades credentials for tokens, and leaves it to the caller what becomes of them.
    ///
    /// # Errors
    ///
    /// [`AuthServerError`]; wrong credentials are [rejected](AuthServerError::is_rejected): the server answered 401, or 400, 403
    /// or 422 with a JSON object.
    pub fn request_tokens<T>(
        &self,
        credentials: &T,
    ) -> impl Future<Output = Result<Tokens, AuthServerError>> + Send + use<T>
    where
        T: Serialize + ?Sized,
    {
        let sent = self.call.post_json(HeaderMap::new(), serde_json::to_vec(credentials));
        let this = self.clone();
        async move {
            let answer = sent.await?;
            let status = answer.status;
            let headers = answer.headers.clone();
            let mut granted = this.fields.read(this.judge.judge(answer)?, status)?;
            if let Some(cookie) = this.cookie {
                let found = cookie.issued(&headers, &this.call.endpoint);
                granted.refresh_cookie(found, status)?;
            }
            Ok(granted.into_tokens())
        }
    }
}

/// A session could not be signed in, or not all of the way.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoginError {
    /// The login failed: nobody is signed in who wasn't before.
    Call(AuthServerError),
    /// The user is signed in, but the session's store failed: see [`Session::sign_in`].
    Session(SessionError),
}

impl fmt::Display for LoginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Call(_) => "the login failed",
            Self::Session(_) => "the login succeeded, but not in all of the session",
        })
    }
}

impl Error for LoginError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Call(error) => Some(error),
            Self::Session(error) => Some(error),
        }
    }
}

/// Tells an app that the user signs out: `POST /auth/logout` with `{"refresh_token": …}`.
///
/// It is a [`RevokeService`](tower_auth_refresh::RevokeService): given to a session (`Session::builder(…).revoke(…)`),
/// it is called by `sign_out`, and for tokens that arrive after that. The session is signed out locally whatever the
/// server answers.
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
    call: AppCall,
    cookie: Option<RefreshCookie>,
    refresh_token_field: String,
    members: Map<String, Value>,
    with_access_token: bool,
    judge: Judge,
}

impl JsonLogout {
    /// The call to `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str) -> Result<Self, InvalidEndpoint> {
        Ok(Self {
            call: AppCall::new(client, url)?,
            cookie: None,
            refresh_token_field: "refresh_token".to_owned(),
            members: Map::new(),
            with_access_token: false,
            judge: Judge::new(Call::Refresh),
        })
    }

    /// The member of the request that holds the refresh token. Default: `refresh_token`.
    #[must_use]
    pub fn refresh_token_field(mut self, name: impl Into<String>) -> Self {
        self.refresh_token_field = name.into();
        self
    }

    /// Sends the refresh token as this cookie, not in the body. Default: in the body.
    #[must_use]
    pub fn cookie(mut self, name: impl Into<String>) -> Self {
        self.cookie = Some(RefreshCookie::named(name.into()));
        self
    }

    /// A further member of the request. Default: none. May be called more than once.
    #[must_use]
    pub fn member(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.members.insert(name.into(), value.into());
        self
    }

    /// Sends the access token too, as `Authorization: Bearer …`. Default: it isn't sent.
    #[must_use]
    pub fn with_access_token(mut self) -> Self {
        self.with_access_token = true;
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`AuthServerError`] for any answer but 2xx.
    pub fn revoke(&self, tokens: &Tokens) -> impl Future<Output = Result<(), AuthServerError>> + Send + use<> {
        let sent = self.request(tokens).map(|(headers, members)| self.call.post(headers, &members));
        let judge = self.judge.clone();
        async move { judge.acknowledged(sent?.await?) }
    }

    fn request(&self, tokens: &Tokens) -> Result<(HeaderMap, Map<String, Value>), AuthServerError> {
        let (mut headers, mut members) = (HeaderMap::new(), self.members.clone());
        if let Some(refresh) = tokens.refresh_token() {
            match &self.cookie {
                Some(cookie) => {
                    headers.insert(COOKIE, cookie.header(tokens, refresh, &self.call.endpoint)?);
                }
                None => {
                    members.insert(self.refresh_token_field.clone(), refresh.expose_secret().into());
                }
            }
        }
        if let (true, Some(access)) = (self.with_access_token, tokens.access_token()) {
            headers.insert(AUTHORIZATION, bearer(access.expose_secret())?);
        }
        Ok((headers, members))
    }
}

impl Service<RevokeRequest> for JsonLogout {
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
