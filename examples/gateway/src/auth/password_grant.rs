//! The resource owner password grant (RFC 6749 §4.3).
//!
//! OAuth 2.1 removes this grant, because third-party apps must not see passwords. Here the login form, the gateway and
//! the authorization server belong to the same party.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use form_urlencoded::{Serializer, byte_serialize};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::{Map, Value};
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};

use super::LoginFailed;
use crate::client_address::X_FORWARDED_FOR;
use crate::proxy::{HttpsClient, https};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum size of a token response; real ones are far smaller.
const RESPONSE_LIMIT: usize = 64 * 1024;

/// A client of a token endpoint.
#[derive(Clone)]
pub(crate) struct PasswordGrant {
    client: HttpsClient<Full<Bytes>>,
    url: String,
    client_id: String,
    /// The `Authorization` header of a confidential client.
    authorization: Option<HeaderValue>,
}

#[derive(Deserialize)]
struct TokenResponse {
    access_token: Option<String>,
    refresh_token: Option<String>,
    token_type: Option<String>,
    /// Seconds. A number by the standard; some servers send a string.
    expires_in: Option<Value>,
    /// Present if the scope has `openid`.
    id_token: Option<Value>,
    error: Option<String>,
}

impl PasswordGrant {
    pub(super) fn new(tls: ClientConfig, url: &str, client_id: &str, client_secret: Option<&str>) -> Self {
        let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let authorization = client_secret.and_then(|secret| {
            let credentials = STANDARD.encode(format!("{}:{}", encoded(client_id), encoded(secret)));
            let mut value = HeaderValue::try_from(format!("Basic {credentials}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Self { client: https(tls), url: url.to_owned(), client_id: client_id.to_owned(), authorization }
    }

    pub(super) async fn request_tokens(
        &self,
        credentials: &Map<String, Value>,
        forwarded_for: Option<&HeaderValue>,
    ) -> Result<Tokens, LoginFailed> {
        let mut request = self.request(credentials)?;
        if let Some(forwarded_for) = forwarded_for {
            request.headers_mut().insert(X_FORWARDED_FOR, forwarded_for.clone());
        }
        match tokio::time::timeout(TIMEOUT, self.send(request)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(LoginFailed::Unavailable { retry_after: None }),
        }
    }

    fn request(&self, credentials: &Map<String, Value>) -> Result<Request<Full<Bytes>>, LoginFailed> {
        let text = |name: &str| credentials.get(name).and_then(Value::as_str).ok_or(LoginFailed::Malformed);
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "password");
        form.append_pair("username", text("username")?).append_pair("password", text("password")?);
        if let Ok(scope) = text("scope") {
            form.append_pair("scope", scope);
        }
        if self.authorization.is_none() {
            form.append_pair("client_id", &self.client_id);
        }
        let mut request = Request::post(&self.url)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(Full::from(form.finish()))
            .map_err(failed)?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Tokens, LoginFailed> {
        let unavailable = |retry_after| LoginFailed::Unavailable { retry_after };
        let response = self.client.request(request).await.map_err(|error| {
            tracing::warn!(%error, "call to the authorization server failed");
            unavailable(None)
        })?;
        let (status, retry_after) = (response.status(), retry_after(&response));
        let body = Limited::new(response.into_body(), RESPONSE_LIMIT).collect().await.map_err(failed)?.to_bytes();
        // The parser's error is discarded: it quotes the response, tokens included.
        let parsed: Option<TokenResponse> = serde_json::from_slice(&body).ok();
        match (status, parsed) {
            (StatusCode::OK, Some(parsed)) if parsed.error.is_none() => parsed.into_tokens(),
            (StatusCode::OK | StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED, Some(parsed))
                if parsed.error.as_deref() == Some("invalid_grant") =>
            {
                Err(LoginFailed::WrongCredentials)
            }
            // The other codes are about this client.
            (StatusCode::BAD_REQUEST, parsed)
                if parsed.as_ref().and_then(|parsed| parsed.error.as_deref()).is_none_or(is_about_credentials) =>
            {
                Err(LoginFailed::Malformed)
            }
            (StatusCode::TOO_MANY_REQUESTS, _) => Err(unavailable(retry_after)),
            (status, _) if status.is_server_error() => Err(unavailable(retry_after)),
            (status, _) => Err(failed(format!("the token endpoint returned {status}"))),
        }
    }
}

/// Checks if an error (RFC 6749 §5.2) is about the fields that the browser has sent.
fn is_about_credentials(error: &str) -> bool {
    matches!(error, "invalid_request" | "invalid_scope")
}

impl TokenResponse {
    fn into_tokens(self) -> Result<Tokens, LoginFailed> {
        if self.token_type.as_ref().is_some_and(|name| !name.eq_ignore_ascii_case("bearer")) {
            return Err(failed("the token response has a token type other than Bearer"));
        }
        let access = self.access_token.ok_or_else(|| failed("the token response has no access token"))?;
        let access = AccessToken::new(access).map_err(failed)?;
        let tokens = match self.refresh_token.filter(|token| !token.is_empty()) {
            Some(refresh) => Tokens::new(access, RefreshToken::new(refresh).map_err(failed)?),
            None => Tokens::from_access_token(access),
        };
        let tokens = match self.id_token {
            Some(id_token) => tokens.with_extra(Map::from_iter([("id_token".to_owned(), id_token)])),
            None => tokens,
        };
        // An invalid lifetime counts as unknown and does not fail the login.
        let lifetime = match self.expires_in {
            Some(Value::Number(seconds)) => seconds.as_f64(),
            Some(Value::String(seconds)) => seconds.trim().parse().ok(),
            _ => None,
        };
        let lifetime = lifetime.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Ok(tokens.with_expires_in(lifetime.unwrap_or_default()))
    }
}

fn failed(error: impl Into<tower::BoxError>) -> LoginFailed {
    LoginFailed::Failed(error.into())
}

fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}
