//! [`check`]: tests the settings and the servers behind a gateway, without serving.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Uri;
use rustls::ClientConfig;
use tokio::time::timeout;
use tower::ServiceExt;

use crate::auth::Auth;
use crate::config::{Args, AuthServer, InvalidSetting, Settings};
use crate::problem::chain;
use crate::proxy::connector;
use crate::stores::Stores;
use crate::tls::{self, ServerTls};

/// The longest time for a connection to a server: name, TCP and TLS.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Tests the settings, the files that they name, the store, and the connections to the upstream and the authorization
/// server. Returns a line for each, which names the setting: as an error if a start would fail or serve no request.
///
/// Listens on no address, and makes no directory and no table. The test of the store writes a record and deletes it.
pub async fn check(args: Args) -> Vec<Result<String, String>> {
    let settings = match args.into_settings() {
        Ok(settings) => settings,
        Err(invalid) => return vec![Err(invalid.to_string())],
    };
    let mut findings = vec![Ok("settings".to_owned())];
    let mut servers = servers(&settings);
    if let Err(invalid) = Auth::new(&settings) {
        findings.push(Err(invalid.to_string()));
        servers.retain(|server| server.setting == "--upstream");
    }
    findings.extend(settings.tls.as_ref().map(|identity| match ServerTls::open(identity, Arc::default()) {
        Ok(_) => Ok("--tls-cert".to_owned()),
        Err(invalid) => Err(invalid.to_string()),
    }));
    let store =
        async { Stores::check(&settings).await.map_or_else(|e| Err(e.to_string()), |()| Ok("--store".to_owned())) };
    let (store, servers) = tokio::join!(store, join_all(servers.into_iter().map(connect)));
    findings.push(store);
    findings.extend(servers);
    findings
}

/// A server behind the gateway.
struct Server {
    setting: &'static str,
    url: String,
    tls: Result<ClientConfig, InvalidSetting>,
}

/// Returns the servers behind the gateway.
fn servers(settings: &Settings) -> Vec<Server> {
    let upstream = tls::client::config("--upstream", &settings.upstream_tls);
    let mut servers = vec![Server { setting: "--upstream", url: settings.upstream.uri.to_string(), tls: upstream }];
    let mut push = |setting, url: &String| {
        servers.push(Server { setting, url: url.clone(), tls: tls::client::config("--auth", &settings.auth_tls) });
    };
    match &settings.auth {
        AuthServer::Json(base) => push("--auth", base),
        AuthServer::OAuth { token_endpoint, revocation_endpoint, .. } => {
            push("--token-endpoint", token_endpoint);
            if let Some(url) = revocation_endpoint {
                push("--revocation-endpoint", url);
            }
        }
    }
    servers
}

/// Connects to a server, and disconnects. What is said of it names no more of its URL than the origin.
async fn connect(Server { setting, url, tls }: Server) -> Result<String, String> {
    let tls = tls.map_err(|invalid| invalid.to_string())?;
    let uri = url.parse::<Uri>().map_err(|invalid| format!("{setting}: {invalid}"))?;
    let (scheme, host) = (uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default());
    let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
    let tested = format!("{setting}: {scheme}://{host}{port}");
    match timeout(CONNECTION_TIMEOUT, connector(tls).oneshot(uri)).await {
        Ok(Ok(_connection)) => Ok(tested),
        Ok(Err(error)) => Err(format!("{tested}: {}", chain(&*error))),
        Err(_elapsed) => Err(format!("{tested}: no connection within {} s", CONNECTION_TIMEOUT.as_secs())),
    }
}
