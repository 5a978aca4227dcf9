//! Answers that are lost, late or slow: each operation, at each point.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tower_auth_refresh::store::{ClearOutcome, CommitOutcome, InsertOutcome, Presented, TokenStore};
use tower_auth_refresh_store::{RedisStores, StoreError, StoreErrorKind};

use super::Server;
use crate::operation::{CALL_TIMEOUT, Case, Operation, check_all, is_unavailable};
use crate::proxy::{Fault, Proxy};
use crate::support::{LEASE, claimed, entry};

async fn case(server: &Server, namespace: &str) -> Case {
    let open = async |port: u16| {
        let builder = RedisStores::builder(&format!("redis://127.0.0.1:{port}")).namespace(namespace);
        builder.connect().await.unwrap().store("ada")
    };
    Case::new(server.port(), open).await
}

/// Has the server run each script once: a server that doesn't know a script refuses its call.
async fn know_all_scripts(server: &Server) {
    let store = RedisStores::connect(&server.url()).await.unwrap().store("all scripts");
    store.insert(&entry(1)).await.unwrap();
    let version = store.replace(&entry(1)).await.unwrap();
    let claim = claimed(&*store, &version).await;
    assert!(store.renew(&claim, LEASE).await.unwrap());
    store.release(&claim, Presented::Unused).await.unwrap();
    let claim = claimed(&*store, &version).await;
    let CommitOutcome::Stored(version) = store.commit(&claim, &entry(2)).await.unwrap() else { panic!() };
    assert!(store.extend(&version, SystemTime::now() + LEASE).await.unwrap());
    store.clear(&version).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_takes_effect_once_or_fails_wherever_its_connection_breaks() {
    let Some(server) = Server::start().await else { return };
    know_all_scripts(&server).await;
    check_all(async |name| case(&server, &name).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_record_whose_answer_was_lost_is_not_written_again_over_what_was_made_of_it() {
    let Some(server) = Server::start().await else { return };
    know_all_scripts(&server).await;
    for is_insert in [true, false] {
        case(&server, &format!("{is_insert}")).await.check_new_record(is_insert).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_record_that_never_arrived_finds_the_one_that_is_there() {
    let Some(server) = Server::start().await else { return };
    let case = case(&server, "case").await;
    let version = case.witness.replace(&entry(1)).await.unwrap();
    case.proxy.inject(Fault::CutBefore);
    let outcome = case.subject.insert(&entry(2)).await.unwrap();
    assert!(matches!(&outcome, InsertOutcome::Exists(record) if *record.version() == version), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_finds_what_others_have_written_since() {
    let Some(server) = Server::start().await else { return };
    know_all_scripts(&server).await;
    let case = case(&server, "case").await;
    let version = case.witness.replace(&entry(1)).await.unwrap();
    let claim = claimed(&*case.subject, &version).await;
    case.proxy.inject(Fault::HoleAfter);
    let (committed, ()) = tokio::join!(async { case.subject.commit(&claim, &entry(2)).await.unwrap() }, async {
        while case.generation().await != Some(2) {
            sleep(Duration::from_millis(1)).await;
        }
        case.witness.replace(&entry(3)).await.unwrap();
    });
    assert!(matches!(committed, CommitOutcome::Conflict(Some(record)) if record.generation() == 3));
    assert_eq!(case.generation().await, Some(3));
}

/// Returns the number of scripts that the server has been asked to run.
async fn scripts_run(server: &Server) -> usize {
    let stats = server.command("INFO commandstats").await;
    let calls = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")?.split_once(','));
    calls.map(|(calls, _)| calls.parse::<usize>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_arrives_after_it_has_failed_does_nothing() {
    let Some(server) = Server::start().await else { return };
    know_all_scripts(&server).await;
    for operation in [Operation::Insert, Operation::Replace, Operation::Claim] {
        let case = case(&server, &format!("{operation:?}")).await;
        let version = case.witness.replace(&entry(1)).await.unwrap();
        if operation == Operation::Insert {
            case.witness.clear(&version).await.unwrap();
        }

        case.proxy.partition(true);
        let begun = Instant::now();
        let outcome = match operation {
            Operation::Insert => case.subject.insert(&entry(2)).await.map(drop),
            Operation::Replace => case.subject.replace(&entry(2)).await.map(drop),
            _ => case.subject.claim(&version, LEASE).await.map(drop),
        };
        assert!(is_unavailable(&outcome) && begun.elapsed() < CALL_TIMEOUT, "{operation:?}");
        let before = scripts_run(&server).await;
        case.proxy.partition(false);
        while scripts_run(&server).await == before {
            sleep(Duration::from_millis(1)).await;
        }
        if operation == Operation::Insert {
            assert_eq!(case.generation().await, None);
        } else {
            assert_eq!(case.generation().await, Some(1), "{operation:?}");
            assert_eq!(case.is_in_doubt(&version).await, Some(false), "{operation:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_call_is_dropped_is_given_back() {
    let Some(server) = Server::start().await else { return };
    know_all_scripts(&server).await;
    case(&server, "").await.check_dropped_claim().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_and_connections_are_lost_is_given_back_later() {
    let Some(server) = Server::start().await else { return };
    know_all_scripts(&server).await;
    case(&server, "").await.check_lost_claim().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scripts_are_loaded_again_when_they_are_flushed_under_load() {
    let Some(server) = Server::start().await else { return };
    let server = Arc::new(server);
    let redis = RedisStores::connect(&server.url()).await.unwrap();
    let flushing = tokio::spawn({
        let server = Arc::clone(&server);
        async move {
            loop {
                assert_eq!(server.command("SCRIPT FLUSH").await, "+OK\r\n");
            }
        }
    });
    let mut sessions = JoinSet::new();
    for user in 0..20 {
        let store = redis.store(format!("{user}"));
        sessions.spawn(async move {
            let mut version = store.replace(&entry(1)).await.unwrap();
            for generation in 2..50 {
                let claim = claimed(&*store, &version).await;
                let CommitOutcome::Stored(committed) = store.commit(&claim, &entry(generation)).await.unwrap() else {
                    panic!("no other process writes");
                };
                version = committed;
            }
            assert!(matches!(store.clear(&version).await.unwrap(), ClearOutcome::Cleared));
        });
    }
    while let Some(session) = sessions.join_next().await {
        session.unwrap();
    }
    flushing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_share_one_connection_and_one_attempt_to_make_it_anew() {
    let Some(server) = Server::start().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let redis = RedisStores::connect(&format!("redis://127.0.0.1:{}", proxy.port())).await.unwrap();
    let load_all = async || {
        let mut loads = JoinSet::new();
        for user in 0..100 {
            let store = redis.store(format!("{user}"));
            loads.spawn(async move { store.load().await });
        }
        loads.join_all().await
    };
    assert!(load_all().await.iter().all(Result::is_ok));
    assert_eq!(proxy.connections(), 1);
    proxy.cut();
    assert!(load_all().await.iter().all(Result::is_ok));
    assert_eq!(proxy.connections(), 2);
    // A server that is down for long: calls fail soon, and some of them try again.
    proxy.refuse(true);
    proxy.cut();
    let begun = Instant::now();
    assert!(load_all().await.iter().all(is_unavailable));
    assert!(begun.elapsed() < CALL_TIMEOUT);
    let begun = Instant::now();
    assert!(load_all().await.iter().all(is_unavailable));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    proxy.refuse(false);
    while load_all().await.iter().any(Result::is_err) {
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(proxy.connections(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_a_server_that_is_away_for_a_moment_and_not_for_one_that_refuses_the_password() {
    let Some(server) = Server::start().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let store = RedisStores::connect(&format!("redis://127.0.0.1:{}", proxy.port())).await.unwrap().store("ada");
    for outage in 0..2 {
        if outage > 0 {
            // An outage that has ended long ago is no part of the next one.
            sleep(CALL_TIMEOUT).await;
        }
        proxy.refuse(true);
        proxy.cut();
        let mut load = store.load();
        assert!(timeout(Duration::from_millis(300), &mut load).await.is_err(), "there is no connection");
        proxy.refuse(false);
        assert_eq!(load.await.unwrap(), None);
    }

    assert_eq!(server.command("CONFIG SET requirepass s3cret").await, "+OK\r\n");
    proxy.cut();
    let begun = Instant::now();
    let error = store.load().await.unwrap_err().downcast::<StoreError>().unwrap();
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_given_up_is_closed_although_its_answers_never_come() {
    let Some(server) = Server::start().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let store = RedisStores::connect(&format!("redis://127.0.0.1:{}", proxy.port())).await.unwrap().store("ada");
    proxy.inject(Fault::HoleBefore);
    // The second one fails when the first one has made another connection, which it doesn't give up.
    let second = async {
        sleep(Duration::from_millis(700)).await;
        store.load().await
    };
    let (first, second) = tokio::join!(store.load(), second);
    assert_eq!((first.unwrap(), second.unwrap()), (None, None));
    assert_eq!(proxy.connections(), 2);
    let closed = async {
        while proxy.open() > 1 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(CALL_TIMEOUT, closed).await.expect("both connections are open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_written_although_the_server_has_closed_the_idle_connection() {
    let Some(server) = Server::start().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let store = RedisStores::connect(&format!("redis://127.0.0.1:{}", proxy.port())).await.unwrap().store("ada");
    proxy.cut();
    // The end of the connection arrives.
    sleep(Duration::from_millis(200)).await;
    store.replace(&entry(1)).await.unwrap();
    assert_eq!(proxy.connections(), 2);
}

#[test]
fn stores_outlive_the_runtime_on_which_they_were_connected_and_need_one() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let Some(server) = first.block_on(Server::start()) else { return };
    let redis = first.block_on(RedisStores::connect(&server.url())).unwrap();
    let store = redis.store("ada");
    assert!(store.is_durable());
    first.block_on(store.replace(&entry(1))).unwrap();
    drop(first);
    assert!(runtime().block_on(store.load()).unwrap().is_some());
    let outside = futures_util::FutureExt::now_or_never(store.load()).unwrap();
    let error = outside.unwrap_err().downcast::<StoreError>().unwrap();
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
}
