//! The client stack: [`AuthRefreshLayer`] around [`StallTimeout`] around an HTTP client.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::ring;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt};
use tower_auth_refresh::AuthRefreshLayer;

use super::body::{BoxBody, DownloadBody, UploadBody};
use super::stall_timeout::StallTimeout;
use crate::config::Settings;
use crate::server::BUFFER;

/// A stack that sends requests to the upstream. Each request has its user's session in its extensions.
pub(crate) type UpstreamClient = BoxCloneSyncService<Request<UploadBody>, Response<BoxBody>, BoxError>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Shorter than the keep-alive of most servers: a POST fails if the server closes its reused connection at that moment.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// Builds the stack of the gateway.
pub(crate) fn client(settings: &Settings) -> UpstreamClient {
    let timeout = settings.upstream_timeout;
    let stack = ServiceBuilder::new()
        .map_response(move |response| limit_stalls(response, timeout))
        .layer(AuthRefreshLayer::per_request(settings.upstream.origin.clone()))
        .filter(carries_token)
        .service(StallTimeout::new(https(), timeout));
    BoxCloneSyncService::new(stack)
}

/// Rejects a request without a token: its session has ended since the request was admitted, and the upstream must not
/// take it for an anonymous one.
fn carries_token<B>(request: Request<B>) -> Result<Request<B>, NoToken> {
    if request.headers().contains_key(AUTHORIZATION) { Ok(request) } else { Err(NoToken) }
}

/// The request was not sent, because its session has no token.
#[derive(Debug)]
pub(super) struct NoToken;

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the session has no access token")
    }
}

impl Error for NoToken {}

/// Builds a stack that attaches the access token without [`AuthRefreshLayer`], the baseline for the layer's cost.
pub(crate) fn client_without_refresh(settings: &Settings) -> UpstreamClient {
    let timeout = settings.upstream_timeout;
    let stack = StallTimeout::new(https(), timeout)
        .map_request(|mut request: Request<UploadBody>| {
            let session = request.extensions_mut().remove::<tower_auth_refresh::Session>();
            let tokens = session.map(|session| session.tokens()).unwrap_or_default();
            if let Some(token) = tokens.access_token() {
                let value = format!("Bearer {}", token.expose_secret());
                if let Ok(value) = http::HeaderValue::from_maybe_shared(bytes::Bytes::from(value)) {
                    request.headers_mut().insert(AUTHORIZATION, value);
                }
            }
            request
        })
        .map_response(move |response| limit_stalls(response, timeout));
    BoxCloneSyncService::new(stack)
}

fn limit_stalls(response: Response<Incoming>, timeout: Duration) -> Response<BoxBody> {
    response.map(|body| Box::pin(DownloadBody::new(body, timeout)) as BoxBody)
}

/// The client that [`https`] builds.
pub(crate) type HttpsClient<B> = Client<HttpsConnector<HttpConnector>, B>;

/// Builds a pooled client for HTTP/1 and, if negotiated by TLS, HTTP/2.
pub(crate) fn https<B>() -> HttpsClient<B>
where
    B: http_body::Body<Data: Send> + Send,
{
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(ring::default_provider())
        .expect("ring supports the default protocol versions")
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .http1_max_buf_size(BUFFER)
        .build(connector)
}
