//! Restarts under load: no request through a balancer fails, neither a GET nor a POST, which balancers don't repeat.
//!
//! `RESTARTS=100` restarts gateways for longer.

use std::env;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::Method;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tower_auth_refresh_testkit::TestServer;

use crate::directory::TestDirectory;
use crate::haproxy::HaProxy;
use crate::nginx::Nginx;
use crate::program::{Program, command};
use crate::test_gateway::Browser;

/// Longer than the balancers keep an idle connection, and than HAProxy takes to notice.
const DRAIN_DELAY: &str = "--drain-delay=2s";

/// The time that nginx doesn't use a server again that has refused a connection, and more.
const REST: Duration = Duration::from_millis(1_500);

fn restarts() -> usize {
    env::var("RESTARTS").map_or(2, |number| number.parse().unwrap())
}

/// Gateways on the same file store: each has all users.
struct Fleet {
    kit: TestServer,
    store: TestDirectory,
}

impl Fleet {
    async fn new() -> Self {
        Self { kit: TestServer::start().await.unwrap(), store: TestDirectory::new() }
    }

    fn command(&self, address: SocketAddr) -> Command {
        let (origin, store) = (self.kit.origin(), format!("file:{}", self.store.path().display()));
        let mut command = command(&["--upstream", &origin, "--auth", &origin, "--store", &store, DRAIN_DELAY]);
        command.args(["--listen", &address.to_string()]);
        command
    }

    fn start(&self, address: SocketAddr) -> Program {
        Program::start_command(&mut self.command(address))
    }

    /// Starts a gateway on a socket that is open already, as systemd does.
    fn start_on(&self, listener: &TcpListener) -> Program {
        let gateway = self.command(([127, 0, 0, 1], 0).into());
        let mut shell = Command::new("sh");
        let script = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
        shell.args(["-c", script]).arg(gateway.get_program()).args(gateway.get_args());
        shell.env_clear().stdin(Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap())));
        Program::start_command(&mut shell)
    }
}

/// Returns an address that no client's connection takes while its gateway is being restarted.
fn address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(12_000..32_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Clients that send requests all the time.
struct Load {
    ended: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    clients: JoinSet<Vec<String>>,
}

impl Load {
    /// Signs users in through a balancer, and starts their load.
    async fn start(balancer: SocketAddr) -> Self {
        let (ended, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut clients = JoinSet::new();
        for number in 0..8 {
            let mut browser = Browser::at(balancer);
            let login = browser.login(&format!("user-{number}"), "correct horse").await;
            assert_eq!(login.status, 204, "{login:?}");
            let (ended, answers) = (ended.clone(), answers.clone());
            clients.spawn(async move {
                // No repeats: each failure is seen.
                let client = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http();
                let mut failures = Vec::new();
                for method in [Method::GET, Method::POST].into_iter().cycle() {
                    if ended.load(Ordering::Relaxed) {
                        break;
                    }
                    let (path, body) =
                        if method == Method::GET { ("/api/me", "") } else { ("/api/upload", "the body of a request") };
                    let request = browser.request(method, path).body(Body::from(body)).unwrap();
                    match client.request(request).await {
                        Ok(response) if response.status() == 200 => {
                            if let Err(error) = response.into_body().collect().await {
                                failures.push(format!("{path}: {error:?}"));
                            }
                        }
                        other => failures.push(format!("{path}: {other:?}")),
                    }
                    answers.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(5)).await;
                }
                failures
            });
        }
        Self { ended, answers, clients }
    }

    /// Waits for further answers.
    async fn proceed(&self) {
        let (begun, enough) = (Instant::now(), self.answers.load(Ordering::Relaxed) + 50);
        while self.answers.load(Ordering::Relaxed) < enough {
            assert!(begun.elapsed() < Duration::from_secs(60), "no answers");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the load, none of whose requests may have failed.
    async fn end(self, balancer: &str, log: &str) {
        self.ended.store(true, Ordering::Relaxed);
        let failures = self.clients.join_all().await.concat();
        let answers = self.answers.load(Ordering::Relaxed);
        println!("{balancer}: {} restarts, {answers} answers, {} failures", restarts(), failures.len());
        assert!(failures.is_empty(), "{failures:#?}\n{log}");
    }
}

/// Restarts one gateway after the other.
async fn restart_in_turns(fleet: &Fleet, gateways: &mut [Program], load: &Load) {
    load.proceed().await;
    for restart in 0..restarts() {
        let gateway = &mut gateways[restart % 2];
        gateway.terminate();
        assert!(gateway.exit(Duration::from_secs(60)).await.success());
        load.proceed().await;
        *gateway = fleet.start(gateway.address);
        sleep(REST).await;
        load.proceed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_gateways_behind_nginx_are_restarted() {
    let fleet = Fleet::new().await;
    let mut gateways = [fleet.start(address()), fleet.start(address())];
    let Some(nginx) = Nginx::balancing(&gateways.each_ref().map(|gateway| gateway.address)) else { return };
    let load = Load::start(nginx.address).await;
    restart_in_turns(&fleet, &mut gateways, &load).await;
    load.end("nginx", &nginx.log()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_gateways_behind_haproxy_are_restarted() {
    let fleet = Fleet::new().await;
    let mut gateways = [fleet.start(address()), fleet.start(address())];
    let Some(haproxy) = HaProxy::in_front_of(&gateways.each_ref().map(|gateway| gateway.address)) else { return };
    let load = Load::start(haproxy.address).await;
    restart_in_turns(&fleet, &mut gateways, &load).await;
    load.end("HAProxy", &haproxy.log()).await;
}

/// systemd keeps the socket: connections wait for the next process.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_the_only_gateway_is_restarted_on_the_same_socket() {
    let fleet = Fleet::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut gateway = fleet.start_on(&listener);
    assert_eq!(gateway.address, listener.local_addr().unwrap());
    let Some(nginx) = Nginx::balancing(&[gateway.address]) else { return };
    let load = Load::start(nginx.address).await;
    for _ in 0..restarts() {
        load.proceed().await;
        gateway.terminate();
        assert!(gateway.exit(Duration::from_secs(60)).await.success());
        gateway = fleet.start_on(&listener);
    }
    load.proceed().await;
    load.end("nginx, one gateway", &nginx.log()).await;
}
