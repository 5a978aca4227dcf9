//! `cf-gears-toolkit-auth`, which requests its tokens with the client-credentials grant.

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

use crate::tokens::Tokens;

/// Creates a provider that gets its tokens from `tokens` over loopback, and has fetched the first.
///
/// # Panics
///
/// If no port is free.
pub async fn provider(tokens: Arc<Tokens>) -> TokenProvider {
    // Its HTTP client requires a crypto provider even for plain HTTP. An error means that one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let endpoint = serve(tokens).await;
    let config = OAuthClientConfig {
        token_endpoint: Some(Url::parse(&format!("http://{endpoint}/token")).expect("valid URL")),
        client_id: "bench".into(),
        client_secret: SecretString::new("secret"),
        http_config: Some(HttpClientConfig::for_testing()),
        ..OAuthClientConfig::default()
    };
    let provider = TokenProvider::new(config).expect("valid configuration");
    provider.get().await.expect("first token");
    provider
}

async fn serve(tokens: Arc<Tokens>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("free port");
    let address = listener.local_addr().expect("bound listener");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tokens = Arc::clone(&tokens);
            let service = service_fn(move |_: Request<Incoming>| {
                let tokens = Arc::clone(&tokens);
                async move {
                    let token = tokens.issue().await;
                    let body = format!(r#"{{"access_token":"{token}","expires_in":86400,"token_type":"Bearer"}}"#);
                    let response = Response::builder().header("content-type", "application/json");
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).expect("valid response"))
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}
