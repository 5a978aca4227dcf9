//! The round trips to a server, counted at a proxy, and the memory of the server.

use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, stream};
use tower_auth_refresh::store::{Entry, Epoch};
use tower_auth_refresh::{AccessToken, RefreshToken, Session, SessionRegistry, Tokens};
use tower_auth_refresh_store::RedisStores;
use tower_auth_refresh_testkit::TestKit;

use super::Server;
use super::push::subscribed;
use crate::proxy::Proxy;
use crate::support::LEASE;

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
            .recheck(Duration::MAX)
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
    assert_eq!(proxy.connections(), 2, "one for all calls, and one that listens");

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

/// The bytes of a record on the server, beside those of its tokens.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_takes_little_memory_of_the_server() {
    const RECORDS: usize = 10_000;
    let Some(server) = Server::start().await else { return };
    let redis = RedisStores::connect(&server.url()).await.unwrap();
    let used = async || {
        let info = server.command("INFO memory").await;
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory_dataset:")).unwrap();
        used.parse::<usize>().unwrap()
    };
    // The lengths of JWTs, and of an opaque refresh token.
    for access in [230, 800, 1500] {
        let tokens =
            Tokens::new(AccessToken::new("a".repeat(access)).unwrap(), RefreshToken::new("r".repeat(64)).unwrap());
        let tokens = tokens.with_expires_in(Duration::from_secs(3600));
        let entry = Entry::new(Epoch::random(), 1, tokens).with_expires_at(SystemTime::now() + LEASE);
        server.command("FLUSHALL").await;
        redis.store("first").replace(&entry).await.unwrap();
        let before = used().await;
        let write = async |user: usize| redis.store(user.to_string()).replace(&entry).await.unwrap();
        let versions: Vec<_> = stream::iter((0..RECORDS).map(write)).buffer_unordered(100).collect().await;
        assert_eq!(versions.len(), RECORDS);
        let each = (used().await - before) / RECORDS;
        println!("{each} bytes for each of {RECORDS} records, of which the tokens are {}", access + 64);
        assert!((access + 64..=access + 64 + 700).contains(&each), "{each} bytes");
    }
}
