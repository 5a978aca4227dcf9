//! The round trips to a server, counted at a proxy.

use tower_auth_refresh::{Session, SessionRegistry};
use tower_auth_refresh_store::RedisStores;
use tower_auth_refresh_testkit::TestKit;

use super::Server;
use super::push::subscribed;
use crate::proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_takes_two_round_trips_a_first_use_one_and_a_look_up_in_memory_none() {
    let Some(server) = Server::start().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let kit = TestKit::new();
    let ada = "ada".to_owned();
    let registry = async || {
        let redis = RedisStores::connect(&format!("redis://127.0.0.1:{}", proxy.port())).await.unwrap();
        SessionRegistry::builder(Session::builder(kit.refresh_service()))
            .store_factory(move |user: &String| redis.store(user))
            .recheck(std::time::Duration::MAX)
            .build()
            .unwrap()
    };
    let first = registry().await;
    let session = first.sign_in(ada.clone(), kit.sign_in("ada").try_into().unwrap()).await.unwrap();
    // The server knows the scripts from now on.
    session.refresh().await.unwrap();
    let bob = "bob".to_owned();
    first.sign_in(bob.clone(), kit.sign_in("bob").try_into().unwrap()).await.unwrap();
    first.sign_out(&bob).await.unwrap();
    subscribed(&server, 1).await;
    // Looks at the store once, since a message may have been missed before.
    assert!(first.get(&ada).await.unwrap().is_some());

    let before = proxy.round_trips();
    session.refresh().await.unwrap();
    assert_eq!(proxy.round_trips() - before, 2, "claim and commit");

    let before = proxy.round_trips();
    assert!(first.get(&ada).await.unwrap().is_some());
    assert_eq!(proxy.round_trips() - before, 0, "in memory");

    // As after a restart.
    let second = registry().await;
    assert!(second.get(&bob).await.unwrap().is_none());
    subscribed(&server, 2).await;
    let before = proxy.round_trips();
    assert!(second.get(&ada).await.unwrap().is_some());
    assert_eq!(proxy.round_trips() - before, 1, "load");

    // It would look again.
    drop(second);
    let before = proxy.round_trips();
    first.sign_out(&ada).await.unwrap();
    assert_eq!(proxy.round_trips() - before, 2, "load and clear");
}
