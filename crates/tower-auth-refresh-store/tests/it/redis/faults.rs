//! Answers that are lost, late or slow: each operation, at each point.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tower::BoxError;
use tower_auth_refresh::store::{
    ClaimOutcome, ClearOutcome, CommitOutcome, InsertOutcome, Presented, TokenStore, Version,
};
use tower_auth_refresh_store::{RedisStores, StoreError, StoreErrorKind};

use super::Server;
use crate::proxy::{Fault, Proxy};
use crate::support::{LEASE, claimed, entry};

/// A session waits for 5 s.
const CALL_TIMEOUT: Duration = Duration::from_millis(4500);

const FAULTS: [Fault; 6] = [
    Fault::CutBefore,
    Fault::CutAfter,
    Fault::HoleBefore,
    Fault::HoleAfter,
    Fault::Trickle(Duration::from_millis(1)),
    // The answer takes longer than an attempt.
    Fault::Trickle(Duration::from_millis(500)),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Load,
    Insert,
    Replace,
    Claim,
    Renew,
    ReleaseUnused,
    ReleaseInDoubt,
    Commit,
    Clear,
    Extend,
}

/// A store behind a proxy, and a witness with a connection of its own.
struct Case {
    proxy: Proxy,
    subject: Arc<dyn TokenStore>,
    witness: Arc<dyn TokenStore>,
}

impl Case {
    async fn new(server: &Server, namespace: &str) -> Self {
        let proxy = Proxy::start(server.port()).await;
        let open = async |port: u16| {
            let builder = RedisStores::builder(&format!("redis://127.0.0.1:{port}")).namespace(namespace);
            builder.connect().await.unwrap().store("ada")
        };
        Self { subject: open(proxy.port()).await, witness: open(server.port()).await, proxy }
    }

    async fn generation(&self) -> Option<u64> {
        self.witness.load().await.unwrap().map(|record| record.generation())
    }

    /// Returns whether the record's next claim is in doubt; `None` if a claim holds.
    async fn is_in_doubt(&self, version: &Version) -> Option<bool> {
        match self.witness.claim(version, LEASE).await.unwrap() {
            ClaimOutcome::Claimed(claim) => Some(claim.is_in_doubt()),
            ClaimOutcome::Busy { .. } => None,
            other => panic!("{other:?}"),
        }
    }

    /// Makes a call while a fault strikes, and checks the outcome and what it has left.
    async fn check(&self, operation: Operation, fault: Fault) {
        use Operation::{Claim, Clear, Commit, Extend, Insert, Load, ReleaseInDoubt, ReleaseUnused, Renew, Replace};
        let (store, case) = (&self.subject, (operation, fault));
        let has_acted = !matches!(fault, Fault::CutBefore | Fault::HoleBefore);
        if operation == Insert {
            self.proxy.inject(fault);
            match store.insert(&entry(1)).await {
                Ok(InsertOutcome::Inserted(version)) if has_acted => {
                    assert_eq!(*self.witness.load().await.unwrap().unwrap().version(), version, "{case:?}");
                }
                outcome => {
                    assert!(is_unavailable(&outcome) && !has_acted, "{case:?}: {outcome:?}");
                    assert_eq!(self.generation().await, None, "{case:?}");
                }
            }
            return;
        }
        let version = self.witness.replace(&entry(1)).await.unwrap();
        let is_claimed = matches!(operation, Renew | ReleaseUnused | ReleaseInDoubt | Commit);
        let claim = if is_claimed { Some(claimed(&**store, &version).await) } else { None };
        let claim = claim.as_ref();
        self.proxy.inject(fault);
        match operation {
            Load => assert_eq!(store.load().await.unwrap().unwrap().version(), &version),
            Replace => {
                let outcome = store.replace(&entry(2)).await;
                assert_eq!(outcome.is_ok(), has_acted, "{case:?}");
                assert!(has_acted || is_unavailable(&outcome), "{case:?}");
                assert_eq!(self.generation().await, Some(if has_acted { 2 } else { 1 }), "{case:?}");
            }
            Claim => {
                assert!(!claimed(&**store, &version).await.is_in_doubt(), "{case:?}");
                assert_eq!(self.is_in_doubt(&version).await, None, "{case:?}");
            }
            Renew => {
                assert!(store.renew(claim.unwrap(), LEASE).await.unwrap(), "{case:?}");
                assert_eq!(self.is_in_doubt(&version).await, None, "{case:?}");
            }
            ReleaseUnused => {
                store.release(claim.unwrap(), Presented::Unused).await.unwrap();
                assert_eq!(self.is_in_doubt(&version).await, Some(false), "{case:?}");
            }
            ReleaseInDoubt => {
                store.release(claim.unwrap(), Presented::InDoubt).await.unwrap();
                assert_eq!(self.is_in_doubt(&version).await, Some(true), "{case:?}");
            }
            Commit => {
                let committed = store.commit(claim.unwrap(), &entry(2)).await.unwrap();
                let CommitOutcome::Stored(version) = committed else { panic!("{case:?}: {committed:?}") };
                assert_eq!(*self.witness.load().await.unwrap().unwrap().version(), version, "{case:?}");
            }
            Clear => {
                assert!(matches!(store.clear(&version).await.unwrap(), ClearOutcome::Cleared), "{case:?}");
                assert_eq!(self.generation().await, None, "{case:?}");
            }
            Extend => {
                let end = SystemTime::UNIX_EPOCH + Duration::from_millis(4_000_000_000_123);
                assert!(store.extend(&version, end).await.unwrap(), "{case:?}");
                let record = self.witness.load().await.unwrap().unwrap();
                assert_eq!((record.version(), record.entry().expires_at()), (&version, Some(end)), "{case:?}");
            }
            Insert => unreachable!(),
        }
        assert!(self.proxy.has_struck(), "{case:?}");
    }
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

fn is_unavailable<T>(outcome: &Result<T, BoxError>) -> bool {
    let error = outcome.as_ref().err().and_then(|error| error.downcast_ref::<StoreError>());
    error.is_some_and(|error| error.kind() == StoreErrorKind::Unavailable)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_takes_effect_once_or_fails_wherever_its_connection_breaks() {
    use Operation::{Claim, Clear, Commit, Extend, Insert, Load, ReleaseInDoubt, ReleaseUnused, Renew, Replace};
    let Some(server) = Server::start().await else { return };
    know_all_scripts(&server).await;
    let server = Arc::new(server);
    let mut cases = JoinSet::new();
    for operation in [Load, Insert, Replace, Claim, Renew, ReleaseUnused, ReleaseInDoubt, Commit, Clear, Extend] {
        for fault in FAULTS {
            let server = Arc::clone(&server);
            cases.spawn(async move {
                let case = Case::new(&server, &format!("{operation:?} {fault:?}")).await;
                let checked = timeout(CALL_TIMEOUT, case.check(operation, fault)).await;
                checked.unwrap_or_else(|_| panic!("{operation:?} takes too long, if {fault:?}"));
            });
        }
    }
    while let Some(checked) = cases.join_next().await {
        checked.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_record_whose_answer_was_lost_is_not_written_again_over_what_was_made_of_it() {
    let Some(server) = Server::start().await else { return };
    know_all_scripts(&server).await;
    for is_insert in [true, false] {
        let case = Arc::new(Case::new(&server, &format!("{is_insert}")).await);
        case.proxy.inject(Fault::HoleAfter);
        let call = tokio::spawn({
            let store = Arc::clone(&case.subject);
            async move {
                if is_insert {
                    store.insert(&entry(1)).await.map(|inserted| assert!(matches!(inserted, InsertOutcome::Exists(_))))
                } else {
                    store.replace(&entry(1)).await.map(drop)
                }
            }
        });
        let version = loop {
            if let Some(record) = case.witness.load().await.unwrap() {
                break record.version().clone();
            }
            sleep(Duration::from_millis(1)).await;
        };
        // While the first call waits, another process refreshes or signs out.
        if is_insert {
            case.witness.clear(&version).await.unwrap();
        } else {
            let claim = claimed(&*case.witness, &version).await;
            case.witness.commit(&claim, &entry(2)).await.unwrap();
        }
        assert!(is_unavailable(&call.await.unwrap()), "insert: {is_insert}");
        assert_eq!(case.generation().await, if is_insert { None } else { Some(2) }, "insert: {is_insert}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_finds_what_others_have_written_since() {
    let Some(server) = Server::start().await else { return };
    know_all_scripts(&server).await;
    let case = Case::new(&server, "case").await;
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
        let case = Case::new(&server, &format!("{operation:?}")).await;
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
    let case = Case::new(&server, "case").await;
    let version = case.witness.replace(&entry(1)).await.unwrap();
    case.proxy.inject(Fault::HoleAfter);
    let call = case.subject.claim(&version, LEASE);
    assert!(timeout(Duration::from_millis(300), call).await.is_err(), "the answer is lost");
    timeout(CALL_TIMEOUT, async {
        loop {
            match case.is_in_doubt(&version).await {
                Some(in_doubt) => break assert!(!in_doubt, "no token was presented"),
                None => sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
    .unwrap();
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
