//! The conformance suite, with two handles in one process and with two processes.

use std::cell::Cell;
use std::sync::Arc;

use futures_util::future::join;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;
use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh_store::{PostgresStores, PostgresStoresBuilder};
use tower_auth_refresh_testkit::conformance::{self, Handles};

use super::{new_url, shared};
use crate::clocks::peer_with_clock;
use crate::conformance::LEASE;
use crate::model;
use crate::peer::Peer;
use crate::url::open;

/// Returns a function that opens two handles on a new record, each with connections of its own.
fn two_handles(set_up: fn(PostgresStoresBuilder) -> PostgresStoresBuilder) -> impl AsyncFn() -> Handles {
    async move || {
        let url = new_url().await.unwrap();
        let (url, namespace) = url.split_once('#').unwrap();
        let open = async || {
            let stores = set_up(PostgresStores::builder(url).namespace(namespace)).connect().await.unwrap();
            stores.migrate().await.unwrap();
            stores.store("ada")
        };
        [open().await, open().await]
    }
}

/// Returns a handle on a new record in this process, and one in another process.
async fn two_processes() -> Handles {
    let url = new_url().await.unwrap();
    let here: Arc<dyn TokenStore> = open(&url).await("");
    [here, Arc::new(Peer::start(&url).await)]
}

#[cfg(feature = "encryption")]
fn encrypted(builder: PostgresStoresBuilder) -> PostgresStoresBuilder {
    builder.keys(tower_auth_refresh_store::Keys::new("1", &[7; 32]).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_postgres_conforms() {
    if shared().await.is_some() {
        conformance::stores(LEASE, two_handles(|builder| builder)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_on_a_store_in_postgres_conform() {
    if shared().await.is_some() {
        conformance::sessions(LEASE, two_handles(|builder| builder)).await;
    }
}

#[cfg(feature = "encryption")]
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_store_in_postgres_conforms() {
    if shared().await.is_some() {
        conformance::stores(LEASE, two_handles(encrypted)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_a_store_in_postgres_conform() {
    if shared().await.is_some() {
        conformance::stores(LEASE, two_processes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_two_processes_on_a_store_in_postgres_conform() {
    if shared().await.is_some() {
        conformance::sessions(LEASE, two_processes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_whose_clocks_are_an_hour_apart_conform() {
    if shared().await.is_none() {
        return;
    }
    if peer_with_clock("+1h", &new_url().await.unwrap()).await.is_none() {
        return;
    }
    let conform = |offset| {
        conformance::stores(LEASE, async move || {
            let url = new_url().await.unwrap();
            let here: Arc<dyn TokenStore> = open(&url).await("");
            [here, Arc::new(peer_with_clock(offset, &url).await.unwrap())]
        })
    };
    // At the same time: they wait for leases more than they work.
    join(conform("+1h"), conform("-1h")).await;
}

#[test]
fn a_store_in_postgres_and_a_memory_store_agree_on_any_sequence_of_calls() {
    let runtime = Runtime::new().unwrap();
    let Some(url) = runtime.block_on(new_url()) else { return };
    let [a, b] = [(); 2].map(|()| runtime.block_on(open(&url)));
    // A session for each case.
    let session = Cell::new(0);
    let config = Config { cases: model::cases() / 4, failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config).run(&model::calls(), |calls| {
        let key = session.replace(session.get() + 1).to_string();
        runtime.block_on(model::agree([a(&key), b(&key)], &calls));
        Ok(())
    });
    checked.unwrap();
}
