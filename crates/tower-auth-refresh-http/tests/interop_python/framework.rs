//! [`Framework`]: the four servers, and the calls that each of them takes.

use std::fmt;
use std::time::Duration;

use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http_body_util::Full;
use serde_json::json;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};
use tower_auth_refresh::refresh::RevokeRequest;
use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Tokens};
use tower_auth_refresh_http::{
    AuthClient, ClientAuth, JsonLogin, JsonLogout, JsonRefresh, OAuthRefresh, OAuthRevoke, TokenFields,
};

use crate::server::{Server, User, call};

/// A call of this crate to a token endpoint.
pub(crate) type Refresher = BoxCloneSyncService<RefreshRequest, Tokens, RefreshError>;

/// A call of this crate that signs out.
pub(crate) type Revoker = BoxCloneSyncService<RevokeRequest, (), BoxError>;

/// A framework whose server is in `tests/interop/python`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Framework {
    DjangoOAuthToolkit,
    SimpleJwt,
    Authlib,
    FlaskJwtExtended,
}

impl Framework {
    pub(crate) const ALL: [Self; 4] =
        [Self::DjangoOAuthToolkit, Self::SimpleJwt, Self::Authlib, Self::FlaskJwtExtended];

    /// The name of the server's file, without `.py`.
    pub(crate) fn script(self) -> &'static str {
        match self {
            Self::DjangoOAuthToolkit => "django_oauth_toolkit_server",
            Self::SimpleJwt => "simplejwt_server",
            Self::Authlib => "authlib_server",
            Self::FlaskJwtExtended => "flask_jwt_extended_server",
        }
    }

    /// The path of an API route that answers 401 to an expired token.
    pub(crate) fn notes(self) -> &'static str {
        match self {
            Self::DjangoOAuthToolkit | Self::SimpleJwt => "/api/notes/",
            Self::Authlib => "/api/notes",
            Self::FlaskJwtExtended => "/notes",
        }
    }

    /// The path of a route beside [`notes`](Self::notes) that is forbidden to the user.
    pub(crate) fn admin(self) -> &'static str {
        match self {
            Self::DjangoOAuthToolkit | Self::SimpleJwt => "/api/admin/",
            Self::Authlib => "/api/admin",
            Self::FlaskJwtExtended => "/admin",
        }
    }

    /// The path of an API route that answers 403 to an expired token.
    pub(crate) fn forbidding_notes(self) -> &'static str {
        match self {
            Self::DjangoOAuthToolkit => "/plain/notes/",
            Self::SimpleJwt => "/session/notes/",
            Self::Authlib | Self::FlaskJwtExtended => "/forbidden/notes",
        }
    }

    /// The path of a route beside [`forbidding_notes`](Self::forbidding_notes) that is forbidden to the user.
    pub(crate) fn forbidding_admin(self) -> &'static str {
        match self {
            Self::DjangoOAuthToolkit => "/plain/admin/",
            Self::SimpleJwt => "/session/admin/",
            Self::Authlib | Self::FlaskJwtExtended => "/forbidden/admin",
        }
    }

    /// The time after which an access token has certainly expired.
    pub(crate) fn longest_lifetime(self) -> Duration {
        match self {
            Self::DjangoOAuthToolkit | Self::Authlib => Duration::from_millis(2_100),
            // A JWT's expiry is in whole seconds.
            Self::SimpleJwt | Self::FlaskJwtExtended => Duration::from_millis(3_100),
        }
    }

    /// Returns `true` if a restart forgets the refresh tokens. The other servers keep them in a database, or nowhere.
    pub(crate) fn forgets(self) -> bool {
        self == Self::Authlib
    }

    /// The refresh call of a user to the server at `base`.
    pub(crate) fn refresher(self, base: &str, user: &User) -> Refresher {
        let secret = user.client.as_ref().map_or("", |(_, secret)| secret);
        self.refresher_with_secret(base, user, secret)
    }

    /// The refresh call of a user's client, with this secret.
    pub(crate) fn refresher_with_secret(self, base: &str, user: &User, secret: &str) -> Refresher {
        let http = AuthClient::rustls();
        match self {
            Self::DjangoOAuthToolkit | Self::Authlib => {
                let (id, _) = user.client.as_ref().unwrap();
                let url = format!("{base}{}", self.token_path());
                BoxCloneSyncService::new(OAuthRefresh::new(http, &url, ClientAuth::basic(id, secret)).unwrap())
            }
            Self::SimpleJwt => BoxCloneSyncService::new(
                JsonRefresh::new(http, &format!("{base}/api/token/refresh/"))
                    .unwrap()
                    .refresh_token_field("refresh")
                    .fields(simplejwt_fields()),
            ),
            Self::FlaskJwtExtended => BoxCloneSyncService::new(
                JsonRefresh::new(http, &format!("{base}/refresh"))
                    .unwrap()
                    .refresh_token_as_bearer()
                    // A token that another key has signed.
                    .rejected_when(|status, body| status == 422 && body["msg"].is_string()),
            ),
        }
    }

    /// The sign-out call of a user.
    pub(crate) fn revoker(self, server: &Server, user: &User) -> Revoker {
        let http = AuthClient::rustls();
        match self {
            Self::DjangoOAuthToolkit | Self::Authlib => {
                let (id, secret) = user.client.as_ref().unwrap();
                let path = if self == Self::Authlib { "/oauth/revoke" } else { "/o/revoke_token/" };
                let revoke = OAuthRevoke::new(http, &server.url(path), ClientAuth::basic(id, secret)).unwrap();
                BoxCloneSyncService::new(revoke.map_err(Into::into))
            }
            Self::SimpleJwt => {
                let logout = JsonLogout::new(http, &server.url("/api/token/blacklist/")).unwrap();
                BoxCloneSyncService::new(logout.refresh_token_field("refresh").map_err(Into::into))
            }
            Self::FlaskJwtExtended => {
                let logout = JsonLogout::new(http, &server.url("/logout")).unwrap();
                BoxCloneSyncService::new(logout.refresh_token_as_bearer().map_err(Into::into))
            }
        }
    }

    /// Signs a user in, by the framework's own route; the OAuth servers by the password grant (RFC 6749 §4.3).
    pub(crate) async fn sign_in(self, server: &Server, user: &User) -> Tokens {
        let credentials = json!({"username": user.username, "password": user.password});
        let login = |path: &str| JsonLogin::new(AuthClient::rustls(), &server.url(path)).unwrap();
        match self {
            Self::DjangoOAuthToolkit | Self::Authlib => self.password_grant(server, user).await,
            Self::SimpleJwt => {
                login("/api/token/").fields(simplejwt_fields()).request_tokens(&credentials).await.unwrap()
            }
            Self::FlaskJwtExtended => login("/login").request_tokens(&credentials).await.unwrap(),
        }
    }

    async fn password_grant(self, server: &Server, user: &User) -> Tokens {
        let (id, secret) = user.client.as_ref().unwrap();
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "password")
            .append_pair("username", &user.username)
            .append_pair("password", &user.password)
            .append_pair("scope", "read")
            .finish();
        let request = Request::post(server.url(self.token_path()))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(AUTHORIZATION, basic(id, secret))
            .body(Full::from(form))
            .unwrap();
        let (status, answer) = call(request).await;
        let text = |name: &str| answer[name].as_str().unwrap_or_else(|| panic!("{status}: {answer}")).to_owned();
        let access = AccessToken::new(text("access_token")).unwrap();
        let refresh = RefreshToken::new(text("refresh_token")).unwrap();
        let lifetime = Duration::from_secs(answer["expires_in"].as_u64().unwrap());
        Tokens::new(access, refresh).with_expires_in(lifetime)
    }

    fn token_path(self) -> &'static str {
        if self == Self::Authlib { "/oauth/token" } else { "/o/token/" }
    }
}

impl fmt::Display for Framework {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DjangoOAuthToolkit => "django-oauth-toolkit",
            Self::SimpleJwt => "SimpleJWT",
            Self::Authlib => "Authlib",
            Self::FlaskJwtExtended => "Flask-JWT-Extended",
        })
    }
}

fn simplejwt_fields() -> TokenFields {
    TokenFields::default().access_token("access").refresh_token("refresh")
}

/// HTTP Basic as RFC 6749 §2.3.1 has it; a blank as `%20`, since Authlib leaves a `+` as it is.
fn basic(id: &str, secret: &str) -> String {
    use base64::Engine;
    let encoded = [id, secret]
        .map(|text| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20"));
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(encoded.join(":")))
}
