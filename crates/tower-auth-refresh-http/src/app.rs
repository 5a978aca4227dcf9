//! What the calls to an app's own endpoints share: [`AppCall`], a `POST` of JSON.

use std::future::Future;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::Full;
use serde_json::{Map, Value};
use tower::BoxError;

use crate::answer::Answer;
use crate::client::AuthClient;
use crate::endpoint::{Endpoint, InvalidEndpoint};
use crate::error::{AuthServerError, Verdict};

#[derive(Clone, Debug)]
pub(crate) struct AppCall {
    client: AuthClient,
    pub(crate) endpoint: Endpoint,
}

impl AppCall {
    pub(crate) fn new(client: AuthClient, url: &str) -> Result<Self, InvalidEndpoint> {
        let endpoint = client.endpoint(url)?;
        Ok(Self { client, endpoint })
    }

    /// Posts `members` as JSON, or nothing at all if there are none.
    pub(crate) fn post(
        &self,
        headers: HeaderMap,
        members: &Map<String, Value>,
    ) -> impl Future<Output = Result<Answer, AuthServerError>> + Send + use<> {
        let json = if members.is_empty() { Ok(Vec::new()) } else { serde_json::to_vec(members) };
        self.post_json(headers, json)
    }

    pub(crate) fn post_json(
        &self,
        headers: HeaderMap,
        json: Result<Vec<u8>, serde_json::Error>,
    ) -> impl Future<Output = Result<Answer, AuthServerError>> + Send + use<> {
        let sent = json.map(|json| {
            let mut request = AuthClient::request(Method::POST, &self.endpoint);
            request.headers_mut().extend(headers);
            if !json.is_empty() {
                request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                *request.body_mut() = Full::new(Bytes::from(json));
            }
            self.client.send(request)
        });
        async move {
            match sent {
                Ok(sent) => sent.await,
                // Its message names types and members, maybe values: not repeated.
                Err(_) => Err(unsendable("what is to be sent can't be written as JSON")),
            }
        }
    }
}

/// The call can't be made as it is.
pub(crate) fn unsendable(what: &'static str) -> AuthServerError {
    AuthServerError::new(Verdict::Misconfigured, what)
}

/// A header value that carries a secret, and says so to whoever prints headers or compresses them.
pub(crate) fn secret_header(value: String) -> Result<HeaderValue, AuthServerError> {
    let mut value = HeaderValue::try_from(value)
        .map_err(|invalid| unsendable("the token can't stand in a header").caused_by(BoxError::from(invalid)))?;
    value.set_sensitive(true);
    Ok(value)
}

/// `Authorization: Bearer …`
pub(crate) fn bearer(token: &str) -> Result<HeaderValue, AuthServerError> {
    secret_header(format!("Bearer {token}"))
}
