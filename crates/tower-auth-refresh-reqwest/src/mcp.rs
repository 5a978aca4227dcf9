//! [`McpClient`]: the HTTP client of `rmcp`'s transport, with the tokens of a session.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures_util::stream::BoxStream;
use http::{HeaderName, HeaderValue, StatusCode};
use rmcp::model::ClientJsonRpcMessage;
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse, StreamableHttpResponseLimits,
};
use sse_stream::Sse;
use tower_auth_refresh::{Credential, Session};

use crate::service::ReqwestService;

type Result<T> = std::result::Result<T, StreamableHttpError<reqwest::Error>>;
type Headers = HashMap<HeaderName, HeaderValue>;
type Events = BoxStream<'static, std::result::Result<Sse, SseError>>;

/// An HTTP client for the streamable transport of `rmcp`, which sends the token of a session.
///
/// If the server refuses the token, the session refreshes it once, however many calls were refused, and each of them is
/// sent again. The refusal reaches the caller if there is no newer token. A stream of events is opened with the token
/// in force at that moment, also when `rmcp` opens it again.
///
/// No redirect is followed, so the token is sent to the transport's own URL only. A token of the transport's
/// configuration (`auth_header`) has no effect.
///
/// ```no_run
/// # async fn example(session: tower_auth_refresh_reqwest::Session) -> Result<(), Box<dyn std::error::Error>> {
/// use rmcp::ServiceExt;
/// use rmcp::transport::StreamableHttpClientTransport;
/// use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
/// use tower_auth_refresh_reqwest::{McpClient, ReqwestService, reqwest};
///
/// let http = McpClient::new(session, &ReqwestService::new(reqwest::Client::builder())?);
/// let server = StreamableHttpClientTransportConfig::with_uri("https://mcp.example.com/mcp");
/// let client = ().serve(StreamableHttpClientTransport::with_client(http, server)).await?;
/// # let _ = client;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct McpClient {
    session: Session,
    client: reqwest::Client,
}

impl McpClient {
    /// Creates a client that sends the token of this session.
    #[must_use]
    pub fn new(session: Session, service: &ReqwestService) -> Self {
        Self { session, client: service.client().clone() }
    }

    /// Sends a request with the token in force, and again with a newer one if the server refuses that token.
    async fn send<T, F>(&self, send: impl Fn(Option<String>) -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let token = |credential: &Credential| Some(credential.access_token().expose_secret().to_owned());
        let Ok(credential) = self.session.credential().await else { return send(None).await };
        let outcome = send(token(&credential)).await;
        match &outcome {
            Err(error) if is_refusal(error) => {}
            _ => {
                self.session.accepted(&credential);
                return outcome;
            }
        }
        match self.session.renewed(&credential).await {
            Ok(newer) => send(token(&newer)).await,
            Err(_) => outcome,
        }
    }
}

fn is_refusal(error: &StreamableHttpError<reqwest::Error>) -> bool {
    match error {
        StreamableHttpError::AuthRequired(_) => true,
        StreamableHttpError::Client(error) => error.status() == Some(StatusCode::UNAUTHORIZED),
        _ => false,
    }
}

impl StreamableHttpClient for McpClient {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        token: Option<String>,
        headers: Headers,
    ) -> Result<StreamableHttpPostResponse> {
        let limits = StreamableHttpResponseLimits::default();
        self.post_message_with_response_limits(uri, message, session_id, token, headers, limits).await
    }

    async fn post_message_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        token: Option<String>,
        headers: Headers,
        max_sse_event_size: usize,
    ) -> Result<StreamableHttpPostResponse> {
        let mut limits = StreamableHttpResponseLimits::default();
        limits.max_sse_event_size = max_sse_event_size;
        self.post_message_with_response_limits(uri, message, session_id, token, headers, limits).await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _: Option<String>,
        headers: Headers,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse> {
        self.send(|token| {
            let (uri, message, id, headers) = (uri.clone(), message.clone(), session_id.clone(), headers.clone());
            self.client.post_message_with_response_limits(uri, message, id, token, headers, limits)
        })
        .await
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        _: Option<String>,
        headers: Headers,
    ) -> Result<()> {
        self.send(|token| self.client.delete_session(uri.clone(), session_id.clone(), token, headers.clone())).await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        token: Option<String>,
        headers: Headers,
    ) -> Result<Events> {
        let limit = StreamableHttpResponseLimits::default().max_sse_event_size;
        self.get_stream_with_max_sse_event_size(uri, session_id, last_event_id, token, headers, limit).await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _: Option<String>,
        headers: Headers,
        max_sse_event_size: usize,
    ) -> Result<Events> {
        self.send(|token| {
            let (uri, id, last, headers) = (uri.clone(), session_id.clone(), last_event_id.clone(), headers.clone());
            self.client.get_stream_with_max_sse_event_size(uri, id, last, token, headers, max_sse_event_size)
        })
        .await
    }
}

impl fmt::Debug for McpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("McpClient").field("session", &self.session).finish_non_exhaustive()
    }
}
