//! A large body of many frames.

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

/// The length of the body.
pub const LENGTH: usize = 64 * 1024 * 1024;

/// The length of a frame.
pub const FRAME: usize = 16 * 1024;

/// What is done with the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    /// No middleware.
    Bare,
    /// The limit lets all of it be kept.
    UnderLimit,
    /// The usual limit: it stops being kept early on.
    OverLimit,
    /// All of it is kept, and sent a second time.
    Replayed,
}

/// The body: its length isn't known before its end, or the middleware wouldn't try to keep it.
fn body(whole: &Bytes) -> impl Body<Data = Bytes, Error: Into<BoxError> + Send> + Send + Unpin + use<> {
    let whole = whole.clone();
    let frames =
        (0..LENGTH / FRAME).map(move |i| Ok::<_, BoxError>(Frame::data(whole.slice(i * FRAME..(i + 1) * FRAME))));
    StreamBody::new(stream::iter(frames))
}

/// Uploads to a [`Server`] over one connection.
pub struct Uploads {
    server: Server,
    session: Session,
    whole: Bytes,
}

impl Uploads {
    /// To a server of their own.
    pub async fn new() -> Self {
        Self { server: Server::start().await, session: session().await, whole: Bytes::from(vec![7; LENGTH]) }
    }

    /// The time of one upload.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub async fn upload(&self, upload: Upload) -> Duration {
        let mut request = Request::post(self.server.url("/")).body(body(&self.whole)).expect("valid");
        if matches!(upload, Upload::UnderLimit | Upload::Replayed) {
            request.extensions_mut().insert(ReplayLimit(LENGTH));
        }
        if upload == Upload::Replayed {
            self.server.refuse_next();
        }
        let begun = Instant::now();
        let response = match upload {
            Upload::Bare => client(Http::H1).oneshot(request).await,
            _ => self.server.layer(&self.session).layer(client(Http::H1)).oneshot(request).await,
        };
        let response = response.expect("answered");
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.expect("a whole answer");
        begun.elapsed()
    }
}

/// How many bytes of a replayed body aren't the very bytes in memory that the caller gave.
///
/// # Panics
///
/// If it isn't replayed.
pub async fn copied_bytes() -> usize {
    let whole = Bytes::from(vec![7; LENGTH]);
    let own = whole.as_ptr_range();
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
    let request = Request::post(format!("{ORIGIN}/")).extension(ReplayLimit(LENGTH)).body(body(&whole)).expect("valid");
    let response = client.ready().await.expect("ready").call(request).await.expect("answered");
    assert_eq!(response.status(), StatusCode::OK);
    let attempts = attempts.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(attempts.len(), 2, "it is replayed");
    attempts.iter().sum()
}

/// A session that gets another token at each refresh.
async fn session() -> Session {
    let refresh = service_fn(|request: RefreshRequest| async move {
        let n = request.generation().get() + 1;
        Ok::<_, RefreshError>(stack::tokens(&format!("a{n}")))
    });
    Session::builder(refresh).tokens(stack::tokens("a1")).build().await.expect("memory stores don't fail")
}
