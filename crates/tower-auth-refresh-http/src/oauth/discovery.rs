use http::{Method, StatusCode};
use serde_json::{Map, Value};

use crate::client::AuthClient;
use crate::endpoint::Endpoint;
use crate::error::{AuthServerError, Verdict};
use crate::verdict::{Call, Judge};

/// An authorization server's own description: where its endpoints are (RFC 8414).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
/// # use tower_auth_refresh_http::AuthClient;
/// # let client = AuthClient::new(tower::service_fn(|_: http::Request<http_body_util::Full<bytes::Bytes>>| async {
/// #     Ok::<_, tower::BoxError>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(
/// #         r#"{"issuer":"https://auth.example.com","token_endpoint":"https://auth.example.com/token"}"#,
/// #     ))))
/// # }));
/// use tower_auth_refresh_http::{AuthorizationServer, ClientAuth, OAuthRefresh};
///
/// let server = AuthorizationServer::discover(&client, "https://auth.example.com").await?;
/// let refresh = OAuthRefresh::new(client, server.token_endpoint(), ClientAuth::public("app"))?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct AuthorizationServer {
    members: Map<String, Value>,
    token_endpoint: String,
}

impl AuthorizationServer {
    /// Asks the server at `issuer` for its description.
    ///
    /// It is looked for where RFC 8414 puts it (`https://host/.well-known/oauth-authorization-server/path` for the
    /// issuer `https://host/path`), and if there is none, where OpenID Connect does
    /// (`https://host/path/.well-known/openid-configuration`): many servers know only that.
    ///
    /// # Errors
    ///
    /// [`AuthServerError`], among others if
    /// - the description's `issuer` isn't `issuer`, character by character: it is somebody else's (RFC 8414 §3.3);
    /// - it names no token endpoint;
    /// - one of the endpoints that this crate uses is none that a token may be sent to.
    pub async fn discover(client: &AuthClient, issuer: &str) -> Result<Self, AuthServerError> {
        let endpoint = endpoint(client, issuer)?;
        if endpoint.uri().query().is_some() {
            return Err(wrong("the issuer's URL has a query"));
        }
        let (origin, path) = split(issuer);
        let members = match get(client, &format!("{origin}/.well-known/oauth-authorization-server{path}")).await {
            // Not there, or something else is: a web app's start page, say.
            Err(none) if none.status().is_some_and(|status| !status.is_server_error() && status != 429) => {
                get(client, &format!("{origin}{path}/.well-known/openid-configuration")).await?
            }
            other => other?,
        };
        if members.get("issuer").and_then(Value::as_str) != Some(issuer) {
            return Err(wrong("the description found is another issuer's"));
        }
        let Some(token_endpoint) = members.get("token_endpoint").and_then(Value::as_str).map(str::to_owned) else {
            return Err(wrong("the description names no token endpoint"));
        };
        self::endpoint(client, &token_endpoint)?;
        let server = Self { members, token_endpoint };
        if let Some(url) = server.revocation_endpoint() {
            self::endpoint(client, url)?;
        }
        Ok(server)
    }

    /// The issuer's identifier.
    #[must_use]
    pub fn issuer(&self) -> &str {
        self.member("issuer").and_then(Value::as_str).unwrap_or_default()
    }

    /// For [`OAuthRefresh`](crate::OAuthRefresh) and [`ClientCredentials`](crate::ClientCredentials).
    #[must_use]
    pub fn token_endpoint(&self) -> &str {
        &self.token_endpoint
    }

    /// For [`OAuthRevoke`](crate::OAuthRevoke), if the server supports revocation.
    #[must_use]
    pub fn revocation_endpoint(&self) -> Option<&str> {
        self.member("revocation_endpoint")?.as_str()
    }

    /// Any member of the description (RFC 8414 §2): `token_endpoint_auth_methods_supported`, `scopes_supported`. URLs
    /// in it are unchecked.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Value> {
        self.members.get(name)
    }
}

async fn get(client: &AuthClient, url: &str) -> Result<Map<String, Value>, AuthServerError> {
    let endpoint = endpoint(client, url)?;
    let answer = client.send(AuthClient::request(Method::GET, &endpoint)).await?;
    let status = answer.status;
    // Asking uses nothing up.
    let members = Judge::new(Call::OAuth).judge(answer).map_err(AuthServerError::of_harmless_call)?;
    if status == StatusCode::OK { Ok(members) } else { Err(wrong("the answer is no description").status_is(status)) }
}

fn endpoint(client: &AuthClient, url: &str) -> Result<Endpoint, AuthServerError> {
    client.endpoint(url).map_err(|invalid| wrong("a URL of the authorization server is unfit").caused_by(invalid))
}

fn wrong(what: &'static str) -> AuthServerError {
    AuthServerError::new(Verdict::Misconfigured, what)
}

/// `https://host/path/` is the origin `https://host` and the path `/path`.
fn split(issuer: &str) -> (&str, &str) {
    let authority = issuer.find("://").map_or(0, |at| at + 3);
    let path = issuer[authority..].find('/').map_or(issuer.len(), |at| authority + at);
    (&issuer[..path], issuer[path..].trim_end_matches('/'))
}
