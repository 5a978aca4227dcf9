//! A large upload takes no more memory with the middleware than without it.
//!
//! The server runs in the parent process, each client in a process of its own.

use std::convert::Infallible;
use std::env;
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

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
use tower_auth_refresh::replay::NotReplayable;
use tower_auth_refresh::{
    AccessToken, AuthRefreshLayer, Origin, RefreshError, RefreshReport, RefreshRequest, RefreshToken, ReplayBody,
    ReplayLimit, Session, Tokens,
};
use tower_layer::Layer;

use crate::{MARGIN, MEBIBYTE, peak_memory, report, run_in_own_process};

const LENGTH: usize = 256 * MEBIBYTE;
const FRAME: usize = 64 * 1024;

/// The bytes that the server reads before it refuses an upload late.
const LATE: usize = 100 * MEBIBYTE;

#[test]
fn an_upload_of_known_length() {
    compare("an_upload_of_known_length", MARGIN, async |client| {
        let response = client.send("/drain", Upload::new(LENGTH).sized()).await;
        assert_eq!(client.read(response).await, LENGTH.to_string());
    });
}

#[test]
fn an_upload_of_unknown_length() {
    compare("an_upload_of_unknown_length", MARGIN, async |client| {
        let response = client.send("/drain", Upload::new(LENGTH)).await;
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
        // The upload continues to its end.
        assert_eq!(client.read(response).await, LENGTH.to_string());
    });
}

#[test]
fn an_upload_that_is_refused_early_and_replayed_from_its_source() {
    compare("an_upload_that_is_refused_early_and_replayed_from_its_source", MARGIN, async |client| {
        let (opened, gate) = watch::channel(false);
        client.open_when_refreshed(opened);
        let path = if client.layered { "/early" } else { "/drain" };
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

/// Validates the other tests: a record that is kept shows in the peak.
#[test]
fn a_record_that_is_kept_shows_in_the_peak() {
    const LENGTH: usize = 32 * MEBIBYTE;
    let grown = grown("a_record_that_is_kept_shows_in_the_peak", async |client| {
        let response = client.send_limited("/drain", Upload::new(LENGTH), usize::MAX).await;
        assert_eq!(client.read(response).await, LENGTH.to_string());
    });
    assert!(grown.is_none_or(|grown| grown > LENGTH - MARGIN), "{grown:?} bytes");
}

/// A body whose frames are allocated when they are polled.
struct Upload {
    left: usize,
    sized: bool,
    /// Holds back all frames but the first.
    gate: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    started: bool,
}

impl Upload {
    fn new(length: usize) -> Self {
        Self { left: length, sized: false, gate: None, started: false }
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
        if self.started
            && let Some(gate) = &mut self.gate
        {
            ready!(gate.as_mut().poll(cx));
            self.gate = None;
        }
        self.started = true;
        self.left -= FRAME;
        Poll::Ready(Some(Ok(Frame::data(vec![7; FRAME].into()))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized { SizeHint::with_exact(self.left as u64) } else { SizeHint::default() }
    }
}

/// Checks that the peak with the middleware is at most `margin` above the peak of a bare client.
fn compare(test: &str, margin: usize, upload: impl AsyncFnOnce(&Uploader)) {
    let grown = grown(test, upload);
    assert!(grown.is_none_or(|grown| grown <= margin), "{grown:?} bytes");
}

/// Returns how many bytes the middleware adds to the peak. `None` if the system doesn't report memory.
///
/// Runs the calling test, named `test`, again in two processes, which make the uploads.
fn grown(test: &str, upload: impl AsyncFnOnce(&Uploader)) -> Option<usize> {
    if let Ok(url) = env::var("UPLOAD_TO") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { upload(&Uploader::new(url, env::var_os("LAYERED").is_some()).await).await });
        report(peak_memory());
        return None;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let url = runtime.block_on(serve());
    let peak_of = |layered: bool| {
        let layered = layered.then_some(("LAYERED", "yes"));
        run_in_own_process(&format!("uploads::{test}"), [("UPLOAD_TO", &*url)].into_iter().chain(layered))
    };
    let (bare, layered) = (peak_of(false)?, peak_of(true)?);
    println!("{test}: {} KiB bare, {} KiB with the middleware", bare / 1024, layered / 1024);
    Some(layered.saturating_sub(bare))
}

/// The client of an upload.
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

    /// Opens a gate at the refresh, or at once in a client without the middleware.
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

/// Builds a client: of HTTP/2 for the bidirectional `/echo`, otherwise of HTTP/1.
fn client<B>(path: &str) -> Client<HttpConnector, B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    Client::builder(TokioExecutor::new()).http2_only(path == "/echo").build_http()
}

/// Starts a server that counts the bytes of each upload. The response body ends with the upload and holds the count.
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
