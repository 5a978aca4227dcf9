use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http2 as http2_server;
use hyper::service::service_fn as hyper_service;
use hyper_util::client::legacy::connect::Connected as About;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::timeout;

use super::*;
use crate::proxy::early_answer::AnswerFirst;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// More than any wait takes: a test fails after it, instead of hanging. Connections are kept for less.
const LONG: Duration = Duration::from_secs(60);

/// A pool whose connections are pipes.
struct World {
    pool: Arc<Pool<Pipes, Body>>,
    servers: mpsc::UnboundedReceiver<DuplexStream>,
    /// As many connections as there are permits can be opened.
    may_open: Arc<Semaphore>,
    /// From when it is set, writes to the connections fail.
    writes_fail: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Pipes {
    servers: mpsc::UnboundedSender<DuplexStream>,
    may_open: Arc<Semaphore>,
    writes_fail: Arc<AtomicBool>,
    is_http2: bool,
}

struct Pipe {
    io: TokioIo<DuplexStream>,
    writes_fail: Arc<AtomicBool>,
    is_http2: bool,
}

type Answered = Result<(Response<Incoming>, Lease<Body>), Failed>;

impl World {
    fn new(is_http2: bool) -> Self {
        let (sender, servers) = mpsc::unbounded_channel();
        let (may_open, writes_fail) = (Arc::new(Semaphore::new(100)), Arc::<AtomicBool>::default());
        let pipes = Pipes { servers: sender, may_open: may_open.clone(), writes_fail: writes_fail.clone(), is_http2 };
        let pool = Arc::new(Pool::new(pipes, Uri::from_static("http://server/base")));
        Self { pool, servers, may_open, writes_fail }
    }

    fn send(&self, body: Body) -> JoinHandle<Answered> {
        let request = Request::post("http://server/path").header(HOST, "server").body(body).unwrap();
        let pool = self.pool.clone();
        tokio::spawn(async move { timeout(LONG, pool.send(request)).await.unwrap() })
    }

    /// Returns the server's end of the next connection.
    async fn opened(&mut self) -> DuplexStream {
        timeout(LONG, self.servers.recv()).await.unwrap().unwrap()
    }

    fn has_opened(&mut self) -> bool {
        self.servers.try_recv().is_ok()
    }

    /// Makes a call on a new connection, and returns the server's end.
    async fn call_on_new(&mut self) -> DuplexStream {
        let call = self.send(Body::empty());
        let mut server = self.opened().await;
        answer(&mut server, ANSWER).await;
        read(call).await;
        server
    }

    /// Makes a call on a kept connection.
    async fn call_on(&mut self, server: &mut DuplexStream) {
        let call = self.send(Body::empty());
        answer(server, ANSWER).await;
        read(call).await;
        assert!(!self.has_opened());
    }
}

/// Reads a request, and answers.
async fn answer(server: &mut DuplexStream, answer: &[u8]) -> String {
    let head = read_until(server, b"\r\n\r\n").await;
    server.write_all(answer).await.unwrap();
    head
}

async fn read_until(server: &mut DuplexStream, end: &[u8]) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        read.push(timeout(LONG, server.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(read).unwrap()
}

/// Reads a response to its end.
async fn read(call: JoinHandle<Answered>) {
    let (response, lease) = call.await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    drop(lease);
    settle().await;
}

/// Lets all tasks run until they wait.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

/// Returns a body, and the sender of its parts.
fn upload() -> (mpsc::UnboundedSender<&'static str>, Body) {
    let (sender, parts) = mpsc::unbounded_channel();
    let next = async |mut parts: mpsc::UnboundedReceiver<_>| Some((Ok::<_, Infallible>(parts.recv().await?), parts));
    (sender, Body::from_stream(stream::unfold(parts, next)))
}

/// Checks that the client has closed a connection.
async fn assert_closed(mut server: DuplexStream) {
    settle().await;
    let read = timeout(Duration::from_millis(1), server.read(&mut [0; 1])).await;
    assert_eq!(read.expect("the connection is closed").unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_connection_that_was_used_last_is_used_next() {
    let mut world = World::new(false);
    let calls = [(); 2].map(|()| world.send(Body::empty()));
    let mut servers = [world.opened().await, world.opened().await];
    for (server, call) in servers.iter_mut().zip(calls) {
        let head = answer(server, ANSWER).await;
        assert!(head.starts_with("POST /path HTTP/1.1\r\nhost: server\r\n"), "{head}");
        read(call).await;
    }
    for _ in 0..3 {
        world.call_on(&mut servers[1]).await;
    }
    let _first = world.send(Body::empty());
    read_until(&mut servers[1], b"\r\n\r\n").await;
    world.call_on(&mut servers[0]).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_response_is_not_read_to_its_end_is_not_used_again() {
    let mut world = World::new(false);
    let call = world.send(Body::empty());
    let mut server = world.opened().await;
    answer(&mut server, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nok").await;
    drop(call.await.unwrap().unwrap());
    world.call_on_new().await;
    assert_closed(server).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_request_is_dropped_is_not_used_again() {
    let mut world = World::new(false);
    let call = world.send(Body::empty());
    let mut server = world.opened().await;
    read_until(&mut server, b"\r\n\r\n").await;
    call.abort();
    settle().await;
    world.call_on_new().await;
    assert_closed(server).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_server_closes_after_its_answer_is_not_used_again() {
    let mut world = World::new(false);
    let call = world.send(Body::empty());
    let mut server = world.opened().await;
    answer(&mut server, b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
    read(call).await;
    world.call_on_new().await;
    assert_closed(server).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_closed_while_kept_is_replaced() {
    let mut world = World::new(false);
    drop(world.call_on_new().await);
    settle().await;
    world.call_on_new().await;
}

/// The request is in the hands of the connection's task when that task finds the connection closed.
#[tokio::test(start_paused = true)]
async fn a_request_that_meets_the_close_unsent_is_sent_on_another_connection() {
    let mut world = World::new(false);
    drop(world.call_on_new().await);
    let call = world.send("upload".into());
    let mut server = world.opened().await;
    read_until(&mut server, b"upload").await;
    server.write_all(ANSWER).await.unwrap();
    read(call).await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_tells_if_its_connection_was_kept() {
    let mut world = World::new(false);
    for was_kept in [false, true] {
        let mut kept = if was_kept { Some(world.call_on_new().await) } else { None };
        let call = world.send(Body::empty());
        let mut server = match kept.take() {
            Some(kept) => kept,
            None => world.opened().await,
        };
        read_until(&mut server, b"\r\n\r\n").await;
        drop(server);
        let failed = call.await.unwrap().err().unwrap();
        assert!(matches!(failed, Failed::Sent { was_kept: kept, .. } if kept == was_kept), "{failed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_upload_is_not_finished_is_not_used_until_it_is() {
    let mut world = World::new(false);
    let (part, body) = upload();
    let call = world.send(body);
    let mut server = world.opened().await;
    part.send("first").unwrap();
    read_until(&mut server, b"first\r\n").await;
    server.write_all(ANSWER).await.unwrap();
    read(call).await;
    drop(world.call_on_new().await);
    part.send("last").unwrap();
    drop(part);
    read_until(&mut server, b"last\r\n0\r\n\r\n").await;
    settle().await;
    world.call_on(&mut server).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_discarded_is_not_used_again() {
    let mut world = World::new(false);
    let call = world.send(Body::empty());
    let mut server = world.opened().await;
    answer(&mut server, ANSWER).await;
    let (response, mut lease) = call.await.unwrap().unwrap();
    lease.discard();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    drop(lease);
    world.call_on_new().await;
    assert_closed(server).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_written_to_any_more_is_not_used_again() {
    for is_answered_first in [false, true] {
        let mut world = World::new(false);
        let (part, body) = upload();
        let call = world.send(body);
        let mut server = world.opened().await;
        part.send("first part").unwrap();
        read_until(&mut server, b"first part\r\n").await;
        let fail_to_write = async || {
            world.writes_fail.store(true, Ordering::Relaxed);
            part.send("second part").unwrap();
            settle().await;
            world.writes_fail.store(false, Ordering::Relaxed);
        };
        if !is_answered_first {
            fail_to_write().await;
        }
        server.write_all(ANSWER).await.unwrap();
        read(call).await;
        if is_answered_first {
            fail_to_write().await;
        }
        drop(part);
        settle().await;
        world.call_on_new().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_twenty_seconds() {
    let mut world = World::new(false);
    let mut server = world.call_on_new().await;
    for _ in 0..3 {
        sleep(TICK * (MAX_IDLE - 1)).await;
        world.call_on(&mut server).await;
    }
    sleep(TICK * MAX_IDLE).await;
    assert_closed(server).await;
    world.call_on_new().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_http_2_is_shared() {
    let mut world = World::new(true);
    let first = world.send(Body::empty());
    let server = world.opened().await;
    let serve = hyper_service(async |request: Request<Incoming>| {
        assert_eq!(request.uri(), "http://server/path");
        assert!(!request.headers().contains_key(HOST));
        // All requests are open at the same time.
        sleep(TICK).await;
        Ok::<_, Infallible>(Response::new(Body::from("ok")))
    });
    let server = http2_server::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(server), serve);
    let server = tokio::spawn(server);
    settle().await;
    let others = [(); 3].map(|()| world.send(Body::empty()));
    settle().await;
    assert!(!world.has_opened());
    for call in [first].into_iter().chain(others) {
        read(call).await;
    }
    sleep(TICK * (MAX_IDLE - 2)).await;
    read(world.send(Body::empty())).await;
    assert!(!world.has_opened());
    // The connection ends when it is kept no longer.
    timeout(TICK * MAX_IDLE, server).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_a_connection_that_becomes_free_before_its_own_is_open() {
    let mut world = World::new(false);
    world.may_open.forget_permits(99);
    let first = world.send(Body::empty());
    let mut server = world.opened().await;
    read_until(&mut server, b"\r\n\r\n").await;
    let second = world.send(Body::empty());
    settle().await;
    server.write_all(ANSWER).await.unwrap();
    read(first).await;
    answer(&mut server, ANSWER).await;
    read(second).await;
    // The other connection is kept once it is open.
    world.may_open.add_permits(1);
    let mut other = world.opened().await;
    settle().await;
    world.call_on(&mut other).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_cannot_be_opened_is_a_failure_of_its_own() {
    let world = World::new(false);
    world.may_open.close();
    let failed = world.send(Body::empty()).await.unwrap().err().unwrap();
    assert!(failed.is_connect());
    assert_eq!(crate::problem::chain(&failed), "connecting failed: semaphore closed");
}

impl Service<Uri> for Pipes {
    type Response = AnswerFirst<Pipe>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { servers, may_open, writes_fail, is_http2 } = self.clone();
        Box::pin(async move {
            may_open.acquire().await?.forget();
            let (io, server) = duplex(1024);
            servers.send(server)?;
            Ok(AnswerFirst::new(Pipe { io: TokioIo::new(io), writes_fail, is_http2 }))
        })
    }
}

impl Connection for Pipe {
    fn connected(&self) -> About {
        if self.is_http2 { About::new().negotiated_h2() } else { About::new() }
    }
}

impl Read for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.writes_fail.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
