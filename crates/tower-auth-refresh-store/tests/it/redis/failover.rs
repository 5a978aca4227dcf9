//! Failovers: writes that are lost although they were acknowledged, servers that give up their role, and sentinels.

use std::fs;
use std::process::Child;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_auth_refresh::store::{ClaimOutcome, ClearOutcome, TokenStore};
use tower_auth_refresh::{Session, SessionState, Tokens};
use tower_auth_refresh_store::{RedisStores, StoreError, StoreErrorKind};
use tower_auth_refresh_testkit::TestKit;

use super::Server;
use super::server::{command_to, launch};
use crate::operation::{CALL_TIMEOUT, Case};
use crate::proxy::Proxy;
use crate::support::{LEASE, TestDirectory, claimed, entry};

/// The command that makes a replica a primary.
const PROMOTION: &str = concat!("REPLICAOF NO", " ONE");

/// A server that sends its writes to a replica, through a proxy, and the clients' way to either, through another.
struct Pair {
    primary: Server,
    replica: Server,
    replication: Proxy,
    clients: Proxy,
    kit: TestKit,
}

impl Pair {
    async fn start() -> Option<Self> {
        let primary = Server::start().await?;
        let replication = Proxy::start(primary.port()).await;
        let source = replication.port().to_string();
        let replica = Server::start_with(&["--save", "", "--replicaof", "127.0.0.1", &source]).await?;
        let clients = Proxy::start(primary.port()).await;
        until(async || replica.command("INFO replication").await.contains("master_link_status:up")).await;
        Some(Self { primary, replica, replication, clients, kit: TestKit::new() })
    }

    async fn connect(&self, wait: usize) -> RedisStores {
        let url = format!("redis://127.0.0.1:{}", self.clients.port());
        RedisStores::builder(&url).wait(wait).connect().await.unwrap()
    }

    /// A session of a process of its own, in which the user is signed in.
    async fn session(&self, wait: usize, tokens: &Tokens) -> Session {
        let store = self.connect(wait).await.store("ada");
        let builder = Session::builder(self.kit.refresh_service()).store(store).tokens(tokens.clone());
        builder.build().await.unwrap()
    }

    /// Returns the user's tokens, which the replica has.
    async fn sign_in(&self) -> Tokens {
        let tokens: Tokens = self.kit.sign_in("ada").try_into().unwrap();
        self.session(0, &tokens).await;
        self.replicated().await;
        tokens
    }

    /// Waits until the replica has all writes. A write that waits for it gives up after a second.
    async fn replicated(&self) {
        let offset = async |server: &Server| {
            let info = server.command("INFO replication").await;
            info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).unwrap().to_owned()
        };
        until(async || offset(&self.primary).await == offset(&self.replica).await).await;
    }

    fn cut_replication(&self) {
        self.replication.refuse(true);
        self.replication.cut();
    }

    /// Kills the primary. The replica, which may not have its last writes, takes its place.
    async fn fail_over(&mut self) {
        self.cut_replication();
        self.primary.kill();
        assert_eq!(self.replica.command(PROMOTION).await, "+OK\r\n");
        self.clients.retarget(self.replica.port());
        self.clients.cut();
    }
}

/// Waits until a condition holds.
async fn until(condition: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "it takes too long");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wait_no_refresh_token_is_presented_whose_claim_could_be_lost() {
    let Some(mut pair) = Pair::start().await else { return };
    let tokens = pair.sign_in().await;
    let session = pair.session(1, &tokens).await;
    pair.cut_replication();
    until(async || pair.primary.command("INFO replication").await.contains("connected_slaves:0")).await;
    let error = session.refresh().await.unwrap_err();
    assert!(format!("{error:?}").contains("too few replicas"), "{error:?}");
    assert_eq!((pair.kit.counters().refreshes, session.tokens()), (0, tokens.clone()));
    assert!(matches!(session.state(), SessionState::Failing(_)), "{session:?}");
    // Given back: a process that doesn't wait isn't held up.
    let witness = pair.connect(0).await.store("ada");
    let version = witness.load().await.unwrap().unwrap().version().clone();
    assert!(!claimed(&*witness, &version).await.is_in_doubt());

    pair.fail_over().await;
    let other = pair.session(0, &tokens).await;
    other.refresh().await.unwrap();
    assert_eq!((pair.kit.counters().refreshes, other.state()), (1, SessionState::Active));
    assert_eq!(pair.kit.violations(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_wait_tokens_that_a_failover_loses_are_written_back_and_no_user_is_signed_out() {
    let Some(mut pair) = Pair::start().await else { return };
    let tokens = pair.sign_in().await;
    let (a, b) = (pair.session(0, &tokens).await, pair.session(0, &tokens).await);
    pair.cut_replication();
    a.refresh().await.unwrap();
    let newest = a.tokens();
    assert_ne!(newest, tokens);

    pair.fail_over().await;
    let store = pair.connect(0).await.store("ada");
    assert_eq!(*store.load().await.unwrap().unwrap().tokens(), tokens, "the failover has lost the refresh");
    a.refresh().await.unwrap();
    // It may have done so by itself, when its connection was made anew: a refresh would be one more.
    b.recheck().await.unwrap();
    let stored = store.load().await.unwrap().unwrap();
    assert_eq!((stored.generation(), stored.tokens()), (3, &a.tokens()));
    assert_eq!((a.state(), b.state(), a.tokens()), (SessionState::Active, SessionState::Active, b.tokens()));
    assert_eq!((pair.kit.counters().refreshes, pair.kit.violations()), (2, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wait_a_failover_between_claim_and_commit_keeps_the_claim() {
    let Some(mut pair) = Pair::start().await else { return };
    let tokens = pair.sign_in().await;
    let session = pair.session(1, &tokens).await;
    let gate = pair.kit.hold_refreshes();
    let refresh = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await.is_ok() }
    });
    gate.arrived(1).await;
    pair.cut_replication();
    gate.open();
    assert!(refresh.await.unwrap(), "the tokens are in force, though too few replicas have them");

    pair.fail_over().await;
    let store = pair.connect(0).await.store("ada");
    let old = store.load().await.unwrap().unwrap();
    assert_eq!(*old.tokens(), tokens, "the failover has lost the commit");
    let claim = store.claim(old.version(), LEASE).await.unwrap();
    assert!(matches!(claim, ClaimOutcome::Busy { .. }), "no other process presents the token: {claim:?}");
    // The newer tokens are written back once the lease has ended.
    let newest = session.tokens();
    assert!(session.refresh().await.is_err());
    assert_eq!(session.tokens(), newest);
    assert_eq!(pair.kit.violations(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wait_a_sign_out_waits_for_a_replica_that_is_away_for_a_while() {
    let Some(pair) = Pair::start().await else { return };
    let store = pair.connect(1).await.store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    // The server knows the script from now on.
    store.clear(&version).await.unwrap();
    let version = store.replace(&entry(1)).await.unwrap();
    pair.cut_replication();
    until(async || pair.primary.command("INFO replication").await.contains("connected_slaves:0")).await;
    let mut clear = store.clear(&version);
    let longer_than_one_wait = Duration::from_millis(1400);
    let early = timeout(longer_than_one_wait, &mut clear).await;
    assert!(early.is_err(), "{early:?}");
    pair.replication.refuse(false);
    assert!(matches!(clear.await.unwrap(), ClearOutcome::Cleared));
    assert_eq!(pair.replica.command("DBSIZE").await, ":0\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wait_a_sign_out_that_no_replica_acknowledges_fails_within_its_time() {
    let Some(pair) = Pair::start().await else { return };
    let store = pair.connect(1).await.store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    pair.cut_replication();
    let outcome = timeout(CALL_TIMEOUT, store.clear(&version)).await.expect("the call takes too long");
    assert!(format!("{:?}", outcome.unwrap_err()).contains("too few replicas"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_out_that_is_repeated_gives_the_replicas_something_to_acknowledge() {
    let Some(pair) = Pair::start().await else { return };
    let store = pair.connect(1).await.store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    for deletions in 1..=3 {
        assert!(matches!(store.clear(&version).await.unwrap(), ClearOutcome::Cleared));
        let seen = pair.replica.command("INFO commandstats").await;
        assert!(seen.contains(&format!("cmdstat_del:calls={deletions},")), "{seen}");
        assert_eq!(pair.replica.command("DBSIZE").await, ":0\r\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_gives_up_its_role_and_keeps_its_connections_is_read_no_longer() {
    let Some(pair) = Pair::start().await else { return };
    let store = pair.connect(0).await.store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    pair.replicated().await;
    let connections = pair.clients.connections();
    assert_eq!(pair.replica.command(PROMOTION).await, "+OK\r\n");
    let source = pair.replica.port();
    assert_eq!(pair.primary.command(&format!("REPLICAOF 127.0.0.1 {source}")).await, "+OK\r\n");
    pair.clients.retarget(pair.replica.port());
    // The old server may lag behind.
    let direct = RedisStores::connect(&pair.replica.url()).await.unwrap().store("ada");
    let claim = claimed(&*direct, &version).await;
    direct.commit(&claim, &entry(2)).await.unwrap();
    let record = store.load().await.unwrap().unwrap();
    assert_eq!((record.generation(), pair.clients.connections()), (2, connections + 1));
    claimed(&*store, record.version()).await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waits_for_a_replica_holds_up_no_call_that_does_not() {
    let Some(pair) = Pair::start().await else { return };
    let redis = pair.connect(1).await;
    let (ada, bob) = (redis.store("ada"), redis.store("bob"));
    let version = bob.replace(&entry(1)).await.unwrap();
    let claim = claimed(&*bob, &version).await;
    let is_waiting = async || pair.primary.command("INFO clients").await.contains("blocked_clients:1\r\n");
    // On a slow machine, the second of a write may be over before the others are answered.
    for generation in 1..=20 {
        pair.replica.signal(rustix::process::Signal::STOP);
        let ada = std::sync::Arc::clone(&ada);
        let write = tokio::spawn(async move { ada.replace(&entry(generation)).await.unwrap() });
        until(async || write.is_finished() || is_waiting().await).await;
        assert_eq!(bob.load().await.unwrap().unwrap().version(), &version);
        assert!(bob.renew(&claim, LEASE).await.unwrap());
        let is_overtaken = is_waiting().await;
        pair.replica.signal(rustix::process::Signal::CONT);
        write.await.unwrap();
        if is_overtaken {
            return;
        }
    }
    panic!("no call was answered while a write waited");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn the_connections_of_writes_that_wait_are_bounded_and_used_again() {
    let Some(pair) = Pair::start().await else { return };
    let redis = pair.connect(1).await;
    let write_all = async |users: usize| {
        let write = |user: usize| {
            let store = redis.store(user.to_string());
            async move { timeout(CALL_TIMEOUT, store.replace(&entry(1))).await.expect("the call takes too long") }
        };
        futures_util::future::join_all((0..users).map(write)).await
    };
    // Of twice as many writes as connections, each waits for 1 s.
    pair.replica.signal(rustix::process::Signal::STOP);
    let mut most = 0;
    let watch = async {
        loop {
            let clients = pair.primary.command("INFO clients").await;
            let blocked = clients.lines().find_map(|line| line.strip_prefix("blocked_clients:")).unwrap();
            most = most.max(blocked.parse::<usize>().unwrap());
        }
    };
    tokio::select! {
        written = write_all(16) => assert!(written.iter().all(Result::is_ok), "they are stored all the same"),
        () = watch => {}
    }
    assert!((2..=8).contains(&most), "{most} writes wait");

    pair.replica.signal(rustix::process::Signal::CONT);
    let mut connections = 0;
    for round in 0..8 {
        assert!(write_all(16).await.iter().all(Result::is_ok));
        if round == 0 {
            connections = pair.clients.connections();
        }
    }
    assert_eq!(pair.clients.connections(), connections, "they are used again");

    // The 24 writes of three turns are over when the task goes on, and so is the time of all others: the next turn comes
    // too late for them.
    pair.replica.signal(rustix::process::Signal::STOP);
    let stall = async {
        sleep(Duration::from_millis(2500)).await;
        std::thread::sleep(Duration::from_secs(2));
    };
    let (written, ()) = tokio::join!(write_all(64), stall);
    let refused: Vec<_> = written.into_iter().filter_map(Result::err).map(|error| format!("{error:?}")).collect();
    assert!(refused.len() >= 40, "{} writes are refused", refused.len());
    assert!(refused.iter().all(|error| error.contains("too many writes")), "{refused:?}");
    pair.replica.signal(rustix::process::Signal::CONT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waits_for_a_replica_waits_for_its_connection_too_and_not_for_one_that_is_refused() {
    let Some(pair) = Pair::start().await else { return };
    let redis = pair.connect(1).await;
    let ada = redis.store("ada");
    pair.clients.refuse(true);
    let first = entry(1);
    let mut write = ada.replace(&first);
    assert!(timeout(Duration::from_millis(200), &mut write).await.is_err(), "there is no connection");
    pair.clients.refuse(false);
    let version = write.await.unwrap();
    assert_eq!(pair.replica.command("DBSIZE").await, ":1\r\n");

    // Its connection closed, the next one is refused.
    assert_eq!(pair.primary.command("CONFIG SET requirepass s3cret").await, "+OK\r\n");
    pair.clients.cut();
    let begun = Instant::now();
    let error = ada.claim(&version, LEASE).await.unwrap_err().downcast::<StoreError>().unwrap();
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wait_a_refresh_takes_two_round_trips_and_one_wait_a_write() {
    let Some(pair) = Pair::start().await else { return };
    let tokens = pair.sign_in().await;
    let session = pair.session(1, &tokens).await;
    session.refresh().await.unwrap();
    let waits = async || {
        let stats = pair.primary.command("INFO commandstats").await;
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_wait:calls=")?.split_once(','));
        calls.map_or(0, |(calls, _)| calls.parse::<usize>().unwrap())
    };
    for _ in 0..3 {
        let before = (pair.clients.round_trips(), waits().await);
        session.refresh().await.unwrap();
        let after = (pair.clients.round_trips(), waits().await);
        assert_eq!((after.0 - before.0, after.1 - before.1), (2, 2), "claim and commit");
        // A server that doesn't know the scripts isn't asked twice.
        assert_eq!(pair.primary.command("SCRIPT FLUSH").await, "+OK\r\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wait_a_claim_whose_call_is_dropped_is_given_back() {
    let Some(pair) = Pair::start().await else { return };
    let open = async |port: u16| {
        let builder = RedisStores::builder(&format!("redis://127.0.0.1:{port}")).wait(1);
        builder.connect().await.unwrap().store("ada")
    };
    Case::new(pair.primary.port(), open).await.check_dropped_claim().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_gives_up_its_role_and_keeps_its_connections_is_written_no_longer() {
    let Some(pair) = Pair::start().await else { return };
    let redis = pair.connect(1).await;
    let write = |user: usize| {
        let store = redis.store(user.to_string());
        async move { store.replace(&entry(1)).await }
    };
    // Several connections.
    assert!(futures_util::future::join_all((0..8).map(write)).await.iter().all(Result::is_ok));
    pair.replicated().await;
    assert_eq!(pair.replica.command(PROMOTION).await, "+OK\r\n");
    let source = pair.replica.port();
    assert_eq!(pair.primary.command(&format!("REPLICAOF 127.0.0.1 {source}")).await, "+OK\r\n");
    pair.clients.retarget(pair.replica.port());
    until(async || pair.replica.command("INFO replication").await.contains("state=online")).await;
    write(8).await.unwrap();
    let direct = RedisStores::connect(&pair.replica.url()).await.unwrap();
    assert!(direct.store("8").load().await.unwrap().is_some());
}

/// A sentinel, which ends with it.
struct Sentinel {
    process: Child,
    port: u16,
    _directory: TestDirectory,
}

impl Sentinel {
    async fn start(primary: u16) -> Option<Self> {
        let directory = TestDirectory::new();
        fs::create_dir(directory.path()).unwrap();
        let file = directory.path().join("sentinel.conf");
        let settings = format!(
            "sentinel monitor main 127.0.0.1 {primary} 1\nsentinel down-after-milliseconds main 300\n\
             sentinel failover-timeout main 2000\n"
        );
        fs::write(&file, settings).unwrap();
        let (process, port) = launch("redis-sentinel", directory.path(), &[file.to_str().unwrap()]).await?;
        Some(Self { process, port, _directory: directory })
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_that_the_sentinels_name_is_found_before_and_after_a_failover() {
    let Some(mut primary) = Server::start().await else { return };
    let source = primary.port().to_string();
    let replica = Server::start_with(&["--save", "", "--replicaof", "127.0.0.1", &source]).await.unwrap();
    until(async || replica.command("INFO replication").await.contains("master_link_status:up")).await;
    let Some(sentinel) = Sentinel::start(primary.port()).await else { return };
    until(async || {
        let replicas = command_to(sentinel.port, "SENTINEL REPLICAS main").await.unwrap();
        replicas.contains(&replica.port().to_string())
    })
    .await;

    let kit = TestKit::new();
    // The first sentinel is down.
    let url = format!("redis+sentinel://127.0.0.1:1,127.0.0.1:{}/main", sentinel.port);
    let tokens: Tokens = kit.sign_in("ada").try_into().unwrap();
    let session = async |wait: usize| {
        let store = RedisStores::builder(&url).wait(wait).connect().await.unwrap().store("ada");
        Session::builder(kit.refresh_service()).store(store).tokens(tokens.clone()).build().await.unwrap()
    };
    session(1).await.refresh().await.unwrap();
    let session = session(0).await;
    primary.kill();
    until(async || session.refresh().await.is_ok()).await;
    assert_eq!(session.state(), SessionState::Active);
    assert!(replica.command("ROLE").await.contains("master"));
    let stored = RedisStores::connect(&replica.url()).await.unwrap().store("ada").load().await.unwrap().unwrap();
    assert_eq!(*stored.tokens(), session.tokens());
    assert_eq!(kit.violations(), []);

    let unknown = RedisStores::connect(&url.replace("/main", "/other")).await.unwrap_err();
    assert!(unknown.to_string().contains("doesn't know \"other\""), "{unknown}");
}
