//! The conformance suite on a server, with two handles in one process and with two processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh::{Session, Tokens};
use tower_auth_refresh_store::{RedisStores, RedisStoresBuilder};
use tower_auth_refresh_testkit::TestKit;
use tower_auth_refresh_testkit::conformance::{self, Handles};

use super::Server;
use crate::peer::Peer;

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
        let stores = two_stores(|| set_up(RedisStores::builder(&server.url()).namespace(&namespace))).await;
        stores.map(|redis| redis.store(""))
    }
}

/// Returns a function that opens a handle in this process, and one in another process.
fn two_processes(server: &Server) -> impl AsyncFn() -> Handles {
    let last = AtomicUsize::new(0);
    async move || {
        let namespace = last.fetch_add(1, Ordering::Relaxed).to_string();
        let [here, _] = two_stores(|| RedisStores::builder(&server.url()).namespace(&namespace)).await;
        let there: Arc<dyn TokenStore> = Arc::new(Peer::start(&format!("{}#{namespace}", server.url())).await);
        [here.store(""), there]
    }
}

/// Connects twice. Both connections listen to each other's messages: once a connection begins to listen, its sessions
/// look at the store, and the suite has sessions that are to adopt nothing yet.
async fn two_stores(builder: impl Fn() -> RedisStoresBuilder) -> [RedisStores; 2] {
    let kit = TestKit::new();
    let stores = [builder().connect().await.unwrap(), builder().connect().await.unwrap()];
    let build = async |redis: &RedisStores| {
        let tokens: Tokens = kit.sign_in("ada").try_into().unwrap();
        let session = Session::builder(kit.refresh_service()).store(redis.store("listener")).tokens(tokens);
        session.build().await.unwrap()
    };
    let [first, second] = [build(&stores[0]).await, build(&stores[1]).await];
    for (speaker, listener) in [(&first, &second), (&second, &first)] {
        speaker.sign_in(kit.sign_in("ada").try_into().unwrap()).await.unwrap();
        let heard = timeout(Duration::from_secs(20), async {
            while listener.tokens() != speaker.tokens() {
                sleep(Duration::from_millis(1)).await;
            }
        });
        heard.await.expect("no message arrives");
    }
    stores
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
