//! The kit as a [`RefreshService`], for sessions of `tower-auth-refresh`.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use serde_json::json;
use tower::ServiceExt;
use tower_auth_refresh::{
    AccessToken, InvalidToken, RefreshError, RefreshRequest, RefreshService, RefreshToken, Tokens,
};

use crate::body::ResponseBody;
use crate::{TestKit, TokenPair};

/// The longest response body that is read, far more than a token response has.
const BODY_LIMIT: usize = 64 * 1024;

#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    refresh_token: Option<String>,
    expires_in: Option<u64>,
}

impl TestKit {
    /// Returns a [`RefreshService`] that calls `/auth/refresh` without a socket.
    ///
    /// For tests of sessions and layers of `tower-auth-refresh`.
    #[must_use]
    pub fn refresh_service(&self) -> impl RefreshService + use<> {
        let kit = self.clone();
        tower::service_fn(move |request| refresh(kit.clone(), request))
    }
}

impl TryFrom<TokenPair> for Tokens {
    type Error = InvalidToken;

    fn try_from(pair: TokenPair) -> Result<Self, InvalidToken> {
        let tokens = Self::new(AccessToken::new(pair.access_token)?, RefreshToken::new(pair.refresh_token)?);
        Ok(tokens.with_expires_in(Duration::from_secs(pair.expires_in)))
    }
}

async fn refresh(kit: TestKit, request: RefreshRequest) -> Result<Tokens, RefreshError> {
    let Some(token) = request.refresh_token() else {
        return Err(RefreshError::misconfigured("the session has no refresh token"));
    };
    let body = json!({ "refresh_token": token.expose_secret() }).to_string();
    let request = Request::post("/auth/refresh").body(Full::<Bytes>::from(body)).expect("the path is a valid URI");
    let response = kit.oneshot(request).await.map_err(RefreshError::in_doubt)?;
    match response.status() {
        StatusCode::OK => tokens(response).await,
        status @ (StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED) => Err(RefreshError::rejected(message(status))),
        status @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
            let error = RefreshError::unavailable(message(status));
            let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
            Err(match retry_after {
                Some(seconds) => error.with_retry_after(Duration::from_secs(seconds)),
                None => error,
            })
        }
        status if status.is_server_error() => Err(RefreshError::in_doubt(message(status))),
        status => Err(RefreshError::misconfigured(message(status))),
    }
}

async fn tokens(response: Response<ResponseBody>) -> Result<Tokens, RefreshError> {
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(RefreshError::in_doubt)?.into_data() {
            text.extend_from_slice(&data);
        }
        if text.len() > BODY_LIMIT {
            return Err(RefreshError::in_doubt("the token response is too long"));
        }
    }
    // The parser's own error isn't kept, because it quotes its input.
    let malformed = |_| RefreshError::in_doubt("the token response is malformed");
    let response: TokenResponse = serde_json::from_slice(&text).map_err(malformed)?;
    let access = AccessToken::new(response.access_token).map_err(RefreshError::in_doubt)?;
    let tokens = match response.refresh_token {
        Some(token) => Tokens::new(access, RefreshToken::new(token).map_err(RefreshError::in_doubt)?),
        None => Tokens::from_access_token(access),
    };
    Ok(tokens.with_expires_in(Duration::from_secs(response.expires_in.unwrap_or_default())))
}

fn message(status: StatusCode) -> String {
    format!("the refresh endpoint returned {status}")
}
