//! A large upload takes no more memory with the middleware than without it. Each is made by a process of its own, whose
//! peak the system tells; the server is in the process that compares them. And a session among many takes a kibibyte at
//! most, of all that their process takes.

#![expect(clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

use std::convert::Infallible;
use std::env;
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::{BoxError, ServiceExt};
use tower_auth_refresh::{
    AccessToken, AuthRefreshLayer, NotReplayable, Origin, RefreshError, RefreshReport, RefreshRequest, RefreshToken,
    ReplayBody, ReplayLimit, Session, Sessions, Tokens,
};
use tower_layer::Layer;

const MEBIBYTE: usize = 1 << 20;
const LENGTH: usize = 256 * MEBIBYTE;
const FRAME: usize = 64 * 1024;

/// What the middleware may add to the peak of a bare client.
const MARGIN: usize = 8 * MEBIBYTE;

/// How much the server reads before it refuses an upload late.
const LATE: usize = 100 * MEBIBYTE;

#[test]
fn an_upload_of_known_length() {
    compare("an_upload_of_known_length", MARGIN, async |client| {
        let response = client.send("/swallow", Upload::new(LENGTH).sized()).await;
        assert_eq!(client.read(response).await, LENGTH.to_string());
    });
}

#[test]
fn an_upload_of_unknown_length() {
    compare("an_upload_of_unknown_length", MARGIN, async |client| {
        let response = client.send("/swallow", Upload::new(LENGTH)).await;
        assert_eq!(client.read(response).await, LENGTH.to_string());
    });
}

#[test]
fn an_upload_of_unknown_length_that_is_refused_late_and_not_replayed() {
    compare("an_upload_of_unknown_length_that_is_refused_late_and_not_replayed", MARGIN, async |client| {
        let response = client.send("/late", Upload::new(LENGTH)).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        if client.layered {
            let report = response.extensions().get();
            assert!(matches!(report, Some(RefreshReport::NotReplayable(NotReplayable::TooLarge))));
        }
        // The upload goes on to its end.
        assert_eq!(client.read(response).await, LENGTH.to_string());
    });
}

#[test]
fn an_upload_that_is_refused_early_and_replayed_from_its_source() {
    compare("an_upload_that_is_refused_early_and_replayed_from_its_source", MARGIN, async |client| {
        let (opened, gate) = watch::channel(false);
        client.open_when_refreshed(opened);
        let path = if client.layered { "/early" } else { "/swallow" };
        let response = client.send(path, Upload::new(LENGTH).gated(gate)).await;
        assert_eq!(client.read(response).await, LENGTH.to_string());
    });
}

#[test]
fn a_bidirectional_stream_that_is_accepted_early_frees_its_record() {
    compare("a_bidirectional_stream_that_is_accepted_early_frees_its_record", MARGIN, async |client| {
        let (opened, gate) = watch::channel(false);
        let upload = Upload::new(LENGTH).gated(gate);
        let response = client.send_limited("/echo", upload, usize::MAX).await;
        assert_eq!(response.status(), StatusCode::OK);
        opened.send_replace(true);
        assert_eq!(client.read(response).await, LENGTH.to_string());
    });
}

/// What the others are worth: were a record kept, it would show.
#[test]
fn a_record_that_is_kept_shows() {
    const LENGTH: usize = 32 * MEBIBYTE;
    let grown = grown("a_record_that_is_kept_shows", async |client| {
        let response = client.send_limited("/swallow", Upload::new(LENGTH), usize::MAX).await;
        assert_eq!(client.read(response).await, LENGTH.to_string());
    });
    assert!(grown.is_none_or(|grown| grown > LENGTH - MARGIN), "{grown:?} bytes");
}

/// All in: what the allocator rounds up and leaves unused, the table and the store too.
#[test]
fn a_session_among_many_takes_a_kibibyte_at_most() {
    const SESSIONS: usize = 100_000;
    if env::var_os("SESSIONS").is_none() {
        let told = told_by(
            Command::new(env::current_exe().unwrap()).env("SESSIONS", "yes"),
            "a_session_among_many_takes_a_kibibyte_at_most",
            "each: ",
        );
        let each: Option<usize> = told.parse().ok();
        println!("{each:?} bytes for each of {SESSIONS} sessions");
        assert!(each.is_none_or(|each| (600..=1024).contains(&each)), "{each:?} bytes");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let refresh = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
        let sessions = Sessions::builder(Session::builder(refresh)).capacity(SESSIONS).build().unwrap();
        let sign_in = async |user: u128| {
            // As long as a small JWT, and as an opaque refresh token.
            let access = AccessToken::new(format!("{user:0>230}")).unwrap();
            let refresh = RefreshToken::new(format!("{user:0>64}")).unwrap();
            let tokens = Tokens::new(access, refresh).expires_in(Duration::from_secs(300));
            drop(sessions.sign_in(user, tokens).await.unwrap());
        };
        // What is made once is made by then.
        sign_in(0).await;
        let before = memory("VmRSS:");
        for user in 1..SESSIONS {
            sign_in(user as u128).await;
        }
        let grown = before.zip(memory("VmRSS:")).map(|(before, after)| after - before);
        println!("\neach: {}", grown.map_or(String::new(), |grown| (grown / SESSIONS).to_string()));
    });
}

/// A body of frames that are made as they go.
struct Upload {
    left: usize,
    sized: bool,
    /// Of all frames but the first.
    gate: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    begun: bool,
}

impl Upload {
    fn new(length: usize) -> Self {
        Self { left: length, sized: false, gate: None, begun: false }
    }

    fn sized(mut self) -> Self {
        self.sized = true;
        self
    }

    fn gated(mut self, mut gate: watch::Receiver<bool>) -> Self {
        self.gate = Some(Box::pin(async move {
            gate.wait_for(|open| *open).await.unwrap();
        }));
        self
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.begun
            && let Some(gate) = &mut self.gate
        {
            ready!(gate.as_mut().poll(cx));
            self.gate = None;
        }
        self.begun = true;
        self.left -= FRAME;
        Poll::Ready(Some(Ok(Frame::data(vec![7; FRAME].into()))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized { SizeHint::with_exact(self.left as u64) } else { SizeHint::default() }
    }
}

/// The peaks of a bare client and of one with the middleware; the latter may be so much higher.
fn compare(test: &str, margin: usize, upload: impl AsyncFnOnce(&Uploader)) {
    let grown = grown(test, upload);
    assert!(grown.is_none_or(|grown| grown <= margin), "{grown:?} bytes");
}

/// How many bytes more the middleware takes, where the system tells.
///
/// Called by the test of that name, which is run again, in two processes, to make the uploads.
fn grown(test: &str, upload: impl AsyncFnOnce(&Uploader)) -> Option<usize> {
    if let Ok(url) = env::var("UPLOAD_TO") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { upload(&Uploader::new(url, env::var_os("LAYERED").is_some()).await).await });
        println!("\npeak: {}", peak().map_or(String::new(), |peak| peak.to_string()));
        return None;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let url = runtime.block_on(serve());
    let peak = |layered: bool| {
        let mut uploader = Command::new(env::current_exe().unwrap());
        uploader.env("UPLOAD_TO", &url);
        if layered {
            uploader.env("LAYERED", "yes");
        }
        told_by(&mut uploader, test, "peak: ").parse::<usize>().ok()
    };
    let (Some(bare), Some(layered)) = (peak(false), peak(true)) else {
        println!("skipped: this system doesn't tell how much memory a process has used");
        return None;
    };
    println!("{test}: {} KiB bare, {} KiB with the middleware", bare / 1024, layered / 1024);
    Some(layered.saturating_sub(bare))
}

/// What a test says under this name, run by a process of its own.
fn told_by(process: &mut Command, test: &str, name: &str) -> String {
    let output = process.args(["--exact", test, "--nocapture"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    told.lines().find_map(|line| line.strip_prefix(name)).expect("it was this very test").to_owned()
}

/// The most memory that this process has used, in bytes.
fn peak() -> Option<usize> {
    memory("VmHWM:")
}

/// What the system tells of this process's memory under this name, in bytes.
fn memory(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? * 1024)
}

/// The one who uploads.
struct Uploader {
    url: String,
    layered: bool,
    session: Session,
    refreshed: watch::Sender<Option<watch::Sender<bool>>>,
}

impl Uploader {
    async fn new(url: String, layered: bool) -> Self {
        let tokens = |n: u32| {
            let access = AccessToken::new(format!("a{n}")).unwrap();
            Tokens::new(access, RefreshToken::new(format!("r{n}")).unwrap())
        };
        let refreshed = watch::Sender::new(None::<watch::Sender<bool>>);
        let refresh = tower::service_fn({
            let refreshed = refreshed.clone();
            move |_: RefreshRequest| {
                if let Some(gate) = &*refreshed.borrow() {
                    gate.send_replace(true);
                }
                std::future::ready(Ok::<_, RefreshError>(tokens(2)))
            }
        });
        let session = Session::builder(refresh).tokens(tokens(1)).build().await.unwrap();
        Self { url, layered, session, refreshed }
    }

    /// Opens a gate once there are new tokens; at once where nobody refreshes.
    fn open_when_refreshed(&self, gate: watch::Sender<bool>) {
        if !self.layered {
            gate.send_replace(true);
        }
        self.refreshed.send_replace(Some(gate));
    }

    async fn send(&self, path: &str, upload: Upload) -> Response<Incoming> {
        self.send_limited(path, upload, ReplayLimit::DEFAULT.0).await
    }

    async fn send_limited(&self, path: &str, upload: Upload, limit: usize) -> Response<Incoming> {
        let request = Request::post(format!("{}{path}", self.url)).extension(ReplayLimit(limit));
        if self.layered {
            let layer = AuthRefreshLayer::new(self.session.clone(), Origin::parse(&self.url).unwrap());
            let client = layer.layer(client::<ReplayBody<Upload>>(path));
            client.oneshot(request.body(upload).unwrap()).await.unwrap()
        } else {
            let request = request.header(AUTHORIZATION, "Bearer a1").body(upload).unwrap();
            client::<Upload>(path).oneshot(request).await.unwrap()
        }
    }

    async fn read(&self, response: Response<Incoming>) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
    }
}

/// Of HTTP/2 for what goes both ways.
fn client<B>(path: &str) -> Client<HttpConnector, B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    Client::builder(TokioExecutor::new()).http2_only(path == "/echo").build_http()
}

/// A server that counts the bytes of each upload, and tells them in a body that ends when the upload does.
async fn serve() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = service_fn(async |request| Ok::<_, Infallible>(answer(request).await));
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    url
}

async fn answer(request: Request<Incoming>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let (head, mut upload) = request.into_parts();
    let (enough, refused) = match head.uri.path() {
        "/late" => (LATE, true),
        "/early" if head.headers[AUTHORIZATION] == "Bearer a1" => (0, true),
        "/echo" => (0, false),
        _ => (usize::MAX, false),
    };
    let mut count = 0;
    while count < enough
        && let Some(Ok(frame)) = upload.frame().await
    {
        count += frame.data_ref().map_or(0, Bytes::len);
    }
    let rest = async move {
        while let Some(Ok(frame)) = upload.frame().await {
            count += frame.data_ref().map_or(0, Bytes::len);
        }
        Ok(Frame::data(Bytes::from(count.to_string())))
    };
    let mut response = Response::new(StreamBody::new(stream::once(rest)).boxed_unsync());
    if refused {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response.headers_mut().insert(WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"".parse().unwrap());
    }
    response
}
