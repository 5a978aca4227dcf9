//! Connections at a shutdown that have no place yet, or whose last response is on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use gateway::{AuthServer, Gateway, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tower_auth_refresh_testkit::TestServer;

use crate::test_gateway::{Browser, serve};

const LONG: Duration = Duration::from_secs(20);

/// A gateway that is told when to shut down.
struct Stoppable {
    kit: TestServer,
    browser: Browser,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

async fn start(upstream: &str, change: impl FnOnce(&mut Settings)) -> Stoppable {
    let kit = TestServer::start().await.unwrap();
    let mut settings = Settings::new(upstream, AuthServer::Json(kit.origin())).unwrap();
    change(&mut settings);
    let listening = Gateway::new(settings).listen().await.unwrap();
    let mut browser = Browser::at(listening.address().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(listening.serve(async {
        let _ = stopped.await;
    }));
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    Stoppable { kit, browser, stop, serving }
}

#[tokio::test]
async fn connections_that_wait_for_room_get_their_answers_at_a_shutdown() {
    for drain_delay in [Duration::ZERO, Duration::from_millis(200)] {
        let (gate, arrived) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
        let held = {
            let (gate, arrived) = (gate.clone(), arrived.clone());
            async move || {
                arrived.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await.unwrap().forget();
                "answer"
            }
        };
        let upstream = serve(Router::new().fallback(any(held))).await;
        let change = |settings: &mut Settings| {
            settings.max_connections = Some(1);
            settings.drain_delay = drain_delay;
        };
        let gateway = start(&upstream, change).await;
        // Browsers have a pool each.
        let calls: Vec<_> = (0..4)
            .map(|_| {
                let mut browser = Browser::at(gateway.browser.address());
                browser.cookie.clone_from(&gateway.browser.cookie);
                browser.spawn_get("/api/x")
            })
            .collect();
        let reached = async {
            while arrived.load(Ordering::Relaxed) < 1 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, reached).await.unwrap();
        // The second waits for room, the others to be accepted.
        sleep(Duration::from_millis(100)).await;
        gateway.stop.send(()).unwrap();
        while TcpStream::connect(gateway.browser.address()).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
        gate.add_permits(4);
        for call in calls {
            let answer = timeout(LONG, call).await.unwrap().unwrap();
            assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"answer"[..]));
        }
        timeout(LONG, gateway.serving).await.unwrap().unwrap();
        drop(gateway.kit);
    }
}

/// The runtime polls the gateway before it looks at the sockets: one thread runs both, and nothing here waits.
#[tokio::test]
async fn a_connection_that_the_runtime_has_not_noticed_is_served_at_a_shutdown() {
    let gateway = start("http://127.0.0.1:9", |_| {}).await;
    let stream = std::net::TcpStream::connect(gateway.browser.address()).unwrap();
    gateway.stop.send(()).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(stream).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(gateway.browser);
    timeout(LONG, gateway.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_shutdown_waits_for_a_lingering_close() {
    let gateway = start("http://127.0.0.1:9", |_| {}).await;
    let mut stream = TcpStream::connect(gateway.browser.address()).await.unwrap();
    // Answered before its upload has been read: the gateway reads on, so that the client gets the answer.
    stream.write_all(b"POST /api/x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 403 "), "{}", String::from_utf8_lossy(&answer));
    drop(gateway.browser);
    gateway.stop.send(()).unwrap();
    // Not reset: the rest of the upload is read.
    let mut serving = gateway.serving;
    assert!(timeout(Duration::from_secs(1), &mut serving).await.is_err(), "the gateway has not waited");
    stream.write_all(&[b'x'; 1000]).await.unwrap();
    drop(stream);
    timeout(LONG, serving).await.unwrap().unwrap();
}
