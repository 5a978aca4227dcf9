//! A standby that is promoted without the primary's last commits, which it is kept from receiving.

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh::{Session, SessionState};
use tower_auth_refresh_store::{PostgresStores, StoreError};
use tower_auth_refresh_testkit::TestKit;

use super::pooler::Pooler;
use super::server::{PASSWORD, Server};
use crate::proxy::Proxy;
use crate::support::entry;

/// Far longer than a standby takes to apply a commit.
const REPLICATED: Duration = Duration::from_secs(20);

/// A primary, and a standby that replicates it through a proxy.
struct Pair {
    primary: Server,
    standby: Server,
    replication: Proxy,
    kit: TestKit,
}

impl Pair {
    async fn start() -> Option<Self> {
        let primary = Server::start(&[])?;
        PostgresStores::connect(primary.url()).await.unwrap().migrate().await.unwrap();
        let replication = Proxy::start(primary.port()).await;
        let port = replication.port();
        let standby = tokio::task::spawn_blocking(move || Server::start_standby_of(port)).await.unwrap()?;
        Some(Self { primary, standby, replication, kit: TestKit::new() })
    }

    fn url(&self) -> String {
        let (primary, standby) = (self.primary.port(), self.standby.port());
        format!("postgres://postgres:{PASSWORD}@127.0.0.1:{primary},127.0.0.1:{standby}/postgres")
    }

    /// Opens a replica of a service, in which the user is signed in.
    async fn session(&self) -> Session {
        let stores = PostgresStores::connect(self.url()).await.unwrap();
        let tokens = self.kit.sign_in("ada").try_into().unwrap();
        Session::builder(self.kit.refresh_service()).tokens(tokens).store(stores.store("ada")).build().await.unwrap()
    }

    /// Waits until the standby has what the primary has.
    async fn replicate(&self) {
        let written = self.primary.sql("SELECT pg_current_wal_lsn()");
        let is_applied = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        timeout(REPLICATED, async {
            while self.standby.sql(&is_applied) != "t" {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("the standby doesn't replicate");
    }

    /// Loses the primary.
    fn fail_over(&self) {
        self.primary.stop("immediate");
        self.standby.promote();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_a_failover_has_lost_is_written_back_and_no_user_is_signed_out() {
    let Some(pair) = Pair::start().await else { return };
    let (a, b) = (pair.session().await, pair.session().await);
    a.refresh().await.unwrap();
    pair.replicate().await;
    pair.replication.partition(true);
    let version = |server: &Server| server.sql("SELECT version FROM tower_auth_refresh");
    let replicated = version(&pair.standby);
    // Acknowledged by the primary alone.
    a.refresh().await.unwrap();
    let newest = a.tokens();
    assert_ne!(version(&pair.primary), replicated);
    assert_eq!(version(&pair.standby), replicated);
    pair.fail_over();

    assert_eq!(pair.kit.counters().refreshes, 2);
    a.refresh().await.unwrap();
    assert_eq!(pair.kit.counters().refreshes, 3);
    assert_ne!(a.tokens(), newest);
    let stored = PostgresStores::connect(pair.standby.url()).await.unwrap().store("ada");
    assert_eq!(stored.load().await.unwrap().unwrap().generation(), 4);
    b.recheck().await.unwrap();
    assert_eq!((b.tokens(), pair.kit.counters().refreshes), (a.tokens(), 3), "the other replica adopts");
    assert!([&a, &b].iter().all(|session| session.state() == SessionState::Active));
    assert_eq!(pair.kit.violations(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_synchronous_replication_no_token_is_presented_that_a_failover_could_lose() {
    let Some(pair) = Pair::start().await else { return };
    pair.primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
    pair.primary.sql("SELECT pg_reload_conf()");
    let session = pair.session().await;
    session.refresh().await.unwrap();
    assert_eq!(pair.kit.counters().refreshes, 1);

    pair.replication.partition(true);
    let begun = Instant::now();
    assert!(session.refresh().await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(6));
    assert_eq!(pair.kit.counters().refreshes, 1, "the claim isn't durable, so nothing is presented");
    pair.fail_over();
    timeout(REPLICATED, async {
        while session.refresh().await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("the session doesn't work after the failover");
    assert_eq!((pair.kit.counters().refreshes, pair.kit.violations()), (2, vec![]));
    assert_eq!(session.state(), SessionState::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_never_read_from() {
    let Some(pair) = Pair::start().await else { return };
    // A proxy, as a pooler is one, that is sent to the standby without a word.
    let proxy = Proxy::start(pair.primary.port()).await;
    let url = super::server::url_at(proxy.port());
    let store: std::sync::Arc<dyn TokenStore> = PostgresStores::connect(url).await.unwrap().store("ada");
    store.replace(&entry(1)).await.unwrap();
    proxy.retarget(pair.standby.port());
    proxy.cut();
    let error = store.load().await.unwrap_err().downcast::<StoreError>().unwrap();
    assert!(error.to_string().contains("standby"), "{error}");
    proxy.retarget(pair.primary.port());
    assert_eq!(store.load().await.unwrap().unwrap().generation(), 1);
}

/// A pooler keeps the connection of a client when its own ones lead to another server.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_a_pooler_has_turned_to_is_not_read_from_and_left() {
    let Some(pair) = Pair::start().await else { return };
    let proxy = Proxy::start(pair.primary.port()).await;
    let Some(pooler) = Pooler::start_at(&pair.primary, proxy.port()).await else { return };
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", pooler.port(), pair.primary.port());
    let url = format!("postgres://postgres:{PASSWORD}@{hosts}/postgres");
    let stores = PostgresStores::builder(url).connections(NonZeroUsize::MIN).connect().await.unwrap();
    let store = stores.store("ada");
    store.replace(&entry(1)).await.unwrap();
    proxy.retarget(pair.standby.port());
    proxy.cut();
    timeout(Duration::from_secs(10), async {
        while proxy.open() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the pooler's connections are open");
    let error = store.load().await.unwrap_err().downcast::<StoreError>().unwrap();
    assert!(error.to_string().contains("standby"), "{error}");
    assert_eq!(store.load().await.unwrap().unwrap().generation(), 1, "it is read from the next host");
}
