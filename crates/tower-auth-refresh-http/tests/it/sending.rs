//! The properties of every call, with any client.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::{Ready, pending, ready};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use tokio::time::Instant;
use tower::{BoxError, Service, service_fn};
use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, JsonRefresh, OAuthRefresh, OAuthRevoke};

use crate::support::{Scripted, answer, cause, old_tokens, outcome};

const URL: &str = "https://api.example.com/auth/refresh";
const TOKENS: &str = r#"{"access_token":"a2"}"#;

async fn refreshed_by(client: AuthClient) -> String {
    outcome(&JsonRefresh::new(client, URL).unwrap().refresh(&old_tokens()).await)
}

fn failing<E: Into<BoxError> + 'static>(error: impl Fn() -> E + Clone + Send + Sync + 'static) -> AuthClient {
    AuthClient::new(service_fn(move |_: Request<Full<Bytes>>| {
        ready(Err::<Response<Full<Bytes>>, BoxError>(error().into()))
    }))
}

#[test]
fn no_call_accepts_an_endpoint_to_which_tokens_could_be_read_in_transit() {
    let client = Scripted::default().client();
    let plain = "http://api.example.com/auth";
    let refused: [Result<(), InvalidEndpoint>; 3] = [
        JsonRefresh::new(client.clone(), plain).map(drop),
        OAuthRefresh::new(client.clone(), plain, ClientAuth::public("app")).map(drop),
        OAuthRevoke::new(client.clone(), plain, ClientAuth::public("app")).map(drop),
    ];
    for refused in refused {
        assert!(refused.unwrap_err().to_string().starts_with("the endpoint is http:// and not on loopback"));
    }
    assert!(JsonRefresh::new(client.clone().allow_plain_http(), plain).is_ok());
    assert!(JsonRefresh::new(client.clone(), "http://127.0.0.1:8080/auth").is_ok());
    let error = JsonRefresh::new(client, "https://user:hunter2@api.example.com/").unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_header_of_the_client_is_sent_with_every_call_but_replaces_none_of_the_call() {
    let scripted = Scripted::with([answer(200, TOKENS)]);
    let client = scripted
        .client()
        .header(USER_AGENT, HeaderValue::from_static("app/1"))
        .header(HeaderName::from_static("x-requested-with"), HeaderValue::from_static("fetch"))
        .header(ACCEPT, HeaderValue::from_static("text/html"));
    refreshed_by(client).await;
    let request = scripted.only();
    assert_eq!((request.header("user-agent"), request.header("x-requested-with")), (Some("app/1"), Some("fetch")));
    assert_eq!(request.header("accept"), Some("application/json"));
}

#[tokio::test]
async fn a_refused_connection_means_that_nothing_was_sent() {
    #[derive(Debug)]
    struct Wrapped(io::Error);
    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }
    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    assert_eq!(refreshed_by(failing(refused)).await, "unavailable");
    assert_eq!(refreshed_by(failing(move || Wrapped(refused()))).await, "unavailable");
    assert_eq!(refreshed_by(failing(move || io::Error::other(Wrapped(refused())))).await, "unavailable");
}

#[tokio::test]
async fn any_other_error_of_the_client_is_in_doubt() {
    for kind in [
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::TimedOut,
        io::ErrorKind::HostUnreachable,
        io::ErrorKind::Other,
    ] {
        assert_eq!(refreshed_by(failing(move || io::Error::from(kind))).await, "in doubt", "{kind:?}");
    }
    assert_eq!(refreshed_by(failing(|| "something else")).await, "in doubt");
}

#[tokio::test]
async fn not_sent_when_recognises_further_errors() {
    let client = || failing(|| io::Error::other("pool exhausted"));
    assert_eq!(refreshed_by(client()).await, "in doubt");
    let configured = client().not_sent_when(|error| error.to_string() == "pool exhausted");
    assert_eq!(refreshed_by(configured).await, "unavailable");
}

/// A client that panics if it is called before it is ready.
#[derive(Clone)]
struct Strict {
    ready_after: usize,
    polled: usize,
    fails: bool,
}

impl Service<Request<Full<Bytes>>> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        self.polled += 1;
        if self.polled < self.ready_after {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.fails { Poll::Ready(Err(io::Error::other("closed"))) } else { Poll::Ready(Ok(())) }
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        assert!(self.polled >= self.ready_after, "called before it was ready");
        ready(Ok(Response::new(Full::new(Bytes::from(TOKENS)))))
    }
}

#[tokio::test]
async fn the_client_is_called_once_it_is_ready_and_a_client_that_fails_first_is_sent_nothing() {
    let strict = Strict { ready_after: 3, polled: 0, fails: false };
    assert_eq!(refreshed_by(AuthClient::new(strict.clone())).await, "tokens");
    assert_eq!(refreshed_by(AuthClient::new(Strict { fails: true, ..strict })).await, "unavailable");
}

#[derive(Clone)]
struct NeverReady;

impl Service<Request<Full<Bytes>>> for NeverReady {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Pending
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        unreachable!("never ready")
    }
}

#[tokio::test(start_paused = true)]
async fn the_whole_call_is_bounded_in_time() {
    let start = Instant::now();
    assert_eq!(refreshed_by(AuthClient::new(NeverReady)).await, "unavailable");
    assert_eq!(start.elapsed().as_secs(), 10);

    let start = Instant::now();
    let silent = service_fn(|_: Request<Full<Bytes>>| pending::<Result<Response<Full<Bytes>>, Infallible>>());
    assert_eq!(refreshed_by(AuthClient::new(silent).timeout(Duration::from_secs(3))).await, "in doubt");
    assert_eq!(start.elapsed().as_secs(), 3);

    let start = Instant::now();
    assert_eq!(refreshed_by(AuthClient::new(silent).timeout(Duration::MAX)).await, "in doubt");
    assert_eq!(start.elapsed().as_secs(), 3600, "the longest time-out");
}

/// Sends part of a body, then an error, or nothing more.
fn breaking_off(status: u16, sent: &'static str, error: Option<&'static str>) -> AuthClient {
    AuthClient::new(service_fn(move |_: Request<Full<Bytes>>| {
        let frames = async_stream(sent, error);
        let mut response = Response::new(StreamBody::new(frames));
        *response.status_mut() = status.try_into().unwrap();
        ready(Ok::<_, Infallible>(response))
    }))
}

fn async_stream(
    sent: &'static str,
    error: Option<&'static str>,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, BoxError>> + Send {
    use futures_util::stream::{self, StreamExt};
    let end = match error {
        Some(error) => stream::iter([Err(error.into())]).boxed(),
        None => stream::pending().boxed(),
    };
    stream::iter([Ok(Frame::data(Bytes::from(sent)))]).chain(end)
}

#[tokio::test]
async fn the_error_of_a_connection_that_breaks_off_is_the_cause_of_the_failure() {
    for status in [200, 400, 500] {
        let client = breaking_off(status, r#"{"access_"#, Some("reset"));
        let error = OAuthRefresh::new(client, URL, ClientAuth::public("app")).unwrap().refresh(&old_tokens()).await;
        let error = error.unwrap_err();
        assert_eq!(cause(&error).source().unwrap().to_string(), "reset", "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_or_stalls_is_in_doubt_unless_its_status_decides() {
    for error in [Some("reset"), None] {
        for (status, expected) in [
            (200, "in doubt"),
            (400, "in doubt"),
            (401, "in doubt"),
            (403, "in doubt"),
            (429, "unavailable"),
            (302, "misconfigured"),
            (500, "in doubt"),
        ] {
            assert_eq!(refreshed_by(breaking_off(status, r#"{"access_"#, error)).await, expected, "{status}");
        }
    }
}

#[tokio::test]
async fn an_endless_answer_is_read_up_to_the_limit_only() {
    let read = Arc::new(AtomicUsize::new(0));
    let counted = read.clone();
    let client = AuthClient::new(service_fn(move |_: Request<Full<Bytes>>| {
        let counted = counted.clone();
        let frames = futures_util::stream::repeat_with(move || {
            counted.fetch_add(1024, Ordering::Relaxed);
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b' '; 1024])))
        });
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(frames))))
    }));
    assert_eq!(refreshed_by(client.clone()).await, "in doubt");
    assert_eq!(read.swap(0, Ordering::Relaxed), 65 * 1024);
    assert_eq!(refreshed_by(client.answer_limit(1024)).await, "in doubt");
    assert_eq!(read.load(Ordering::Relaxed), 2 * 1024);
}

#[tokio::test]
async fn a_body_announced_too_long_is_read_up_to_the_limit_in_a_success_and_not_at_all_otherwise() {
    for (status, expected, bytes) in [(200, "in doubt", 64 * 1024 + 1), (400, "misconfigured", 0)] {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = read.clone();
        let client = AuthClient::new(service_fn(move |_: Request<Full<Bytes>>| {
            let counted = counted.clone();
            let frames = futures_util::stream::repeat_with(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b" ")))
            });
            let response = Response::builder().status(status).header("content-length", "99999999999");
            ready(response.body(StreamBody::new(frames)))
        }));
        let result = JsonRefresh::new(client, URL).unwrap().refresh(&old_tokens()).await;
        assert_eq!(outcome(&result), expected);
        assert_eq!(read.load(Ordering::Relaxed), bytes);
        if status == 200 {
            let message = format!("{URL}: the answer is longer than the limit (status 200)");
            assert_eq!(cause(&result.unwrap_err()).to_string(), message);
        }
    }
}

#[tokio::test]
async fn dropping_the_call_before_it_is_polled_sends_nothing() {
    let scripted = Scripted::with([answer(200, TOKENS)]);
    drop(JsonRefresh::new(scripted.client(), URL).unwrap().refresh(&old_tokens()));
    assert!(scripted.requests().is_empty());
}
