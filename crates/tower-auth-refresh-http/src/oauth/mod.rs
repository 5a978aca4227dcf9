//! OAuth 2.0 (RFC 6749): the refresh and client credentials grants, revocation (RFC 7009), discovery (RFC 8414).

#[cfg(feature = "private-key-jwt")]
mod assertion;
mod client_auth;
mod client_credentials;
mod discovery;
mod refresh;
mod revoke;

use std::fmt;
use std::future::Future;

use bytes::Bytes;
use form_urlencoded::Serializer;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::Full;
use secrecy::{ExposeSecret, SecretString};

#[cfg(feature = "private-key-jwt")]
pub use self::assertion::{InvalidKey, JwtSigner};
pub(crate) use self::client_auth::Authentication;
pub use self::client_auth::ClientAuth;
pub use self::client_credentials::ClientCredentials;
pub use self::discovery::AuthorizationServer;
pub(crate) use self::discovery::MetadataCache;
pub use self::refresh::OAuthRefresh;
pub use self::revoke::OAuthRevoke;
use crate::answer::Answer;
use crate::client::AuthClient;
use crate::endpoint::{Endpoint, InvalidEndpoint};
use crate::error::AuthServerError;

/// A `POST` of a form, with the client's authentication.
#[derive(Clone, Debug)]
pub(crate) struct OAuthCall {
    client: AuthClient,
    pub(crate) endpoint: Endpoint,
    auth: ClientAuth,
    headers: HeaderMap,
    /// `scope`, `audience`, `resource`.
    params: UserParams,
}

/// Parameters that the user adds. `Debug` shows their names alone: an `id_token_hint` is a secret.
#[derive(Clone, Default)]
pub(crate) struct UserParams(Vec<(String, String)>);

impl UserParams {
    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl fmt::Debug for UserParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

impl OAuthCall {
    pub(crate) fn new(client: AuthClient, url: &str, auth: ClientAuth) -> Result<Self, InvalidEndpoint> {
        let endpoint = client.endpoint(url)?;
        Ok(Self { client, endpoint, auth, headers: HeaderMap::new(), params: UserParams::default() })
    }

    pub(crate) fn param(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.params.add(name, value);
    }

    fn header(&mut self, name: HeaderName, mut value: HeaderValue) {
        value.set_sensitive(name != ACCEPT);
        self.headers.insert(name, value);
    }

    /// Sends `params`, except for those that the user replaces by another value.
    pub(crate) fn post(
        &self,
        params: &[(&str, &str)],
    ) -> impl Future<Output = Result<Answer, AuthServerError>> + Send + use<> {
        let mut form = Serializer::new(String::new());
        let replaced = |name: &str| self.params.iter().any(|(other, _)| other == name);
        form.extend_pairs(params.iter().filter(|(name, _)| !replaced(name))).extend_pairs(self.params.iter());
        let form = SecretString::from(form.finish());
        let mut request = AuthClient::request(Method::POST, &self.endpoint);
        let headers = request.headers_mut();
        headers.extend(self.headers.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let (client, authenticating) = (self.client.clone(), self.client.authenticate(&self.auth));
        async move {
            let with = authenticating.await?;
            let form = Serializer::new(form.expose_secret().to_owned()).extend_pairs(&with.params).finish();
            if let Some(authorization) = with.authorization {
                request.headers_mut().insert(AUTHORIZATION, authorization);
            }
            *request.body_mut() = Full::new(Bytes::from(form));
            client.send(request).await
        }
    }
}
