//! Replays over real sockets: hyper's server refuses the first attempt early, before its body is read or in the
//! middle of it, and closes, drops the rest, reads on, or never reads. What comes next is gated: no order is left to luck.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tokio::time::timeout;
use tower::{BoxError, ServiceExt};
use tower_auth_refresh::{
    AuthRefreshLayer, NotReplayable, Origin, RefreshError, RefreshReport, RefreshRequest, ReplayLimit, Session,
};
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

/// More than the sockets' buffers and a stream's window hold, so that a server that doesn't read it stops it; and
/// little enough that a server that closes doesn't lose its own 401.
const LENGTH: usize = 192 * 1024;

/// What each side asks for its socket; the system takes the double.
pub const BUFFER: u32 = 16 * 1024;

/// A deadlock fails its cell.
const LONG: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// Over a transport that takes many buffers in one write, as sockets do, and rustls.
    H1,
    /// Over one that doesn't, such as native-tls: hyper copies what it writes into one buffer.
    H1Copied,
    H2,
    /// The server allows one stream at a time.
    H2Narrow,
}

impl Http {
    pub fn is_1(self) -> bool {
        matches!(self, Self::H1 | Self::H1Copied)
    }
}

/// What the server does about the rest of a request that it has refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Cuts the connection, as soon as the client has seen the 401.
    Closes,
    /// Lets go of it, as handlers do: hyper closes the connection then, or resets the stream without an error.
    Drops,
    /// Once the client has seen the 401.
    ReadsOn,
    /// Once the client's next request has been given a connection.
    ReadsLate,
    NeverReads,
}

/// When the server refuses.
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
    /// Of unknown length, in a long frame and two short ones, all of them there from the start.
    Ready,
    /// Of known length, frame by frame; half of it isn't there before the client has seen the 401.
    Slow,
    /// The same, of unknown length.
    Unsized,
    /// The same, and with trailers.
    Chunked,
    /// Of known length; half of it isn't there before the server has read the other half of the replay.
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
    /// Each kind of body, refused at each moment that makes a difference.
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

    /// What is read to its end is read; and half of a gated body is all there is before the replay.
    fn exists(self) -> bool {
        self.when != When::End || !matches!(self.manner, Manner::Drops | Manner::NeverReads) && self.kind != Kind::Gated
    }

    /// Whether the client has taken in all of the body before it has an answer, though not all of it can be sent.
    fn is_taken_in(self) -> bool {
        match self.kind {
            Kind::Fast => true,
            // A stream's window holds it up.
            Kind::Ready => self.http.is_1(),
            Kind::Slow | Kind::Unsized | Kind::Chunked | Kind::Gated => false,
        }
    }

    /// Whether the replay waits for the server to read the first attempt, as the next request of a client without the
    /// middleware does: see `a_replay_waits_where_the_next_request_of_a_bare_client_does`.
    fn waits(self) -> bool {
        self.manner == Manner::NeverReads
            && match self.http {
                Http::H1 | Http::H2 => false,
                Http::H1Copied => self.is_taken_in(),
                // The client looks at the body again when the window opens.
                Http::H2Narrow => matches!(self.kind, Kind::Fast | Kind::Ready),
            }
    }

    /// What the server is to do: a replay that waits for it would wait for good, if it never read.
    fn manner_of_the_server(self) -> Manner {
        if self.waits() { Manner::ReadsLate } else { self.manner }
    }

    /// Whether all of the first attempt reaches the server. What has been taken in isn't stopped.
    fn goes_out(self) -> bool {
        self.when == When::End || self.is_taken_in() && (self.manner == Manner::ReadsOn || self.waits())
    }

    fn connections(self) -> usize {
        match self.manner {
            // The first one is gone.
            Manner::Closes => 2,
            // A stream is reset, its connection goes on.
            _ if !self.http.is_1() => 1,
            // Written out after the refusal was over: hyper doesn't look again whether the connection is free.
            _ if self.http == Http::H1 && self.is_taken_in() && self.when != When::End => 2,
            // Request and refusal are over: the next request may follow them.
            _ if self.goes_out() => 1,
            // After half a request comes the other half, or the end of the connection.
            _ => 2,
        }
    }

    /// Whether the request says how long it is.
    fn is_sized(self) -> bool {
        !matches!(self.kind, Kind::Ready | Kind::Unsized | Kind::Chunked)
    }

    /// The stage at which the second half of the body is there.
    fn held_until(self) -> Stage {
        match self.kind {
            Kind::Slow | Kind::Unsized | Kind::Chunked if self.when != When::End => Stage::Seen,
            Kind::Gated => Stage::Replaying,
            _ => Stage::Begun,
        }
    }
}

/// Names the cell that fails.
struct Named(Cell);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {:?}", self.0);
        }
    }
}

fn assert_framed(cell: Cell, headers: &HeaderMap) {
    let length = headers.get(CONTENT_LENGTH).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(length, cell.is_sized().then(|| LENGTH.to_string()), "the length, to the byte or not at all");
    let chunked = headers.get(TRANSFER_ENCODING).is_some_and(|value| value == "chunked");
    assert_eq!(chunked, cell.http.is_1() && !cell.is_sized());
}

/// Sends a body of its kind; `limit`: how much of it is kept.
async fn run(cell: Cell, limit: usize, check: impl AsyncFnOnce(&Server, http::Response<hyper::body::Incoming>)) {
    let _named = Named(cell);
    let server = Server::start(cell.http, cell.manner_of_the_server(), cell.when);
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
    timeout(LONG, freed).await.expect("nothing holds on to the body").unwrap_err();
    let first = timeout(LONG, server.first()).await.expect("the first attempt is over");
    assert_framed(cell, &first.headers);
    if let Attempt::Whole(read) = &first.attempt {
        assert!(whole.is(read), "a clean end is the end of all of it: {} bytes", read.len());
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

/// Sends the request through a client of its own, whose refresh is answered as late as the cell needs it.
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
    // Its connections with it: else they might be closed before the server has read what is on them.
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
                    // The 401 is returned without it.
                    server.stage(Stage::Over).await;
                }
                match cell.manner {
                    // A request may be lost on a connection that nobody has found to be dead yet.
                    Manner::Closes if !cell.http.is_1() => {
                        open.wait_for(|open| *open == 0).await.unwrap();
                        settle().await;
                    }
                    // It takes itself to be free, once it has taken in all of a body.
                    Manner::Drops if cell.http.is_1() && cell.is_taken_in() => {
                        open.wait_for(|open| *open == 0).await.unwrap();
                        settle().await;
                    }
                    Manner::Closes => drop(server.first().await),
                    Manner::ReadsOn if cell.goes_out() => {
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
            if is_refused(request.headers()) { request } else { server.tells_when_assigned(request) }
        }
    });
    Ok(layer.layer(client).oneshot(request).await?)
}

/// Nothing is replayed of what was sent past the limit; the 401 is returned whole, and before the refresh is over.
async fn nothing_is_replayed(http: Http, manner: Manner) {
    for (kind, when, limit) in [(Kind::Fast, When::Start, LENGTH - 1), (Kind::Unsized, When::Middle, 4 * 1024)] {
        let cell = Cell { http, manner, kind, when };
        run(cell, limit, async |server, response| {
            assert_eq!(response.status(), 401);
            assert!(matches!(report(&response), RefreshReport::NotReplayable(NotReplayable::TooLarge)));
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), server::REFUSED);
            assert_eq!(server.connections(), 1);
            // The rest of an unsized body is there from here on.
            server.reach(Stage::Seen);
            if manner == Manner::ReadsOn {
                // The attempt goes on, to its end.
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
            if cell.goes_out() {
                assert!(matches!(server.first().await.attempt, Attempt::Whole(_)));
            } else if manner == Manner::ReadsOn || cell.waits() {
                // It sees that this is not all there is.
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
async fn over_http_1_by_copying_a_server_that_reads_on_gets_the_whole_replay() {
    all_are_replayed(Http::H1Copied, Manner::ReadsOn).await;
}

#[tokio::test]
async fn over_http_1_by_copying_a_server_that_never_reads_gets_the_whole_replay() {
    all_are_replayed(Http::H1Copied, Manner::NeverReads).await;
}

#[tokio::test]
async fn over_http_1_by_copying_a_server_that_drops_the_rest_gets_the_whole_replay() {
    all_are_replayed(Http::H1Copied, Manner::Drops).await;
}

#[tokio::test]
async fn over_http_1_by_copying_a_server_that_closes_gets_the_whole_replay() {
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

/// What each connection carries when the attempt is superseded in mid-upload, and then replayed.
async fn carried(http: Http) -> Vec<Vec<u8>> {
    let cell = Cell { http, manner: Manner::ReadsOn, kind: Kind::Chunked, when: When::Middle };
    let server = Server::start(http, cell.manner, cell.when);
    let tap = Tap::before(server.address()).await;
    let (upload, _) = Upload::new(&Whole::of(b'x', 64 * 1024), server.stage(cell.held_until()));
    let request = Request::post(tap.url("/upload")).header(TRAILER, "x-sum");
    let request = request.body(upload.of_unknown_length().with_trailers()).unwrap();
    let response = timeout(LONG, sent(&server, &tap.url(""), cell, true, request)).await.expect("no deadlock").unwrap();
    assert_eq!(response.status(), 200);
    // By then the victim's end has come through.
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

/// How many connections a client without the middleware makes of the same body, refused in the same way, and of its
/// next request; and how the body looked to the server.
async fn without_the_middleware<B>(cell: Cell, drained: bool, body: impl Fn() -> B) -> (usize, Attempt)
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let server = Server::start(cell.http, cell.manner_of_the_server(), cell.when);
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
    let accepted = client.request(server.tells_when_assigned(request("a2"))).await.unwrap();
    assert_eq!(accepted.status(), 200);
    server.reach(Stage::Over);
    (server.connections(), server.first().await.attempt)
}

#[tokio::test]
async fn a_replay_waits_where_the_next_request_of_a_bare_client_does() {
    let mut waiting = 0;
    for http in [Http::H1, Http::H1Copied, Http::H2, Http::H2Narrow] {
        for cell in [Cell::all(http, Manner::ReadsOn), Cell::all(http, Manner::NeverReads)].concat() {
            let _named = Named(cell);
            for drained in [true, false] {
                let bare = match cell.kind {
                    Kind::Fast => timeout(LONG, without_the_middleware(cell, drained, in_one_frame)).await,
                    Kind::Ready => timeout(LONG, without_the_middleware(cell, drained, in_three_frames)).await,
                    // Of these, half comes after the refusal has been seen.
                    Kind::Slow | Kind::Unsized | Kind::Chunked | Kind::Gated => continue,
                };
                let bare = bare.expect("no deadlock");
                assert_eq!(bare.0, cell.connections());
                if cell.waits() {
                    // The server hadn't begun to read it before the next request had been given this one connection.
                    assert_eq!(bare.0, 1);
                    assert!(matches!(bare.1, Attempt::Whole(_)));
                    waiting += 1;
                }
            }
        }
    }
    assert_eq!(waiting, 16);
}

/// Sends two requests through the middleware, one after the other, to a server that never reads the first of them. The
/// inner service ends the replay of it once it has a connection, as a time-out would.
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
                let request = server.tells_when_assigned(request);
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
        // The stream that nobody reads takes up all the room there is, until the server lets go of it.
        assert!(!next.is_finished());
        server.reach(Stage::Over);
    }
    let accepted = timeout(LONG, next).await.expect("no deadlock").unwrap().unwrap();
    assert_eq!(accepted.status(), 200);
    assert_eq!(server.connections(), if http.is_1() { 2 } else { 1 });
    timeout(LONG, open.wait_for(|open| *open == 1)).await.expect("what nobody reads is not held on to").unwrap();
}

#[tokio::test]
async fn over_http_1_a_time_out_within_ends_a_replay_that_waits_and_its_connection() {
    ended(Http::H1Copied, in_one_frame).await;
    ended(Http::H1Copied, in_three_frames).await;
}

#[tokio::test]
async fn over_http_2_a_time_out_within_ends_a_replay_that_waits_and_leaves_the_connection() {
    ended(Http::H2Narrow, in_one_frame).await;
    ended(Http::H2Narrow, in_three_frames).await;
}

fn contains(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

#[tokio::test]
async fn over_http_1_a_superseded_attempt_never_carries_its_last_chunk() {
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
