//! [`JsonCall`]: a `POST` of JSON, shared by the calls to an app's own endpoints.

use std::future::Future;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::Full;
use serde_json::{Map, Value};
use tower::BoxError;
use tower_auth_refresh::Tokens;

use crate::answer::Answer;
use crate::client::AuthClient;
use crate::cookie::CookieNames;
use crate::endpoint::{Endpoint, InvalidEndpoint};
use crate::error::AuthServerError;
use crate::oauth::ClientAuth;
use crate::path::Path;

/// The parts of a call that don't change from one request to the next.
#[derive(Clone, Debug)]
pub(crate) struct JsonCall {
    client: AuthClient,
    pub(crate) endpoint: Endpoint,
    content_type: HeaderValue,
    headers: HeaderMap,
    auth: Option<ClientAuth>,
    members: Vec<(Path, Value)>,
    access_token_field: Option<Path>,
    pub(crate) access_token_as_bearer: bool,
    /// The place of the refresh token, unless it is in a cookie.
    placement: Placement,
    pub(crate) cookies: CookieNames,
}

#[derive(Clone, Debug)]
enum Placement {
    Member(Path),
    Bearer,
}

/// One request, under construction.
pub(crate) struct JsonRequest {
    headers: HeaderMap,
    members: Map<String, Value>,
}

impl JsonCall {
    pub(crate) fn new(client: AuthClient, url: &str) -> Result<Self, InvalidEndpoint> {
        let endpoint = client.endpoint(url)?;
        Ok(Self {
            client,
            endpoint,
            content_type: HeaderValue::from_static("application/json"),
            headers: HeaderMap::new(),
            auth: None,
            members: Vec::new(),
            access_token_field: None,
            access_token_as_bearer: false,
            placement: Placement::Member(Path::parse("refresh_token")),
            cookies: CookieNames::default(),
        })
    }

    pub(crate) fn content_type(&mut self, value: HeaderValue) {
        self.content_type = value;
    }

    pub(crate) fn header(&mut self, name: HeaderName, mut value: HeaderValue) {
        value.set_sensitive(name != ACCEPT);
        self.headers.insert(name, value);
    }

    pub(crate) fn client_auth(&mut self, auth: ClientAuth) {
        self.auth = Some(auth);
    }

    pub(crate) fn member(&mut self, path: &str, value: Value) {
        self.members.push((Path::parse(path), value));
    }

    pub(crate) fn access_token_field(&mut self, path: &str) {
        self.access_token_field = Some(Path::parse(path));
    }

    pub(crate) fn refresh_token_field(&mut self, path: &str) {
        (self.placement, self.cookies.refresh) = (Placement::Member(Path::parse(path)), None);
    }

    pub(crate) fn refresh_token_as_bearer(&mut self) {
        (self.placement, self.cookies.refresh) = (Placement::Bearer, None);
    }

    /// A request that presents these tokens.
    pub(crate) fn request(&self, tokens: &Tokens) -> Result<JsonRequest, AuthServerError> {
        let mut request = JsonRequest { headers: self.headers.clone(), members: Map::new() };
        for (path, value) in &self.members {
            request.member(path, value.clone())?;
        }
        if let Some(access) = tokens.access_token() {
            if let Some(path) = &self.access_token_field {
                request.member(path, access.expose_secret().into())?;
            }
            if self.access_token_as_bearer {
                request.authorization(bearer(access.expose_secret())?)?;
            }
        }
        if let Some(refresh) = tokens.refresh_token() {
            self.cookies.apply(tokens, &self.endpoint, &mut request)?;
            match &self.placement {
                _ if self.cookies.refresh.is_some() => {}
                Placement::Member(path) => request.member(path, refresh.expose_secret().into())?,
                Placement::Bearer => request.authorization(bearer(refresh.expose_secret())?)?,
            }
        }
        Ok(request)
    }

    /// Sends a request: its members as JSON, or no body if there are none.
    pub(crate) fn send(
        &self,
        request: JsonRequest,
    ) -> impl Future<Output = Result<Answer, AuthServerError>> + Send + use<> {
        let (this, mut request) = (self.clone(), request);
        async move {
            if let Some(auth) = &this.auth {
                let with = this.client.authenticate(auth).await?;
                request.members.extend(with.params.into_iter().map(|(name, value)| (name, value.into())));
                if let Some(value) = with.authorization {
                    request.authorization(value)?;
                }
            }
            let json = if request.members.is_empty() { Ok(Vec::new()) } else { serde_json::to_vec(&request.members) };
            this.post(request.headers, json).await
        }
    }

    /// Sends any JSON.
    pub(crate) fn send_json(
        &self,
        json: Result<Vec<u8>, serde_json::Error>,
    ) -> impl Future<Output = Result<Answer, AuthServerError>> + Send + use<> {
        self.post(self.headers.clone(), json)
    }

    fn post(
        &self,
        headers: HeaderMap,
        json: Result<Vec<u8>, serde_json::Error>,
    ) -> impl Future<Output = Result<Answer, AuthServerError>> + Send + use<> {
        let sent = json.map(|json| {
            let mut request = AuthClient::request(Method::POST, &self.endpoint);
            request.headers_mut().extend(headers);
            if !json.is_empty() {
                request.headers_mut().insert(CONTENT_TYPE, self.content_type.clone());
                *request.body_mut() = Full::new(Bytes::from(json));
            }
            self.client.send(request)
        });
        async move {
            match sent {
                Ok(sent) => sent.await,
                // The message of the source names types and members, perhaps values: it is left out.
                Err(_) => Err(AuthServerError::misconfigured("the request can't be written as JSON")),
            }
        }
    }
}

impl JsonRequest {
    pub(crate) fn member(&mut self, path: &Path, value: Value) -> Result<(), AuthServerError> {
        if path.set(value, &mut self.members) {
            Ok(())
        } else {
            Err(AuthServerError::misconfigured("the path of a member leads through a member that is no object"))
        }
    }

    pub(crate) fn authorization(&mut self, value: HeaderValue) -> Result<(), AuthServerError> {
        match self.headers.insert(AUTHORIZATION, value) {
            None => Ok(()),
            Some(_) => Err(AuthServerError::misconfigured("the request needs two Authorization headers")),
        }
    }

    pub(crate) fn header(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.insert(name, value);
    }

    pub(crate) fn cookie(&mut self, value: HeaderValue) {
        self.headers.insert(COOKIE, value);
    }
}

/// A header value that is marked as sensitive, so that it is neither logged nor compressed.
pub(crate) fn secret_header(value: String) -> Result<HeaderValue, AuthServerError> {
    let mut value = HeaderValue::try_from(value).map_err(|invalid| {
        AuthServerError::misconfigured("a token or cookie holds bytes that no header may hold")
            .with_source(BoxError::from(invalid))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// `Authorization: Bearer …`
fn bearer(token: &str) -> Result<HeaderValue, AuthServerError> {
    secret_header(format!("Bearer {token}"))
}

/// The failure of a call that needs a refresh token and has none.
pub(crate) fn no_refresh_token() -> AuthServerError {
    AuthServerError::misconfigured("the session holds no refresh token")
}
