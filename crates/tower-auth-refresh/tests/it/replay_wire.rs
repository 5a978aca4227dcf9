//! Replays over real sockets: hyper's server refuses the first attempt before, while or after it reads the body, and
//! then closes, drops the rest, reads on, or never reads. Gates fix the order of all later steps.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tokio::time::timeout;
use tower::{BoxError, ServiceExt};
use tower_auth_refresh::replay::NotReplayable;
use tower_auth_refresh::{AuthRefreshLayer, Origin, RefreshError, RefreshReport, RefreshRequest, ReplayLimit, Session};
use tower_layer::Layer;

use self::server::{Attempt, Server, Stage, is_refused};
use self::tap::Tap;
use self::upload::{Upload, Whole};
use crate::support::*;

#[path = "replay_wire/client.rs"]
mod client;
#[path = "replay_wire/server.rs"]
mod server;
#[path = "replay_wire/tap.rs"]
mod tap;
#[path = "replay_wire/upload.rs"]
mod upload;

/// More than the socket buffers and a stream's window hold, so that a server that doesn't read blocks the upload; and
/// little enough that a server that closes doesn't lose its own 401.
const LENGTH: usize = 192 * 1024;

/// The buffer size that each side requests for its socket; the system doubles it.
pub const BUFFER: u32 = 16 * 1024;

/// The time-out of a cell, which fails on a deadlock.
const LONG: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// Over a transport with vectored writes, such as a socket or rustls.
    H1,
    /// Over a transport without vectored writes, such as native-tls: hyper copies its output into one buffer.
    H1Copied,
    H2,
    /// Over a connection whose server allows one stream at a time.
    H2Narrow,
}

impl Http {
    pub fn is_1(self) -> bool {
        matches!(self, Self::H1 | Self::H1Copied)
    }
}

/// The server's handling of the rest of a refused request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Cuts the connection once the client has seen the 401.
    Closes,
    /// Drops the body, as handlers do: hyper then closes the connection, or resets the stream without an error.
    Drops,
    /// Reads the rest once the client has seen the 401.
    ReadsOn,
    /// Reads the rest once the client's next request has a connection.
    ReadsLate,
    NeverReads,
}

/// The point at which the server refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before it has read any of the body.
    Start,
    /// After it has read some of it.
    Middle,
    /// After it has read all of it.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// In one frame.
    Fast,
    /// Of unknown length, in a long frame and two short ones, all available from the start.
    Ready,
    /// Of known length, frame by frame; the second half is available once the client has seen the 401.
    Slow,
    /// As `Slow`, of unknown length.
    Unsized,
    /// As `Unsized`, with trailers.
    Chunked,
    /// Of known length; the second half is available once the server has read the first half of the replay.
    Gated,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    http: Http,
    manner: Manner,
    kind: Kind,
    when: When,
}

impl Cell {
    /// Each kind of body, refused at each point that makes a difference.
    fn all(http: Http, manner: Manner) -> Vec<Self> {
        let mut cells = Vec::new();
        for kind in [Kind::Fast, Kind::Ready, Kind::Slow, Kind::Unsized, Kind::Chunked, Kind::Gated] {
            for when in [When::Start, When::Middle, When::End] {
                let cell = Self { http, manner, kind, when };
                if cell.exists() {
                    cells.push(cell);
                }
            }
        }
        cells
    }

    /// Excludes impossible cells: a body read to its end can't be dropped or left unread, and a gated body doesn't end
    /// before the replay.
    fn exists(self) -> bool {
        self.when != When::End || !matches!(self.manner, Manner::Drops | Manner::NeverReads) && self.kind != Kind::Gated
    }

    /// Returns true if the client has buffered the whole body before it has an answer, although not all of it can be
    /// sent.
    fn is_buffered(self) -> bool {
        match self.kind {
            Kind::Fast => true,
            // Limited by the stream's window.
            Kind::Ready => self.http.is_1(),
            Kind::Slow | Kind::Unsized | Kind::Chunked | Kind::Gated => false,
        }
    }

    /// Returns true if the replay waits until the server reads the first attempt. So does the next request of a client
    /// without the middleware: see `a_replay_waits_where_the_next_request_of_a_plain_client_waits`.
    fn waits(self) -> bool {
        self.manner == Manner::NeverReads
            && match self.http {
                Http::H1 | Http::H2 => false,
                Http::H1Copied => self.is_buffered(),
                // The client polls the body again only when the window opens.
                Http::H2Narrow => matches!(self.kind, Kind::Fast | Kind::Ready),
            }
    }

    /// The manner of the server in this cell. A replay that waits for the server would deadlock if it never read.
    fn server_manner(self) -> Manner {
        if self.waits() { Manner::ReadsLate } else { self.manner }
    }

    /// Returns true if all of the first attempt reaches the server. A buffered body isn't stopped.
    fn is_sent_whole(self) -> bool {
        self.when == When::End || self.is_buffered() && (self.manner == Manner::ReadsOn || self.waits())
    }

    fn connections(self) -> usize {
        match self.manner {
            // The first connection is closed.
            Manner::Closes => 2,
            // The stream is reset, and its connection stays open.
            _ if !self.http.is_1() => 1,
            // Flushed after the end of the refusal: hyper doesn't check again whether the connection is idle.
            _ if self.http == Http::H1 && self.is_buffered() && self.when != When::End => 2,
            // Request and refusal are complete: the next request can follow them.
            _ if self.is_sent_whole() => 1,
            // A partly sent request can only be completed, or its connection closed.
            _ => 2,
        }
    }

    /// Returns true if the request declares its length.
    fn is_sized(self) -> bool {
        !matches!(self.kind, Kind::Ready | Kind::Unsized | Kind::Chunked)
    }

    /// The stage at which the second half of the body becomes available.
    fn held_until(self) -> Stage {
        match self.kind {
            Kind::Slow | Kind::Unsized | Kind::Chunked if self.when != When::End => Stage::Seen,
            Kind::Gated => Stage::Replaying,
            _ => Stage::Begun,
        }
    }
}

/// Prints the cell in which a test panics.
struct PrintOnPanic(Cell);

impl Drop for PrintOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {:?}", self.0);
        }
    }
}

fn assert_framed(cell: Cell, headers: &HeaderMap) {
    let length = headers.get(CONTENT_LENGTH).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(length, cell.is_sized().then(|| LENGTH.to_string()), "an exact length, or none");
    let chunked = headers.get(TRANSFER_ENCODING).is_some_and(|value| value == "chunked");
    assert_eq!(chunked, cell.http.is_1() && !cell.is_sized());
}

/// Sends a body of the cell's kind, of which at most `limit` bytes are kept, and checks both attempts.
async fn run(cell: Cell, limit: usize, check: impl AsyncFnOnce(&Server, http::Response<hyper::body::Incoming>)) {
    let _print = PrintOnPanic(cell);
    let server = Server::start(cell.http, cell.server_manner(), cell.when);
    let whole = Whole::new(LENGTH);
    let request = Request::post(server.url("/upload")).header("x-repeated", "1").header("x-repeated", "2");
    let request = request.extension(ReplayLimit(limit));
    let (done, freed) = match cell.kind {
        Kind::Fast => {
            let (data, freed) = whole.shared();
            let request = request.body(Full::new(data)).unwrap();
            (timeout(LONG, sent(&server, &server.url(""), cell, limit >= LENGTH, request)).await, freed)
        }
        Kind::Ready => {
            let (frames, freed) = whole.frames();
            let request = request.body(frames).unwrap();
            (timeout(LONG, sent(&server, &server.url(""), cell, limit >= LENGTH, request)).await, freed)
        }
        kind => {
            let (upload, freed) = Upload::new(&whole, server.stage(cell.held_until()));
            let (request, upload) = match kind {
                Kind::Unsized => (request, upload.of_unknown_length()),
                Kind::Chunked => (request.header(TRAILER, "x-sum"), upload.of_unknown_length().with_trailers()),
                _ => (request, upload),
            };
            let request = request.body(upload).unwrap();
            (timeout(LONG, sent(&server, &server.url(""), cell, limit >= LENGTH, request)).await, freed)
        }
    };
    let response = done.expect("no deadlock").unwrap();
    timeout(LONG, check(&server, response)).await.expect("no deadlock");

    server.reach(Stage::Over);
    timeout(LONG, freed).await.expect("the body is freed").unwrap_err();
    let first = timeout(LONG, server.first()).await.expect("the first attempt is over");
    assert_framed(cell, &first.headers);
    if let Attempt::Whole(read) = &first.attempt {
        assert!(whole.is(read), "a clean end after only {} bytes", read.len());
    }
    if let Some(replay) = server.replay() {
        assert_framed(cell, &replay.headers);
        assert!(whole.is(&replay.body), "{} bytes of the replay arrived", replay.body.len());
        let trailers: HeaderMap =
            [(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))].into_iter().collect();
        assert_eq!(replay.trailers, (cell.kind == Kind::Chunked).then_some(trailers));
        let repeated: Vec<_> = replay.headers.get_all("x-repeated").iter().collect();
        assert_eq!(repeated, ["1", "2"]);
    }
}

/// Sends the request through a new client, whose refresh is answered as late as the cell requires.
async fn sent<B>(
    server: &Server,
    origin: &str,
    cell: Cell,
    replayable: bool,
    request: Request<B>,
) -> Result<http::Response<hyper::body::Incoming>, BoxError>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let (client, open) = client::client(cell.http);
    // Keeps the connections open until the server has read the data on them.
    tokio::spawn({
        let (client, over) = (client.clone(), server.stage(Stage::Over));
        async move {
            over.await;
            drop(client);
        }
    });
    let refresh = tower::service_fn({
        let server = server.clone();
        move |_: RefreshRequest| {
            let (server, mut open) = (server.clone(), open.clone());
            async move {
                if replayable {
                    server.reach(Stage::Seen);
                } else {
                    // The 401 is returned without waiting for the refresh.
                    server.stage(Stage::Over).await;
                }
                match cell.manner {
                    // A request may be lost on a dead connection that the client has not noticed yet.
                    Manner::Closes if !cell.http.is_1() => {
                        open.wait_for(|open| *open == 0).await.unwrap();
                        settle().await;
                    }
                    // The connection considers itself idle once it has buffered the whole body.
                    Manner::Drops if cell.http.is_1() && cell.is_buffered() => {
                        open.wait_for(|open| *open == 0).await.unwrap();
                        settle().await;
                    }
                    Manner::Closes => drop(server.first().await),
                    Manner::ReadsOn if cell.is_sent_whole() => {
                        drop(server.first().await);
                        settle().await;
                    }
                    Manner::Drops | Manner::ReadsOn | Manner::ReadsLate | Manner::NeverReads => {}
                }
                Ok::<_, RefreshError>(pair(2))
            }
        }
    });
    let session = Session::builder(refresh).tokens(pair(1)).build().await?;
    let layer = AuthRefreshLayer::new(session, Origin::parse(origin)?);
    let client = client.map_request({
        let server = server.clone();
        move |request: Request<_>| {
            if is_refused(request.headers()) { request } else { server.report_when_assigned(request) }
        }
    });
    Ok(layer.layer(client).oneshot(request).await?)
}

/// Asserts that a body past the limit is not replayed, and that its 401 is returned whole before the refresh ends.
async fn nothing_is_replayed(http: Http, manner: Manner) {
    for (kind, when, limit) in [(Kind::Fast, When::Start, LENGTH - 1), (Kind::Unsized, When::Middle, 4 * 1024)] {
        let cell = Cell { http, manner, kind, when };
        run(cell, limit, async |server, response| {
            assert_eq!(response.status(), 401);
            assert!(matches!(report(&response), RefreshReport::NotReplayable(NotReplayable::TooLarge)));
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), server::REFUSED);
            assert_eq!(server.connections(), 1);
            // Releases the rest of an unsized body.
            server.reach(Stage::Seen);
            if manner == Manner::ReadsOn {
                // The attempt is completed.
                assert!(matches!(server.first().await.attempt, Attempt::Whole(_)));
            }
        })
        .await;
    }
}

async fn all_are_replayed(http: Http, manner: Manner) {
    for cell in Cell::all(http, manner) {
        run(cell, LENGTH + 1024, async |server, response| {
            assert_eq!(response.status(), 200);
            assert!(matches!(report(&response), RefreshReport::Replayed));
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), server::ACCEPTED);
            assert_eq!(server.connections(), cell.connections());
            if cell.is_sent_whole() {
                assert!(matches!(server.first().await.attempt, Attempt::Whole(_)));
            } else if manner == Manner::ReadsOn || cell.waits() {
                // The server sees that the body is incomplete.
                assert!(matches!(server.first().await.attempt, Attempt::Broken));
            }
        })
        .await;
    }
}

#[tokio::test]
async fn over_http_1_a_server_that_reads_on_gets_the_whole_replay() {
    all_are_replayed(Http::H1, Manner::ReadsOn).await;
}

#[tokio::test]
async fn over_http_1_a_server_that_never_reads_gets_the_whole_replay() {
    all_are_replayed(Http::H1, Manner::NeverReads).await;
}

#[tokio::test]
async fn over_http_1_a_server_that_drops_the_rest_gets_the_whole_replay() {
    all_are_replayed(Http::H1, Manner::Drops).await;
}

#[tokio::test]
async fn over_http_1_a_server_that_closes_gets_the_whole_replay() {
    all_are_replayed(Http::H1, Manner::Closes).await;
}

#[tokio::test]
async fn over_http_1_without_vectored_writes_a_server_that_reads_on_gets_the_whole_replay() {
    all_are_replayed(Http::H1Copied, Manner::ReadsOn).await;
}

#[tokio::test]
async fn over_http_1_without_vectored_writes_a_server_that_never_reads_gets_the_whole_replay() {
    all_are_replayed(Http::H1Copied, Manner::NeverReads).await;
}

#[tokio::test]
async fn over_http_1_without_vectored_writes_a_server_that_drops_the_rest_gets_the_whole_replay() {
    all_are_replayed(Http::H1Copied, Manner::Drops).await;
}

#[tokio::test]
async fn over_http_1_without_vectored_writes_a_server_that_closes_gets_the_whole_replay() {
    all_are_replayed(Http::H1Copied, Manner::Closes).await;
}

#[tokio::test]
async fn over_http_2_a_server_that_reads_on_gets_the_whole_replay() {
    all_are_replayed(Http::H2, Manner::ReadsOn).await;
}

#[tokio::test]
async fn over_http_2_a_server_that_never_reads_gets_the_whole_replay() {
    all_are_replayed(Http::H2, Manner::NeverReads).await;
}

#[tokio::test]
async fn over_http_2_a_server_that_drops_the_rest_gets_the_whole_replay() {
    all_are_replayed(Http::H2, Manner::Drops).await;
}

#[tokio::test]
async fn over_http_2_a_server_that_closes_gets_the_whole_replay() {
    all_are_replayed(Http::H2, Manner::Closes).await;
}

#[tokio::test]
async fn over_http_2_with_one_stream_at_a_time_a_server_that_reads_on_gets_the_whole_replay() {
    all_are_replayed(Http::H2Narrow, Manner::ReadsOn).await;
}

#[tokio::test]
async fn over_http_2_with_one_stream_at_a_time_a_server_that_never_reads_gets_the_whole_replay() {
    all_are_replayed(Http::H2Narrow, Manner::NeverReads).await;
}

#[tokio::test]
async fn over_http_2_with_one_stream_at_a_time_a_server_that_drops_the_rest_gets_the_whole_replay() {
    all_are_replayed(Http::H2Narrow, Manner::Drops).await;
}

#[tokio::test]
async fn over_http_2_with_one_stream_at_a_time_a_server_that_closes_gets_the_whole_replay() {
    all_are_replayed(Http::H2Narrow, Manner::Closes).await;
}

#[tokio::test]
async fn a_body_past_the_limit_is_not_replayed_and_its_401_is_returned_whole_at_once() {
    for http in [Http::H1, Http::H1Copied, Http::H2, Http::H2Narrow] {
        for manner in [Manner::Closes, Manner::Drops, Manner::ReadsOn, Manner::NeverReads] {
            nothing_is_replayed(http, manner).await;
        }
    }
}

/// Returns the bytes on each connection when an attempt is superseded in mid-upload and then replayed.
async fn carried(http: Http) -> Vec<Vec<u8>> {
    let cell = Cell { http, manner: Manner::ReadsOn, kind: Kind::Chunked, when: When::Middle };
    let server = Server::start(http, cell.manner, cell.when);
    let tap = Tap::before(server.address()).await;
    let (upload, _) = Upload::new(&Whole::of(b'x', 64 * 1024), server.stage(cell.held_until()));
    let request = Request::post(tap.url("/upload")).header(TRAILER, "x-sum");
    let request = request.body(upload.of_unknown_length().with_trailers()).unwrap();
    let response = timeout(LONG, sent(&server, &tap.url(""), cell, true, request)).await.expect("no deadlock").unwrap();
    assert_eq!(response.status(), 200);
    // By then the end of the superseded attempt has arrived.
    let first = timeout(LONG, server.first()).await.expect("the first attempt is over");
    assert!(matches!(first.attempt, Attempt::Broken));
    tap.connections()
}

fn in_one_frame() -> Full<Bytes> {
    Full::new(Whole::new(LENGTH).shared().0)
}

fn in_three_frames() -> impl Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static {
    Whole::new(LENGTH).frames().0
}

/// Sends the same body without the middleware, refused in the same way, and then another request. Returns the number
/// of connections, and the first attempt as the server saw it.
async fn without_the_middleware<B>(cell: Cell, drained: bool, body: impl Fn() -> B) -> (usize, Attempt)
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let server = Server::start(cell.http, cell.server_manner(), cell.when);
    let (client, _) = client::client(cell.http);
    let request = |token: &str| {
        let request = Request::post(server.url("/upload")).header(AUTHORIZATION, format!("Bearer {token}"));
        request.body(body()).unwrap()
    };
    let refusal = client.request(request("a1")).await.unwrap();
    assert_eq!(refusal.status(), 401);
    if drained {
        refusal.into_body().collect().await.unwrap();
    } else {
        drop(refusal);
    }
    server.reach(Stage::Seen);
    if cell.manner == Manner::ReadsOn {
        drop(server.first().await);
        settle().await;
    }
    let accepted = client.request(server.report_when_assigned(request("a2"))).await.unwrap();
    assert_eq!(accepted.status(), 200);
    server.reach(Stage::Over);
    (server.connections(), server.first().await.attempt)
}

#[tokio::test]
async fn a_replay_waits_where_the_next_request_of_a_plain_client_waits() {
    let mut waiting = 0;
    for http in [Http::H1, Http::H1Copied, Http::H2, Http::H2Narrow] {
        for cell in [Cell::all(http, Manner::ReadsOn), Cell::all(http, Manner::NeverReads)].concat() {
            let _print = PrintOnPanic(cell);
            for drained in [true, false] {
                let plain = match cell.kind {
                    Kind::Fast => timeout(LONG, without_the_middleware(cell, drained, in_one_frame)).await,
                    Kind::Ready => timeout(LONG, without_the_middleware(cell, drained, in_three_frames)).await,
                    // The second half of these comes after the client has seen the refusal.
                    Kind::Slow | Kind::Unsized | Kind::Chunked | Kind::Gated => continue,
                };
                let plain = plain.expect("no deadlock");
                assert_eq!(plain.0, cell.connections());
                if cell.waits() {
                    // The server started to read only after the next request had been given this connection.
                    assert_eq!(plain.0, 1);
                    assert!(matches!(plain.1, Attempt::Whole(_)));
                    waiting += 1;
                }
            }
        }
    }
    assert_eq!(waiting, 16);
}

/// Sends two requests through the middleware, one after the other, to a server that never reads the first of them. The
/// inner service ends the first one's replay once that has a connection, as a time-out would.
async fn ended<B>(http: Http, body: impl Fn() -> B)
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let server = Server::start(http, Manner::NeverReads, When::Start);
    let (client, mut open) = client::client(http);
    let inner = tower::service_fn({
        let server = server.clone();
        move |request: Request<_>| {
            let (server, client) = (server.clone(), client.clone());
            async move {
                if is_refused(request.headers()) || server.has_reached(Stage::Assigned) {
                    return client.request(request).await.map_err(BoxError::from);
                }
                let request = server.report_when_assigned(request);
                tokio::select! {
                    answer = client.request(request) => Ok(answer?),
                    () = async { server.stage(Stage::Assigned).await; settle().await } => Err("timed out".into()),
                }
            }
        }
    });
    let refresh = tower::service_fn(|_: RefreshRequest| std::future::ready(Ok::<_, RefreshError>(pair(2))));
    let session = Session::builder(refresh).tokens(pair(1)).build().await.unwrap();
    let layer = AuthRefreshLayer::new(session, Origin::parse(&server.url("")).unwrap());
    let client = layer.layer(inner);
    let request = || {
        let request = Request::post(server.url("/upload")).extension(ReplayLimit(LENGTH));
        request.body(body()).unwrap()
    };
    let error = timeout(LONG, client.clone().oneshot(request())).await.expect("no deadlock").unwrap_err();
    assert_eq!(error.to_string(), "timed out");

    let next = tokio::spawn(client.oneshot(request()));
    if !http.is_1() {
        settle().await;
        // The unread stream takes the only slot until the server drops it.
        assert!(!next.is_finished());
        server.reach(Stage::Over);
    }
    let accepted = timeout(LONG, next).await.expect("no deadlock").unwrap().unwrap();
    assert_eq!(accepted.status(), 200);
    assert_eq!(server.connections(), if http.is_1() { 2 } else { 1 });
    timeout(LONG, open.wait_for(|open| *open == 1)).await.expect("the unread connection is closed").unwrap();
}

#[tokio::test]
async fn over_http_1_an_inner_time_out_ends_a_waiting_replay_and_its_connection() {
    ended(Http::H1Copied, in_one_frame).await;
    ended(Http::H1Copied, in_three_frames).await;
}

#[tokio::test]
async fn over_http_2_an_inner_time_out_ends_a_waiting_replay_and_keeps_the_connection() {
    ended(Http::H2Narrow, in_one_frame).await;
    ended(Http::H2Narrow, in_three_frames).await;
}

fn contains(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

#[tokio::test]
async fn over_http_1_a_superseded_attempt_never_sends_its_last_chunk() {
    let connections = carried(Http::H1).await;
    let [attempt, replay] = &connections[..] else { panic!("{} connections", connections.len()) };
    for carried in [attempt, replay] {
        assert!(contains(carried, "transfer-encoding: chunked\r\n") && contains(carried, "xxxx\r\n"));
    }
    assert!(contains(replay, "\r\n0\r\nx-sum: 7\r\n\r\n"));
    assert!(!contains(attempt, "\r\n0\r\n"));
}

#[tokio::test]
async fn over_http_2_a_superseded_attempt_is_reset_and_never_ended() {
    const PREFACE: usize = 24;
    const END_STREAM: u8 = 1;
    let connections = carried(Http::H2).await;
    let [carried] = &connections[..] else { panic!("{} connections", connections.len()) };
    let mut carried = &carried[PREFACE..];
    // RFC 9113 §4.1: length, type, flags and stream of each frame.
    let (mut ended, mut reset) = (Vec::new(), Vec::new());
    while let [l2, l1, l0, kind, flags, s3, s2, s1, s0, rest @ ..] = carried {
        let stream = u32::from_be_bytes([*s3, *s2, *s1, *s0]);
        match kind {
            0 | 1 if flags & END_STREAM != 0 => ended.push(stream),
            3 => reset.push(stream),
            _ => {}
        }
        let length = u32::from_be_bytes([0, *l2, *l1, *l0]) as usize;
        carried = rest.get(length..).unwrap_or_default();
    }
    assert_eq!((ended, reset), (vec![3], vec![1]));
}
