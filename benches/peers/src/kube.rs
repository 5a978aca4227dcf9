//! `kube-client`'s authorization layer, with a token file that the layer reads once a minute.

use http_body::Body;
use kube_client::client::ConfigExt;
use kube_client::client::middleware::AuthLayer;
use kube_client::config::Config;
use tower_auth_refresh_benches::stack::TOKEN;

/// Creates the layer for requests with bodies of type `B`.
///
/// # Panics
///
/// If the token file can't be written.
#[must_use]
pub fn layer<B: Body + Send + 'static>() -> AuthLayer {
    let path = std::env::temp_dir().join(format!("tower-auth-refresh-peers-{}", std::process::id()));
    std::fs::write(&path, TOKEN).expect("writable temporary directory");
    let mut config = Config::new(http::Uri::from_static("https://api.example.com"));
    config.auth_info.token_file = Some(path.to_string_lossy().into_owned());
    config.auth_layer().expect("readable token file").expect("layer with a token")
}
