//! Shutdown of a gateway with durable stores during a refresh. A process of its own, because the test counts the
//! refreshes of the whole process.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/test_gateway.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod test_gateway;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use gateway::{AuthServer, Gateway, Metrics, RefreshWatch, Settings};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, InsertOutcome, Presented, Record, StoreFuture, Version,
};
use tower_auth_refresh::{MemoryStore, TokenStore};
use tower_auth_refresh_testkit::TestServer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::test_gateway::Browser;

/// A store that outlives the gateway and commits slowly.
#[derive(Clone)]
struct SlowStore(Arc<MemoryStore>);

impl TokenStore for SlowStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.0.load()
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.0.insert(entry)
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.0.replace(entry)
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.0.claim(version, lease)
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.0.renew(claim, lease)
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.0.release(claim, presented)
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        Box::pin(async {
            sleep(Duration::from_millis(300)).await;
            self.0.commit(claim, entry).await
        })
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.0.clear(version)
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.0.extend(version, expires_at)
    }

    fn is_durable(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn shutdown_during_a_refresh_stores_the_new_tokens_and_answers_the_request() {
    let metrics = Arc::<Metrics>::default();
    tracing_subscriber::registry().with(RefreshWatch::layer(&metrics)).init();
    let kit = TestServer::start().await.unwrap();
    let settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
    let kept = Arc::new(Mutex::new(Vec::<SlowStore>::new()));
    let store_factory = {
        let kept = kept.clone();
        move || -> Arc<dyn TokenStore> {
            let store = SlowStore(Arc::default());
            kept.lock().unwrap().push(store.clone());
            Arc::new(store)
        }
    };
    for disconnects in [false, true] {
        let gateway = Gateway::new(settings.clone()).metrics(metrics.clone()).store_factory(store_factory.clone());
        let listening = gateway.listen().await.unwrap();
        let mut browser = Browser::at(listening.address().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(listening.serve(async {
            let _ = stopped.await;
        }));
        assert_eq!(browser.login("ada", "correct horse").await.status, 204);
        kit.expire_access_tokens();
        let gate = kit.hold_refreshes();
        let call = browser.spawn_get("/api/me");
        gate.arrived(1).await;
        if disconnects {
            call.abort();
        }
        drop(stop);
        gate.open();
        if !disconnects {
            assert_eq!(call.await.unwrap().json()["generation"], 2);
        }
        serving.await.unwrap();
        // The gateway has stopped, and the store holds the current refresh token.
        let store = kept.lock().unwrap().pop().unwrap();
        let record = store.load().await.unwrap().unwrap();
        assert_eq!(record.tokens().extra("gateway_user"), Some(&"ada".into()), "the refresh keeps the user");
        let refresh = record.tokens().refresh_token().unwrap().expose_secret().to_owned();
        let body = serde_json::json!({ "refresh_token": refresh }).to_string();
        let browser = Browser::at(kit.address());
        assert_eq!(browser.post("/auth/refresh", body).await.status, 200, "disconnects: {disconnects}");
    }
    assert_eq!(kit.violations(), []);
}
