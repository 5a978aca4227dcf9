//! The conformance suite on a server, with two handles in one process and with two processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh_store::{RedisStores, RedisStoresBuilder};
use tower_auth_refresh_testkit::conformance::{self, Handles};

use super::Server;
use crate::peer::Peer;
use crate::url;

/// Far longer than a call, on a machine that does other things as well.
const LEASE: Duration = Duration::from_millis(400);

/// Returns a function that opens two handles, each with a connection of its own, on a record that doesn't exist yet.
fn two_handles(
    server: &Server,
    set_up: impl Fn(RedisStoresBuilder) -> RedisStoresBuilder,
) -> impl AsyncFn() -> Handles {
    let last = AtomicUsize::new(0);
    async move || {
        let namespace = last.fetch_add(1, Ordering::Relaxed).to_string();
        let open = async || {
            let builder = set_up(RedisStores::builder(&server.url()).namespace(&namespace));
            builder.connect().await.unwrap().store("")
        };
        [open().await, open().await]
    }
}

/// Returns a function that opens a handle in this process, and one in another process.
fn two_processes(server: &Server) -> impl AsyncFn() -> Handles {
    let last = AtomicUsize::new(0);
    async move || {
        let url = format!("{}#{}", server.url(), last.fetch_add(1, Ordering::Relaxed));
        let peer: Arc<dyn TokenStore> = Arc::new(Peer::start(&url).await);
        [url::open(&url).await(""), peer]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_store_conforms() {
    let Some(server) = Server::start().await else { return };
    conformance::stores(LEASE, two_handles(&server, |builder| builder)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_on_a_redis_store_conform() {
    let Some(server) = Server::start().await else { return };
    conformance::sessions(LEASE, two_handles(&server, |builder| builder)).await;
}

#[cfg(feature = "encryption")]
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_redis_store_conforms() {
    let Some(server) = Server::start().await else { return };
    let keys = tower_auth_refresh_store::Keys::new("1", &[7; 32]).unwrap();
    conformance::stores(LEASE, two_handles(&server, |builder| builder.keys(keys.clone()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_a_redis_store_conform() {
    let Some(server) = Server::start().await else { return };
    conformance::stores(LEASE, two_processes(&server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_two_processes_on_a_redis_store_conform() {
    let Some(server) = Server::start().await else { return };
    conformance::sessions(LEASE, two_processes(&server)).await;
}
