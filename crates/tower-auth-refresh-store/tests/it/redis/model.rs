//! A store in Redis behaves as a `MemoryStore`, under any sequence of calls by two handles.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::test_runner::{Config, TestRunner};
use tower_auth_refresh_store::RedisStores;

use super::Server;
use crate::model::{agree, calls, cases};

#[test]
fn a_redis_store_and_a_memory_store_agree_on_any_sequence_of_calls() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let Some(server) = runtime.block_on(Server::start()) else { return };
    let open = async || RedisStores::connect(&server.url()).await.unwrap();
    let [first, second] = runtime.block_on(async { [open().await, open().await] });
    let user = AtomicUsize::new(0);
    let config = Config { cases: cases(), failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&calls(), |calls| {
        let user = user.fetch_add(1, Ordering::Relaxed).to_string();
        runtime.block_on(agree([first.store(&user), second.store(&user)], &calls));
        Ok(())
    });
    outcome.unwrap();
}
