//! A process of the fleet: real sessions, the real layer and `hyper`'s client on the simulated network.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, Client};
use tokio::task;
use tokio::time::{sleep, timeout};
use tower::timeout::Timeout;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_auth_refresh::refresh::Trigger;
use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh::{
    AuthRefreshLayer, Origin, Origins, RefreshError, RefreshReport, RefreshRequest, ReplayBody, Session, SessionState,
    Tokens,
};
use tower_auth_refresh_http::{AuthClient, ClientAuth, JsonRefresh, OAuthRefresh};

use crate::net::{self, Connector, forever};
use crate::oracle::{CallRecord, Outcome, Ticket, body_of};
use crate::plan::{CrashPoint, millis};
use crate::servers::Token;
use crate::simulation::{Environment, Phase};
use crate::store::{SharedStore, access_token, family, refresh_token};

/// The time-out of one attempt at an API.
const ATTEMPT: Duration = Duration::from_secs(2);

/// The time that a session may take to store new tokens, after the refresh itself.
const STORING: Duration = Duration::from_secs(5);

type ApiClient = BoxCloneSyncService<Request<Full<Bytes>>, Response<Incoming>, BoxError>;

/// One incarnation of a process: from its start to its crash.
struct Process {
    env: Arc<Environment>,
    name: String,
    incarnation: usize,
    refresh: RefreshCall,
    client: ApiClient,
    /// Indexed by user.
    sessions: RefCell<Vec<Option<Session>>>,
}

/// The refresh call of this simulation.
#[derive(Clone)]
enum RefreshCall {
    Json(JsonRefresh),
    OAuth(OAuthRefresh),
}

impl RefreshCall {
    async fn refresh(self, ticket: Ticket, tokens: &Tokens) -> Result<Tokens, RefreshError> {
        match self {
            Self::Json(call) => call.member("ticket", ticket.to_string()).refresh(tokens).await,
            Self::OAuth(call) => call.param("ticket", ticket.to_string()).refresh(tokens).await,
        }
    }
}

/// Calls the authorization server and reports to the oracle.
#[derive(Clone)]
struct Refresher {
    env: Arc<Environment>,
    process: String,
    incarnation: usize,
    user: usize,
    call: RefreshCall,
}

/// Sends one attempt of a request, with a time-out, and reports it to the oracle.
#[derive(Clone)]
struct Attempts {
    env: Arc<Environment>,
    inner: Timeout<Client<Connector, ReplayBody<Full<Bytes>>>>,
}

/// A request's number, stored in its extensions.
#[derive(Clone, Copy)]
struct Id(usize);

/// Reports a refresh call that is dropped as abandoned.
struct Pending {
    env: Arc<Environment>,
    ticket: Ticket,
}

pub async fn run(env: Arc<Environment>, name: String) -> turmoil::Result {
    let incarnation = env.process_started(&name);
    let plan = &env.plan;
    let not_sent = |error: &(dyn std::error::Error + 'static)| {
        error.downcast_ref().is_some_and(legacy::Error::is_connect)
            || error.downcast_ref().is_some_and(hyper::Error::is_canceled)
    };
    let auth =
        AuthClient::new(net::client(plan.http2)).allow_plain_http().timeout(plan.call_timeout).not_sent_when(not_sent);
    let refresh = if plan.oauth {
        RefreshCall::OAuth(OAuthRefresh::new(auth, "http://auth/auth/refresh", ClientAuth::public("app"))?)
    } else {
        RefreshCall::Json(JsonRefresh::new(auth, "http://auth/auth/refresh")?)
    };
    let inner = Timeout::new(net::client(plan.http2), ATTEMPT);
    let origins = (0..plan.apis).map(|n| Origin::parse_allowing_http(&format!("http://api-{n}")).unwrap());
    let client = ServiceBuilder::new()
        .layer(AuthRefreshLayer::per_request(origins.collect::<Origins>()))
        .service(Attempts { env: Arc::clone(&env), inner });
    let sessions = RefCell::new(vec![None; plan.users]);
    let client = BoxCloneSyncService::new(client);
    let process = Rc::new(Process { env: Arc::clone(&env), name, incarnation, refresh, client, sessions });
    for user in 0..plan.users {
        task::spawn_local(Rc::clone(&process).maintain_session(user));
        task::spawn_local(Rc::clone(&process).recheck(user));
        task::spawn_local(Rc::clone(&process).send_requests(user));
        task::spawn_local(Rc::clone(&process).send_requests(user));
        task::spawn_local(Rc::clone(&process).send_until_success(user));
    }
    forever().await
}

impl Process {
    /// Maintains a user's session. After its end, the user signs in again.
    async fn maintain_session(self: Rc<Self>, user: usize) {
        loop {
            let session = self.build(user).await;
            self.sessions.borrow_mut()[user] = Some(session.clone());
            let mut changes = session.subscribe();
            let mut held = None;
            loop {
                let state = changes.borrow_and_update().clone();
                let now = self.env.now();
                match (&state, held) {
                    (SessionState::Ended(_), _) => self.env.state().oracle.session_ended(now, self.incarnation, user),
                    (SessionState::SignedOut, None) => {}
                    (SessionState::SignedOut, Some(held)) => {
                        let state = &mut *self.env.state();
                        let kept = state.slots[user].family() == Some(held);
                        state.oracle.record_deleted(now, self.incarnation, held, kept);
                    }
                    _ => {
                        held = Some(session.tokens()).filter(|it| it.refresh_token().is_some()).map(|it| family(&it));
                        let _ = changes.changed().await;
                        continue;
                    }
                }
                sleep(self.env.pause(200..2_000)).await;
                if session.state() != state {
                    continue;
                }
                if self.env.is_signed_in_elsewhere(user, held) {
                    break;
                }
                let tokens = self.env.sign_in(user, &self.name);
                let _ = session.sign_in(tokens).await;
            }
        }
    }

    async fn build(&self, user: usize) -> Session {
        let (env, plan) = (&self.env, &self.env.plan);
        let store = SharedStore { env: Arc::clone(env), process: self.name.clone(), user };
        let store: Arc<dyn TokenStore> = Arc::new(store);
        loop {
            let (process, call) = (self.name.clone(), self.refresh.clone());
            let refresh = Refresher { env: Arc::clone(env), process, incarnation: self.incarnation, user, call };
            let session = Session::builder(refresh)
                .store(Arc::clone(&store))
                .rotation(plan.rotation)
                .refresh_timeout(plan.refresh_timeout);
            let session = match plan.early {
                Some(window) => session.refresh_early(window),
                None => session,
            };
            if let Ok(session) = session.build().await {
                return session;
            }
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// Looks at the store for the writes of other processes, if the plan has it so.
    async fn recheck(self: Rc<Self>, user: usize) {
        let Some(pause) = self.env.plan.recheck else { return };
        loop {
            sleep(pause).await;
            let Some(session) = self.session(user) else { continue };
            let deletions = self.env.state().oracle.deletions();
            let held = Some(session.tokens()).filter(|it| it.refresh_token().is_some());
            let Some(held) = held.filter(|held| self.env.state().oracle.is_saved(held)) else { continue };
            if session.recheck().await.is_ok() {
                let now = self.env.now();
                self.env.state().oracle.looked(now, self.incarnation, deletions, family(&held), &session.state());
            }
        }
    }

    fn session(&self, user: usize) -> Option<Session> {
        self.sessions.borrow()[user].clone()
    }

    /// Sends requests for a user during the chaos phase.
    async fn send_requests(self: Rc<Self>, user: usize) {
        loop {
            sleep(self.env.pause(20..900)).await;
            if self.env.phase() == Phase::Recovery {
                return;
            }
            let Some(session) = self.session(user) else { continue };
            let (burst, signs_out, refreshes) = {
                let mut state = self.env.state();
                let signs_out = state.faulty(self.env.plan.sign_outs);
                (state.rng.usize(1..=3), signs_out, state.faulty(0.02))
            };
            if refreshes || signs_out {
                let session = session.clone();
                task::spawn_local(async move { session.refresh().await });
            }
            if signs_out {
                sleep(self.env.pause(0..200)).await;
                self.sign_out(user, session).await;
                continue;
            }
            let burst = (0..burst).map(|_| task::spawn_local(Rc::clone(&self).request(user, session.clone())));
            for request in burst.collect::<Vec<_>>() {
                let _ = request.await;
            }
        }
    }

    /// Signs a user out. Once the session is signed out, no request may be sent for that user.
    async fn sign_out(&self, user: usize, session: Session) {
        let held = self.env.sign_out(user, self.incarnation, &session);
        let mut states = session.subscribe();
        let signed_out = task::spawn_local(async move { session.sign_out().await });
        let is_over = |state: &SessionState| !state.is_signed_in();
        let _ = states.wait_for(is_over).await;
        self.env.state().oracle.sign_out_observed(self.incarnation, held);
        let _ = signed_out.await;
    }

    /// Sends requests in the recovery phase until one succeeds.
    async fn send_until_success(self: Rc<Self>, user: usize) {
        loop {
            sleep(Duration::from_millis(300)).await;
            if self.env.phase() == Phase::Recovery
                && let Some(session) = self.session(user)
                && Rc::clone(&self).request(user, session).await == Some(StatusCode::OK)
            {
                self.env.state().done.insert((self.name.clone(), user));
                return;
            }
        }
    }

    /// Sends one request and reports its outcome.
    async fn request(self: Rc<Self>, user: usize, session: Session) -> Option<StatusCode> {
        let env = &self.env;
        let longest_wait = env.plan.refresh_timeout + STORING;
        let limit = 2 * longest_wait + 2 * ATTEMPT + Duration::from_secs(1);
        let mut client = self.client.clone();
        let (id, called, cancel_after) = {
            let tokens = session.tokens();
            let family = tokens.refresh_token().map(|_| family(&tokens));
            let now = env.now();
            let (id, request, cancel_after) = {
                let state = &mut *env.state();
                let method = if state.rng.bool() { Method::POST } else { Method::GET };
                let cancel_after = state.faulty(0.1).then(|| millis(&mut state.rng, 5..3_000));
                let api = state.rng.usize(..env.plan.apis);
                let id = state.oracle.request_started(now, self.incarnation, family, &method, limit);
                let body = Full::from(body_of(id, &method));
                let request = Request::builder().method(method).uri(format!("http://api-{api}/user-{user}"));
                (
                    id,
                    request.header("x-request", id).extension(Id(id)).extension(session).body(body).unwrap(),
                    cancel_after,
                )
            };
            // Always ready. No await between reading the session and this call.
            let _ = futures_util::FutureExt::now_or_never(client.ready());
            (id, client.call(request), cancel_after)
        };
        let had_token = env.state().oracle.family_of(id).is_some();
        let answer = timeout(cancel_after.unwrap_or(limit + Duration::from_secs(60)), called).await;
        let now = env.now();
        let mut status = None;
        let body = {
            let state = &mut *env.state();
            match answer {
                Err(_) => {
                    state.oracle.count("requests that were dropped");
                    state.oracle.request_ended(now, id, format_args!("dropped"));
                    None
                }
                Ok(Err(error)) => {
                    state.oracle.count("requests that failed");
                    state.oracle.request_ended(now, id, format_args!("{error}"));
                    None
                }
                Ok(Ok(response)) => {
                    let report = response.extensions().get::<RefreshReport>();
                    if response.status() == StatusCode::UNAUTHORIZED && had_token && report.is_none() {
                        state.oracle.violation(now, "a refusal comes with a report", format!("request {id}"));
                    }
                    let report = report.map(ToString::to_string).unwrap_or_default();
                    state.oracle.count(if response.status().is_success() { "answered 2xx" } else { "answered 401" });
                    state.oracle.request_ended(now, id, format_args!("{} {report}", response.status()));
                    status = Some(response.status());
                    Some(response.into_body())
                }
            }
        };
        if let Some(body) = body {
            // Reads the body, so that the connection can be reused.
            let _ = timeout(ATTEMPT, body.collect()).await;
        }
        status
    }
}

impl Service<Request<ReplayBody<Full<Bytes>>>> for Attempts {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future =
        <Timeout<Client<Connector, ReplayBody<Full<Bytes>>>> as Service<Request<ReplayBody<Full<Bytes>>>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReplayBody<Full<Bytes>>>) -> Self::Future {
        let Id(id) = *request.extensions().get().expect("every request and every replay has an id");
        let now = self.env.now();
        self.env.state().oracle.attempt_sent(now, id, Token::bearer(request.headers()));
        self.inner.call(request)
    }
}

impl Service<RefreshRequest> for Refresher {
    type Response = Tokens;
    type Error = RefreshError;
    type Future = Pin<Box<dyn Future<Output = Result<Tokens, RefreshError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RefreshError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RefreshRequest) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let env = this.env;
            if env.crashes_at(CrashPoint::BeforePresenting, &this.process) {
                return forever().await;
            }
            let ticket = {
                let at = env.now();
                let state = &mut *env.state();
                let token = refresh_token(request.tokens());
                let superseded = state.authority.is_superseded(token);
                let call = CallRecord {
                    incarnation: this.incarnation,
                    user: this.user,
                    token,
                    access: access_token(request.tokens()),
                    marked: request.is_in_doubt(),
                    is_forgotten: false,
                    claimed_at: Duration::ZERO,
                    manual: request.trigger() == Trigger::Manual,
                    due: (request.trigger() == Trigger::Early).then(|| {
                        let window = env.plan.early.expect("only a plan with a window refreshes early");
                        let expiry = state.authority.expiry(access_token(request.tokens()));
                        expiry.saturating_sub(window.min(env.plan.access_lifetime / 2))
                    }),
                    flight: task::try_id(),
                    at,
                    ended: None,
                };
                state.oracle.call_started(call, env.plan.rotation, superseded)
            };
            env.crashes_soon_after(CrashPoint::WhilePresenting, &this.process);
            let pending = Pending { env, ticket };
            let answer = this.call.refresh(ticket, request.tokens()).await;
            let outcome = match &answer {
                Ok(tokens) => Outcome::Tokens(access_token(tokens)),
                Err(error) => Outcome::Failed(error.kind()),
            };
            let now = pending.env.now();
            pending.env.state().oracle.call_ended(now, ticket, outcome);
            if let Ok(tokens) = &answer {
                pending.env.state().oracle.tokens_received(this.incarnation, tokens);
            }
            if answer.is_ok() && pending.env.crashes_at(CrashPoint::AfterAnswer, &this.process) {
                return forever().await;
            }
            answer
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // The clock of a crashed host has stopped.
        let state = &mut *self.env.state();
        state.oracle.call_ended(state.clock, self.ticket, Outcome::Abandoned);
    }
}
