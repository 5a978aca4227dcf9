//! Gateways on a durable store: restarts, and replicas behind a balancer that are killed under load.
//!
//! The long run, with the store of your choice (`file`, `redis` or `postgres`):
//!
//! ```console
//! REPLICA_STORE=redis cargo test -p gateway --release --test replicas -- --ignored --nocapture
//! ```
//!
//! `REPLICA_SECONDS` sets the duration, 60 by default.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod balancer;
#[path = "../../../../crates/tower-auth-refresh-store/tests/it/directory.rs"]
mod directory;
#[path = "../../../../crates/tower-auth-refresh-store/tests/it/postgres/server.rs"]
#[expect(dead_code, reason = "shared with the tests of the store")]
mod postgres;
#[path = "../support/program.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod program;
#[path = "../../../../crates/tower-auth-refresh-store/tests/it/redis/server.rs"]
#[expect(dead_code, reason = "shared with the tests of the store")]
mod redis;
#[path = "../support/test_gateway.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod test_gateway;
mod users;

use std::collections::BTreeMap;
use std::env;
use std::time::{Duration, Instant};

use tokio::time::{sleep, sleep_until, timeout};
use tower_auth_refresh_testkit::{Rotation, TestServer};

use self::balancer::Balancer;
use self::directory::TestDirectory;
use self::program::Program;
use self::test_gateway::Browser;
use self::users::Users;

/// A store of one of three kinds. What runs for it ends with it.
struct Store {
    url: String,
    keys: String,
    _directory: TestDirectory,
    _postgres: Option<postgres::Server>,
    _redis: Option<redis::Server>,
}

impl Store {
    /// Opens a new store; `None` if its server isn't installed.
    async fn new(kind: &str) -> Option<Self> {
        let directory = TestDirectory::new();
        std::fs::create_dir(directory.path()).unwrap();
        let keys = directory.path().join("keys");
        std::fs::write(&keys, "first:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
        restrict(&keys);
        let (mut postgres, mut redis) = (None, None);
        let url = match kind {
            "file" => format!("file:{}", directory.path().join("sessions").display()),
            "redis" => redis.insert(redis::Server::start_with(&["--appendonly", "yes"]).await?).url(),
            "postgres" => postgres.insert(postgres::Server::start(&[])?).url(),
            other => panic!("REPLICA_STORE: {other}"),
        };
        let keys = keys.to_str().unwrap().to_owned();
        Some(Self { url, keys, _directory: directory, _postgres: postgres, _redis: redis })
    }

    /// Starts a gateway on this store, in front of the kit.
    fn start_gateway(&self, kit: &TestServer) -> Program {
        let origin = kit.origin();
        let (url, keys) = (&*self.url, &*self.keys);
        Program::start(&["--upstream", &origin, "--auth", &origin, "--store", url, "--store-keys", keys])
    }
}

#[cfg(unix)]
fn restrict(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Returns a browser that has this cookie already.
fn browser(gateway: &Program, cookie: &str) -> Browser {
    let mut browser = Browser::at(gateway.address);
    browser.cookie = Some(cookie.to_owned());
    browser
}

async fn a_restart_signs_no_user_out(kind: &str) {
    let Some(store) = Store::new(kind).await else { return };
    let kit = TestServer::start().await.unwrap();
    let mut gateway = store.start_gateway(&kit);
    let mut cookies = Vec::new();
    for user in ["ada", "bob"] {
        let mut browser = Browser::at(gateway.address);
        assert_eq!(browser.login(user, "correct horse").await.status, 204);
        cookies.push(browser.cookie.unwrap());
    }
    for generation in 1..=3 {
        // Killed, as by `kill -9`, without a shutdown.
        drop(gateway);
        gateway = store.start_gateway(&kit);
        for cookie in &cookies {
            let answer = browser(&gateway, cookie).get("/api/me").await;
            assert_eq!((answer.status.as_u16(), answer.json()["generation"].as_u64()), (200, Some(generation)));
        }
        kit.expire_access_tokens();
        for cookie in &cookies {
            assert_eq!(browser(&gateway, cookie).get("/api/me").await.json()["generation"], generation + 1);
        }
    }
    assert_eq!(kit.counters().logins, 2);
    assert_eq!(kit.violations(), []);
}

/// `within`: the longest time until the logout is in force.
async fn a_logout_is_in_force_on_the_other_gateway(kind: &str, within: Duration) {
    let Some(store) = Store::new(kind).await else { return };
    let kit = TestServer::start().await.unwrap();
    let gateways = [store.start_gateway(&kit), store.start_gateway(&kit)];
    let mut browser = Browser::at(gateways[0].address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    let mut other = Browser::at(gateways[1].address);
    other.cookie.clone_from(&browser.cookie);
    assert_eq!(other.get("/api/me").await.status, 200);
    assert_eq!(browser.get("/api/me").await.status, 200);

    assert_eq!(other.post("/logout", "").await.status, 204);
    let begun = Instant::now();
    while browser.get("/api/me").await.status != 401 {
        assert!(begun.elapsed() < within, "still signed in after {:?}", begun.elapsed());
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(kit.counters().logouts, 1);
}

/// Two gateways behind a balancer, one of which is killed every `life`, under the load of `users` whose tokens live for
/// 2 s.
async fn no_call_fails_but_on_the_gateway_that_is_killed(kind: &str, users: usize, life: Duration, total: Duration) {
    let Some(store) = Store::new(kind).await else { return };
    let kit = TestServer::start().await.unwrap();
    kit.configure(|settings| {
        settings.log_capacity = 0;
        settings.access_lifetime = Duration::from_secs(2);
        // A gateway may die between the answer of the server and the write to the store. The other one then presents
        // the refresh token again, marked as in doubt.
        settings.rotation = Rotation::Grace(Duration::from_secs(60));
    });
    let mut gateways = [store.start_gateway(&kit), store.start_gateway(&kit)];
    let balancer = Balancer::start(gateways.each_ref().map(|gateway| gateway.address)).await;
    let users = Users::sign_in(balancer.address(), users).await;
    let begun = Instant::now();
    let load = users.start(&balancer);
    let mut kills = 0;
    while begun.elapsed() + life < total {
        sleep_until((begun + life * (kills + 1)).into()).await;
        let gateway = &mut gateways[kills as usize % 2];
        balancer.killed(gateway.address);
        gateway.kill();
        *gateway = store.start_gateway(&kit);
        balancer.replace(kills as usize % 2, gateway.address);
        kills += 1;
    }
    sleep_until((begun + total).into()).await;
    let report = timeout(Duration::from_secs(60), load.stop()).await.unwrap();
    let counters = kit.counters();
    // The refresh token of a refresh whose gateway was killed, presented again within the grace window.
    let repeated = kit.violations().len() as u64;
    println!(
        "{kind}: {} users, {kills} kills in {} s: {} calls answered, {} cut off with their gateway; {} refreshes, \
         {repeated} of them in doubt",
        users.len(),
        total.as_secs(),
        report.answered,
        report.cut_off,
        counters.granted,
    );
    assert!(report.failures.is_empty(), "{} failed: {:#?}", report.failures.len(), count(&report.failures));
    assert!(kills > 0 && counters.granted > u64::from(kills));
    // At least one call waited for each refresh that was cut off.
    assert!(repeated <= report.cut_off, "presented twice without a kill: {:?}", kit.violations());
    // No user was signed out.
    users.assert_signed_in(balancer.address()).await;
    assert_eq!(kit.counters().logins, users.len() as u64);
}

/// Counts the failures by their first line and their body.
fn count(failures: &[String]) -> BTreeMap<(&str, &str), usize> {
    failures.iter().fold(BTreeMap::new(), |mut counts, failure| {
        let kind = (failure.lines().next().unwrap_or_default(), failure.lines().last().unwrap_or_default());
        *counts.entry(kind).or_default() += 1;
        counts
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_a_file_store_signs_no_user_out() {
    a_restart_signs_no_user_out("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_redis_signs_no_user_out() {
    a_restart_signs_no_user_out("redis").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_postgresql_signs_no_user_out() {
    a_restart_signs_no_user_out("postgres").await;
}

#[test]
fn a_postgresql_without_fsync_is_refused_unless_the_operator_accepts_it() {
    let Some(server) = postgres::Server::start(&["fsync=off"]) else { return };
    let url = server.url();
    let arguments = ["--upstream", "http://127.0.0.1:1", "--auth", "http://127.0.0.1:1", "--store", &url];
    // A check makes no table.
    let accepted = [&arguments[..], &["--store-allow-fsync-off"]].concat();
    let store_passes = || {
        let output = program::command(&accepted).arg("--check").output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().any(|line| line == "ok   --store")
    };
    assert!(!store_passes() && !store_passes());
    let output = program::run_to_failure(&mut program::command(&arguments));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--store: ") && error.contains("fsync is off"), "{error}");
    // Nor does a start that is refused.
    assert!(!store_passes());
    drop(Program::start(&accepted));
    assert!(store_passes());
}

/// A file store pushes nothing: the other gateway looks at it every 5 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_logout_is_in_force_on_a_gateway_with_the_same_files_within_the_bound() {
    a_logout_is_in_force_on_the_other_gateway("file", Duration::from_millis(5_500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_is_pushed_through_redis() {
    a_logout_is_in_force_on_the_other_gateway("redis", Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_is_pushed_through_postgresql() {
    a_logout_is_in_force_on_the_other_gateway("postgres", Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_with_the_same_files_are_killed_under_load() {
    no_call_fails_but_on_the_gateway_that_is_killed("file", 40, Duration::from_secs(2), Duration::from_secs(9)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes more than a minute"]
async fn gateways_are_killed_under_load_for_long() {
    let kind = env::var("REPLICA_STORE").unwrap_or_else(|_| "file".into());
    let seconds = env::var("REPLICA_SECONDS").map_or(60, |seconds| seconds.parse().unwrap());
    let (life, total) = (Duration::from_secs(5), Duration::from_secs(seconds));
    no_call_fails_but_on_the_gateway_that_is_killed(&kind, 500, life, total).await;
}
