//! The real thing: two client stacks on one store, an API and an authorization server that do as the script says.

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
use tower_auth_refresh::store::{MemoryStore, TokenStore};
use tower_auth_refresh::{
    AccessToken, AuthRefreshLayer, NotRefreshed, Origin, RefreshError, RefreshErrorKind, RefreshReport, RefreshRequest,
    RefreshToken, ReplayBody, ReplayLimit, RevokeRequest, Rotation, Session, Tokens,
};
use tower_auth_refresh_testkit::conformance::{self, FaultyStore, StoreFault};
use tower_layer::Layer;

use crate::script::{self, Answer, Call, Fault, Kind, Line, Pair, Seen, What, Who, Why, issued_to, signed_in_with};

const ORIGIN: &str = "https://api.example.com";
const SLOW: &str = "x-slow";
const ID: &str = "x-id";
/// After so many turns of the scheduler in which nothing is seen, nothing moves but with the clock.
const QUIET: u32 = 30;
const RESTLESS: u32 = 20_000;

pub(crate) struct World {
    begun: Instant,
    store: Arc<MemoryStore>,
    sessions: [(Session, FaultyStore); 2],
    callers: Vec<AbortHandle>,
    shared: Arc<Mutex<Shared>>,
}

/// What the API and the authorization server know, and what is seen of them.
#[derive(Default)]
struct Shared {
    /// Grows with all that happens.
    moves: u64,
    refuses_all: bool,
    expired: BTreeSet<String>,
    slow: Vec<oneshot::Sender<()>>,
    next: [VecDeque<Answer>; 2],
    called: [Vec<oneshot::Sender<Answer>>; 2],
    bought: [u32; 2],
    seen: Seen,
}

impl World {
    pub(crate) async fn new(rotates: bool, seed: u64) -> Self {
        fastrand::seed(seed);
        let shared = Arc::<Mutex<Shared>>::default();
        let store = Arc::new(MemoryStore::new());
        let session = async |who: Who| {
            let faulty = FaultyStore::shared(Arc::clone(&store) as Arc<dyn TokenStore>);
            let (auth, revoking) = (Arc::clone(&shared), Arc::clone(&shared));
            let refresh = service_fn(move |request| refresh(Arc::clone(&auth), who, request));
            let revoke = service_fn(move |request: RevokeRequest| {
                lock(&revoking).seen.revoked.push(pair(request.tokens()));
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
        Self { begun: Instant::now(), store, sessions, callers: Vec::new(), shared }
    }

    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    pub(crate) async fn wait_until(&self, then: u64) {
        if then > self.now() {
            sleep_until(self.begun + Duration::from_millis(then)).await;
        }
        self.settle().await;
    }

    pub(crate) async fn seen(&self) -> Seen {
        let stored = self.store.load().await.unwrap().map(|record| pair(&record.tokens));
        let describe = |(session, _): &(Session, _)| {
            format!("{:?}, {}: {:?}", session.state(), session.generation(), pair(&session.tokens()))
        };
        let mut shared = self.shared();
        shared.seen.revoked.sort();
        let (presented, requests) = (shared.seen.presented.clone(), shared.seen.requests.clone());
        let sessions = self.sessions.iter().map(describe).collect();
        Seen { sessions, stored, presented, requests, revoked: shared.seen.revoked.clone() }
    }

    pub(crate) async fn line(&mut self, number: usize, line: &Line) {
        match *line {
            Line::Send { who, what, times, slow } => (0..times).for_each(|_| self.send(who, what, slow)),
            Line::ApiAnswers => self.shared().slow.drain(..).for_each(|it| _ = it.send(())),
            Line::CallerGoes => self.caller_goes(),
            Line::Expire { who } => {
                let tokens = self.sessions[who].0.tokens();
                self.shared().expired.extend(tokens.access_token().map(|it| it.expose_secret().to_owned()));
            }
            Line::ApiRefusesAll(all) => self.shared().refuses_all = all,
            Line::Next { who, answer } => self.shared().next[who].push_back(answer),
            Line::Answers { who, answer } => self.answers(who, answer),
            Line::SignIn { who, with } => {
                let tokens = tokens(with.pair(signed_in_with(number)));
                let signed_in = self.sessions[who].0.sign_in(tokens).await;
                self.ended(format!("signed in, written: {}", signed_in.is_ok()));
            }
            Line::SignOut { who } => {
                let signed_out = self.sessions[who].0.sign_out().await;
                self.ended(format!("signed out, written: {}", signed_out.is_ok()));
            }
            Line::RefreshByHand { who } => {
                let session = self.sessions[who].0.clone();
                self.spawn(async move {
                    match session.refresh().await {
                        Ok(()) => "refreshed".to_owned(),
                        Err(not) => format!("{:?}", why(&not)),
                    }
                });
            }
            Line::Wait(time) => self.wait_until(self.now() + time).await,
            Line::Break { who, call, fault } => self.sessions[who].1.inject(of(call), fault.into()),
            Line::Heal { who } => self.sessions[who].1.clear_faults(),
        }
        self.settle().await;
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// Lets every task run until only time, or the script, can bring more.
    async fn settle(&self) {
        // Looked at without a trace.
        let look = || self.shared.lock().unwrap().moves;
        let (mut moves, mut quiet) = (look(), 0);
        // Where it never comes to rest, that is seen.
        for _ in 0..RESTLESS {
            if quiet >= QUIET {
                return;
            }
            yield_now().await;
            let now = look();
            quiet = if now == moves { quiet + 1 } else { 0 };
            moves = now;
        }
    }

    fn send(&mut self, who: Who, what: What, slow: bool) {
        let id = self.callers.len();
        let method = if what == What::Get { Method::GET } else { Method::POST };
        let mut request = Request::builder().method(method).uri(ORIGIN).header(ID, id);
        if slow {
            request = request.header(SLOW, "yes");
        }
        if what == What::Upload {
            request = request.extension(ReplayLimit(0));
        }
        let request = request.body(Full::from(body_of(what))).unwrap();
        let shared = Arc::clone(&self.shared);
        let api = service_fn(move |request| api(Arc::clone(&shared), what, request));
        let client = AuthRefreshLayer::new(self.sessions[who].0.clone(), Origin::parse(ORIGIN).unwrap()).layer(api);
        self.spawn(async move {
            let response = client.oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            match response.extensions().get() {
                None => format!("{status}"),
                Some(RefreshReport::NotRefreshed(not)) => format!("{status} {:?}", why(not)),
                Some(RefreshReport::NotReplayable(_)) => format!("{status} NotReplayable"),
                Some(report) => format!("{status} {report:?}"),
            }
        });
    }

    fn spawn(&mut self, caller: impl Future<Output = String> + Send + 'static) {
        let id = self.callers.len();
        self.shared().seen.requests.push(script::Request::default());
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move {
            let end = caller.await;
            lock(&shared).seen.requests[id].end = Some(end);
        });
        self.callers.push(task.abort_handle());
    }

    /// A call to a session that was waited for.
    fn ended(&mut self, end: String) {
        self.spawn(std::future::pending());
        self.shared().seen.requests.last_mut().unwrap().end = Some(end);
    }

    fn caller_goes(&self) {
        let mut shared = self.shared();
        if let Some(id) = shared.seen.requests.iter().position(|it| it.end.is_none()) {
            self.callers[id].abort();
            shared.seen.requests[id].end = Some("gone".to_owned());
        }
    }

    fn answers(&self, who: Who, answer: Answer) {
        let mut shared = self.shared();
        shared.called[who].retain(|call| !call.is_closed());
        if answer != Answer::Nothing && !shared.called[who].is_empty() {
            let _ = shared.called[who].remove(0).send(answer);
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    let mut shared = shared.lock().unwrap();
    shared.moves += 1;
    shared
}

/// The API: it looks at the token when the request arrives.
async fn api(
    shared: Arc<Mutex<Shared>>,
    what: What,
    request: Request<ReplayBody<Full<Bytes>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let id: usize = request.headers()[ID].to_str().unwrap().parse().unwrap();
    let slow = {
        let mut shared = lock(&shared);
        let token = request.headers().get(AUTHORIZATION).map(|it| it.to_str().unwrap().trim_start_matches("Bearer "));
        let good = token.is_some_and(|token| !shared.refuses_all && !shared.expired.contains(token));
        let status = if good { 200 } else { 401 };
        let attempt = format!("{}: {status}", token.unwrap_or("bare"));
        let first = shared.seen.requests[id].attempts.is_empty();
        shared.seen.requests[id].attempts.push(attempt);
        let (answers, slow) = oneshot::channel();
        let waits = first && request.headers().contains_key(SLOW);
        if waits {
            shared.slow.push(answers);
        }
        (waits.then_some(slow), status)
    };
    let body = request.into_body().collect().await.unwrap().to_bytes();
    if body != body_of(what) {
        lock(&shared).seen.requests[id].attempts.push("garbled".to_owned());
    }
    if let Some(slow) = slow.0 {
        let _ = slow.await;
    }
    // All that go out at one moment are under way before the first is answered.
    turns(4).await;
    let response = Response::builder().status(StatusCode::from_u16(slow.1).unwrap());
    Ok(response.header(WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"").body(Full::default()).unwrap())
}

/// The authorization server: slower than the API.
async fn refresh(shared: Arc<Mutex<Shared>>, who: Who, request: RefreshRequest) -> Result<Tokens, RefreshError> {
    let old = pair(request.tokens());
    let call = {
        let mut shared = lock(&shared);
        let doubt = if request.is_in_doubt() { " in doubt" } else { "" };
        shared.seen.presented[who].push(format!("{}: {old:?}{doubt}", request.generation()));
        match shared.next[who].pop_front().unwrap_or(Answer::Tokens) {
            Answer::Nothing => {
                let (answers, answer) = oneshot::channel();
                shared.called[who].push(answers);
                Err(answer)
            }
            answer => Ok(answer),
        }
    };
    let answer = match call {
        Ok(answer) => answer,
        Err(answer) => answer.await.unwrap(),
    };
    turns(20).await;
    let new = || {
        let mut shared = lock(&shared);
        shared.bought[who] += 1;
        Some(issued_to(who, shared.bought[who]))
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

async fn turns(turns: u32) {
    for _ in 0..turns {
        yield_now().await;
    }
}

fn body_of(what: What) -> &'static str {
    if what == What::Get { "" } else { "an order" }
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

fn why(not: &NotRefreshed) -> Why {
    match not {
        NotRefreshed::Failed(error) => Why::Failed(kind(error)),
        NotRefreshed::CoolingDown(error) => Why::CoolingDown(kind(error)),
        NotRefreshed::Ended(_) => Why::Ended,
        NotRefreshed::SignedOut => Why::SignedOut,
        NotRefreshed::SessionChanged => Why::SessionChanged,
        NotRefreshed::NoRefreshToken => Why::NoRefreshToken,
        NotRefreshed::SameToken => Why::SameToken,
        NotRefreshed::Looping => Why::Looping,
        other => panic!("{other:?}"),
    }
}

fn kind(error: &RefreshError) -> Kind {
    match error.kind() {
        RefreshErrorKind::Rejected => Kind::Rejected,
        RefreshErrorKind::Misconfigured => Kind::Misconfigured,
        RefreshErrorKind::Unavailable => Kind::Unavailable,
        RefreshErrorKind::InDoubt => Kind::InDoubt,
        other => panic!("{other:?}"),
    }
}

fn of(call: Call) -> conformance::Call {
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
