//! The authorization server: how users sign in and out, and how sessions renew their tokens.

mod password_grant;

use std::time::Duration;

use serde_json::{Map, Value};
use tower::BoxError;
use tower_auth_refresh::{Session, SessionBuilder, Tokens};
use tower_auth_refresh_http::{
    AuthClient, AuthServerError, ClientAuth, InvalidEndpoint, JsonLogin, JsonLogout, JsonRefresh, OAuthRefresh,
    OAuthRevoke,
};

use self::password_grant::PasswordGrant;
use crate::config::{AuthServer, InvalidSetting, Settings};

/// The calls to the authorization server.
#[derive(Clone)]
pub(crate) enum Auth {
    Json { login: JsonLogin, refresh: JsonRefresh, logout: JsonLogout },
    OAuth { login: PasswordGrant, refresh: OAuthRefresh, revoke: Option<OAuthRevoke> },
}

/// Why nobody was signed in.
#[derive(Debug)]
pub(crate) enum LoginFailed {
    /// The server's own word.
    WrongCredentials,
    /// The credentials lack what the server must be told.
    Incomplete,
    /// For now: the server is not there, or says "later".
    Unavailable { retry_after: Option<Duration> },
    /// The call went wrong, and trying again is no use.
    Failed(BoxError),
}

impl Auth {
    pub(crate) fn new(settings: &Settings) -> Result<Self, InvalidSetting> {
        let mut client = AuthClient::rustls();
        if settings.allow_plain_http {
            client = client.allow_plain_http();
        }
        match &settings.auth {
            AuthServer::Json(base) => {
                if base.contains('?') {
                    return Err(InvalidSetting::of("--auth", "the URL has a query"));
                }
                let url = |path: &str| format!("{}{path}", base.trim_end_matches('/'));
                Ok(Self::Json {
                    login: checked("--auth", &client, |client| JsonLogin::new(client, &url("/auth/login")))?,
                    refresh: checked("--auth", &client, |client| JsonRefresh::new(client, &url("/auth/refresh")))?,
                    logout: checked("--auth", &client, |client| JsonLogout::new(client, &url("/auth/logout")))?,
                })
            }
            AuthServer::OAuth { token_endpoint, revocation_endpoint, client_id, client_secret } => {
                let auth = match client_secret {
                    Some(secret) => ClientAuth::basic(client_id, secret),
                    None => ClientAuth::public(client_id),
                };
                let refresh = checked("--token-endpoint", &client, |client| {
                    OAuthRefresh::new(client, token_endpoint, auth.clone())
                })?;
                let revoke = revocation_endpoint.as_ref().map(|url| {
                    checked("--revocation-endpoint", &client, |client| OAuthRevoke::new(client, url, auth.clone()))
                });
                let revoke = revoke.transpose()?;
                let login = PasswordGrant::new(token_endpoint, client_id, client_secret.as_deref());
                Ok(Self::OAuth { login, refresh, revoke })
            }
        }
    }

    /// What every user's session is built from.
    pub(crate) fn sessions(&self) -> SessionBuilder {
        match self {
            Self::Json { refresh, logout, .. } => Session::builder(refresh.clone()).revoke(logout.clone()),
            Self::OAuth { refresh, revoke: Some(revoke), .. } => {
                Session::builder(refresh.clone()).revoke(revoke.clone())
            }
            Self::OAuth { refresh, revoke: None, .. } => Session::builder(refresh.clone()),
        }
    }

    /// Credentials in, tokens out.
    pub(crate) async fn login(&self, credentials: &Map<String, Value>) -> Result<Tokens, LoginFailed> {
        match self {
            Self::Json { login, .. } => Ok(login.request_tokens(credentials).await?),
            Self::OAuth { login, .. } => login.request_tokens(credentials).await,
        }
    }

    /// Gives tokens back that no session could be made for.
    pub(crate) async fn revoke(&self, tokens: &Tokens) -> Result<(), AuthServerError> {
        match self {
            Self::Json { logout, .. } => logout.revoke(tokens).await,
            Self::OAuth { revoke: Some(revoke), .. } => revoke.revoke(tokens).await,
            Self::OAuth { revoke: None, .. } => Ok(()),
        }
    }
}

/// Makes a call to the URL of a setting. Where plain HTTP is all that is wrong with it, that is told by the setting's name.
fn checked<C>(
    flag: &str,
    client: &AuthClient,
    make: impl Fn(AuthClient) -> Result<C, InvalidEndpoint>,
) -> Result<C, InvalidSetting> {
    make(client.clone()).map_err(|invalid| match make(client.clone().allow_plain_http()) {
        Ok(_) => InvalidSetting::plain_http(flag),
        Err(_) => InvalidSetting::of(flag, invalid),
    })
}

impl From<AuthServerError> for LoginFailed {
    fn from(error: AuthServerError) -> Self {
        if error.is_rejected() {
            Self::WrongCredentials
        } else if error.is_misconfigured() {
            Self::Failed(error.into())
        } else {
            // A login that is in doubt leaves at worst a session that nobody uses.
            tracing::warn!(%error, "a login failed");
            Self::Unavailable { retry_after: error.retry_after() }
        }
    }
}
