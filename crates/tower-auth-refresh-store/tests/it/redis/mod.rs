//! Stores in Redis, on servers that the tests start.

mod conformance;
mod server;

use std::sync::Arc;

use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh_store::RedisStores;

pub(crate) use self::server::Server;

/// Opens the store of one session by the URL of a server and, after `#`, a namespace.
pub(crate) async fn open(url: &str) -> Arc<dyn TokenStore> {
    let (server, namespace) = url.split_once('#').unwrap_or((url, ""));
    RedisStores::builder(server).namespace(namespace).connect().await.unwrap().store("ada")
}
