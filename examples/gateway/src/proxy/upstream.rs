//! [`UpstreamClient`]: [`AuthRefreshLayer`] around [`StallTimeout`] around the [`Pool`].

use std::error::Error;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::Either;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_auth_refresh::layer::PerRequest;
use tower_auth_refresh::replay::ReplayBody;
use tower_auth_refresh::{AuthRefreshLayer, Session};

use super::body::{DownloadBody, UploadBody};
use super::early_answer::{Connector, answer_first, may_be_early};
use super::pool::Pool;
use super::send_again::{SafeHead, was_closed_while_kept};
use super::stall_timeout::{StallClock, StallTimeout, TrackedBody};
use crate::config::{InvalidSetting, Settings};
use crate::server::BUFFER;
use crate::tls;

/// A client that sends requests to the upstream, each with its user's token.
pub(crate) struct UpstreamClient {
    /// Applied for each request: its session in the extensions would be three allocations. Absent in the baseline for
    /// the layer's cost.
    layer: Option<AuthRefreshLayer<PerRequest>>,
    pool: Pool<HttpsConnector<Connector>, SentBody>,
    timeout: Duration,
}

/// The body of a request that is sent, with the layer or without.
type SentBody = TrackedBody<Either<ReplayBody<UploadBody>, UploadBody>>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The time for which the connections to the authorization server are kept without a request.
const POOL_IDLE: Duration = Duration::from_secs(20);

impl UpstreamClient {
    /// Builds the client of the gateway.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if a file of certificates can't be used.
    pub(crate) fn new(settings: &Settings) -> Result<Self, InvalidSetting> {
        let layer = AuthRefreshLayer::per_request(settings.upstream.origin.clone());
        Ok(Self { layer: Some(layer), ..Self::without_refresh(settings)? })
    }

    /// Builds a client that attaches the access token without [`AuthRefreshLayer`], the baseline for the layer's cost.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if a file of certificates can't be used.
    pub(crate) fn without_refresh(settings: &Settings) -> Result<Self, InvalidSetting> {
        let connector = connector(tls::client::config("--upstream", &settings.upstream_tls)?);
        let pool = Pool::new(connector, settings.upstream.uri.clone());
        Ok(Self { layer: None, pool, timeout: settings.upstream_timeout })
    }

    /// Sends a request of a session.
    pub(super) async fn send(
        &self,
        session: Session,
        request: Request<UploadBody>,
    ) -> Result<Response<DownloadBody<SentBody>>, BoxError> {
        let Some(layer) = &self.layer else {
            return self.attempt(with_token(&session, request).map(Either::Right)).await;
        };
        let attempt = service_fn(|request: Request<ReplayBody<UploadBody>>| self.attempt(request.map(Either::Left)));
        let mut service = layer.clone().session(Some(session)).layer(attempt);
        service.ready().await?.call(request).await
    }

    /// Sends a request with its token, and fails when the upstream stalls. Each attempt has its own time-out.
    async fn attempt(
        &self,
        request: Request<Either<ReplayBody<UploadBody>, UploadBody>>,
    ) -> Result<Response<DownloadBody<SentBody>>, BoxError> {
        // Its session has ended since it was admitted, and the upstream must not take it for an anonymous one.
        if !request.headers().contains_key(AUTHORIZATION) {
            return Err(NoToken.into());
        }
        let is_upload = !request.body().is_end_stream();
        let again = SafeHead::of(&request);
        let clock = StallClock::start(is_upload);
        let request = request.map(|body| TrackedBody::new(Some(body), &clock));
        let sent = async {
            match (self.pool.send(request).await, again) {
                (Err(failed), Some(head)) if was_closed_while_kept(&failed) => {
                    // In a box, since few requests need room for it.
                    Box::pin(self.pool.send(head.into_request(TrackedBody::new(None, &clock)))).await
                }
                (sent, _) => sent,
            }
        };
        let (response, mut lease) = StallTimeout::new(sent, clock.clone(), self.timeout).await?;
        if is_upload && may_be_early(response.status()) {
            lease.discard();
        }
        Ok(response.map(|body| DownloadBody::new(body, lease, self.timeout)))
    }
}

fn with_token(session: &Session, mut request: Request<UploadBody>) -> Request<UploadBody> {
    let tokens = session.tokens();
    if let Some(token) = tokens.access_token() {
        let value = format!("Bearer {}", token.expose_secret());
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
    }
    request
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

/// The client that [`https`] builds.
pub(crate) type HttpsClient<B> = Client<HttpsConnector<Connector>, B>;

/// Builds a connector for TCP and TLS.
pub(crate) fn connector(tls: ClientConfig) -> HttpsConnector<Connector> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(answer_first(tcp))
}

/// Builds a pooled client for HTTP/1 and, if negotiated by TLS, HTTP/2.
pub(crate) fn https<B>(tls: ClientConfig) -> HttpsClient<B>
where
    B: http_body::Body<Data: Send> + Send,
{
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .http1_max_buf_size(BUFFER)
        .build(connector(tls))
}
