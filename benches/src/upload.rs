//! Uploads of a large body in many frames.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, StreamBody};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_auth_refresh::{RefreshError, RefreshRequest, ReplayBody, ReplayLimit, Session};

use crate::loopback::{Http, Server, client};
use crate::shape::ORIGIN;
use crate::stack;

/// The length of the body in bytes.
pub const LENGTH: usize = 64 * 1024 * 1024;

/// The length of a frame in bytes.
pub const FRAME: usize = 16 * 1024;

/// The way in which the body is uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    /// No middleware.
    Bare,
    /// The replay limit covers the whole body, which is kept.
    UnderLimit,
    /// The default replay limit: recording stops early.
    OverLimit,
    /// The whole body is kept and sent a second time.
    Replayed,
}

/// Returns the body as a stream.
///
/// Its length isn't known in advance: otherwise the middleware wouldn't try to keep it.
fn body(content: &Bytes) -> impl Body<Data = Bytes, Error: Into<BoxError> + Send> + Send + Unpin + use<> {
    let content = content.clone();
    let frames =
        (0..LENGTH / FRAME).map(move |i| Ok::<_, BoxError>(Frame::data(content.slice(i * FRAME..(i + 1) * FRAME))));
    StreamBody::new(stream::iter(frames))
}

/// Uploads to one [`Server`].
pub struct Uploads {
    server: Server,
    session: Session,
    content: Bytes,
}

impl Uploads {
    /// Starts a server and creates a session.
    pub async fn new() -> Self {
        Self { server: Server::start().await, session: session().await, content: Bytes::from(vec![7; LENGTH]) }
    }

    /// Uploads the body once and returns the time.
    ///
    /// # Panics
    ///
    /// If the upload fails.
    pub async fn upload(&self, upload: Upload) -> Duration {
        let mut request = Request::post(self.server.url("/")).body(body(&self.content)).expect("valid request");
        if matches!(upload, Upload::UnderLimit | Upload::Replayed) {
            request.extensions_mut().insert(ReplayLimit(LENGTH));
        }
        if upload == Upload::Replayed {
            self.server.refuse_next();
        }
        let start = Instant::now();
        let response = match upload {
            Upload::Bare => client(Http::H1).oneshot(request).await,
            _ => self.server.layer(&self.session).layer(client(Http::H1)).oneshot(request).await,
        };
        let response = response.expect("response");
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.expect("complete body");
        start.elapsed()
    }
}

/// Replays an upload and returns the number of sent bytes that lie outside the caller's own buffer: copies.
///
/// # Panics
///
/// If the request isn't replayed.
pub async fn copied_bytes() -> usize {
    let content = Bytes::from(vec![7; LENGTH]);
    let own = content.as_ptr_range();
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let api = service_fn({
        let (attempts, own) = (Arc::clone(&attempts), own.start.addr()..own.end.addr());
        move |request: Request<ReplayBody<_>>| {
            let (attempts, own) = (Arc::clone(&attempts), own.clone());
            async move {
                let mut body = request.into_body();
                let mut copied = 0;
                while let Some(frame) = body.frame().await {
                    let data = frame?.into_data().unwrap_or_default();
                    copied += if own.contains(&data.as_ptr().addr()) { 0 } else { data.len() };
                }
                let mut attempts = attempts.lock().unwrap_or_else(PoisonError::into_inner);
                attempts.push(copied);
                let mut response = Response::new(Empty::<Bytes>::new());
                if attempts.len() == 1 {
                    *response.status_mut() = StatusCode::UNAUTHORIZED;
                }
                Ok::<_, BoxError>(response)
            }
        }
    });
    let mut client = stack::ours(&session().await).layer(api);
    let request =
        Request::post(format!("{ORIGIN}/")).extension(ReplayLimit(LENGTH)).body(body(&content)).expect("valid request");
    let response = client.ready().await.expect("ready").call(request).await.expect("response");
    assert_eq!(response.status(), StatusCode::OK);
    let attempts = attempts.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(attempts.len(), 2, "the request is replayed");
    attempts.iter().sum()
}

/// Creates a session whose refreshes return a new access token each time.
async fn session() -> Session {
    let refresh = service_fn(|request: RefreshRequest| async move {
        let n = request.generation().get() + 1;
        Ok::<_, RefreshError>(stack::tokens(&format!("a{n}")))
    });
    Session::builder(refresh).tokens(stack::tokens("a1")).build().await.expect("memory stores don't fail")
}
