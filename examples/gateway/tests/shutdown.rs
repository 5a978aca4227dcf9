//! A gateway over durable stores stops in mid-refresh. In a process of its own: it counts the refreshes of the process.

#![expect(clippy::unwrap_used, reason = "what fails in a test, fails the test")]

#[path = "support/world.rs"]
#[expect(dead_code, reason = "made for more than this")]
mod world;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway::{AuthServer, Gateway, Metrics, RefreshWatch, Settings};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Epoch, Presented, Record, StoreFuture, Version,
};
use tower_auth_refresh::{MemoryStore, TokenStore, Tokens};
use tower_auth_refresh_testkit::TestServer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::world::Browser;

/// Outlives the gateway, and takes its time over each write.
#[derive(Clone)]
struct Durable(Arc<MemoryStore>);

impl TokenStore for Durable {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.0.load()
    }

    fn replace<'a>(&'a self, epoch: Epoch, tokens: &'a Tokens) -> StoreFuture<'a, Version> {
        self.0.replace(epoch, tokens)
    }

    fn claim(&self, version: Version, lease: Duration) -> StoreFuture<'_, ClaimOutcome> {
        self.0.claim(version, lease)
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.0.renew(claim, lease)
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.0.release(claim, presented)
    }

    fn commit<'a>(&'a self, claim: &'a Claim, tokens: &'a Tokens) -> StoreFuture<'a, CommitOutcome> {
        Box::pin(async {
            sleep(Duration::from_millis(300)).await;
            self.0.commit(claim, tokens).await
        })
    }

    fn clear(&self, version: Version) -> StoreFuture<'_, ClearOutcome> {
        self.0.clear(version)
    }
}

#[tokio::test]
async fn in_mid_refresh_the_new_tokens_are_saved_and_the_request_is_answered() {
    let metrics = Arc::<Metrics>::default();
    tracing_subscriber::registry().with(RefreshWatch::layer(&metrics)).init();
    let kit = TestServer::start().await.unwrap();
    let settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
    let kept = Arc::new(Mutex::new(Vec::<Durable>::new()));
    let stores = {
        let kept = kept.clone();
        move || -> Arc<dyn TokenStore> {
            let store = Durable(Arc::default());
            kept.lock().unwrap().push(store.clone());
            Arc::new(store)
        }
    };
    for leaves in [false, true] {
        let gateway = Gateway::new(settings.clone()).metrics(metrics.clone()).stores(stores.clone());
        let listening = gateway.listen().unwrap();
        let mut browser = Browser::at(listening.address().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(listening.serve(async {
            let _ = stopped.await;
        }));
        assert_eq!(browser.login("ada", "correct horse").await.status, 204);
        kit.expire_access_tokens();
        let gate = kit.hold_refreshes();
        let call = tokio::spawn(async move { browser.get("/api/me").await });
        gate.arrived(1).await;
        if leaves {
            call.abort();
        }
        drop(stop);
        gate.open();
        if !leaves {
            assert_eq!(call.await.unwrap().json()["generation"], 2);
        }
        serving.await.unwrap();
        // The gateway is gone, and the store holds the refresh token that is good now.
        let store = kept.lock().unwrap().pop().unwrap();
        let record = store.load().await.unwrap().unwrap();
        let refresh = record.tokens.refresh_token().unwrap().expose_secret().to_owned();
        let body = serde_json::json!({ "refresh_token": refresh }).to_string();
        let browser = Browser::at(kit.address());
        assert_eq!(browser.post("/auth/refresh", body).await.status, 200, "leaves: {leaves}");
    }
    assert_eq!(kit.violations(), []);
}
