//! Load tests with `wrk`: 500 users whose tokens live 2 s, and the same proxy without the layer as a baseline; a
//! gateway with Redis beside one with its sessions in memory; a million sessions.
//!
//! ```console
//! cargo test -p gateway --release --test load -- --ignored --nocapture
//! ```
//!
//! `LOAD_SECONDS` sets the duration, 60 by default.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../../crates/tower-auth-refresh-store/tests/it/directory.rs"]
mod directory;
#[path = "../../../../crates/tower-auth-refresh-store/tests/it/redis/server.rs"]
#[expect(dead_code, reason = "shared with the tests of the store")]
mod redis;
#[path = "../support/resident.rs"]
mod resident;
#[path = "../support/test_gateway.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod test_gateway;

use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gateway::{AuthServer, Gateway, Settings, Store};
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::sleep;
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};
use tower_auth_refresh_testkit::TestServer;

use self::directory::TestDirectory;
use self::resident::resident_memory;
use self::test_gateway::{Browser, spawn};

const USERS: usize = 500;
const ROUNDS: u64 = 6;

/// Each test needs the machine for itself: two that run together measure one another.
static MACHINE: Mutex<()> = Mutex::const_new(());

#[derive(Default)]
struct Figures {
    requests: u64,
    seconds: f64,
    p50: Vec<f64>,
    p99: Vec<f64>,
    max: f64,
    failed: u64,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes and requires wrk"]
async fn users_whose_tokens_live_two_seconds() {
    let _machine = MACHINE.lock().await;
    let seconds: u64 = env::var("LOAD_SECONDS").map_or(60, |text| text.parse().unwrap());
    let kit = TestServer::start().await.unwrap();
    let settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
    kit.configure(|settings| {
        settings.log_capacity = 0;
        settings.access_lifetime = Duration::from_secs(24 * 60 * 60);
    });
    let bare = spawn(Gateway::new(settings.clone()).without_refresh()).await;
    let bare_cookies = sign_in(bare, "bare").await;
    kit.configure(|settings| settings.access_lifetime = Duration::from_secs(2));
    let gateway = spawn(Gateway::new(settings)).await;
    let cookies = sign_in(gateway, "layered").await;
    kit.reset();

    let [without, with] = in_turns([(bare, &bare_cookies), (gateway, &cookies)], seconds).await;
    settle(gateway, &cookies).await;
    let counters = kit.counters();
    with.print("with the layer");
    without.print("without it    ");
    let share = with.rate() / without.rate();
    println!("throughput with the layer: {:.1} % of the baseline", share * 100.0);
    println!(
        "refreshes {}, generations challenged {}, 401s {}, violations {}, most concurrent refreshes of a user {}",
        counters.granted,
        counters.generations_challenged,
        counters.unauthorized(),
        counters.violations,
        counters.max_concurrent_refreshes,
    );
    assert_eq!((with.failed, without.failed), (0, 0));
    assert_eq!(counters.refreshes, counters.generations_challenged);
    assert_eq!(counters.granted, counters.generations_challenged);
    assert_eq!(kit.violations(), []);
    assert_eq!(counters.max_concurrent_refreshes, 1);
}

/// Each expiry costs two round trips to Redis, and each session a look every 5 s.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and requires wrk"]
async fn redis_beside_memory() {
    let _machine = MACHINE.lock().await;
    let seconds: u64 = env::var("LOAD_SECONDS").map_or(60, |text| text.parse().unwrap());
    let Some(server) = redis::Server::start_with(&["--appendonly", "yes"]).await else { return };
    let kit = TestServer::start().await.unwrap();
    let mut settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
    kit.configure(|settings| {
        settings.log_capacity = 0;
        settings.access_lifetime = Duration::from_secs(2);
    });
    let memory = spawn(Gateway::new(settings.clone())).await;
    settings.store = Store::Redis(server.url());
    let redis = spawn(Gateway::new(settings)).await;
    let (in_memory, in_redis) = (sign_in(memory, "memory").await, sign_in(redis, "redis").await);
    let [memory, redis] = in_turns([(memory, &in_memory), (redis, &in_redis)], seconds).await;
    memory.print("memory");
    redis.print("Redis ");
    let share = redis.rate() / memory.rate();
    println!("throughput with Redis: {:.1} % of that with memory", share * 100.0);
    assert_eq!((memory.failed, redis.failed), (0, 0));
    assert_eq!(kit.violations(), []);
    assert!(share >= 0.95, "{share}");
}

/// Signs a million users in, 500 of which make calls.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and a few GiB, and requires wrk"]
async fn a_million_sessions() {
    const SESSIONS: usize = 1_000_000;
    let _machine = MACHINE.lock().await;
    let kit = TestServer::start().await.unwrap();
    let mut settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
    settings.max_sessions = SESSIONS + USERS;
    kit.configure(|settings| {
        settings.log_capacity = 0;
        settings.access_lifetime = Duration::from_secs(2);
    });
    let gateway = Gateway::new(settings).listen().await.unwrap();
    let before = resident_memory().unwrap();
    let started = Instant::now();
    for number in 0..SESSIONS {
        // The lengths of a small JWT and of an opaque refresh token.
        let access = AccessToken::new(format!("{number:0>230}")).unwrap();
        let refresh = RefreshToken::new(format!("{number:0>64}")).unwrap();
        let tokens = Tokens::new(access, refresh).with_expires_in(Duration::from_secs(300));
        gateway.sign_in(tokens).await.unwrap();
    }
    let took = started.elapsed();
    let each = (resident_memory().unwrap() - before) / SESSIONS as u64;
    println!("{SESSIONS} sessions: {each} bytes each, {:.1?} us to sign one in", took.as_secs_f64());
    assert!(each <= 1024, "{each} bytes each");
    let address = gateway.address().unwrap();
    tokio::spawn(gateway.serve(std::future::pending()));
    let cookies = sign_in(address, "million").await;
    kit.reset();
    let mut figures = Figures::default();
    figures.add(&wrk(address, &cookies, 20).await);
    settle(address, &cookies).await;
    figures.print("with a million sessions");
    assert_eq!(figures.failed, 0);
    assert_eq!(kit.counters().refreshes, kit.counters().generations_challenged);
    assert_eq!(kit.violations(), []);
}

/// Signs users in and writes their cookies to a file.
async fn sign_in(address: SocketAddr, name: &str) -> PathBuf {
    let mut cookies = Vec::new();
    for user in 0..USERS {
        let mut browser = Browser::at(address);
        assert_eq!(browser.login(&format!("{name}-{user}"), "x").await.status, 204);
        cookies.push(browser.cookie.unwrap());
    }
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("cookies-{name}"));
    std::fs::write(&path, cookies.join("\n")).unwrap();
    path
}

/// Makes a call for each user after wrk has stopped. A call that wrk dropped just before its 401 has started no
/// refresh; the next call of that user does.
async fn settle(address: SocketAddr, cookies: &PathBuf) {
    sleep(Duration::from_secs(1)).await;
    for cookie in std::fs::read_to_string(cookies).unwrap().lines() {
        let mut browser = Browser::at(address);
        browser.cookie = Some(cookie.to_owned());
        assert_eq!(browser.get("/api/notes").await.status, 200);
    }
}

/// Measures two gateways in turns.
async fn in_turns(gateways: [(SocketAddr, &PathBuf); 2], seconds: u64) -> [Figures; 2] {
    let mut figures = [Figures::default(), Figures::default()];
    for _ in 0..ROUNDS {
        for (figures, (address, cookies)) in figures.iter_mut().zip(gateways) {
            figures.add(&wrk(address, cookies, seconds / ROUNDS).await);
        }
    }
    figures
}

async fn wrk(address: SocketAddr, cookies: &PathBuf, seconds: u64) -> Value {
    let mut command = Command::new("wrk");
    command.args(["--threads=2", "--connections=64", "--timeout=10s", &format!("--duration={seconds}s"), "--script"]);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/load/users.lua")).arg(format!("http://{address}"));
    let output = command.env("COOKIES", cookies).output().await.expect("wrk is installed");
    let output = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(output.lines().last().unwrap()).unwrap_or_else(|_| panic!("{output}"))
}

impl Figures {
    fn add(&mut self, report: &Value) {
        let count = |name: &str| report[name].as_u64().unwrap();
        let figure = |name: &str| report[name].as_f64().unwrap();
        self.requests += count("requests");
        self.seconds += figure("seconds");
        self.p50.push(figure("p50_ms"));
        self.p99.push(figure("p99_ms"));
        self.max = self.max.max(figure("max_ms"));
        self.failed += count("refused") + count("socket_errors") + count("timeouts");
    }

    fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
        let requests = self.requests as f64;
        requests / self.seconds
    }

    fn print(&self, name: &str) {
        let Self { requests, seconds, p50, p99, max, failed } = self;
        println!("{name}: {requests} requests in {seconds:.0} s, {:.0}/s, {failed} failed; by round:", self.rate());
        println!("    p50 {p50:.1?} ms, p99 {p99:.1?} ms, max {max:.0} ms");
    }
}
