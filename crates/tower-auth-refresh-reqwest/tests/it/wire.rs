//! The bytes on the wire, by a recording proxy: those of the bare client, for the first attempt and for the replay.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_auth_refresh_reqwest::{ApiClient, ReqwestService, reqwest};

use crate::support::{Numbered, Server, builder, origin, status};

/// The bytes that a client has sent over a connection.
type Sent = Arc<Mutex<Vec<u8>>>;

/// A proxy that records the bytes that clients send, by connection.
struct Tap {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<Sent>>>,
}

impl Tap {
    async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<Mutex<Vec<_>>>::default();
        let recorded = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let sent = Sent::default();
                recorded.lock().unwrap().push(Arc::clone(&sent));
                let server = TcpStream::connect(server).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                        // Recorded before the server can answer.
                        sent.lock().unwrap().extend_from_slice(&buffer[..read]);
                        to_server.write_all(&buffer[..read]).await.unwrap();
                    }
                });
                tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            }
        });
        Self { address, connections }
    }

    /// Returns what was sent over the one connection since the last call.
    fn sent(&self) -> Vec<u8> {
        let [sent] = std::mem::take(&mut *self.connections.lock().unwrap()).try_into().unwrap();
        sent.lock().unwrap().clone()
    }
}

/// The frames of HTTP/2 that carry requests, without the numbers of their streams.
fn requests_of_http2(sent: &[u8]) -> Vec<u8> {
    let mut rest = sent.strip_prefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let mut requests = Vec::new();
    while let [a, b, c, kind, flags, _, _, _, _, payload @ ..] = rest {
        let (payload, next) = payload.split_at(usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c));
        // DATA, HEADERS, CONTINUATION. The others depend on when the server's own frames arrive.
        if [0, 1, 9].contains(kind) {
            requests.extend([*kind, *flags]);
            requests.extend(payload);
        }
        rest = next;
    }
    assert!(rest.is_empty());
    requests
}

/// Removes each of these boundaries.
fn without(bytes: &[u8], boundaries: &[String]) -> Vec<u8> {
    let mut left = Vec::new();
    let mut rest = bytes;
    while let Some((first, others)) = rest.split_first() {
        if let Some(behind) = boundaries.iter().find_map(|boundary| rest.strip_prefix(boundary.as_bytes())) {
            rest = behind;
        } else {
            left.push(*first);
            rest = others;
        }
    }
    left
}

type Make = fn(reqwest::RequestBuilder) -> reqwest::RequestBuilder;

/// The requests, each with another kind of body.
const REQUESTS: [(&str, Make); 9] = [
    ("no body", |request| request),
    ("an empty body", |request| request.body("")),
    ("one piece", |request| request.header("x-one", "1").body("a body")),
    ("JSON", |request| request.json(&["a", "body"])),
    ("a form", |request| request.form(&[("a", "body")])),
    ("64 KiB", |request| request.body(vec![b'x'; 60_000])),
    ("a stream of known length", |request| request.body(reqwest::Body::wrap(Full::<Bytes>::from("a body")))),
    ("a stream", |request| request.body(chunks(&["a ", "", "body"]))),
    ("an empty stream", |request| request.body(chunks(&[]))),
];

fn chunks(chunks: &'static [&'static str]) -> reqwest::Body {
    reqwest::Body::wrap_stream(stream::iter(chunks).map(|chunk| Ok::<_, std::io::Error>(*chunk)))
}

/// Compares the requests of the bare client and of ours, as `requests` extracts them from what was sent.
async fn compare(
    with: fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    requests: fn(&[u8]) -> Vec<u8>,
    cases: &[(&str, Make)],
) {
    let server = Server::expiring(|_| status(200)).await;
    let tap = Tap::before(server.address()).await;
    let target = format!("http://{}", tap.address);
    for (name, make) in cases {
        let bare = with(builder()).build().unwrap();
        let make = || make(bare.post(format!("{target}/path?query=1")));
        // With the token that is refused, and again with the newer one.
        let mut boundaries = Vec::new();
        for token in ["a1", "a2"] {
            let request = make().bearer_auth(token).build().unwrap();
            boundaries.extend(boundary_of(&request));
            bare.execute(request).await.unwrap().bytes().await.unwrap();
        }
        let expected = without(&requests(&tap.sent()), &boundaries);

        let user = Numbered::new().await;
        let service = ReqwestService::new(with(builder())).unwrap();
        let api = ApiClient::new(user.session, origin(&target), service);
        let request = make().build().unwrap();
        let boundary = boundary_of(&request);
        let response = api.execute(request).await.unwrap();
        assert_eq!(response.status(), 200, "{name}");
        response.bytes().await.unwrap();
        let ours = without(&requests(&tap.sent()), boundary.as_slice());
        assert!(ours == expected, "{name}:\n{}\n{}", ours.escape_ascii(), expected.escape_ascii());
    }
}

/// The random boundary of a multipart body.
fn boundary_of(request: &reqwest::Request) -> Option<String> {
    let kind = request.headers().get("content-type")?.to_str().unwrap();
    kind.split_once("boundary=").map(|(_, boundary)| boundary.to_owned())
}

#[tokio::test]
async fn over_http1_the_bytes_are_those_of_the_bare_client() {
    compare(|builder| builder, <[u8]>::to_vec, &REQUESTS).await;
}

#[tokio::test]
async fn over_http2_the_frames_of_requests_are_those_of_the_bare_client() {
    compare(reqwest::ClientBuilder::http2_prior_knowledge, requests_of_http2, &REQUESTS).await;
}

// Over HTTP/2, headers are compressed, and the boundary can't be taken out of them.
#[cfg(feature = "multipart")]
#[tokio::test]
async fn over_http1_a_multipart_body_is_that_of_the_bare_client() {
    use reqwest::multipart::{Form, Part};

    let known: Make = |request| {
        let part = Part::stream_with_length(chunks(&["a ", "body"]), 6).file_name("b.txt");
        request.multipart(Form::new().text("a", "text").part("b", part))
    };
    let unknown: Make = |request| request.multipart(Form::new().part("b", Part::stream(chunks(&["a ", "body"]))));
    compare(|builder| builder, <[u8]>::to_vec, &[("of known length", known), ("of unknown length", unknown)]).await;
}
