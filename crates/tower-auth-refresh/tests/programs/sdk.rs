//! An SDK's client for one user: typed methods, an error type of its own, a session that is restored from a stored
//! refresh token and watched by the app.

use std::error::Error;
use std::fmt;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::sync::watch;
use tower::{BoxError, Layer, ServiceExt};
use tower_auth_refresh::{
    AuthRefresh, AuthRefreshLayer, NotRefreshed, Origin, RefreshReport, RefreshToken, ReplayBody, Session,
    SessionState, Tokens,
};
use tower_auth_refresh_http::{AuthClient, JsonRefresh};

type Body = Full<Bytes>;

/// The client of the notes API, for one user. Clones are cheap and share the session.
#[derive(Clone)]
pub struct NotesClient {
    http: AuthRefresh<Client<HttpConnector, ReplayBody<Body>>, Session>,
    session: Session,
    base: String,
}

/// A user of the notes API.
#[derive(Debug, PartialEq, Eq)]
pub struct Profile {
    pub name: String,
}

/// A call of the SDK failed.
#[derive(Debug)]
pub enum NotesError {
    /// The user must sign in again.
    SignInRequired(BoxError),
    /// The API or its authorization server can't be reached or is overloaded: try again later.
    Unavailable(BoxError),
    /// The API answered with this status.
    Status(StatusCode),
    /// The SDK was set up wrongly, or the API has changed.
    Internal(BoxError),
}

impl NotesClient {
    /// Restores a user's client from the refresh token that an earlier run has stored.
    pub async fn restore(base: &str, stored: &str) -> Result<Self, NotesError> {
        let stored = RefreshToken::new(stored).map_err(NotesError::internal)?;
        // A client of its own: the middleware gives the bodies of the API's client another type.
        let auth = AuthClient::new(Client::builder(TokioExecutor::new()).build_http());
        let refresh = JsonRefresh::new(auth, &format!("{base}/auth/refresh")).map_err(NotesError::internal)?;
        let session = Session::builder(refresh).tokens(Tokens::from_refresh_token(stored)).build().await;
        let session = session.map_err(NotesError::internal)?;

        let origin = Origin::parse(base).map_err(NotesError::internal)?;
        let http = Client::builder(TokioExecutor::new()).build_http();
        let http = AuthRefreshLayer::new(session.clone(), origin).layer(http);
        Ok(Self { http, session, base: base.to_owned() })
    }

    /// Returns the profile of the user.
    pub async fn profile(&self) -> Result<Profile, NotesError> {
        let answer = self.call(Method::GET, "/api/me", Body::default()).await?;
        let name = answer["user"].as_str().ok_or_else(|| NotesError::internal("the profile has no name"))?;
        Ok(Profile { name: name.to_owned() })
    }

    /// Adds a note, and returns its length.
    pub async fn add_note(&self, text: &str) -> Result<u64, NotesError> {
        let answer = self.call(Method::POST, "/api/notes", Body::from(text.to_owned())).await?;
        answer["body_length"].as_u64().ok_or_else(|| NotesError::internal("the note has no length"))
    }

    /// Returns the refresh token to store for the next run.
    pub fn refresh_token(&self) -> Option<RefreshToken> {
        self.session.tokens().refresh_token().cloned()
    }

    /// Watches the user's sign-in.
    pub fn watch(&self) -> watch::Receiver<SessionState> {
        self.session.subscribe()
    }

    async fn call(&self, method: Method, path: &str, body: Body) -> Result<Value, NotesError> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base)).body(body);
        let request = request.map_err(NotesError::internal)?;
        let response =
            self.http.clone().oneshot(request).await.map_err(|error| NotesError::Unavailable(error.into()))?;
        if !response.status().is_success() {
            return Err(NotesError::of(&response));
        }
        let body = response.into_body().collect().await.map_err(|error| NotesError::Unavailable(error.into()))?;
        serde_json::from_slice(&body.to_bytes()).map_err(NotesError::internal)
    }
}

impl NotesError {
    fn internal(error: impl Into<BoxError>) -> Self {
        Self::Internal(error.into())
    }

    fn of(response: &Response<Incoming>) -> Self {
        match response.extensions().get::<RefreshReport>() {
            Some(RefreshReport::NotRefreshed(why)) => match why {
                NotRefreshed::Ended(_) | NotRefreshed::SignedOut | NotRefreshed::NoRefreshToken => {
                    Self::SignInRequired(why.clone().into())
                }
                _ => Self::Unavailable(why.clone().into()),
            },
            Some(report @ RefreshReport::StepUp(_)) => Self::SignInRequired(report.clone().into()),
            _ => Self::Status(response.status()),
        }
    }
}

impl fmt::Display for NotesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SignInRequired(_) => f.write_str("the user must sign in again"),
            Self::Unavailable(_) => f.write_str("the notes API is unavailable"),
            Self::Status(status) => write!(f, "the notes API answered {status}"),
            Self::Internal(_) => f.write_str("the notes SDK failed"),
        }
    }
}

impl Error for NotesError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::SignInRequired(error) | Self::Unavailable(error) | Self::Internal(error) => Some(&**error),
            Self::Status(_) => None,
        }
    }
}

mod tests {
    use std::time::Duration;

    use futures_util::future::try_join_all;
    use tower_auth_refresh_testkit::{Fault, Route, TestServer};

    use super::*;

    async fn restored(server: &TestServer) -> NotesClient {
        let stored = server.sign_in("ada").refresh_token;
        NotesClient::restore(&server.origin(), &stored).await.unwrap()
    }

    #[tokio::test]
    async fn concurrent_calls_of_a_restored_client_share_one_refresh() {
        let server = TestServer::start().await.unwrap();
        let client = restored(&server).await;
        let profiles = try_join_all((0..10).map(|_| client.profile())).await.unwrap();
        assert!(profiles.iter().all(|profile| profile.name == "ada"));
        assert_eq!((server.counters().refreshes, server.counters().unauthorized()), (1, 0));

        server.expire_access_tokens();
        assert_eq!(client.add_note("buy milk").await.unwrap(), 8);
        assert_eq!(server.counters().refreshes, 2);

        // The next run starts from the refresh token that the last one left.
        let stored = client.refresh_token().unwrap();
        drop(client);
        let client = NotesClient::restore(&server.origin(), stored.expose_secret()).await.unwrap();
        assert_eq!(client.profile().await.unwrap(), Profile { name: "ada".into() });
        assert_eq!(server.violations(), []);
    }

    #[tokio::test]
    async fn the_app_learns_that_the_user_must_sign_in_again() {
        let server = TestServer::start().await.unwrap();
        let client = restored(&server).await;
        client.profile().await.unwrap();
        let mut states = client.watch();
        assert_eq!(*states.borrow_and_update(), SessionState::Active);
        let asks_to_sign_in = tokio::spawn(async move {
            let state = states.wait_for(|state| !state.is_signed_in()).await.unwrap();
            matches!(&*state, SessionState::Ended(error) if error.source().is_some())
        });

        server.revoke("ada");
        let error = client.profile().await.unwrap_err();
        assert!(matches!(error, NotesError::SignInRequired(_)), "{error:?}");
        assert!(tokio::time::timeout(Duration::from_secs(5), asks_to_sign_in).await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn an_overloaded_authorization_server_does_not_ask_the_user_to_sign_in() {
        let server = TestServer::start().await.unwrap();
        let client = restored(&server).await;
        client.profile().await.unwrap();
        server.expire_access_tokens();
        server.inject(Route::Refresh, Fault::status(429));
        let error = client.profile().await.unwrap_err();
        assert!(matches!(error, NotesError::Unavailable(_)), "{error:?}");
        assert!(client.watch().borrow().is_signed_in());
    }
}
