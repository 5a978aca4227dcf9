//! Replays over real sockets: hyper's server refuses the first attempt early, before its body is read or in the
//! middle of it, and closes, drops the rest, reads on, or never reads. What comes next is gated: no order is left to luck.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tokio::time::timeout;
use tower::{BoxError, ServiceExt};
use tower_auth_refresh::{
    AuthRefreshLayer, NotReplayable, Origin, RefreshError, RefreshReport, RefreshRequest, ReplayLimit, Session,
};
use tower_layer::Layer;

use self::server::{Attempt, Server, Stage};
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
    H1,
    H2,
}

/// What the server does about the rest of a request that it has refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Cuts the connection, as soon as the client has seen the 401.
    Closes,
    /// Lets go of it, as handlers do: hyper closes the connection then, or resets the stream without an error.
    Drops,
    ReadsOn,
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
    /// Of known length, frame by frame; half of it isn't there before the client has seen the 401.
    Slow,
    /// The same, of unknown length and with trailers.
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
        for kind in [Kind::Fast, Kind::Slow, Kind::Chunked, Kind::Gated] {
            for when in [When::Start, When::Middle, When::End] {
                let cell = Self { http, manner, kind, when };
                if cell.makes_sense() {
                    cells.push(cell);
                }
            }
        }
        cells
    }

    fn makes_sense(self) -> bool {
        match self.when {
            // hyper takes such a body in whole and counts the connection as free when the response is over, whatever
            // is still to be written: the next request waits behind it for good, be it a replay or not. Servers must
            // not do that (RFC 9112 §9.3).
            When::Start | When::Middle => {
                (self.http, self.manner, self.kind) != (Http::H1, Manner::NeverReads, Kind::Fast)
            }
            // What is read to its end is read; and half of a gated body is all there is before the replay.
            When::End => !matches!(self.manner, Manner::Drops | Manner::NeverReads) && self.kind != Kind::Gated,
        }
    }

    /// Whether all of the first attempt has been sent when the refresh is over. A body of one frame isn't stopped.
    fn goes_out(self) -> bool {
        self.when == When::End || self.kind == Kind::Fast && self.manner == Manner::ReadsOn
    }

    fn connections(self) -> usize {
        match (self.http, self.manner) {
            // The first one is gone.
            (_, Manner::Closes) => 2,
            // A stream is reset, its connection goes on.
            (Http::H2, _) => 1,
            // Request and refusal are over: the next request may follow them.
            (Http::H1, _) if self.goes_out() => 1,
            // After half a request comes the other half, or the end of the connection.
            (Http::H1, _) => 2,
        }
    }

    /// Whether the request says how long it is.
    fn is_sized(self) -> bool {
        self.kind != Kind::Chunked
    }

    /// The stage at which the second half of the body is there.
    fn held_until(self) -> Stage {
        match self.kind {
            Kind::Slow | Kind::Chunked if self.when != When::End => Stage::Seen,
            Kind::Gated => Stage::Replaying,
            Kind::Fast | Kind::Slow | Kind::Chunked => Stage::Begun,
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
    assert_eq!(chunked, cell.http == Http::H1 && !cell.is_sized());
}

/// Sends a body of its kind; `limit`: how much of it is kept.
async fn run(cell: Cell, limit: usize, check: impl AsyncFnOnce(&Server, http::Response<hyper::body::Incoming>)) {
    let _named = Named(cell);
    let server = Server::start(cell.http, cell.manner, cell.when);
    let whole = Whole::new(LENGTH);
    let request = Request::post(server.url("/upload")).header("x-repeated", "1").header("x-repeated", "2");
    let request = request.extension(ReplayLimit(limit));
    let (done, freed) = match cell.kind {
        Kind::Fast => {
            let (data, freed) = whole.shared();
            let request = request.body(Full::new(data)).unwrap();
            (timeout(LONG, sent(&server, &server.url(""), cell, limit >= LENGTH, request)).await, freed)
        }
        kind => {
            let (upload, freed) = Upload::new(&whole, server.stage(cell.held_until()));
            let (request, upload) = match kind {
                Kind::Chunked => (request.header(TRAILER, "x-sum"), upload.unsized_with_trailers()),
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
    let refresh = tower::service_fn({
        let server = server.clone();
        move |_: RefreshRequest| {
            let (server, mut open) = (server.clone(), open.clone());
            async move {
                if replayable {
                    server.reach(Stage::Seen);
                } else {
                    // The 401 is returned without it, and the client gone.
                    server.stage(Stage::Over).await;
                }
                match cell.manner {
                    // A request may be lost on a connection that nobody has found to be dead yet.
                    Manner::Closes if cell.http == Http::H2 => {
                        open.wait_for(|open| *open == 0).await.unwrap();
                        settle().await;
                    }
                    // It takes itself to be free, once it has taken in all of a body.
                    Manner::Drops if cell.http == Http::H1 && cell.kind == Kind::Fast => {
                        open.wait_for(|open| *open == 0).await.unwrap();
                        settle().await;
                    }
                    Manner::Closes => drop(server.first().await),
                    Manner::ReadsOn if cell.goes_out() => drop(server.first().await),
                    Manner::Drops | Manner::ReadsOn | Manner::NeverReads => {}
                }
                Ok::<_, RefreshError>(pair(2))
            }
        }
    });
    let session = Session::builder(refresh).tokens(pair(1)).build().await?;
    let layer = AuthRefreshLayer::new(session, Origin::parse(origin)?);
    Ok(layer.layer(client).oneshot(request).await?)
}

/// Nothing is replayed of what was sent past the limit; the 401 is returned whole, and before the refresh is over.
async fn nothing_is_replayed(http: Http, manner: Manner) {
    for (kind, when, limit) in [(Kind::Fast, When::Start, LENGTH - 1), (Kind::Chunked, When::Middle, 4 * 1024)] {
        let cell = Cell { http, manner, kind, when };
        run(cell, limit, async |server, response| {
            assert_eq!(response.status(), 401);
            assert!(matches!(report(&response), RefreshReport::NotReplayable(NotReplayable::TooLarge)));
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), server::REFUSED);
            assert_eq!(server.connections(), 1);
            // The rest of a chunked body is there from here on.
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
            } else if manner == Manner::ReadsOn {
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
async fn a_body_past_the_limit_is_not_replayed_and_its_401_is_returned_whole_at_once() {
    for http in [Http::H1, Http::H2] {
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
    let request = request.body(upload.unsized_with_trailers()).unwrap();
    let response = timeout(LONG, sent(&server, &tap.url(""), cell, true, request)).await.expect("no deadlock").unwrap();
    assert_eq!(response.status(), 200);
    // By then the victim's end has come through.
    let first = timeout(LONG, server.first()).await.expect("the first attempt is over");
    assert!(matches!(first.attempt, Attempt::Broken));
    tap.connections()
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
