//! Sign-outs that the server pushes to other processes, here to registries with connections of their own.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh::{
    AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionRegistry, SessionState, Tokens,
};
use tower_auth_refresh_store::{PostgresStores, PostgresStoresBuilder};

use super::server::{Server, shared, url_at};
use crate::proxy::Proxy;
use crate::support::entry;

/// The bound for a sign-out that is pushed.
const PUSHED: Duration = Duration::from_millis(100);
const RECHECK: Duration = Duration::from_secs(1);
/// Longer than it takes to notice that the connection is half open, and to connect again.
const RECONNECTED: Duration = Duration::from_secs(10);

type Sessions = SessionRegistry<String>;

/// A replica of a service.
async fn replica(builder: PostgresStoresBuilder, recheck: Duration) -> Sessions {
    let stores = builder.connect().await.unwrap();
    stores.migrate().await.unwrap();
    on(stores, recheck)
}

fn on(stores: PostgresStores, recheck: Duration) -> Sessions {
    let refresh = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
    SessionRegistry::builder(Session::builder(refresh))
        .store_factory(move |user: &String| stores.store(user))
        .recheck(recheck)
        .build()
        .unwrap()
}

fn builder(port: u16, namespace: &str) -> PostgresStoresBuilder {
    PostgresStores::builder(url_at(port)).namespace(namespace)
}

async fn sign_in(sessions: &Sessions, user: &str) {
    let tokens = Tokens::new(AccessToken::new("a1").unwrap(), RefreshToken::new("r1").unwrap());
    sessions.sign_in(user.to_owned(), tokens).await.unwrap();
}

async fn get(sessions: &Sessions, user: &str) -> Option<Session> {
    sessions.get(&user.to_owned()).await.unwrap()
}

/// Waits until the number of connections that listen on the server is `count`.
pub(super) async fn until_listening(server: &Server, namespace: &str, count: usize) {
    let listening = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{namespace}' AND query IN ('', 'LISTEN \
         \"tower_auth_refresh\"')"
    );
    timeout(RECONNECTED, async {
        while server.sql(&listening) != count.to_string() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the replicas don't listen");
}

/// Waits until no connection with this name is left.
async fn until_disconnected(server: &Server, name: &str) {
    let connected = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'");
    timeout(RECONNECTED, async {
        while server.sql(&connected) != "0" {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("connections are left");
}

/// Waits until a session is signed out, without a look-up. Returns the time that it took.
async fn until_signed_out(session: &Session) -> Duration {
    let begun = Instant::now();
    let mut changes = session.subscribe();
    while session.state() != SessionState::SignedOut {
        timeout(RECONNECTED, changes.changed()).await.expect("the sign-out doesn't arrive").unwrap();
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_out_is_in_force_on_other_replicas_within_100_ms() {
    let Some(server) = shared().await else { return };
    let name = "push";
    let listen = format!("{}?application_name={name}", server.url());
    let open = || builder(server.port(), name).listen_url(&listen);
    let hour = Duration::from_secs(3600);
    let (a, b) = (replica(open(), hour).await, replica(open(), hour).await);
    let users = ["1", "2", "3", "4", "5"].map(str::to_owned);
    for user in &users {
        sign_in(&a, user).await;
        assert!(get(&b, user).await.is_some());
    }
    until_listening(server, name, 2).await;
    // The best of some, since other tests take the processor meanwhile.
    let mut best = Duration::MAX;
    for user in &users {
        let others = users.iter().filter(|other| *other > user);
        let session = get(&b, user).await.unwrap();
        let (signed_out, took) = tokio::join!(a.sign_out(user), until_signed_out(&session));
        signed_out.unwrap();
        best = best.min(took);
        drop(session);
        // The look that found it signed out has a handle for a moment.
        timeout(RECONNECTED, async {
            while get(&b, user).await.is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the session isn't removed");
        for other in others {
            assert!(get(&b, other).await.is_some(), "{other} hasn't signed out");
        }
    }
    println!("a sign-out is pushed within {best:?}");
    assert!(best < PUSHED, "{best:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_out_is_in_force_within_the_bound_while_the_push_is_cut_and_at_once_when_it_is_back() {
    let Some(server) = shared().await else { return };
    let name = "cut";
    let proxy = Proxy::start(server.port()).await;
    let listen = format!("{}?application_name={name}", url_at(proxy.port()));
    let a = replica(builder(server.port(), name), RECHECK).await;
    let b = replica(builder(server.port(), name).listen_url(&listen), RECHECK).await;
    let never = replica(builder(server.port(), name).listen_url(&listen), Duration::from_secs(3600)).await;
    for user in ["ada", "bob"] {
        sign_in(&a, user).await;
        assert!(get(&b, user).await.is_some() && get(&never, user).await.is_some());
    }
    until_listening(server, name, 2).await;

    // Half open: nothing arrives, and no connection is closed.
    proxy.partition(true);
    let begun = Instant::now();
    a.sign_out(&"ada".to_owned()).await.unwrap();
    while get(&b, "ada").await.is_some() {
        assert!(begun.elapsed() < RECHECK + PUSHED, "the bound has passed");
        sleep(Duration::from_millis(10)).await;
    }
    proxy.partition(false);
    proxy.cut();
    // After the reconnect, the next use looks again.
    timeout(RECONNECTED, async {
        while get(&never, "ada").await.is_some() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the sessions aren't looked at again after the reconnect");
    until_listening(server, name, 2).await;
    let bob = get(&never, "bob").await.unwrap();
    a.sign_out(&"bob".to_owned()).await.unwrap();
    until_signed_out(&bob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_connection_that_is_half_open_is_noticed() {
    let Some(server) = shared().await else { return };
    let name = "half open";
    let proxy = Proxy::start(server.port()).await;
    let listen = url_at(proxy.port());
    let a = replica(builder(server.port(), name).listen_url(&listen), RECHECK).await;
    sign_in(&a, "ada").await;
    let connected = async |count: usize| {
        timeout(RECONNECTED, async {
            while proxy.connections() < count {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("there is no new connection");
    };
    connected(1).await;
    proxy.partition(true);
    connected(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_registries_on_the_same_connections_learn_of_each_other_and_the_connections_end_with_them() {
    let Some(server) = shared().await else { return };
    let name = "together";
    let url = format!("{}?application_name={name}", server.url());
    let stores = PostgresStores::builder(url).namespace(name).connect().await.unwrap();
    stores.migrate().await.unwrap();
    let hour = Duration::from_secs(3600);
    let (a, b) = (on(stores.clone(), hour), on(stores.clone(), hour));
    for user in ["ada", "bob"] {
        sign_in(&a, user).await;
        assert!(get(&b, user).await.is_some());
    }
    until_listening(server, name, 1).await;
    for (here, there, user) in [(&a, &b, "ada"), (&b, &a, "bob")] {
        let session = get(there, user).await.unwrap();
        here.sign_out(&user.to_owned()).await.unwrap();
        until_signed_out(&session).await;
    }
    assert!(!format!("{stores:?}").contains("watched: 0"));
    drop((a, b));
    timeout(RECONNECTED, async {
        while !format!("{stores:?}").contains("watched: 0") {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("sessions that are gone are watched");
    drop(stores);
    until_disconnected(server, name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_but_sign_outs_and_no_connection_listens_without_a_session() {
    let Some(server) = Server::start(&["log_statement=all"]) else { return };
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    stores.migrate().await.unwrap();
    let store = stores.store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    let claim = crate::support::claimed(&*store, &version).await;
    store.commit(&claim, &entry(2)).await.unwrap();
    assert!(!server.log().contains("pg_notify") && !server.log().contains("LISTEN"));
    let version = store.load().await.unwrap().unwrap().version().clone();
    store.clear(&version).await.unwrap();
    assert!(server.log().contains("pg_notify"));
    let session =
        Session::builder(tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) }));
    let store: Arc<dyn TokenStore> = store;
    let session = session.store(store).build().await.unwrap();
    timeout(RECONNECTED, async {
        while !server.log().contains("LISTEN") {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    drop(session);
}
