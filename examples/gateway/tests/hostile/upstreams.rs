//! Upstreams that answer with anything: the client gets a valid response or an error, and no cookie of the gateway's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tower_auth_refresh_testkit::TestServer;

use crate::test_gateway::{Browser, TestGateway, upstream_with_raw_response};

const RESPONSES: [&str; 30] = [
    "",
    "\r\n\r\n",
    "HTTP/1.1",
    "HTTP/1.1 200",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nx",
    "HTTP/1.1 200 OK\r\nset-cookie: session=x\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nset-cookie:  =session=x\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nset-cookie: ;session=x\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nset-cookie: SESSION=x\r\nset-cookie: session\t=x\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nx\r\n\r\n",
    "HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
    "HTTP/1.1 200 OK\r\n x: y\r\n\r\n",
    "HTTP/1.1 200 OK\r\nx: y\0\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nset-cookie: session=x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello",
    "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
    "HTTP/1.1 999 ?\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 099 ?\r\n\r\n",
    "HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "ICY 200 OK\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled",
];

#[tokio::test]
async fn no_answer_of_an_upstream_harms_a_client() {
    let mut answered = 0;
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    for response in RESPONSES {
        let upstream = upstream_with_raw_response(response).await;
        let kit = TestServer::start().await.unwrap();
        let gateway = TestGateway::in_front_of(kit, &upstream, |settings| {
            settings.upstream_timeout = Duration::from_millis(300);
        });
        let browser = gateway.await.browser("ada").await;
        for method in [Method::GET, Method::HEAD, Method::POST] {
            let call = async {
                let request = browser.request(method, "/api/x").body(Body::empty()).unwrap();
                // If the body is invalid from its first byte on, the connection may end without a head.
                let (head, body) = client.request(request).await.ok()?.into_parts();
                Some((head, body.collect().await))
            };
            let call = timeout(Duration::from_secs(20), call).await;
            let Some((head, body)) = call.unwrap_or_else(|_| panic!("{response:?}")) else { continue };
            answered += usize::from(body.is_ok());
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&body).contains("smuggled"), "{response:?}");
            for cookie in head.headers.get_all("set-cookie") {
                let name = cookie
                    .as_bytes()
                    .split(|byte| matches!(byte, b'=' | b';'))
                    .find(|part| !part.trim_ascii().is_empty());
                assert_ne!(name.map(<[u8]>::trim_ascii), Some(&b"session"[..]), "{response:?}");
            }
            assert_ne!(head.status, 101, "{response:?}");
        }
    }
    assert!(answered > RESPONSES.len());
    println!("upstreams: {} answers, {answered} of them whole", RESPONSES.len() * 3);
}

/// What an upstream does after it has read a request.
#[derive(Clone, Debug)]
enum Answer {
    /// Sends these bytes, and waits for the next request.
    Keep(Vec<u8>),
    /// Sends these bytes and closes the connection.
    Close(Vec<u8>),
    /// Sends these bytes and resets the connection.
    Reset(Vec<u8>),
    /// Sends these bytes one by one.
    Slowly(Vec<u8>),
    /// Sends the first bytes, and then the second without end.
    Endless(&'static str, &'static str),
}

/// Starts an upstream that answers with the first of the answers, then with the second, and so on.
async fn scripted(answers: Arc<Mutex<VecDeque<Answer>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answers, mut stream) = (answers.clone(), BufReader::new(stream));
            tokio::spawn(async move {
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await?);
                    }
                    let next = answers.lock().unwrap().pop_front();
                    match next.unwrap_or_else(|| Answer::Keep(whole("unscripted"))) {
                        Answer::Keep(bytes) => stream.write_all(&bytes).await?,
                        Answer::Close(bytes) => return stream.write_all(&bytes).await,
                        Answer::Reset(bytes) => {
                            stream.write_all(&bytes).await?;
                            return stream.get_ref().set_zero_linger();
                        }
                        Answer::Slowly(bytes) => {
                            for byte in bytes {
                                stream.write_all(&[byte]).await?;
                                tokio::task::yield_now().await;
                            }
                        }
                        Answer::Endless(first, rest) => {
                            stream.write_all(first.as_bytes()).await?;
                            let block = rest.repeat(100);
                            loop {
                                stream.write_all(block.as_bytes()).await?;
                            }
                        }
                    }
                }
                #[expect(unreachable_code, reason = "the type of the block")]
                std::io::Result::Ok(())
            });
        }
    });
    origin
}

fn whole(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A gateway in front of a scripted upstream, and clients of both protocols.
struct Scripted {
    gateway: TestGateway,
    browser: Browser,
    clients: [Client<HttpConnector, Body>; 2],
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl Scripted {
    /// More than an answer takes that isn't endless, on a loaded machine too.
    const LONG: Duration = Duration::from_secs(20);

    async fn start(upstream_timeout: Duration) -> Self {
        let answers = Arc::default();
        let upstream = scripted(Arc::clone(&answers)).await;
        let gateway = TestGateway::in_front_of(TestServer::start().await.unwrap(), &upstream, |settings| {
            settings.upstream_timeout = upstream_timeout;
        });
        let gateway = gateway.await;
        let browser = gateway.browser("ada").await;
        let clients = [false, true]
            .map(|is_http_2| Client::builder(TokioExecutor::new()).http2_only(is_http_2).build_http::<Body>());
        Self { gateway, browser, clients, answers }
    }

    /// Makes a call with each protocol that is answered so. Returns the statuses, and the bodies that are whole.
    async fn call(&self, method: Method, answer: &Answer) -> Vec<(u16, Option<Bytes>)> {
        let mut seen = Vec::new();
        for client in &self.clients {
            self.answers.lock().unwrap().extend([answer.clone()]);
            let request = self.browser.request(method.clone(), "/api/x").body(Body::empty()).unwrap();
            let call = async {
                let (head, body) = client.request(request).await.ok()?.into_parts();
                let set_cookie = head.headers.get("set-cookie").cloned();
                assert!(set_cookie.is_none_or(|cookie| !cookie.as_bytes().starts_with(b"session")), "{answer:?}");
                let body = body.collect().await.ok();
                if let Some(trailers) = body.as_ref().and_then(http_body_util::Collected::trailers) {
                    let forbidden =
                        ["set-cookie", "connection", "content-length", "location", "access-control-max-age"];
                    assert!(!forbidden.iter().any(|name| trailers.contains_key(*name)), "{trailers:?}");
                }
                Some((head.status.as_u16(), body.map(http_body_util::Collected::to_bytes)))
            };
            let call =
                timeout(Duration::from_secs(30), call).await.unwrap_or_else(|_| panic!("no answer to {answer:?}"));
            seen.push(call.unwrap_or((0, None)));
            self.answers.lock().unwrap().clear();
        }
        seen
    }
}

/// A second response in the same bytes would be the answer to the next request, which may be another user's.
#[tokio::test]
async fn no_second_response_answers_the_next_request() {
    let scripted = Scripted::start(Scripted::LONG).await;
    let other = scripted.gateway.browser("eve").await;
    let second = String::from_utf8(whole("smuggled")).unwrap();
    let firsts = [
        (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()),
        (Method::GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned()),
        (Method::GET, format!("HTTP/1.1 204 No Content\r\ncontent-length: {}\r\n\r\n", second.len())),
        (Method::GET, format!("HTTP/1.1 304 Not Modified\r\ncontent-length: {}\r\n\r\n", second.len())),
        (Method::HEAD, format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", second.len())),
        (Method::HEAD, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned()),
        (Method::GET, "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n".to_owned()),
        (Method::GET, "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n".to_owned()),
    ];
    let mut calls = 0;
    for (method, first) in firsts {
        for _ in 0..10 {
            let smuggling = Answer::Keep((first.clone() + &second).into_bytes());
            for (_, body) in scripted.call(method.clone(), &smuggling).await {
                assert!(body.is_none_or(|body| !String::from_utf8_lossy(&body).contains("smuggled")), "{first}");
            }
            let next = other.get("/api/whose").await;
            assert_eq!((next.status.as_u16(), &next.body[..]), (200, &b"unscripted"[..]), "{first}");
            calls += 3;
        }
    }
    println!("upstreams: {calls} calls around second responses, none of which was answered by one");
}

/// Every prefix of an answer, closed and reset.
#[tokio::test]
async fn no_cut_answer_looks_whole() {
    let scripted = Scripted::start(Scripted::LONG).await;
    let answers = [
        whole("0123456789"),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\nx: y\r\n\r\n".to_vec(),
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.0 200 OK\r\ncontent-length: 10\r\n\r\n0123456789".to_vec(),
    ];
    let (mut calls, mut failed) = (0, 0);
    for answer in answers {
        for end in 0..=answer.len() {
            let bytes = answer[..end].to_vec();
            for cut in [Answer::Close(bytes.clone()), Answer::Reset(bytes.clone())] {
                for (status, body) in scripted.call(Method::GET, &cut).await {
                    calls += 1;
                    match (status, body) {
                        (200, Some(body)) => {
                            assert_eq!((body.as_ref(), end), (&b"0123456789"[..], answer.len()), "{cut:?}");
                        }
                        // Without a head, if the body has failed before the head was sent.
                        (0 | 200, None) => failed += 1,
                        (502, Some(body)) => {
                            assert!(String::from_utf8_lossy(&body).contains("/problems/upstream-failed"), "{cut:?}");
                            failed += 1;
                        }
                        other => panic!("{cut:?}: {other:?}"),
                    }
                }
            }
        }
    }
    println!("upstreams: {calls} answers cut at each byte, {failed} failed, the others whole");
}

/// What an upstream can send without end, or more of than any client wants.
#[tokio::test]
async fn storms_of_an_upstream_end() {
    // Some end with the time-out alone.
    let endless = Scripted::start(Duration::from_millis(500)).await;
    let scripted = Scripted::start(Scripted::LONG).await;
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(2_000)
        + "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let fields = |count: usize, length: usize| {
        let fields: Vec<_> = (0..count).map(|n| format!("x-{n}: {}\r\n", "y".repeat(length))).collect();
        let fields = fields.concat();
        Answer::Keep(format!("HTTP/1.1 200 OK\r\n{fields}content-length: 2\r\n\r\nok").into_bytes())
    };
    let trailers = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nset-cookie: session=x\r\n\
                    content-length: 5\r\nlocation: /\r\naccess-control-max-age: 5\r\nconnection: x\r\nx-sum: 1\r\n\r\n";
    let ends: [(&str, Answer, &[u16]); 11] = [
        ("hints before the answer", Answer::Keep(hints.into_bytes()), &[200]),
        ("hints without end", Answer::Endless("", "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"), &[502, 504]),
        ("100 Continue without end", Answer::Endless("", "HTTP/1.1 100 Continue\r\n\r\n"), &[502, 504]),
        ("a head without end", Answer::Endless("HTTP/1.1 200 OK\r\n", "x: y\r\n"), &[502]),
        ("a field without end", Answer::Endless("HTTP/1.1 200 OK\r\nx: ", "yyyyyyyyyyyyyyy"), &[502]),
        ("a reason without end", Answer::Endless("HTTP/1.1 200 ", "OK"), &[502]),
        ("blank lines without end", Answer::Endless("", "\r\n"), &[502, 504]),
        ("many fields", fields(5_000, 5), &[502]),
        ("long fields", fields(50, 10_000), &[502]),
        (
            "a chunk extension without end",
            Answer::Endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;", "x=y;"),
            &[200, 502],
        ),
        ("trailers that are headers", Answer::Keep(trailers.as_bytes().to_vec()), &[200]),
    ];
    for (name, answer, statuses) in &ends {
        let scripted = if matches!(answer, Answer::Endless(..)) { &endless } else { &scripted };
        for (status, body) in scripted.call(Method::GET, answer).await {
            assert!(statuses.contains(&status) || status == 0, "{name}: {status} {body:?}");
            assert!(status != 0 || name.starts_with("a chunk"), "{name}: no answer");
        }
    }
    for answer in [whole("slow"), trailers.as_bytes().to_vec()] {
        for (status, body) in scripted.call(Method::GET, &Answer::Slowly(answer)).await {
            assert!(status == 200 && body.is_some(), "{status}");
        }
    }
    println!("upstreams: {} storms, all of which ended", ends.len() * 2);
}
