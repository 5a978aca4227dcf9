//! Calls to the authorization server: sign-in, refresh and sign-out.

mod password_grant;

use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value};
use tower::BoxError;
use tower_auth_refresh::{Session, SessionBuilder, Tokens};
use tower_auth_refresh_http::{
    AuthClient, AuthServerError, ClientAuth, InvalidEndpoint, JsonLogin, JsonLogout, JsonRefresh, OAuthRefresh,
    OAuthRevoke,
};

use self::password_grant::PasswordGrant;
use crate::client_address::{ClientAddress, X_FORWARDED_FOR};
use crate::config::{AuthServer, InvalidSetting, Settings};
use crate::tls;
use crate::user::with_user;

/// A client of the authorization server.
#[derive(Clone)]
pub(crate) enum Auth {
    Json { login: JsonLogin, refresh: Box<JsonRefresh>, logout: JsonLogout },
    OAuth { login: PasswordGrant, refresh: OAuthRefresh, revoke: Option<OAuthRevoke> },
}

/// The reason for a failed login.
#[derive(Debug)]
pub(crate) enum LoginFailed {
    /// The server rejected the credentials.
    WrongCredentials,
    /// The server can't read the credentials: one lacks, or is too long.
    Malformed,
    /// The server can't be reached, or asks to retry later.
    Unavailable { retry_after: Option<Duration> },
    /// The call failed, and a retry would fail too.
    Failed(BoxError),
}

impl Auth {
    pub(crate) fn new(settings: &Settings) -> Result<Self, InvalidSetting> {
        // Read first, because its errors name the setting and the file.
        let tls = tls::client::config("--auth", &settings.auth_tls)?;
        let mut client = tls::client::auth_client("--auth", &settings.auth_tls)?;
        if settings.allow_plain_http {
            client = client.allow_plain_http();
        }
        match &settings.auth {
            AuthServer::Json(base) => {
                if base.contains('?') {
                    return Err(InvalidSetting::of("--auth", "the URL must not have a query"));
                }
                let url = |path: &str| format!("{}{path}", base.trim_end_matches('/'));
                Ok(Self::Json {
                    login: checked("--auth", &client, |client| JsonLogin::new(client, &url("/auth/login")))?,
                    refresh: checked("--auth", &client, |client| JsonRefresh::new(client, &url("/auth/refresh")))?
                        .into(),
                    logout: checked("--auth", &client, |client| JsonLogout::new(client, &url("/auth/logout")))?,
                })
            }
            AuthServer::OAuth { token_endpoint, revocation_endpoint, client_id, client_secret } => {
                let auth = match client_secret {
                    Some(secret) => ClientAuth::basic(client_id, secret),
                    None if settings.auth_tls.identity.is_some() => ClientAuth::tls(client_id),
                    None => ClientAuth::public(client_id),
                };
                let refresh = checked("--token-endpoint", &client, |client| {
                    OAuthRefresh::new(client, token_endpoint, auth.clone())
                })?;
                let revoke = revocation_endpoint.as_ref().map(|url| {
                    checked("--revocation-endpoint", &client, |client| OAuthRevoke::new(client, url, auth.clone()))
                });
                let revoke = revoke.transpose()?;
                let login = PasswordGrant::new(tls, token_endpoint, client_id, client_secret.as_deref());
                Ok(Self::OAuth { login, refresh, revoke })
            }
        }
    }

    /// Returns the template of every user's session.
    pub(crate) fn session_template(&self) -> SessionBuilder {
        match self {
            Self::Json { refresh, logout, .. } => Session::builder((**refresh).clone()).revoke(logout.clone()),
            Self::OAuth { refresh, revoke: Some(revoke), .. } => {
                Session::builder(refresh.clone()).revoke(revoke.clone())
            }
            Self::OAuth { refresh, revoke: None, .. } => Session::builder(refresh.clone()),
        }
    }

    /// Exchanges the credentials of a client for tokens, which name their [user](crate::user).
    ///
    /// The server learns the client's address, for limits of its own: all logins come from the gateway's.
    pub(crate) async fn login(
        &self,
        credentials: &Map<String, Value>,
        client: Option<&ClientAddress>,
    ) -> Result<Tokens, LoginFailed> {
        let forwarded_for = client.map(ClientAddress::forwarded_for);
        let tokens = match (self, forwarded_for) {
            (Self::Json { login, .. }, None) => login.request_tokens(credentials).await?,
            (Self::Json { login, .. }, Some(forwarded_for)) => {
                let login = login.clone().header(X_FORWARDED_FOR, forwarded_for.clone());
                login.request_tokens(credentials).await?
            }
            (Self::OAuth { login, .. }, forwarded_for) => login.request_tokens(credentials, forwarded_for).await?,
        };
        Ok(with_user(tokens, credentials))
    }

    /// Revokes tokens for which no session could be created.
    pub(crate) async fn revoke(&self, tokens: &Tokens) -> Result<(), AuthServerError> {
        match self {
            Self::Json { logout, .. } => logout.revoke(tokens).await,
            Self::OAuth { revoke: Some(revoke), .. } => revoke.revoke(tokens).await,
            Self::OAuth { revoke: None, .. } => Ok(()),
        }
    }
}

/// Creates a call to the URL of a setting. If the URL would be valid with plain HTTP allowed, the error says so.
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
        } else if matches!(error.status(), Some(StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY)) {
            tracing::warn!(%error, "call to the authorization server failed");
            Self::Malformed
        } else if error.is_misconfigured() {
            Self::Failed(error.into())
        } else {
            // A login in doubt leaves at worst an unused session at the authorization server.
            tracing::warn!(%error, "call to the authorization server failed");
            Self::Unavailable { retry_after: error.retry_after() }
        }
    }
}
