//! Two processes that start at the same moment with the same tokens and an empty store.

use std::sync::Arc;

use tower_auth_refresh::Session;
use tower_auth_refresh::store::{MemoryStore, TokenStore};
use tower_auth_refresh_testkit::TestKit;
use tower_auth_refresh_testkit::conformance::{Call, FaultyStore};

#[tokio::test(start_paused = true)]
async fn a_slow_first_write_does_not_overwrite_the_tokens_that_a_peer_has_refreshed() {
    let kit = TestKit::new();
    let tokens = kit.sign_in("ada");
    let store: Arc<dyn TokenStore> = Arc::new(MemoryStore::new());
    let slow_store = FaultyStore::new(Arc::clone(&store));
    let builder = || Session::builder(kit.refresh_service()).tokens(tokens.clone().try_into().unwrap());

    let gate = slow_store.hold(Call::Insert);
    let slow = tokio::spawn(builder().store(slow_store).build());
    gate.arrived(1).await;
    let fast = builder().store(store).build().await.unwrap();
    fast.refresh().await.unwrap();
    gate.open();
    let slow = slow.await.unwrap().unwrap();

    assert_eq!(slow.tokens(), fast.tokens());
    slow.refresh().await.unwrap();
    fast.refresh().await.unwrap();
    assert_eq!(kit.violations(), []);
}
