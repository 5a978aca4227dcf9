//! A balancer that checks `/readyz` between the connections that it passes on, and a gateway that shuts down. The clock
//! stands still but where the test moves it.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use gateway::{AuthServer, Gateway, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, yield_now};
use tower_auth_refresh_testkit::TestServer;

use crate::test_gateway::Browser;

const DRAIN_DELAY: Duration = Duration::from_secs(600);

/// The clock is moved to so shortly before and after the end of the delay: timers have milliseconds.
const MOMENT: Duration = Duration::from_millis(5);

/// A balancer, which passes connections on until a check has failed.
struct Balancer {
    gateway: SocketAddr,
    checks: Browser,
    passes_on: bool,
}

impl Balancer {
    async fn check(&mut self) {
        self.passes_on = self.checks.get("/readyz").await.status == 200;
    }

    /// Makes the gateway's end of a client's connection.
    async fn connect(&self) -> io::Result<TcpStream> {
        assert!(self.passes_on, "the gateway is out");
        TcpStream::connect(self.gateway).await
    }
}

struct Shutdown {
    balancer: Balancer,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    /// The clock stands still until the drop.
    clock: mpsc::Sender<()>,
    _kit: TestServer,
}

impl Shutdown {
    /// Starts a gateway and stops the clock.
    async fn prepare(drain_delay: Duration) -> Self {
        let kit = TestServer::start().await.unwrap();
        let mut settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
        settings.drain_delay = drain_delay;
        settings.admin_listen = Some(([127, 0, 0, 1], 0).into());
        let listening = Gateway::new(settings).listen().await.unwrap();
        let (gateway, admin) = (listening.address().unwrap(), listening.admin_address().unwrap());
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(listening.serve(async { drop(stopped.await) }));
        // A paused clock advances by itself while the runtime waits for sockets, but not while a thread blocks. After a
        // minute a test hangs.
        let (clock, moving) = mpsc::channel();
        tokio::task::spawn_blocking(move || moving.recv_timeout(Duration::from_secs(60)));
        tokio::time::pause();
        let mut balancer = Balancer { gateway, checks: Browser::at(admin), passes_on: false };
        balancer.check().await;
        Self { balancer, stop, serving, clock, _kit: kit }
    }
}

/// Sends a request and returns the response, to the end of the connection.
async fn call(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.map(|_| response)
}

/// Sends a request on a new connection, which may be kept, and returns the head of the response.
async fn call_before_the_check(balancer: &Balancer) -> String {
    let mut stream = balancer.connect().await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut response = Vec::new();
    while !response.ends_with(b"ok\n") {
        response.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(response).unwrap()
}

#[track_caller]
fn assert_served(response: &io::Result<String>) {
    let response = response.as_deref().unwrap();
    assert!(response.starts_with("HTTP/1.1 200 ") && response.contains("connection: close\r\n"), "{response}");
}

/// Waits until the gateway, whose delay is over, refuses connections.
async fn refuses_connections(gateway: SocketAddr) {
    // The gateway waits for handshakes that are under way, as long as the clock stands still.
    for _ in 0..100 {
        yield_now().await;
    }
    tokio::time::advance(Duration::from_millis(100) + MOMENT).await;
    // Connections that it accepts before are not used.
    while TcpStream::connect(gateway).await.is_ok() {
        yield_now().await;
    }
}

#[tokio::test]
async fn connections_are_served_until_the_balancer_has_noticed_and_the_delay_is_over() {
    let Shutdown { mut balancer, stop, serving, clock, _kit } = Shutdown::prepare(DRAIN_DELAY).await;
    assert!(balancer.passes_on);
    stop.send(()).unwrap();
    // Before the next check the balancer knows of nothing.
    assert!(call_before_the_check(&balancer).await.starts_with("HTTP/1.1 200 "));
    let mut last = balancer.connect().await.unwrap();
    while balancer.passes_on {
        balancer.check().await;
    }
    // Passed on before the check, used after it.
    assert_served(&call(&mut last).await);
    // Checks of other balancers are yet to come.
    balancer.passes_on = true;
    assert_served(&call(&mut balancer.connect().await.unwrap()).await);
    tokio::time::advance(DRAIN_DELAY.checked_sub(MOMENT).unwrap()).await;
    assert_served(&call(&mut balancer.connect().await.unwrap()).await);
    let mut unused = balancer.connect().await.unwrap();
    tokio::time::advance(MOMENT * 2).await;
    refuses_connections(balancer.gateway).await;
    assert_served(&call(&mut unused).await);
    drop(clock);
    serving.await.unwrap();
}

#[tokio::test]
async fn without_the_delay_a_connection_is_refused_before_the_balancer_has_noticed() {
    let Shutdown { balancer, stop, serving, clock, _kit } = Shutdown::prepare(Duration::ZERO).await;
    stop.send(()).unwrap();
    refuses_connections(balancer.gateway).await;
    assert!(balancer.passes_on && balancer.connect().await.is_err());
    drop(clock);
    serving.await.unwrap();
}
