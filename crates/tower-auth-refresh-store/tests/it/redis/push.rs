//! Sign-outs on one replica, as the other learns of them.

use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tower_auth_refresh::{Session, SessionRegistry, SessionState, Tokens};
use tower_auth_refresh_store::RedisStores;
use tower_auth_refresh_testkit::TestKit;

use super::Server;
use crate::proxy::{Fault, Proxy};

/// A sign-out is in force within it while the push works.
const PUSHED: Duration = Duration::from_millis(100);

/// A connection that is dead without a sign is noticed within it, and made anew.
const NOTICED: Duration = Duration::from_secs(3);

/// Longer than any test takes.
const NEVER: Duration = Duration::from_secs(3600);

type Registry = SessionRegistry<String>;

async fn replica(kit: &TestKit, port: u16, recheck: Duration) -> Registry {
    let redis = RedisStores::connect(&format!("redis://127.0.0.1:{port}")).await.unwrap();
    on(redis, kit, recheck)
}

fn on(redis: RedisStores, kit: &TestKit, recheck: Duration) -> Registry {
    SessionRegistry::builder(Session::builder(kit.refresh_service()))
        .store_factory(move |user: &String| redis.store(user))
        .recheck(recheck)
        .build()
        .unwrap()
}

/// Signs a user in on one replica, and uses the session on the other.
async fn signed_in(kit: &TestKit, here: &Registry, there: &Registry, user: &str) -> Session {
    here.sign_in(user.to_owned(), kit.sign_in(user).try_into().unwrap()).await.unwrap();
    let session = there.get(&user.to_owned()).await.unwrap().unwrap();
    assert_eq!(session.state(), SessionState::Active);
    session
}

/// Waits until this number of connections is subscribed.
pub(super) async fn subscribed(server: &Server, connections: usize) {
    timeout(Duration::from_secs(20), async {
        loop {
            let channels = server.command("PUBSUB CHANNELS tar:changed:*").await;
            let channel = channels.lines().find(|line| line.starts_with("tar:")).unwrap_or("none");
            let count = server.command(&format!("PUBSUB NUMSUB {channel}")).await;
            if count.lines().any(|line| line == format!(":{connections}")) {
                break;
            }
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
}

/// Two replicas that listen, the second one through a proxy, and the session of a user there.
async fn through_proxy(server: &Server, recheck: Duration) -> (Proxy, [Registry; 2], Session) {
    let kit = TestKit::new();
    let proxy = Proxy::start(server.port()).await;
    let (a, b) = (replica(&kit, server.port(), NEVER).await, replica(&kit, proxy.port(), recheck).await);
    let session = signed_in(&kit, &a, &b, "ada").await;
    subscribed(server, 2).await;
    (proxy, [a, b], session)
}

/// Waits until a session is signed out, and returns the time that it took.
async fn signed_out(session: &Session) -> Duration {
    let begun = Instant::now();
    let mut changes = session.subscribe();
    timeout(Duration::from_secs(20), async {
        while session.state() != SessionState::SignedOut {
            changes.changed().await.unwrap();
        }
    })
    .await
    .unwrap();
    begun.elapsed()
}

/// Waits until a session that is signed out is removed: the look that found it so has a handle for a moment.
async fn gone(registry: &Registry, user: &String) {
    timeout(Duration::from_secs(20), async {
        while let Some(session) = registry.get(user).await.unwrap() {
            assert_eq!(session.state(), SessionState::SignedOut);
            drop(session);
            yield_now().await;
        }
    })
    .await
    .expect("the session isn't removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_out_on_one_replica_is_pushed_to_the_other() {
    let Some(server) = Server::start().await else { return };
    let kit = TestKit::new();
    let (a, b) = (replica(&kit, server.port(), NEVER).await, replica(&kit, server.port(), NEVER).await);
    signed_in(&kit, &a, &b, "first").await;
    subscribed(&server, 2).await;
    let mut times = Vec::new();
    for user in 0..20 {
        let user = format!("{user}");
        let session = signed_in(&kit, &a, &b, &user).await;
        a.sign_out(&user).await.unwrap();
        times.push(signed_out(&session).await);
        assert_eq!(b.get(&user).await.unwrap().unwrap().state(), SessionState::SignedOut, "it still has a handle");
        drop(session);
        gone(&b, &user).await;
    }
    times.sort_unstable();
    println!("a sign-out is in force on the other replica after {:?}, at most {:?}", times[10], times[19]);
    // Not the longest, since other tests take the processor meanwhile.
    assert!(times[10] < PUSHED, "{times:?}");
    assert!(b.get(&"first".to_owned()).await.unwrap().is_some(), "the others are still signed in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_on_one_replica_is_pushed_to_the_other() {
    let Some(server) = Server::start().await else { return };
    let kit = TestKit::new();
    let (a, b) = (replica(&kit, server.port(), NEVER).await, replica(&kit, server.port(), NEVER).await);
    let session = signed_in(&kit, &a, &b, "ada").await;
    subscribed(&server, 2).await;
    let mut times = Vec::new();
    for _ in 0..5 {
        let again = a.sign_in("ada".to_owned(), kit.sign_in("ada").try_into().unwrap()).await.unwrap();
        let begun = Instant::now();
        let adopted = async {
            while session.tokens() != again.tokens() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), adopted).await.expect("the sign-in isn't pushed");
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    assert!(times[2] < PUSHED, "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_registries_on_one_connection_learn_of_each_other() {
    let Some(server) = Server::start().await else { return };
    let kit = TestKit::new();
    let redis = RedisStores::connect(&server.url()).await.unwrap();
    let (a, b) = (on(redis.clone(), &kit, NEVER), on(redis.clone(), &kit, NEVER));
    let session = signed_in(&kit, &a, &b, "ada").await;
    subscribed(&server, 1).await;
    a.sign_out(&"ada".to_owned()).await.unwrap();
    signed_out(&session).await;
    assert!(format!("{redis:?}").contains("watched: 1"), "{redis:?}");
    drop((a, b, session));
    let forgotten = async {
        while !format!("{redis:?}").contains("watched: 0") {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(20), forgotten).await.expect("sessions that are gone are watched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_out_whose_message_is_lost_is_in_force_within_the_bound_of_the_recheck() {
    const RECHECK: Duration = Duration::from_millis(500);
    let Some(server) = Server::start().await else { return };
    let (proxy, [a, b], session) = through_proxy(&server, RECHECK).await;
    proxy.mute(true);
    a.sign_out(&"ada".to_owned()).await.unwrap();
    let begun = Instant::now();
    while b.get(&"ada".to_owned()).await.unwrap().is_some_and(|found| found.state() == SessionState::Active) {
        assert!(begun.elapsed() < RECHECK + PUSHED);
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(session.state(), SessionState::SignedOut);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_out_during_a_cut_is_in_force_once_the_connection_is_up_again() {
    let Some(server) = Server::start().await else { return };
    let (proxy, [a, b], session) = through_proxy(&server, NEVER).await;
    proxy.refuse(true);
    proxy.cut();
    subscribed(&server, 1).await;
    a.sign_out(&"ada".to_owned()).await.unwrap();
    assert_eq!(session.state(), SessionState::Active, "no message, and no look");
    proxy.refuse(false);
    subscribed(&server, 2).await;
    let begun = Instant::now();
    while b.get(&"ada".to_owned()).await.unwrap().is_some_and(|found| found.state() == SessionState::Active) {
        assert!(begun.elapsed() < NOTICED);
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_connection_that_is_dead_without_a_sign_is_made_anew_within_3_s() {
    let Some(server) = Server::start().await else { return };
    let (proxy, _replicas, _) = through_proxy(&server, NEVER).await;
    let mut times = Vec::new();
    // The best of some, since other tests take the processor meanwhile.
    while times.iter().all(|time| *time > NOTICED + PUSHED) {
        assert!(times.len() < 5, "{times:?}");
        let before = proxy.connections();
        // The next bytes are the question whether the connection works.
        proxy.inject(Fault::HoleBefore);
        let begun = Instant::now();
        let made_anew = async {
            while proxy.connections() == before {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), made_anew).await.expect("the connection isn't made anew");
        times.push(begun.elapsed());
        subscribed(&server, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_connection_that_works_is_kept_and_one_that_is_refused_is_tried_again_after_pauses() {
    let Some(server) = Server::start().await else { return };
    let (proxy, _replicas, _) = through_proxy(&server, NEVER).await;
    let (connections, answers) = (proxy.connections(), proxy.answers());
    // Each question whether the connection works is answered.
    let answered = async {
        while proxy.answers() < answers + 3 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), answered).await.unwrap();
    assert_eq!(proxy.connections(), connections);

    let attempts = proxy.attempts();
    proxy.refuse(true);
    proxy.cut();
    sleep(Duration::from_secs(1)).await;
    let attempts = proxy.attempts() - attempts;
    assert!((1..20).contains(&attempts), "{attempts} attempts in a second");
}

#[test]
fn the_subscription_is_made_anew_after_its_runtime_has_ended() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = runtime();
    let Some(server) = first.block_on(Server::start()) else { return };
    let kit = TestKit::new();
    let (redis, session) = first.block_on(async {
        let redis = RedisStores::connect(&server.url()).await.unwrap();
        let tokens: Tokens = kit.sign_in("ada").try_into().unwrap();
        let builder = Session::builder(kit.refresh_service()).store(redis.store("ada")).tokens(tokens);
        let session = builder.build().await.unwrap();
        subscribed(&server, 1).await;
        (redis, session)
    });
    drop(first);
    runtime().block_on(async {
        subscribed(&server, 0).await;
        redis.store("ada").load().await.unwrap();
        subscribed(&server, 1).await;
    });
    drop(session);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_gone_is_told_nothing_and_the_subscription_ends_with_the_stores() {
    let Some(server) = Server::start().await else { return };
    let kit = TestKit::new();
    let (a, b) = (replica(&kit, server.port(), NEVER).await, replica(&kit, server.port(), NEVER).await);
    signed_in(&kit, &a, &b, "ada").await;
    subscribed(&server, 2).await;
    drop(b);
    subscribed(&server, 1).await;
    a.sign_out(&"ada".to_owned()).await.unwrap();
}
