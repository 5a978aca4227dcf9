//! [`Shape`]: the requests that are measured.

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tower_auth_refresh::Session;

/// The origin of all requests.
pub const ORIGIN: &str = "https://api.example.com";

/// The type of the request bodies that callers send.
pub type Body = Full<Bytes>;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// GET without a body or headers.
    Get0,
    /// GET without a body, 6 headers.
    Get6,
    /// POST of 1 KiB, 6 headers.
    Post6,
    /// POST of 1 KiB, 15 headers.
    Post15,
    /// As `Post15`, with a head that was parsed by a hyper server.
    Post15Parsed,
    /// As `Get6`, with a session in its extensions.
    PerRequest,
}

impl Shape {
    /// All shapes.
    pub const ALL: [Self; 6] =
        [Self::Get0, Self::Get6, Self::Post6, Self::Post15, Self::Post15Parsed, Self::PerRequest];

    /// Returns the name in benches and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get0 => "get0",
            Self::Get6 => "get6",
            Self::Post6 => "post6",
            Self::Post15 => "post15",
            Self::Post15Parsed => "post15_parsed",
            Self::PerRequest => "per_request",
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Get0 | Self::Get6 | Self::PerRequest => Method::GET,
            Self::Post6 | Self::Post15 | Self::Post15Parsed => Method::POST,
        }
    }

    fn headers(self) -> usize {
        match self {
            Self::Get0 => 0,
            Self::Get6 | Self::Post6 | Self::PerRequest => 6,
            Self::Post15 | Self::Post15Parsed => 15,
        }
    }
}

/// Headers that apps and gateways send, the most common ones first.
const HEADERS: [(&str, &str); 15] = [
    ("accept", "application/json"),
    ("content-type", "application/json"),
    ("user-agent", "example-app/4.2.1 (Linux; x86_64) hyper/1.12"),
    ("accept-encoding", "gzip, br"),
    ("accept-language", "en-GB,en;q=0.9,de;q=0.7"),
    ("x-request-id", "6f9619ff-8b86-d011-b42d-00cf4fc964ff"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
    ("cache-control", "no-cache"),
    ("x-forwarded-for", "203.0.113.195, 198.51.100.178"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "app.example.com"),
    ("if-none-match", "\"33a64df551425fcc55e4d42a148795d9f25f89d4\""),
    ("idempotency-key", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
    ("x-tenant", "tenant-0042"),
];

const PATH: &str = "/v1/users/42/orders?limit=20";

/// Builds requests.
pub struct Requests {
    session: Session,
    body: Bytes,
    runtime: tokio::runtime::Runtime,
}

impl Requests {
    /// Creates a builder. Requests of the shape [`Shape::PerRequest`] carry `session`.
    ///
    /// # Panics
    ///
    /// If a runtime can't be created.
    #[must_use]
    pub fn new(session: Session) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime without drivers");
        Self { session, body: Bytes::from(vec![b'x'; 1024]), runtime }
    }

    /// Builds `n` requests.
    #[must_use]
    pub fn batch(&self, shape: Shape, n: usize) -> Vec<Request<Body>> {
        if shape == Shape::Post15Parsed {
            return self.runtime.block_on(self.parsed(n));
        }
        (0..n).map(|_| self.build(shape)).collect()
    }

    fn build(&self, shape: Shape) -> Request<Body> {
        let method = shape.method();
        // From a vector, like the output of a serializer.
        let body = if method == Method::POST { Full::from(self.body.to_vec()) } else { Full::default() };
        let mut request =
            Request::builder().method(method).uri(format!("{ORIGIN}{PATH}")).body(body).expect("valid request");
        if shape.headers() > 0 {
            // Otherwise the token's header would make the map grow, in every stack, and obscure all other costs.
            request.headers_mut().reserve(shape.headers() + 1);
        }
        for (name, value) in &HEADERS[..shape.headers()] {
            // From text, like most requests: values made by `from_static` are cheaper to clone.
            let value = HeaderValue::from_str(value).expect("valid header value");
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
        if shape == Shape::PerRequest {
            request.extensions_mut().insert(self.session.clone());
        }
        request
    }

    /// Sends `n` requests to a hyper server and returns them as parsed, with the API's origin, like a gateway.
    async fn parsed(&self, n: usize) -> Vec<Request<Body>> {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let service = service_fn(move |request: Request<Incoming>| {
            let sender = sender.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let _ = sender.send(Request::from_parts(parts, Full::new(body)));
                Ok::<_, hyper::Error>(http::Response::new(Full::<Bytes>::default()))
            }
        });
        let serve = http1::Builder::new().serve_connection(TokioIo::new(server), service);
        let send = async {
            let mut text = format!("POST {PATH} HTTP/1.1\r\ncontent-length: {}\r\n", self.body.len());
            for (name, value) in &HEADERS[..Shape::Post15Parsed.headers() - 1] {
                text.extend([name, ": ", value, "\r\n"]);
            }
            text.push_str("\r\n");
            let mut requests = Vec::with_capacity(n);
            for _ in 0..n {
                client.write_all(text.as_bytes()).await.expect("open connection");
                client.write_all(&self.body).await.expect("open connection");
                let mut request = receiver.recv().await.expect("parsed request");
                let mut target = request.uri().clone().into_parts();
                target.scheme = Some(Scheme::HTTPS);
                target.authority = Some(Authority::from_static("api.example.com"));
                *request.uri_mut() = Uri::from_parts(target).expect("valid URI");
                requests.push(request);
                let mut response = [0; 1024];
                let _ = client.read(&mut response).await.expect("response");
            }
            drop(client);
            requests
        };
        tokio::join!(send, serve).0
    }
}
