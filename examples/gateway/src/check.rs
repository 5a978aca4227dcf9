//! [`check`]: tests the settings and the servers behind a gateway, without serving.

use std::time::Duration;

use futures_util::future::join_all;
use http::Uri;
use tokio::time::timeout;
use tower::ServiceExt;

use crate::auth::Auth;
use crate::config::{Args, AuthServer, Settings};
use crate::problem::chain;
use crate::proxy::connector;
use crate::stores::Stores;

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
    if let Err(invalid) = Auth::new(&settings) {
        findings.push(Err(invalid.to_string()));
    }
    let store =
        async { Stores::check(&settings).await.map_or_else(|e| Err(e.to_string()), |()| Ok("--store".to_owned())) };
    let (store, servers) = tokio::join!(store, join_all(servers(&settings).into_iter().map(connect)));
    findings.push(store);
    findings.extend(servers);
    findings
}

/// Returns the servers behind the gateway: the setting and the URL of each.
fn servers(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut servers = vec![("--upstream", settings.upstream.uri.to_string())];
    match &settings.auth {
        AuthServer::Json(base) => servers.push(("--auth", base.clone())),
        AuthServer::OAuth { token_endpoint, revocation_endpoint, .. } => {
            servers.push(("--token-endpoint", token_endpoint.clone()));
            servers.extend(revocation_endpoint.iter().map(|url| ("--revocation-endpoint", url.clone())));
        }
    }
    servers
}

/// Connects to a server, and disconnects.
async fn connect((setting, url): (&str, String)) -> Result<String, String> {
    let failed = |reason: String| Err(format!("{setting}: {url}: {reason}"));
    let connected = match url.parse::<Uri>() {
        Ok(uri) => timeout(CONNECTION_TIMEOUT, connector().oneshot(uri)).await,
        Err(invalid) => return failed(invalid.to_string()),
    };
    match connected {
        Ok(Ok(_connection)) => Ok(format!("{setting}: {url}")),
        Ok(Err(error)) => failed(chain(&*error)),
        Err(_elapsed) => failed(format!("no connection within {} s", CONNECTION_TIMEOUT.as_secs())),
    }
}
