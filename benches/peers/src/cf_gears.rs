//! `cf-gears-toolkit-auth`, which gets its tokens from an authorization server by client credentials.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use toolkit_auth::oauth2::{OAuthClientConfig, SecretString, TokenProvider};
use toolkit_http::HttpClientConfig;
use url::Url;

use crate::revocations::Tokens;

/// A provider that is fed by `tokens`, over a connection on loopback, and has the first one already.
///
/// # Panics
///
/// If there is no free port.
pub async fn provider(tokens: Arc<Tokens>) -> TokenProvider {
    // Its client wants one, even for plain HTTP; it may have been installed before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let endpoint = serve(tokens).await;
    let config = OAuthClientConfig {
        token_endpoint: Some(Url::parse(&format!("http://{endpoint}/token")).expect("a URL")),
        client_id: "bench".into(),
        client_secret: SecretString::new("secret"),
        http_config: Some(HttpClientConfig::for_testing()),
        ..OAuthClientConfig::default()
    };
    let provider = TokenProvider::new(config).expect("a runtime");
    provider.get().await.expect("a first token");
    provider
}

async fn serve(tokens: Arc<Tokens>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tokens = Arc::clone(&tokens);
            let service = service_fn(move |_: Request<Incoming>| {
                let tokens = Arc::clone(&tokens);
                async move {
                    let token = tokens.issue().await;
                    let body = format!(r#"{{"access_token":"{token}","expires_in":86400,"token_type":"Bearer"}}"#);
                    let response = Response::builder().header("content-type", "application/json");
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).expect("valid"))
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}
