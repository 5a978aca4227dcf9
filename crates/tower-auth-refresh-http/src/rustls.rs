//! The HTTPS client of the crate feature `client`: hyper-util's, with rustls.

use std::time::Duration;

use http::Uri;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use tower::{BoxError, ServiceExt, service_fn};

use crate::client::AuthClient;

/// The time-out of DNS, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl AuthClient {
    /// Creates an HTTPS client: hyper-util's, with rustls, ring and Mozilla's root certificates.
    ///
    /// It speaks HTTP/1.1. Every call has a connection of its own: calls are minutes apart, and a server that closes an
    /// idle connection at the wrong moment would leave a refresh in doubt. A connection attempt, TLS included, fails
    /// after 5 s, before anything was sent.
    ///
    /// With other roots, a proxy or a client certificate, build a client and pass it to [`new`](Self::new).
    ///
    /// # Panics
    ///
    /// Never: ring supports the protocol versions that rustls defaults to.
    #[cfg_attr(docsrs, doc(cfg(feature = "client")))]
    #[must_use]
    pub fn rustls() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let https = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(ring::default_provider())
            .expect("ring supports the default protocol versions")
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let connector = service_fn(move |uri: Uri| {
            let connecting = https.clone().oneshot(uri);
            Box::pin(async {
                tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(BoxError::from).flatten()
            })
        });
        Self::new(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
    }
}
