//! Executes a script on the real middleware: two client stacks on one store, with a scripted API and authorization
//! server.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{Instant, sleep_until};
use tower::{ServiceExt, service_fn};
use tower_auth_refresh::refresh::RevokeRequest;
use tower_auth_refresh::store::{MemoryStore, TokenStore};
use tower_auth_refresh::{
    AccessToken, AuthRefreshLayer, NotRefreshed, Origin, RefreshError, RefreshErrorKind, RefreshReport, RefreshRequest,
    RefreshToken, ReplayBody, ReplayLimit, Rotation, Session, SessionState, Tokens,
};
use tower_auth_refresh_testkit::conformance::{self, FaultyStore, StoreFault};
use tower_layer::Layer;

use crate::script::{
    self, Answer, Call, FailureKind, Fault, Line, Observed, Pair, Reason, RequestKind, SessionIndex, issued_to,
    signed_in_with,
};

const ORIGIN: &str = "https://api.example.com";
const SLOW: &str = "x-slow";
const ID: &str = "x-id";
/// After this many yields without activity, only the clock can cause more.
const QUIET_YIELDS: u32 = 30;
const MAX_YIELDS: u32 = 20_000;

pub(crate) struct Driver {
    started_at: Instant,
    store: Arc<MemoryStore>,
    sessions: [(Session, FaultyStore); 2],
    callers: Vec<AbortHandle>,
    shared: Arc<Mutex<Shared>>,
}

/// The state of the API and the authorization server, and the observations made there.
#[derive(Default)]
struct Shared {
    /// Incremented by each access.
    activity: u64,
    refuses_all: bool,
    expired: BTreeSet<String>,
    slow: Vec<oneshot::Sender<()>>,
    next: [VecDeque<Answer>; 2],
    calls: [Vec<oneshot::Sender<Answer>>; 2],
    issued: [u32; 2],
    observed: Observed,
}

impl Driver {
    pub(crate) async fn new(rotates: bool, seed: u64) -> Self {
        fastrand::seed(seed);
        tower_auth_refresh::seed_random_numbers(seed);
        let shared = Arc::<Mutex<Shared>>::default();
        let store = Arc::new(MemoryStore::new());
        let session = async |session: SessionIndex| {
            let faulty = FaultyStore::new(Arc::clone(&store));
            let (auth, revoking) = (Arc::clone(&shared), Arc::clone(&shared));
            let refresh = service_fn(move |request| refresh(Arc::clone(&auth), session, request));
            let revoke = service_fn(move |request: RevokeRequest| {
                lock(&revoking).observed.revoked.push(pair(request.tokens()));
                std::future::ready(Ok::<_, Infallible>(()))
            });
            let session = Session::builder(refresh)
                .revoke(revoke)
                .store(faulty.clone())
                .tokens(tokens(Pair { access: Some(1), refresh: Some(1) }))
                .rotation(if rotates { Rotation::Strict } else { Rotation::Reusable });
            (session.build().await.unwrap(), faulty)
        };
        let sessions = [session(0).await, session(1).await];
        Self { started_at: Instant::now(), store, sessions, callers: Vec::new(), shared }
    }

    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.started_at.elapsed().as_millis()).unwrap()
    }

    pub(crate) async fn wait_until(&self, then: u64) {
        if then > self.now() {
            sleep_until(self.started_at + Duration::from_millis(then)).await;
        }
        self.settle().await;
    }

    pub(crate) async fn observed(&self) -> Observed {
        let stored = self.store.load().await.unwrap().map(|record| pair(record.tokens()));
        let describe = |(session, _): &(Session, _)| {
            format!("{}, {}: {:?}", state(session), session.generation(), pair(&session.tokens()))
        };
        let mut shared = self.shared();
        shared.observed.revoked.sort();
        let (presented, requests) = (shared.observed.presented.clone(), shared.observed.requests.clone());
        let sessions = self.sessions.iter().map(describe).collect();
        Observed { sessions, stored, presented, requests, revoked: shared.observed.revoked.clone() }
    }

    pub(crate) async fn line(&mut self, number: usize, line: &Line) {
        match *line {
            Line::Send { session, kind, times, slow } => (0..times).for_each(|_| self.send(session, kind, slow)),
            Line::ApiAnswers => self.shared().slow.drain(..).for_each(|it| _ = it.send(())),
            Line::CancelCaller => self.cancel_caller(),
            Line::Expire { session } => {
                let tokens = self.sessions[session].0.tokens();
                self.shared().expired.extend(tokens.access_token().map(|it| it.expose_secret().to_owned()));
            }
            Line::ApiRefusesAll(all) => self.shared().refuses_all = all,
            Line::NextAnswer { session, answer } => self.shared().next[session].push_back(answer),
            Line::AuthAnswers { session, answer } => self.answers(session, answer),
            Line::SignIn { session, held } => {
                let tokens = tokens(held.pair(signed_in_with(number)));
                let signed_in = self.sessions[session].0.sign_in(tokens).await;
                self.record_completed(format!("signed in, written: {}", signed_in.is_ok()));
            }
            Line::SignOut { session } => {
                let signed_out = self.sessions[session].0.sign_out().await;
                self.record_completed(format!("signed out, written: {}", signed_out.is_ok()));
            }
            Line::Refresh { session } => {
                let session = self.sessions[session].0.clone();
                self.spawn(async move {
                    match session.refresh().await {
                        Ok(_) => "refreshed".to_owned(),
                        Err(error) => format!("{:?}", reason(&error)),
                    }
                });
            }
            Line::Wait(time) => self.wait_until(self.now() + time).await,
            Line::Inject { session, call, fault } => self.sessions[session].1.inject(store_call(call), fault.into()),
            Line::ClearFaults { session } => self.sessions[session].1.clear_faults(),
        }
        self.settle().await;
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// Lets every task run until only the clock or the script can cause more activity.
    async fn settle(&self) {
        // Reads without counting as activity.
        let activity_now = || self.shared.lock().unwrap().activity;
        let (mut activity, mut quiet) = (activity_now(), 0);
        // Bounded: endless activity shows as a difference from the model.
        for _ in 0..MAX_YIELDS {
            if quiet >= QUIET_YIELDS {
                return;
            }
            yield_now().await;
            let now = activity_now();
            quiet = if now == activity { quiet + 1 } else { 0 };
            activity = now;
        }
    }

    fn send(&mut self, session: SessionIndex, kind: RequestKind, slow: bool) {
        let id = self.callers.len();
        let method = if kind == RequestKind::Get { Method::GET } else { Method::POST };
        let mut request = Request::builder().method(method).uri(ORIGIN).header(ID, id);
        if slow {
            request = request.header(SLOW, "yes");
        }
        if kind == RequestKind::Upload {
            request = request.extension(ReplayLimit(0));
        }
        let request = request.body(Full::from(body_of(kind))).unwrap();
        let shared = Arc::clone(&self.shared);
        let api = service_fn(move |request| api(Arc::clone(&shared), kind, request));
        let client = AuthRefreshLayer::new(self.sessions[session].0.clone(), Origin::parse(ORIGIN).unwrap()).layer(api);
        self.spawn(async move {
            let response = client.oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            match response.extensions().get() {
                None => format!("{status}"),
                Some(RefreshReport::NotRefreshed(error)) => format!("{status} {:?}", reason(error)),
                Some(RefreshReport::NotReplayable(_)) => format!("{status} NotReplayable"),
                Some(report) => format!("{status} {report:?}"),
            }
        });
    }

    fn spawn(&mut self, caller: impl Future<Output = String> + Send + 'static) {
        let id = self.callers.len();
        self.shared().observed.requests.push(script::Request::default());
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move {
            let end = caller.await;
            lock(&shared).observed.requests[id].end = Some(end);
        });
        self.callers.push(task.abort_handle());
    }

    /// Records a session call that has completed already.
    fn record_completed(&mut self, end: String) {
        self.spawn(std::future::pending());
        self.shared().observed.requests.last_mut().unwrap().end = Some(end);
    }

    fn cancel_caller(&self) {
        let mut shared = self.shared();
        if let Some(id) = shared.observed.requests.iter().position(|it| it.end.is_none()) {
            self.callers[id].abort();
            shared.observed.requests[id].end = Some("cancelled".to_owned());
        }
    }

    fn answers(&self, session: SessionIndex, answer: Answer) {
        let mut shared = self.shared();
        shared.calls[session].retain(|call| !call.is_closed());
        if answer != Answer::Nothing && !shared.calls[session].is_empty() {
            let _ = shared.calls[session].remove(0).send(answer);
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    let mut shared = shared.lock().unwrap();
    shared.activity += 1;
    shared
}

/// The API. It checks the token when the request arrives.
async fn api(
    shared: Arc<Mutex<Shared>>,
    kind: RequestKind,
    request: Request<ReplayBody<Full<Bytes>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let id: usize = request.headers()[ID].to_str().unwrap().parse().unwrap();
    let slow = {
        let mut shared = lock(&shared);
        let token = request.headers().get(AUTHORIZATION).map(|it| it.to_str().unwrap().trim_start_matches("Bearer "));
        let good = token.is_some_and(|token| !shared.refuses_all && !shared.expired.contains(token));
        let status = if good { 200 } else { 401 };
        let attempt = format!("{}: {status}", token.unwrap_or("no token"));
        let first = shared.observed.requests[id].attempts.is_empty();
        shared.observed.requests[id].attempts.push(attempt);
        let (answers, slow) = oneshot::channel();
        let waits = first && request.headers().contains_key(SLOW);
        if waits {
            shared.slow.push(answers);
        }
        (waits.then_some(slow), status)
    };
    let body = request.into_body().collect().await.unwrap().to_bytes();
    if body != body_of(kind) {
        lock(&shared).observed.requests[id].attempts.push("garbled".to_owned());
    }
    if let Some(slow) = slow.0 {
        let _ = slow.await;
    }
    // Requests that are sent at one moment are all in flight before the first is answered.
    yield_times(4).await;
    let response = Response::builder().status(StatusCode::from_u16(slow.1).unwrap());
    Ok(response.header(WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"").body(Full::default()).unwrap())
}

/// The authorization server. It answers later than the API.
async fn refresh(
    shared: Arc<Mutex<Shared>>,
    session: SessionIndex,
    request: RefreshRequest,
) -> Result<Tokens, RefreshError> {
    let old = pair(request.tokens());
    let call = {
        let mut shared = lock(&shared);
        let doubt = if request.is_in_doubt() { " in doubt" } else { "" };
        shared.observed.presented[session].push(format!("{}: {old:?}{doubt}", request.generation()));
        match shared.next[session].pop_front().unwrap_or(Answer::Tokens) {
            Answer::Nothing => {
                let (answers, answer) = oneshot::channel();
                shared.calls[session].push(answers);
                Err(answer)
            }
            answer => Ok(answer),
        }
    };
    let answer = match call {
        Ok(answer) => answer,
        Err(answer) => answer.await.unwrap(),
    };
    yield_times(20).await;
    let new = || {
        let mut shared = lock(&shared);
        shared.issued[session] += 1;
        Some(issued_to(session, shared.issued[session]))
    };
    match answer {
        Answer::Tokens => {
            let new = new();
            Ok(tokens(Pair { access: new, refresh: new }))
        }
        Answer::WithoutRefreshToken => Ok(tokens(Pair { access: new(), refresh: None })),
        Answer::SameAccessToken => {
            let new = new();
            Ok(tokens(Pair { access: old.access.or(new), refresh: new }))
        }
        Answer::Rejected => Err(RefreshError::rejected("invalid_grant")),
        Answer::Misconfigured => Err(RefreshError::misconfigured("invalid_client")),
        Answer::Unavailable => Err(RefreshError::unavailable("503")),
        Answer::UnavailableFor(seconds) => {
            Err(RefreshError::unavailable("503").with_retry_after(Duration::from_secs(seconds)))
        }
        Answer::InDoubt => Err(RefreshError::in_doubt("the connection was reset")),
        Answer::Nothing => std::future::pending().await,
    }
}

async fn yield_times(count: u32) {
    for _ in 0..count {
        yield_now().await;
    }
}

fn body_of(kind: RequestKind) -> &'static str {
    if kind == RequestKind::Get { "" } else { "an order" }
}

fn tokens(pair: Pair) -> Tokens {
    let access = pair.access.map(|n| AccessToken::new(format!("a{n}")).unwrap());
    let refresh = pair.refresh.map(|n| RefreshToken::new(format!("r{n}")).unwrap());
    match (access, refresh) {
        (Some(access), Some(refresh)) => Tokens::new(access, refresh),
        (Some(access), None) => Tokens::from_access_token(access),
        (None, Some(refresh)) => Tokens::from_refresh_token(refresh),
        (None, None) => Tokens::default(),
    }
}

fn pair(tokens: &Tokens) -> Pair {
    Pair {
        access: tokens.access_token().map(|it| it.expose_secret()[1..].parse().unwrap()),
        refresh: tokens.refresh_token().map(|it| it.expose_secret()[1..].parse().unwrap()),
    }
}

fn state(session: &Session) -> String {
    match session.state() {
        SessionState::Failing(failure) => format!("Failing({:?}, {})", kind(failure.error()), failure.count()),
        SessionState::Ended(_) => "Ended".to_owned(),
        state => format!("{state:?}"),
    }
}

fn reason(error: &NotRefreshed) -> Reason {
    match error {
        NotRefreshed::Failed(error) => Reason::Failed(kind(error)),
        NotRefreshed::CoolingDown(error) => Reason::CoolingDown(kind(error)),
        NotRefreshed::Ended(_) => Reason::Ended,
        NotRefreshed::SignedOut => Reason::SignedOut,
        NotRefreshed::SessionChanged => Reason::SessionChanged,
        NotRefreshed::NoRefreshToken => Reason::NoRefreshToken,
        NotRefreshed::SameToken => Reason::SameToken,
        NotRefreshed::Looping => Reason::Looping,
        NotRefreshed::RequestRefused => Reason::RequestRefused,
        other => panic!("{other:?}"),
    }
}

fn kind(error: &RefreshError) -> FailureKind {
    match error.kind() {
        RefreshErrorKind::Rejected => FailureKind::Rejected,
        RefreshErrorKind::Misconfigured => FailureKind::Misconfigured,
        RefreshErrorKind::Unavailable => FailureKind::Unavailable,
        RefreshErrorKind::InDoubt => FailureKind::InDoubt,
        other => panic!("{other:?}"),
    }
}

fn store_call(call: Call) -> conformance::Call {
    match call {
        Call::Load => conformance::Call::Load,
        Call::Replace => conformance::Call::Replace,
        Call::Claim => conformance::Call::Claim,
        Call::Renew => conformance::Call::Renew,
        Call::Release => conformance::Call::Release,
        Call::Commit => conformance::Call::Commit,
        Call::Clear => conformance::Call::Clear,
    }
}

impl From<Fault> for StoreFault {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Fail => Self::fail(),
            Fault::FailLate => Self::fail().after_effect(),
            Fault::Hang => Self::hang(),
        }
    }
}
