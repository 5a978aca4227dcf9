//! A client stack over an API and an authorization server that the test answers call by call.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tower::{BoxError, Service, ServiceExt};
use tower_auth_refresh::refresh::{RevokeRequest, RevokeService};
use tower_auth_refresh::session::RefreshFailure;
use tower_auth_refresh::store::{Claim, ClaimOutcome, CommitOutcome, Entry, Epoch, MemoryStore, Record};
use tower_auth_refresh::{
    AccessToken, AuthRefresh, AuthRefreshLayer, NotRefreshed, Origin, RefreshError, RefreshReport, RefreshRequest,
    RefreshService, RefreshToken, ReplayBody, Session, SessionBuilder, SessionState, Tokens,
};
use tower_auth_refresh_testkit::conformance::FaultyStore;
use tower_layer::Layer;

pub const ORIGIN: &str = "https://api.example.com";

pub fn access(token: &str) -> AccessToken {
    AccessToken::new(token).unwrap()
}

pub fn refresh(token: &str) -> RefreshToken {
    RefreshToken::new(token).unwrap()
}

/// Access token `a{n}` and refresh token `r{n}`.
pub fn pair(n: u32) -> Tokens {
    Tokens::new(access(&format!("a{n}")), refresh(&format!("r{n}")))
}

pub fn origin() -> Origin {
    Origin::parse(ORIGIN).unwrap()
}

/// A service whose calls wait for the test to answer them.
pub struct Script<Req, Res, E> {
    calls: mpsc::UnboundedSender<Call<Req, Res, E>>,
}

pub struct Call<Req, Res, E> {
    pub request: Req,
    pub answer: oneshot::Sender<Result<Res, E>>,
}

/// The test's end of a [`Script`].
pub struct Calls<Req, Res, E>(mpsc::UnboundedReceiver<Call<Req, Res, E>>);

pub fn script<Req, Res, E>() -> (Script<Req, Res, E>, Calls<Req, Res, E>) {
    let (calls, receiver) = mpsc::unbounded_channel();
    (Script { calls }, Calls(receiver))
}

impl<Req, Res, E> Clone for Script<Req, Res, E> {
    fn clone(&self) -> Self {
        Self { calls: self.calls.clone() }
    }
}

impl<Req, Res, E> Service<Req> for Script<Req, Res, E>
where
    Req: Send + 'static,
    Res: Send + 'static,
    E: Send + 'static,
{
    type Response = Res;
    type Error = E;
    type Future = Pin<Box<dyn Future<Output = Result<Res, E>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let (answer, answered) = oneshot::channel();
        // Fails if the test has ended and dropped the receiver.
        let _ = self.calls.send(Call { request, answer });
        Box::pin(async move {
            match answered.await {
                Ok(answer) => answer,
                // Dropped unanswered: the call never completes.
                Err(_) => std::future::pending().await,
            }
        })
    }
}

impl<Req, Res, E> Calls<Req, Res, E> {
    /// Waits for the next call.
    pub async fn next(&mut self) -> Call<Req, Res, E> {
        let call = tokio::time::timeout(Duration::from_secs(3600), self.0.recv()).await;
        call.expect("a call within the hour").expect("the script is alive")
    }

    /// Waits for the next `n` calls.
    pub async fn take(&mut self, n: usize) -> Vec<Call<Req, Res, E>> {
        let mut calls = Vec::with_capacity(n);
        for _ in 0..n {
            calls.push(self.next().await);
        }
        calls
    }

    /// Returns true if no call is waiting after all tasks have settled.
    pub async fn is_idle(&mut self) -> bool {
        settle().await;
        self.0.is_empty()
    }
}

impl<Req, Res, E> Calls<Req, Res, E>
where
    Req: Send + 'static,
    Res: Send + 'static,
    E: Send + 'static,
{
    /// Answers every call from now on, at once.
    pub fn serve(mut self, mut answer: impl FnMut(&Req) -> Result<Res, E> + Send + 'static) {
        tokio::spawn(async move {
            while let Some(call) = self.0.recv().await {
                let answered = answer(&call.request);
                call.answer(answered);
            }
        });
    }

    /// Answers every call from now on after this time.
    pub fn serve_after(mut self, latency: Duration, mut answer: impl FnMut(&Req) -> Result<Res, E> + Send + 'static) {
        tokio::spawn(async move {
            while let Some(call) = self.0.recv().await {
                let answered = answer(&call.request);
                tokio::spawn(async move {
                    tokio::time::sleep(latency).await;
                    call.answer(answered);
                });
            }
        });
    }
}

impl<Req, Res, E> Call<Req, Res, E> {
    pub fn answer(self, answer: Result<Res, E>) {
        let _ = self.answer.send(answer);
    }
}

pub type ApiCall = Call<Request<ReplayBody<Full<Bytes>>>, Response<Full<Bytes>>, Infallible>;
pub type ApiCalls = Calls<Request<ReplayBody<Full<Bytes>>>, Response<Full<Bytes>>, Infallible>;
pub type Api = Script<Request<ReplayBody<Full<Bytes>>>, Response<Full<Bytes>>, Infallible>;
pub type AuthCalls = Calls<RefreshRequest, Tokens, RefreshError>;
pub type Client = AuthRefresh<Api, Session>;

impl ApiCall {
    /// The token that the request carries.
    pub fn token(&self) -> Option<&str> {
        let value = self.request.headers().get(AUTHORIZATION)?;
        Some(value.to_str().unwrap().strip_prefix("Bearer ").unwrap())
    }

    /// Reads the body, as a server would, and answers with this status.
    pub async fn reply(self, status: u16) {
        self.respond(response(status)).await;
    }

    /// Reads the body, as a server would, and answers with this response.
    pub async fn respond(self, response: Response<Full<Bytes>>) {
        let Call { request, answer } = self;
        let _ = request.into_body().collect().await;
        let _ = answer.send(Ok(response));
    }
}

/// The API's response with this status. A 401 carries an `invalid_token` challenge.
pub fn response(status: u16) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("status {status}")));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    if status == 401 {
        response.headers_mut().insert(WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"".parse().unwrap());
    }
    response
}

impl ApiCalls {
    /// Waits for the next `n` calls, asserts that they carry this token, and answers them with this status.
    pub async fn reply(&mut self, n: usize, token: &str, status: u16) {
        for call in self.take(n).await {
            assert_eq!(call.token(), Some(token));
            call.reply(status).await;
        }
    }
}

impl Call<RefreshRequest, Tokens, RefreshError> {
    /// The refresh token that is presented.
    pub fn presented(&self) -> &str {
        self.request.refresh_token().unwrap().expose_secret()
    }
}

/// Lets every task run until it waits for the test or for a timer. For paused runtimes.
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// A client over a session that was signed in with [`pair`]`(1)`.
pub struct Fixture {
    pub session: Session,
    pub client: Client,
    pub api: ApiCalls,
    pub auth: AuthCalls,
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with(|builder| builder.tokens(pair(1))).await
    }

    pub async fn with(configure: impl FnOnce(SessionBuilder) -> SessionBuilder) -> Self {
        let (service, auth) = script();
        Self::over(service, auth, configure).await
    }

    /// A session of client credentials.
    pub async fn client_credentials() -> Self {
        let (service, auth) = script();
        Self::of(Session::client_credentials(service), auth).await
    }

    /// Uses this refresh service before, or instead of, the scripted one.
    pub async fn over(
        service: impl RefreshService,
        auth: AuthCalls,
        configure: impl FnOnce(SessionBuilder) -> SessionBuilder,
    ) -> Self {
        Self::of(configure(Session::builder(service)), auth).await
    }

    async fn of(builder: SessionBuilder, auth: AuthCalls) -> Self {
        let session = builder.build().await.unwrap();
        let (service, api) = script();
        let client = AuthRefreshLayer::new(session.clone(), origin()).layer(service);
        Self { session, client, api, auth }
    }

    /// Sends `GET /` in a new task.
    pub fn get(&self) -> JoinHandle<Response<Full<Bytes>>> {
        self.send(Request::get(format!("{ORIGIN}/")).body(Full::default()).unwrap())
    }

    /// Sends `GET /` and answers it with 401, so that the request needs newer tokens.
    pub async fn get_refused(&mut self) -> JoinHandle<Response<Full<Bytes>>> {
        let response = self.get();
        self.api.next().await.reply(401).await;
        response
    }

    /// Sends a request that is refused, refreshes with `r{n}`, and accepts the replay.
    pub async fn refreshes_from(&mut self, n: u32, in_doubt: bool) {
        let response = self.get_refused().await;
        let refresh = self.auth.next().await;
        assert_eq!(refresh.presented(), format!("r{n}"));
        assert_eq!(refresh.request.is_in_doubt(), in_doubt);
        refresh.answer(Ok(pair(n + 1)));
        self.accepts(response, n + 1).await;
    }

    /// Asserts that the next call carries `a{n}` and accepts it, which completes `response`.
    pub async fn accepts(&mut self, response: JoinHandle<Response<Full<Bytes>>>, n: u32) {
        let call = self.api.next().await;
        assert_eq!(call.token(), Some(&*format!("a{n}")));
        call.reply(200).await;
        assert_eq!(response.await.unwrap().status(), 200);
    }

    /// Asserts that a new request carries `a{n}`.
    pub async fn sends(&mut self, n: u32) {
        let response = self.get();
        self.accepts(response, n).await;
    }

    pub fn send(&self, request: Request<Full<Bytes>>) -> JoinHandle<Response<Full<Bytes>>> {
        let client = self.client.clone();
        // A missing response fails the test instead of hanging it.
        let day = Duration::from_secs(24 * 60 * 60);
        tokio::spawn(async move { tokio::time::timeout(day, client.oneshot(request)).await.unwrap().unwrap() })
    }
}

pub fn report<B>(response: &Response<B>) -> &RefreshReport {
    response.extensions().get().expect("a report")
}

/// The reason for which a challenged request was not replayed.
pub fn not_refreshed<B>(response: &Response<B>) -> &NotRefreshed {
    match report(response) {
        RefreshReport::NotRefreshed(why) => why,
        other => panic!("{other:?}"),
    }
}

/// The error of the failed refresh that this response waited for.
pub fn failure<B>(response: &Response<B>) -> Arc<RefreshError> {
    match report(response) {
        RefreshReport::NotRefreshed(NotRefreshed::Failed(error)) => Arc::clone(error),
        other => panic!("{other:?}"),
    }
}

/// The failure that the session reports as its state.
pub fn failing(session: &Session) -> RefreshFailure {
    match session.state() {
        SessionState::Failing(failure) => failure,
        other => panic!("{other:?}"),
    }
}

/// The body of a response.
pub async fn text(response: Response<Full<Bytes>>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.into()).unwrap()
}

/// A revoke service that accepts everything, and the tokens that it was sent.
pub fn revocations() -> (impl RevokeService, Arc<Mutex<Vec<Tokens>>>) {
    let revoked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&revoked);
    let service = tower::service_fn(move |request: RevokeRequest| {
        log.lock().unwrap().push(request.tokens().clone());
        std::future::ready(Ok::<_, BoxError>(()))
    });
    (service, revoked)
}

/// A durable store that yields to the scheduler at each call. Clones are handles on the same store and its faults.
pub fn faulty_store() -> FaultyStore {
    FaultyStore::new(MemoryStore::new()).yielding().durable()
}

/// Accesses a [`FaultyStore`] as a peer that the faults do not affect.
pub trait AsPeer {
    /// The stored record.
    async fn record(&self) -> Option<Record>;

    /// The stored tokens.
    async fn tokens(&self) -> Option<Tokens>;

    /// Claims the stored record.
    async fn claim_as_peer(&self, lease: Duration) -> Claim;

    /// Commits these tokens as the successors of the stored ones.
    async fn commit_as_peer(&self, claim: &Claim, tokens: &Tokens);

    /// Claims the stored record and commits these tokens.
    async fn refresh_as_peer(&self, tokens: &Tokens);

    /// Writes these tokens as the successors of the stored ones, although another process may hold a claim.
    async fn overwrite_as_peer(&self, tokens: &Tokens);

    /// Writes the tokens of a new sign-in.
    async fn sign_in_as_peer(&self, tokens: &Tokens);

    /// Deletes the stored record.
    async fn sign_out_as_peer(&self);

    /// The entry of these tokens as the successors of the stored ones.
    async fn next_entry(&self, tokens: &Tokens) -> Entry;
}

impl AsPeer for FaultyStore {
    async fn record(&self) -> Option<Record> {
        self.inner().load().await.unwrap()
    }

    async fn tokens(&self) -> Option<Tokens> {
        self.record().await.map(|record| record.tokens().clone())
    }

    async fn claim_as_peer(&self, lease: Duration) -> Claim {
        let record = self.record().await.unwrap();
        match self.inner().claim(record.version(), lease).await.unwrap() {
            ClaimOutcome::Claimed(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    async fn refresh_as_peer(&self, tokens: &Tokens) {
        let claim = self.claim_as_peer(Duration::from_secs(35)).await;
        self.commit_as_peer(&claim, tokens).await;
    }

    async fn commit_as_peer(&self, claim: &Claim, tokens: &Tokens) {
        let entry = self.next_entry(tokens).await;
        assert!(matches!(self.inner().commit(claim, &entry).await.unwrap(), CommitOutcome::Stored(_)));
    }

    async fn overwrite_as_peer(&self, tokens: &Tokens) {
        let entry = self.next_entry(tokens).await;
        self.inner().replace(&entry).await.unwrap();
    }

    async fn sign_in_as_peer(&self, tokens: &Tokens) {
        self.inner().replace(&Entry::new(Epoch::random(), 1, tokens.clone())).await.unwrap();
    }

    async fn sign_out_as_peer(&self) {
        let record = self.record().await.unwrap();
        self.inner().clear(record.version()).await.unwrap();
    }

    async fn next_entry(&self, tokens: &Tokens) -> Entry {
        let record = self.record().await.unwrap();
        Entry::new(record.epoch(), record.generation() + 1, tokens.clone())
    }
}
