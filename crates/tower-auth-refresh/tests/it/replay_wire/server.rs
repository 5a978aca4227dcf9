//! hyper's server, which refuses the first attempt in a given manner and reads the replay to its end.

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};

use super::{Http, Manner, When};
use crate::support::response;

/// The answer to the replay.
pub const ACCEPTED: &str = "status 200";

/// The body of the refusal.
pub const REFUSED: &str = "status 401";

/// The progress of the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Begun,
    /// The client has seen the 401.
    Seen,
    /// The replay has been given a connection.
    Assigned,
    /// Half of the replay has arrived.
    Replaying,
    /// The client has its answer.
    Over,
}

/// Returns true if the server refuses a request with these headers.
pub fn is_refused(headers: &HeaderMap) -> bool {
    headers[AUTHORIZATION] == "Bearer a1"
}

/// The first attempt as the server saw it.
#[derive(Clone)]
pub struct First {
    pub headers: HeaderMap,
    pub attempt: Attempt,
}

#[derive(Clone)]
pub enum Attempt {
    /// Read to its end, which was clean.
    Whole(Bytes),
    /// Read until it broke off.
    Broken,
    /// Not read any further.
    Unread,
}

/// The replay as the server saw it.
#[derive(Clone)]
pub struct Replayed {
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    http: Http,
    manner: Manner,
    when: When,
    address: SocketAddr,
    connections: AtomicUsize,
    stage: watch::Sender<Stage>,
    first: watch::Sender<Option<First>>,
    replay: Mutex<Option<Replayed>>,
}

impl Server {
    pub fn start(http: Http, manner: Manner, when: When) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(super::BUFFER).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(16).unwrap();
        let server = Self(Arc::new(Shared {
            http,
            manner,
            when,
            address: listener.local_addr().unwrap(),
            connections: AtomicUsize::new(0),
            stage: watch::Sender::new(Stage::Begun),
            first: watch::Sender::new(None),
            replay: Mutex::default(),
        }));
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepting.0.connections.fetch_add(1, Ordering::SeqCst);
                stream.set_nodelay(true).unwrap();
                tokio::spawn(accepting.clone().serve(stream));
            }
        });
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.0.address)
    }

    /// The number of connections accepted so far.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::SeqCst)
    }

    /// Records that the exchange has reached this stage, at least.
    pub fn reach(&self, stage: Stage) {
        self.0.stage.send_if_modified(|reached| {
            let is_new = *reached < stage;
            *reached = stage.max(*reached);
            is_new
        });
    }

    pub fn has_reached(&self, stage: Stage) -> bool {
        *self.0.stage.borrow() >= stage
    }

    /// Waits until the exchange has reached this stage.
    pub fn stage(&self, stage: Stage) -> impl Future<Output = ()> + Send + use<> {
        let mut stages = self.0.stage.subscribe();
        async move {
            stages.wait_for(|reached| *reached >= stage).await.unwrap();
        }
    }

    /// Waits until the server is done with the first attempt, and returns it.
    pub async fn first(&self) -> First {
        let first = self.0.first.subscribe().wait_for(Option::is_some).await.unwrap().clone();
        first.unwrap()
    }

    /// Records [`Stage::Assigned`] once this request has a connection.
    pub fn report_when_assigned<B>(&self, mut request: Request<B>) -> Request<B> {
        let (server, mut assigned) = (self.clone(), capture_connection(&mut request));
        tokio::spawn(async move {
            assigned.wait_for_connection_metadata().await;
            server.reach(Stage::Assigned);
        });
        request
    }

    pub fn replay(&self) -> Option<Replayed> {
        self.0.replay.lock().unwrap().clone()
    }

    async fn serve(self, stream: TcpStream) {
        let (http, cut) = (self.0.http, Arc::new(Notify::new()));
        let cutting = Arc::clone(&cut);
        let service = service_fn(move |request| {
            let (server, cut) = (self.clone(), Arc::clone(&cutting));
            async move { Ok::<_, Infallible>(server.answer(request, cut).await) }
        });
        let stream = TokioIo::new(stream);
        let connection = async move {
            match http {
                Http::H1 | Http::H1Copied => http1::Builder::new().serve_connection(stream, service).await,
                Http::H2 | Http::H2Narrow => {
                    let mut builder = http2::Builder::new(TokioExecutor::new());
                    // A stream that isn't read takes only a part of the connection's window.
                    builder.initial_stream_window_size(64 * 1024).initial_connection_window_size(1024 * 1024);
                    if http == Http::H2Narrow {
                        // Holds the first half of a body.
                        builder.initial_stream_window_size(128 * 1024).max_concurrent_streams(1);
                    }
                    builder.serve_connection(stream, service).await
                }
            }
        };
        tokio::select! {
            // The client may close the connection at any moment.
            _ = connection => {}
            () = cut.notified() => {}
        }
    }

    async fn answer(&self, request: Request<Incoming>, cut: Arc<Notify>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        if is_refused(&head.headers) {
            self.refuse(head.headers, body, cut).await
        } else {
            self.accept(head.headers, body).await
        }
    }

    async fn refuse(&self, headers: HeaderMap, mut body: Incoming, cut: Arc<Notify>) -> Response<Full<Bytes>> {
        let enough = match self.0.when {
            When::Start => 0,
            When::Middle => 8 * 1024,
            When::End => usize::MAX,
        };
        let mut read = Vec::new();
        let mut whole = false;
        while read.len() < enough && !whole {
            match body.frame().await {
                Some(frame) => read.extend_from_slice(frame.unwrap().data_ref().map_or(&[], |data| data)),
                None => whole = true,
            }
        }
        let server = self.clone();
        tokio::spawn(async move {
            let attempt = server.follow_up(read, whole, body, cut).await;
            server.0.first.send_replace(Some(First { headers, attempt }));
        });
        let mut refusal = response(401);
        if self.0.http.is_1() && self.0.manner == Manner::Closes {
            refusal.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        refusal
    }

    /// Handles the rest of the body after the refusal.
    async fn follow_up(&self, mut read: Vec<u8>, whole: bool, mut body: Incoming, cut: Arc<Notify>) -> Attempt {
        match self.0.manner {
            Manner::Closes => {
                self.stage(Stage::Seen).await;
                cut.notify_one();
                // The body ends once the connection is cut, or has been read before.
                while let Some(Ok(_)) = body.frame().await {}
            }
            Manner::Drops => drop(body),
            Manner::NeverReads => self.stage(Stage::Over).await,
            Manner::ReadsOn | Manner::ReadsLate if !whole => {
                self.stage(if self.0.manner == Manner::ReadsOn { Stage::Seen } else { Stage::Assigned }).await;
                // Once the response is sent, hyper doesn't wake a reader that waits for the end of the body.
                while !body.is_end_stream()
                    && let Some(frame) = body.frame().await
                {
                    match frame {
                        Ok(frame) => read.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                        Err(_) => return Attempt::Broken,
                    }
                }
                return Attempt::Whole(read.into());
            }
            Manner::ReadsOn | Manner::ReadsLate => {}
        }
        if whole { Attempt::Whole(read.into()) } else { Attempt::Unread }
    }

    async fn accept(&self, headers: HeaderMap, mut body: Incoming) -> Response<Full<Bytes>> {
        let (mut read, mut trailers) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            // The client may abort the replay.
            let Ok(frame) = frame else { return response(400) };
            match frame.into_data() {
                Ok(data) => read.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
            if read.len() >= super::LENGTH / 2 {
                self.reach(Stage::Replaying);
            }
        }
        *self.0.replay.lock().unwrap() = Some(Replayed { headers, body: read.into(), trailers });
        response(200)
    }
}
