//! [`JsonLogin`]: signing in to an app.

use std::error::Error;
use std::fmt;
use std::future::Future;

use serde_core::Serialize;
use tower_auth_refresh::{Session, SessionError, Tokens};

use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;
use crate::json_call::JsonCall;
use crate::setters::setters;

/// Exchanges credentials for tokens: `POST /auth/login` with the credentials as JSON.
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
    call: JsonCall,
    classifier: Classifier,
}

impl JsonLogin {
    /// Creates the call to `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no credentials may be sent there.
    pub fn new(client: AuthClient, url: &str) -> Result<Self, InvalidEndpoint> {
        Ok(Self { call: JsonCall::new(client, url)?, classifier: Classifier::new(Call::Login) })
    }

    setters!(fields, header, access_token_cookie);

    /// Takes the refresh token from this cookie, for [`JsonRefresh::cookie`](crate::JsonRefresh::cookie). Default: from
    /// the body.
    #[must_use]
    pub fn cookie(mut self, name: impl Into<String>) -> Self {
        self.call.cookies.refresh = Some(name.into());
        self
    }

    /// Keeps a further cookie, for a
    /// [header of the refresh call](crate::JsonRefresh::header_from_cookie). Default: none.
    ///
    /// May be called more than once.
    #[must_use]
    pub fn keep_cookie(mut self, name: impl Into<String>) -> Self {
        self.call.cookies.keep(name.into());
        self
    }

    /// Signs a session in.
    ///
    /// # Errors
    ///
    /// [`LoginError`]: from the call, and then the session is unchanged; or from the session's store.
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

    /// Exchanges credentials for tokens, without a session.
    ///
    /// # Errors
    ///
    /// [`AuthServerError`]. Wrong credentials are [rejected](AuthServerError::is_rejected): the server answered 401, or
    /// 400, 403 or 422 with a JSON object.
    pub fn request_tokens<T>(
        &self,
        credentials: &T,
    ) -> impl Future<Output = Result<Tokens, AuthServerError>> + Send + use<T>
    where
        T: Serialize + ?Sized,
    {
        let sent = self.call.send_json(serde_json::to_vec(credentials));
        let this = self.clone();
        async move {
            let granted = async {
                let answer = sent.await?;
                let received = this.call.cookies.issued(&answer.headers, &this.call.endpoint);
                this.classifier.tokens(answer, received, None)
            };
            let granted = granted.await.map_err(|error| error.at(&this.call.endpoint))?;
            Ok(granted.into_tokens())
        }
    }
}

/// A session could not be signed in, or only in part.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoginError {
    /// The login failed; the session is unchanged.
    Call(AuthServerError),
    /// The user is signed in, but the session's store failed: see [`Session::sign_in`].
    Session(SessionError),
}

impl fmt::Display for LoginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Call(_) => "the login failed",
            Self::Session(_) => "the login succeeded, but the session could not store the tokens",
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
