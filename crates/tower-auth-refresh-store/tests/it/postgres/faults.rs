//! Answers that are lost, late or slow, and servers that restart.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, advance, pause, resume, sleep, timeout};
use tower_auth_refresh::store::{ClearOutcome, CommitOutcome, InsertOutcome, Presented, TokenStore};
use tower_auth_refresh_store::PostgresStores;

use super::new_namespace;
use super::server::{Server, shared, url_at};
use crate::operation::{CALL_TIMEOUT, Case, Operation, check_all, is_unavailable};
use crate::proxy::{Fault, Proxy};
use crate::support::{LEASE, claimed, entry};

/// A case whose stores have one connection each.
async fn case(server: &Server, namespace: String) -> Case {
    let open = async |port| {
        let builder = PostgresStores::builder(url_at(port)).namespace(&namespace).connections(NonZeroUsize::MIN);
        let stores = builder.connect().await.unwrap();
        stores.migrate().await.unwrap();
        stores.store("ada")
    };
    Case::new(server.port(), open).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_takes_effect_once_or_fails_wherever_its_connection_breaks() {
    let Some(server) = Server::start(&["max_connections=300"]) else { return };
    check_all(async |name| case(&server, name).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_record_whose_answer_was_lost_is_not_written_again_over_what_was_made_of_it() {
    let Some(server) = shared().await else { return };
    for is_insert in [true, false] {
        case(server, format!("made of it: {is_insert}")).await.check_new_record(is_insert).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_repeated_leaves_the_claim_that_a_peer_has_made_since() {
    let Some(server) = shared().await else { return };
    let case = case(server, "repeated commit".into()).await;
    let version = case.witness.replace(&entry(1)).await.unwrap();
    let claim = claimed(&*case.subject, &version).await;
    case.proxy.inject(Fault::HoleAfter);
    let claiming = async {
        loop {
            let record = case.witness.load().await.unwrap().unwrap();
            if record.generation() == 2 {
                break claimed(&*case.witness, record.version()).await;
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    let entry = entry(2);
    let (committed, peer) = tokio::join!(case.subject.commit(&claim, &entry), claiming);
    assert!(matches!(committed.unwrap(), CommitOutcome::Stored(version) if version == *peer.version()));
    assert!(case.witness.renew(&peer, LEASE).await.unwrap(), "the peer's claim still holds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_arrives_after_it_has_failed_does_nothing() {
    let Some(server) = shared().await else { return };
    for operation in [Operation::Insert, Operation::Replace, Operation::Claim] {
        let case = case(server, format!("late {operation:?}")).await;
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
        assert!(is_unavailable(&outcome) && begun.elapsed() < CALL_TIMEOUT, "{operation:?}: {outcome:?}");
        let before = case.proxy.answers();
        case.proxy.partition(false);
        while case.proxy.answers() == before {
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
    let Some(server) = shared().await else { return };
    case(server, "dropped claim".into()).await.check_dropped_claim().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_and_connections_are_lost_is_given_back_later() {
    let Some(server) = shared().await else { return };
    case(server, "lost claim".into()).await.check_lost_claim().await;
}

/// Refreshes the tokens of 20 users until it is aborted. Calls may fail; none may lose what was committed.
fn spawn_users(stores: &PostgresStores) -> JoinSet<()> {
    let mut users = JoinSet::new();
    for user in 0..20 {
        let store = stores.store(format!("user {user}"));
        users.spawn(async move {
            let mut version = store.replace(&entry(1)).await.unwrap();
            for generation in 2.. {
                let claim = claimed(&*store, &version).await;
                let CommitOutcome::Stored(committed) = store.commit(&claim, &entry(generation)).await.unwrap() else {
                    panic!("no other process writes");
                };
                let record = store.load().await.unwrap().unwrap();
                assert_eq!((record.version(), record.generation()), (&committed, generation));
                version = committed;
            }
        });
    }
    users
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_a_server_that_restarts_and_nothing_is_lost() {
    let Some(server) = Server::start(&[]) else { return };
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    stores.migrate().await.unwrap();
    let mut users = spawn_users(&stores);
    for mode in ["fast", "immediate", "fast", "immediate"] {
        sleep(Duration::from_millis(300)).await;
        let stopped = tokio::task::block_in_place(|| {
            server.stop(mode);
            server.launch()
        });
        assert!(stopped, "{}", server.log());
        // All users go on.
        let probe = stores.store("probe");
        timeout(CALL_TIMEOUT, probe.replace(&entry(1))).await.unwrap().unwrap();
    }
    sleep(Duration::from_millis(300)).await;
    if let Some(ended) = users.try_join_next() {
        ended.unwrap();
    }
}

/// Returns a store that has a record.
async fn store_of_one_connection(server: &Server) -> Arc<dyn TokenStore> {
    let builder = PostgresStores::builder(server.url()).connections(NonZeroUsize::MIN);
    let stores = builder.connect().await.unwrap();
    stores.migrate().await.unwrap();
    let store = stores.store("ada");
    store.replace(&entry(1)).await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_statements_hang_is_not_asked_for_ever_more_connections() {
    let Some(server) = Server::start(&[]) else { return };
    let store = store_of_one_connection(&server).await;
    // A lock on the table, held by an operator for instance.
    let holder = server.begin("LOCK TABLE tower_auth_refresh");
    for _ in 0..3 {
        assert!(is_unavailable(&store.load().await));
    }
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tower-auth-refresh'";
    assert_eq!(server.sql(open), "2");
    drop(holder);
    assert_eq!(store.load().await.unwrap().unwrap().generation(), 1);
}

/// Lets a minute pass, but for its last seconds, in which something happens.
async fn in_a_minute(what: impl AsyncFnOnce()) {
    pause();
    advance(Duration::from_secs(50)).await;
    resume();
    timeout(Duration::from_secs(10), what()).await.unwrap();
}

#[tokio::test]
async fn connections_whose_answers_never_arrive_make_room_for_others_within_a_minute() {
    let Some(server) = shared().await else { return };
    let case = case(server, "two black holes".into()).await;
    case.witness.replace(&entry(1)).await.unwrap();
    for _ in 0..2 {
        case.proxy.inject(Fault::HoleBefore);
        // Long enough for the connection to be retired.
        let _ = timeout(Duration::from_secs(3), case.subject.load()).await;
        assert!(case.proxy.has_struck());
    }
    assert!(is_unavailable(&case.subject.load().await), "both connections are in use");
    in_a_minute(async || while is_unavailable(&case.subject.load().await) {}).await;
    assert_eq!(case.subject.load().await.unwrap().unwrap().generation(), 1);
}

#[tokio::test]
async fn statements_that_hang_are_cancelled_before_other_connections_are_made() {
    let Some(server) = Server::start(&[]) else { return };
    let store = store_of_one_connection(&server).await;
    let _holder = server.begin("LOCK TABLE tower_auth_refresh");
    for _ in 0..2 {
        // Several on one connection.
        let loads = async { tokio::join!(store.load(), store.load(), store.load()) };
        let _ = timeout(Duration::from_secs(3), loads).await;
    }
    let waiting = || server.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'");
    assert_eq!(waiting(), "2");
    in_a_minute(async || {
        while waiting() != "0" {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_ends_in_time_while_the_server_is_down_and_says_why() {
    let Some(server) = Server::start(&[]) else { return };
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    stores.migrate().await.unwrap();
    let store = stores.store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    let claim = claimed(&*store, &version).await;
    server.stop("fast");
    let entry = entry(2);
    let (load, insert, replace, claiming, renew, release, commit, clear) = timeout(CALL_TIMEOUT, async {
        tokio::join!(
            store.load(),
            store.insert(&entry),
            store.replace(&entry),
            store.claim(&version, LEASE),
            store.renew(&claim, LEASE),
            store.release(&claim, Presented::Unused),
            store.commit(&claim, &entry),
            store.clear(&version),
        )
    })
    .await
    .unwrap();
    assert!(is_unavailable(&load) && is_unavailable(&insert) && is_unavailable(&replace) && is_unavailable(&claiming));
    assert!(is_unavailable(&renew) && is_unavailable(&release) && is_unavailable(&commit) && is_unavailable(&clear));
    let error = load.unwrap_err().to_string();
    assert!(error.contains("Connection refused"), "{error}");
    assert!(server.launch());
    assert!(matches!(store.insert(&entry).await.unwrap(), InsertOutcome::Exists(record) if record.generation() == 1));
    assert!(matches!(store.clear(&version).await.unwrap(), ClearOutcome::Cleared));
}

/// As long as a connection answers, its other statements are waited for, and not sent again behind one another.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_answers_slowly_is_waited_for() {
    let Some(server) = Server::start(&[]) else { return };
    let one = NonZeroUsize::MIN;
    let stores = PostgresStores::builder(server.url()).connections(one).connect().await.unwrap();
    stores.migrate().await.unwrap();
    let store = stores.store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    server.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;
        CREATE TRIGGER slow BEFORE UPDATE ON tower_auth_refresh FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    // The third answer comes after 3 s. On a slow machine, that may be too late.
    for _ in 0..10 {
        let extend = || store.extend(&version, SystemTime::now());
        let outcomes = tokio::join!(extend(), extend(), extend());
        if let (Ok(true), Ok(true), Ok(true)) = outcomes {
            return;
        }
    }
    panic!("the third statement is never answered in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_after_a_write_that_was_dropped_finds_what_it_has_written() {
    let Some(server) = Server::start(&[]).map(Arc::new) else { return };
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    stores.migrate().await.unwrap();
    // One after the other: their connections differ.
    for user in 0..8 {
        let session = stores.store(user.to_string());
        session.replace(&entry(1)).await.unwrap();
        let locking = Arc::clone(&server);
        let lock = "LOCK TABLE tower_auth_refresh IN EXCLUSIVE MODE; SELECT pg_sleep(0.5)";
        let locked = spawn_blocking(move || drop(locking.sql(lock)));
        let locks = "SELECT count(*) FROM pg_locks WHERE mode = 'ExclusiveLock' AND granted
            AND relation = 'tower_auth_refresh'::regclass";
        while server.sql(locks) != "1" {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(timeout(Duration::from_millis(20), session.replace(&entry(2))).await.is_err(), "it waits for the lock");
        assert_eq!(session.load().await.unwrap().unwrap().generation(), 2, "user {user}");
        locked.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_one_after_the_other_use_one_connection_and_none_waits_for_one_that_is_silent() {
    let Some(server) = shared().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let builder = PostgresStores::builder(url_at(proxy.port())).listen_url(server.url()).namespace(new_namespace());
    let stores = builder.connect().await.unwrap();
    stores.migrate().await.unwrap();
    let load = async |user: usize| assert!(stores.store(user.to_string()).load().await.unwrap().is_none());
    load(0).await;
    let connections = proxy.connections();
    for user in 1..9 {
        load(user).await;
    }
    assert_eq!(proxy.connections(), connections);
    proxy.inject(Fault::HoleBefore);
    let mut held = pin!(load(9));
    let silent = async {
        while !proxy.has_struck() {
            sleep(Duration::from_millis(1)).await;
        }
        // Less than the time for an answer: none of these has to be sent again.
        timeout(Duration::from_secs(1), async {
            for user in 10..20 {
                load(user).await;
            }
        })
        .await
    };
    tokio::select! {
        () = &mut held => panic!("it isn't answered"),
        others = silent => others.expect("each is made on another connection"),
    }
    // Sent again.
    held.await;
}
