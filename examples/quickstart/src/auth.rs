//! The calls to the authorization server: `/auth/login`, and `/auth/refresh` as the session's refresh service.

use bytes::Bytes;
use http::{Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tower::BoxError;
use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Tokens};

/// A client of the authorization server.
#[derive(Clone)]
pub(crate) struct AuthServer {
    client: Client<HttpConnector, Full<Bytes>>,
    origin: String,
}

#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    refresh_token: String,
    expires_in: u64,
}

impl AuthServer {
    pub(crate) fn new(origin: String) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), origin }
    }

    /// Signs `user` in and returns the first tokens.
    pub(crate) async fn login(&self, user: &str) -> Result<Tokens, BoxError> {
        let (status, body) =
            self.post("/auth/login", &json!({ "username": user, "password": "correct horse" })).await?;
        if status != StatusCode::OK {
            return Err(format!("/auth/login returned {status}").into());
        }
        tokens(&body)
    }

    /// Exchanges the refresh token for new tokens, and classifies errors.
    ///
    /// Only a 401, the server's statement that the refresh token is invalid, ends the session.
    pub(crate) async fn refresh(self, request: RefreshRequest) -> Result<Tokens, RefreshError> {
        let token = request.refresh_token().ok_or_else(|| RefreshError::misconfigured("no refresh token"))?;
        let body = json!({ "refresh_token": token.expose_secret() });
        let (status, body) = self.post("/auth/refresh", &body).await.map_err(RefreshError::in_doubt)?;
        match status {
            StatusCode::OK => tokens(&body).map_err(RefreshError::in_doubt),
            StatusCode::UNAUTHORIZED => Err(RefreshError::rejected("/auth/refresh returned 401")),
            status if status.is_server_error() => {
                Err(RefreshError::in_doubt(format!("/auth/refresh returned {status}")))
            }
            status => Err(RefreshError::misconfigured(format!("/auth/refresh returned {status}"))),
        }
    }

    async fn post(&self, path: &str, body: &Value) -> Result<(StatusCode, Bytes), BoxError> {
        let request = Request::post(format!("{}{path}", self.origin))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))?;
        let response = self.client.request(request).await?;
        Ok((response.status(), response.into_body().collect().await?.to_bytes()))
    }
}

fn tokens(body: &[u8]) -> Result<Tokens, BoxError> {
    let response: TokenResponse = serde_json::from_slice(body)?;
    Ok(Tokens::new(AccessToken::new(response.access_token)?, RefreshToken::new(response.refresh_token)?)
        .with_expires_in(Duration::from_secs(response.expires_in)))
}
