//! [`AuthorizationServer`]: the endpoints of an authorization server, discovered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::endpoint::Endpoint;
use crate::error::AuthServerError;

/// The metadata of an authorization server: its endpoints and abilities (RFC 8414).
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
    /// Requests the metadata of the server at `issuer`.
    ///
    /// The URL is that of RFC 8414 (`https://host/.well-known/oauth-authorization-server/path` for the issuer
    /// `https://host/path`). If there is no metadata, that of OpenID Connect Discovery
    /// (`https://host/path/.well-known/openid-configuration`) is tried, the only one that many servers know.
    ///
    /// The clones of a client share the metadata for 10 minutes, of at most 16 issuers
    /// ([`AuthClient::metadata_lifetime`]). The size and the time are bounded as for all calls of the client.
    ///
    /// # Errors
    ///
    /// [`AuthServerError`], which names the URL of the metadata; among others if
    /// - the `issuer` in the metadata isn't `issuer`, character by character (RFC 8414 §3.3);
    /// - the metadata has no token endpoint;
    /// - no token may be sent to the token or the revocation endpoint. A sign-in checks the endpoints that it uses.
    pub async fn discover(client: &AuthClient, issuer: &str) -> Result<Self, AuthServerError> {
        let endpoint = client.endpoint(issuer).map_err(|invalid| {
            AuthServerError::misconfigured("no metadata is requested from the issuer's URL").with_source(invalid)
        })?;
        if endpoint.uri().query().is_some() {
            return Err(AuthServerError::misconfigured("the issuer's URL has a query").at(&endpoint));
        }
        if let Some(server) = client.metadata().get(issuer) {
            return Ok(server);
        }
        let (origin, path) = split(issuer);
        let of_oauth = format!("{origin}/.well-known/oauth-authorization-server{path}");
        let (source, members) = match get(client, &of_oauth).await {
            // Absent, or another page is there: the start page of a web app, for example.
            Err(error) if error.status().is_some_and(|status| !status.is_server_error() && status != 429) => {
                get(client, &format!("{origin}{path}/.well-known/openid-configuration")).await?
            }
            other => other?,
        };
        let server = Self::read(client, issuer, members).map_err(|error| error.at(&source))?;
        client.metadata().insert(issuer, &server);
        Ok(server)
    }

    fn read(client: &AuthClient, issuer: &str, members: Map<String, Value>) -> Result<Self, AuthServerError> {
        if members.get("issuer").and_then(Value::as_str) != Some(issuer) {
            return Err(AuthServerError::misconfigured("the metadata is that of another issuer"));
        }
        let Some(token_endpoint) = members.get("token_endpoint").and_then(Value::as_str).map(str::to_owned) else {
            return Err(AuthServerError::misconfigured("the metadata has no token endpoint"));
        };
        let server = Self { members, token_endpoint };
        for url in [Some(server.token_endpoint()), server.revocation_endpoint()].into_iter().flatten() {
            client.endpoint(url).map_err(|invalid| {
                AuthServerError::misconfigured("no token may be sent to an endpoint of the metadata")
                    .with_source(invalid)
            })?;
        }
        Ok(server)
    }

    /// The identifier of the issuer.
    #[must_use]
    pub fn issuer(&self) -> &str {
        self.member("issuer").and_then(Value::as_str).unwrap_or_default()
    }

    /// The endpoint for [`OAuthRefresh`](crate::OAuthRefresh) and [`ClientCredentials`](crate::ClientCredentials).
    #[must_use]
    pub fn token_endpoint(&self) -> &str {
        &self.token_endpoint
    }

    /// The endpoint for [`OAuthRevoke`](crate::OAuthRevoke), if the server supports revocation.
    #[must_use]
    pub fn revocation_endpoint(&self) -> Option<&str> {
        self.member("revocation_endpoint")?.as_str()
    }

    /// The endpoint that a browser sign-in opens, if the server has one.
    #[must_use]
    pub fn authorization_endpoint(&self) -> Option<&str> {
        self.member("authorization_endpoint")?.as_str()
    }

    /// The endpoint of the device grant (RFC 8628 §4), if the server has one.
    #[must_use]
    pub fn device_authorization_endpoint(&self) -> Option<&str> {
        self.member("device_authorization_endpoint")?.as_str()
    }

    /// Replaces the endpoints by their aliases for clients with a certificate (`mtls_endpoint_aliases`, RFC 8705 §5).
    ///
    /// An endpoint without an alias stays as it is.
    #[must_use]
    pub fn mtls_endpoints(mut self) -> Self {
        if let Some(Value::Object(aliases)) = self.members.remove("mtls_endpoint_aliases") {
            self.members
                .extend(aliases.into_iter().filter(|(name, url)| name.ends_with("_endpoint") && url.is_string()));
            if let Some(url) = self.members.get("token_endpoint").and_then(Value::as_str) {
                url.clone_into(&mut self.token_endpoint);
            }
        }
        self
    }

    /// A member of the metadata (RFC 8414 §2): `token_endpoint_auth_methods_supported`, `scopes_supported`.
    ///
    /// URLs in it are unchecked.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Value> {
        self.members.get(name)
    }
}

/// Returns the metadata at a URL, and that URL.
async fn get(client: &AuthClient, url: &str) -> Result<(Endpoint, Map<String, Value>), AuthServerError> {
    let endpoint = client.endpoint(url).map_err(|invalid| {
        AuthServerError::misconfigured("no metadata is requested from the issuer's URL").with_source(invalid)
    })?;
    let members = async {
        let answer = client.send(AuthClient::request(Method::GET, &endpoint)).await?;
        let status = answer.status;
        let members = Classifier::new(Call::OAuth).members(answer)?;
        if status == StatusCode::OK {
            Ok(members)
        } else {
            Err(AuthServerError::misconfigured("the answer is no metadata").with_status(status))
        }
    };
    match members.await {
        Ok(members) => Ok((endpoint, members)),
        Err(error) => Err(error.of_repeatable_call().at(&endpoint)),
    }
}

/// The metadata that the clones of a client share.
#[derive(Clone)]
pub(crate) struct MetadataCache {
    pub(crate) lifetime: Duration,
    entries: Arc<Mutex<VecDeque<(String, Instant, AuthorizationServer)>>>,
}

impl MetadataCache {
    /// The most issuers: far more than an app has.
    const CAPACITY: usize = 16;

    pub(crate) fn new() -> Self {
        Self { lifetime: Duration::from_secs(10 * 60), entries: Arc::default() }
    }

    fn get(&self, issuer: &str) -> Option<AuthorizationServer> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, since, server) = entries.iter().find(|(other, ..)| other == issuer)?;
        (since.elapsed() < self.lifetime).then(|| server.clone())
    }

    fn insert(&self, issuer: &str, server: &AuthorizationServer) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|(other, ..)| other != issuer);
        entries.truncate(Self::CAPACITY - 1);
        entries.push_front((issuer.to_owned(), Instant::now(), server.clone()));
    }
}

/// Splits `https://host/path/` into the origin `https://host` and the path `/path`.
fn split(issuer: &str) -> (&str, &str) {
    let authority = issuer.find("://").map_or(0, |at| at + 3);
    let path = issuer[authority..].find('/').map_or(issuer.len(), |at| authority + at);
    (&issuer[..path], issuer[path..].trim_end_matches('/'))
}
