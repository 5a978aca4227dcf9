//! A refresh service of a user's own, and its unit tests: no session is needed.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::{Value, json};
use tower::{BoxError, Service, ServiceExt};
use tower_auth_refresh::refresh::Trigger;
use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Tokens};

/// The refresh call of a server that wants a device and a reason, and that answers a repeated call with the tokens of
/// the first.
#[derive(Clone)]
pub struct DeviceRefresh<C> {
    http: C,
    device: String,
}

impl<C> DeviceRefresh<C> {
    /// Creates the call for this device.
    pub fn new(http: C, device: impl Into<String>) -> Self {
        Self { http, device: device.into() }
    }
}

impl<C> Service<RefreshRequest> for DeviceRefresh<C>
where
    C: Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    type Response = Tokens;
    type Error = RefreshError;
    type Future = Pin<Box<dyn Future<Output = Result<Tokens, RefreshError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RefreshError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RefreshRequest) -> Self::Future {
        let call = self.request(&request);
        let mut http = self.http.clone();
        Box::pin(async move {
            let http = http.ready().await.map_err(RefreshError::unavailable)?;
            let response = http.call(call?).await.map_err(RefreshError::in_doubt)?;
            tokens(response).await
        })
    }
}

impl<C> DeviceRefresh<C> {
    fn request(&self, request: &RefreshRequest) -> Result<Request<Full<Bytes>>, RefreshError> {
        let token = request.refresh_token().ok_or_else(|| RefreshError::misconfigured("there is no refresh token"))?;
        let reason = match request.trigger() {
            Trigger::Early => "expiring",
            Trigger::Challenge => "refused",
            _ => "other",
        };
        let body = json!({
            "token": token.expose_secret(),
            "device": self.device,
            "reason": reason,
            "repeated": request.is_in_doubt(),
        });
        Ok(Request::post("https://api.example.com/session").body(Full::from(body.to_string())).expect("a valid URI"))
    }
}

async fn tokens(response: Response<Full<Bytes>>) -> Result<Tokens, RefreshError> {
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => return Err(RefreshError::rejected("the device is signed out")),
        status @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
            let error = RefreshError::unavailable(format!("the server answered {status}"));
            let delay = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            return Err(match delay {
                Some(seconds) => error.with_retry_after(Duration::from_secs(seconds)),
                None => error.without_retry(),
            });
        }
        status if status.is_client_error() => {
            return Err(RefreshError::misconfigured(format!("the server answered {status}")));
        }
        status => return Err(RefreshError::in_doubt(format!("the server answered {status}"))),
    }
    let body = Limited::new(response.into_body(), 64 * 1024).collect().await.map_err(RefreshError::in_doubt)?;
    // The parser's own error would quote the body.
    let malformed = || RefreshError::in_doubt("the answer is malformed");
    let body: Value = serde_json::from_slice(&body.to_bytes()).map_err(|_| malformed())?;
    let refresh = body["next"].as_str().ok_or_else(malformed)?;
    let refresh = RefreshToken::new(refresh).map_err(RefreshError::in_doubt)?;
    let Some(access) = body["token"].as_str().and_then(|token| AccessToken::new(token).ok()) else {
        // The refresh token is rotated all the same: the session saves it.
        return Err(RefreshError::in_doubt("the answer has no access token").with_refresh_token(refresh));
    };
    let lifetime = Duration::from_secs(body["seconds"].as_u64().unwrap_or_default());
    Ok(Tokens::new(access, refresh).with_expires_in(lifetime))
}

mod tests {
    use std::error::Error;
    use std::sync::{Arc, Mutex};

    use tower_auth_refresh::{RefreshErrorKind, RefreshService};

    use super::*;

    /// Calls the service over a server that answers with `status` and `body`. Returns the body of the request too.
    async fn call(
        request: RefreshRequest,
        status: u16,
        body: &'static str,
    ) -> (Result<Tokens, RefreshError>, Option<Value>) {
        let seen = Arc::new(Mutex::new(None));
        let log = Arc::clone(&seen);
        let server = tower::service_fn(move |request: Request<Full<Bytes>>| {
            let log = Arc::clone(&log);
            async move {
                let sent = request.into_body().collect().await?.to_bytes();
                *log.lock().unwrap() = Some(serde_json::from_slice(&sent)?);
                let response = Response::builder().status(status).header(RETRY_AFTER, "7").body(Full::from(body))?;
                Ok::<_, BoxError>(response)
            }
        });
        let answer = DeviceRefresh::new(server, "phone").oneshot(request).await;
        let sent = seen.lock().unwrap().take();
        (answer, sent)
    }

    fn request() -> RefreshRequest {
        RefreshRequest::new(Tokens::from_refresh_token(RefreshToken::new("r1").unwrap()))
    }

    fn is_refresh_service(_: &impl RefreshService) {}

    #[tokio::test]
    async fn the_call_carries_the_token_the_device_and_the_reason() {
        is_refresh_service(&DeviceRefresh::new(
            tower::service_fn(async |_: Request<Full<Bytes>>| Ok::<_, BoxError>(Response::new(Full::default()))),
            "phone",
        ));
        let body = r#"{"token":"a2","next":"r2","seconds":300}"#;
        let (answer, sent) = call(request().with_trigger(Trigger::Early), 200, body).await;
        assert_eq!(sent, Some(json!({"token": "r1", "device": "phone", "reason": "expiring", "repeated": false})));
        let tokens = answer.unwrap();
        assert_eq!(tokens.access_token().unwrap().expose_secret(), "a2");
        assert_eq!(tokens.refresh_token().unwrap().expose_secret(), "r2");
        assert!(tokens.expires_at().is_some());
    }

    #[tokio::test]
    async fn a_call_in_doubt_says_that_it_is_repeated() {
        let (_, sent) = call(request().with_in_doubt(true), 200, "{}").await;
        assert_eq!(sent, Some(json!({"token": "r1", "device": "phone", "reason": "refused", "repeated": true})));
    }

    #[tokio::test]
    async fn each_answer_is_classified_by_its_meaning_for_the_session() {
        for (status, body, kind) in [
            (401, "{}", RefreshErrorKind::Rejected),
            (429, "{}", RefreshErrorKind::Unavailable),
            (403, "{}", RefreshErrorKind::Misconfigured),
            (500, "{}", RefreshErrorKind::InDoubt),
            (200, "<html>", RefreshErrorKind::InDoubt),
        ] {
            let error = call(request(), status, body).await.0.unwrap_err();
            assert_eq!(error.kind(), kind, "{status} {body}: {}", error.source().unwrap());
            let delay = (status == 429).then_some(Duration::from_secs(7));
            assert_eq!((error.retry_after(), error.refresh_token()), (delay, None));
        }
    }

    #[tokio::test]
    async fn a_rotated_refresh_token_is_kept_if_the_access_token_is_missing() {
        let error = call(request(), 200, r#"{"next":"r2"}"#).await.0.unwrap_err();
        assert_eq!(error.refresh_token().unwrap().expose_secret(), "r2");
    }

    #[tokio::test]
    async fn a_session_without_a_refresh_token_causes_no_call() {
        let (answer, sent) = call(RefreshRequest::new(Tokens::default()), 200, "{}").await;
        assert_eq!(answer.unwrap_err().kind(), RefreshErrorKind::Misconfigured);
        assert_eq!(sent, None);
    }
}
