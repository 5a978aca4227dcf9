//! The client stack: [`AuthRefreshLayer`] around a time-out around an HTTP client.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::ring;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt};
use tower_auth_refresh::AuthRefreshLayer;

use super::body::{BoxBody, DownloadBody, UploadBody};
use super::patience::Patience;
use crate::config::Settings;

/// Any stack that takes a user's request to the upstream. His session is in the request's extensions.
pub(crate) type UpstreamClient = BoxCloneSyncService<Request<UploadBody>, Response<BoxBody>, BoxError>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Shorter than most servers keep a connection: one that is closed just when it is used again fails a POST.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// The stack of the gateway.
pub(crate) fn client(settings: &Settings) -> UpstreamClient {
    let silence = settings.upstream_timeout;
    let stack = ServiceBuilder::new()
        .map_response(move |response: Response<_>| {
            response.map(|body| Box::pin(DownloadBody::new(body, silence)) as BoxBody)
        })
        .layer(AuthRefreshLayer::per_request(settings.upstream.origin.clone()))
        .filter(carries_token)
        .service(Patience::new(https(), silence));
    BoxCloneSyncService::new(stack)
}

/// A user's request must not go out as a stranger's: it has no token where his session has ended since it was admitted.
fn carries_token<B>(request: Request<B>) -> Result<Request<B>, NoToken> {
    if request.headers().contains_key(AUTHORIZATION) { Ok(request) } else { Err(NoToken) }
}

/// A request was not sent: there is no token for it.
#[derive(Debug)]
pub(super) struct NoToken;

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no token for the request")
    }
}

impl Error for NoToken {}

/// The same stack with a user's access token attached and no [`AuthRefreshLayer`]: what the layer costs is measured
/// against it.
pub(crate) fn client_without_refresh(settings: &Settings) -> UpstreamClient {
    let silence = settings.upstream_timeout;
    let stack = Patience::new(https(), silence)
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
        .map_response(move |response: Response<_>| {
            response.map(|body| Box::pin(DownloadBody::new(body, silence)) as BoxBody)
        });
    BoxCloneSyncService::new(stack)
}

/// See [`https`].
pub(crate) type HttpsClient<B> = Client<HttpsConnector<HttpConnector>, B>;

/// hyper-util's client: pooled, HTTP/1 and, where TLS agrees on it, HTTP/2.
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
        .build(connector)
}
