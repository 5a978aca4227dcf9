//! Each call, dropped at its first, second, … last poll. Nothing is left behind: no request under way, no session
//! half signed in, and the next call is answered.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tokio::task::yield_now;
use tower::Service;
use tower_auth_refresh::{MemoryStore, Session, SessionState, TokenStore, Tokens};
use tower_auth_refresh_http::{
    AuthClient, AuthorizationServer, ClientAuth, ClientCredentials, JsonLogin, JsonLogout, JsonRefresh, OAuthRefresh,
    OAuthRevoke,
};

use crate::support::{access, old_tokens};

const ISSUER: &str = "https://auth.example.com";
const URL: &str = "https://auth.example.com/auth/refresh";

/// A client that is pending at each first poll (readiness, answer, body), and counts the calls under way.
#[derive(Default)]
struct Slow {
    ready: bool,
    under_way: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
}

impl Clone for Slow {
    fn clone(&self) -> Self {
        Self { ready: false, under_way: Arc::clone(&self.under_way), calls: Arc::clone(&self.calls) }
    }
}

struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A body that yields one piece at every other poll.
struct SlowBody {
    text: Bytes,
    pending: bool,
    _under_way: UnderWay,
}

impl Body for SlowBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.pending = !self.pending;
        if self.pending {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let many = self.text.len().min(40);
        let text = self.text.split_to(many);
        Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(text))))
    }
}

impl Service<Request<Full<Bytes>>> for Slow {
    type Response = Response<SlowBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if std::mem::replace(&mut self.ready, true) {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called before it was ready");
        self.calls.fetch_add(1, Ordering::SeqCst);
        let under_way = UnderWay::begin(&self.under_way);
        Box::pin(async move {
            yield_now().await;
            let path = request.uri().path().to_owned();
            request.into_body().collect().await?;
            yield_now().await;
            let (status, answer) = match &*path {
                "/.well-known/oauth-authorization-server" => (404, json!({})),
                path if path.starts_with("/.well-known/") => (200, json!({"issuer": ISSUER, "token_endpoint": URL})),
                _ => (200, json!({"access_token": "a2", "refresh_token": "r2"})),
            };
            let text = answer.to_string().into();
            let response = Response::builder().status(status).header("set-cookie", "rt=r2");
            Ok(response.body(SlowBody { text, pending: false, _under_way: under_way }).unwrap())
        })
    }
}

/// Polls a future up to `polls` times and drops it. Returns its output, if there is one.
async fn polled<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut polled = 0;
    poll_fn(move |cx| {
        polled += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polled >= polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Drops a call at each poll. It does nothing before its first poll, leaves nothing under way, and succeeds if it isn't
/// dropped.
async fn dropped_at_each_poll<F, T, E>(what: &str, call: impl Fn(AuthClient) -> F)
where
    F: Future<Output = Result<T, E>>,
    E: Debug,
{
    let slow = Slow::default();
    let under_way = || slow.under_way.load(Ordering::SeqCst);
    for polls in 1.. {
        let calls = slow.calls.load(Ordering::SeqCst);
        drop(call(AuthClient::new(slow.clone())));
        assert_eq!(slow.calls.load(Ordering::SeqCst), calls, "{what}");
        let ended = polled(call(AuthClient::new(slow.clone())), polls).await;
        assert_eq!(under_way(), 0, "{what}, {polls} polls");
        if let Some(ended) = ended {
            ended.unwrap();
            // Ready, sent, answered, and some of the body.
            assert!(polls >= 4, "{what} ended after {polls} polls");
            return;
        }
    }
}

#[tokio::test]
async fn a_call_dropped_at_any_poll_leaves_nothing_behind() {
    let public = || ClientAuth::public("app");
    dropped_at_each_poll("JSON", |client| JsonRefresh::new(client, URL).unwrap().refresh(&old_tokens())).await;
    dropped_at_each_poll("OAuth", |client| OAuthRefresh::new(client, URL, public()).unwrap().refresh(&old_tokens()))
        .await;
    dropped_at_each_poll("cookie", |client| JsonRefresh::new(client, URL).unwrap().cookie("rt").refresh(&old_tokens()))
        .await;
    dropped_at_each_poll("client credentials", |client| {
        ClientCredentials::new(client, URL, ClientAuth::basic("app", "s")).unwrap().request_tokens()
    })
    .await;
    dropped_at_each_poll("login", |client| JsonLogin::new(client, URL).unwrap().request_tokens(&json!({}))).await;
    dropped_at_each_poll("logout", |client| JsonLogout::new(client, URL).unwrap().revoke(&old_tokens())).await;
    dropped_at_each_poll("revocation", |client| OAuthRevoke::new(client, URL, public()).unwrap().revoke(&old_tokens()))
        .await;
    dropped_at_each_poll("discovery", |client| async move { AuthorizationServer::discover(&client, ISSUER).await })
        .await;
}

#[tokio::test]
async fn a_login_dropped_at_any_poll_signs_in_completely_or_not_at_all() {
    let mut outcomes = Vec::new();
    for polls in 1.. {
        let client = AuthClient::new(Slow::default());
        let store = Arc::new(MemoryStore::new());
        let session = Session::builder(JsonRefresh::new(client.clone(), URL).unwrap()).store(store.clone());
        let session = session.build().await.unwrap();
        let login = JsonLogin::new(client, URL).unwrap();
        let ended = polled(login.sign_in(&session, &json!({})), polls).await;
        for _ in 0..100 {
            yield_now().await;
        }
        let stored = store.load().await.unwrap().map(|record| record.tokens().clone()).unwrap_or_default();
        assert_eq!(stored, session.tokens(), "{polls} polls");
        match session.state() {
            SessionState::SignedOut => assert_eq!(stored, Tokens::default()),
            state => assert_eq!((state, access(&stored)), (SessionState::Active, "a2")),
        }
        outcomes.push(session.state());
        if let Some(ended) = ended {
            ended.unwrap();
            break;
        }
    }
    assert!(outcomes.contains(&SessionState::SignedOut) && outcomes.contains(&SessionState::Active), "{outcomes:?}");
}
