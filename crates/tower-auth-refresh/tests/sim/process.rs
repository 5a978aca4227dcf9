//! A process of the fleet: real sessions, the real layer and `hyper`'s client, on the simulated network.

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
use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh::{
    AuthRefreshLayer, Origin, Origins, RefreshError, RefreshReport, RefreshRequest, ReplayBody, Session, SessionState,
    Tokens, Trigger,
};
use tower_auth_refresh_http::{AuthClient, ClientAuth, JsonRefresh, OAuthRefresh};

use crate::judge::{Outcome, Presented, Ticket, body_of};
use crate::net::{self, Connector, forever};
use crate::plan::{Trap, millis};
use crate::servers::Token;
use crate::store::{SharedStore, access_token, family, refresh_token};
use crate::world::{Phase, World};

/// How long an API may take for one attempt.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How long the session may take for what was bought to be stored, over the refresh itself.
const STORING: Duration = Duration::from_secs(5);

type ApiClient = BoxCloneSyncService<Request<Full<Bytes>>, Response<Incoming>, BoxError>;

/// One life of a process.
struct Process {
    world: Arc<World>,
    name: String,
    life: usize,
    refresh: RefreshCall,
    client: ApiClient,
    /// By user.
    sessions: RefCell<Vec<Option<Session>>>,
}

/// The refresh call of this world.
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

/// Calls the authorization server, and tells the judge.
#[derive(Clone)]
struct Refresher {
    world: Arc<World>,
    process: String,
    life: usize,
    user: usize,
    call: RefreshCall,
}

/// One attempt of a request, bounded in time and counted.
#[derive(Clone)]
struct Attempts {
    world: Arc<World>,
    inner: Timeout<Client<Connector, ReplayBody<Full<Bytes>>>>,
}

/// The number of a request, in its extensions.
#[derive(Clone, Copy)]
struct Id(usize);

/// A refresh call that is dropped is left in doubt.
struct Pending {
    world: Arc<World>,
    ticket: Ticket,
}

pub async fn run(world: Arc<World>, name: String) -> turmoil::Result {
    let life = world.born(&name);
    let plan = &world.plan;
    let never_left = |error: &(dyn std::error::Error + 'static)| {
        error.downcast_ref().is_some_and(legacy::Error::is_connect)
            || error.downcast_ref().is_some_and(hyper::Error::is_canceled)
    };
    let auth = AuthClient::new(net::client(plan.http2))
        .allow_plain_http()
        .timeout(plan.call_timeout)
        .not_sent_when(never_left);
    let refresh = if plan.oauth {
        RefreshCall::OAuth(OAuthRefresh::new(auth, "http://auth/auth/refresh", ClientAuth::public("app"))?)
    } else {
        RefreshCall::Json(JsonRefresh::new(auth, "http://auth/auth/refresh")?)
    };
    let inner = Timeout::new(net::client(plan.http2), ATTEMPT);
    let origins = (0..plan.apis).map(|n| Origin::parse_allowing_http(&format!("http://api-{n}")).unwrap());
    let client = ServiceBuilder::new()
        .layer(AuthRefreshLayer::per_request(origins.collect::<Origins>()))
        .service(Attempts { world: Arc::clone(&world), inner });
    let sessions = RefCell::new(vec![None; plan.users]);
    let client = BoxCloneSyncService::new(client);
    let process = Rc::new(Process { world: Arc::clone(&world), name, life, refresh, client, sessions });
    for user in 0..plan.users {
        task::spawn_local(Rc::clone(&process).keep(user));
        task::spawn_local(Rc::clone(&process).work(user));
        task::spawn_local(Rc::clone(&process).work(user));
        task::spawn_local(Rc::clone(&process).finish(user));
    }
    forever().await
}

impl Process {
    /// Keeps a session for a user, who signs in again whenever it has ended.
    async fn keep(self: Rc<Self>, user: usize) {
        loop {
            let session = self.build(user).await;
            self.sessions.borrow_mut()[user] = Some(session.clone());
            let mut changes = session.subscribe();
            let mut held = None;
            loop {
                let state = *changes.borrow_and_update();
                let now = self.world.now();
                match (state, held) {
                    (SessionState::Ended, _) => self.world.state().judge.ended(now, self.life, user),
                    (SessionState::SignedOut, None) => {}
                    (SessionState::SignedOut, Some(held)) => {
                        let state = &mut *self.world.state();
                        let kept = state.slots[user].family() == Some(held);
                        state.judge.vanished(now, self.life, held, kept);
                    }
                    _ => {
                        held = Some(session.tokens()).filter(|it| it.refresh_token().is_some()).map(|it| family(&it));
                        let _ = changes.changed().await;
                        continue;
                    }
                }
                sleep(self.world.pause(200..2_000)).await;
                if session.state() != state {
                    continue;
                }
                if self.world.is_signed_in_elsewhere(user, held) {
                    break;
                }
                let tokens = self.world.sign_in(user, &self.name);
                let _ = session.sign_in(tokens).await;
            }
        }
    }

    async fn build(&self, user: usize) -> Session {
        let (world, plan) = (&self.world, &self.world.plan);
        let store = SharedStore { world: Arc::clone(world), process: self.name.clone(), user };
        let store: Arc<dyn TokenStore> = Arc::new(store);
        loop {
            let (process, call) = (self.name.clone(), self.refresh.clone());
            let refresh = Refresher { world: Arc::clone(world), process, life: self.life, user, call };
            let session = Session::builder(refresh)
                .shared_store(Arc::clone(&store))
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

    fn session(&self, user: usize) -> Option<Session> {
        self.sessions.borrow()[user].clone()
    }

    /// Sends requests for a user, as long as things go wrong.
    async fn work(self: Rc<Self>, user: usize) {
        loop {
            sleep(self.world.pause(20..900)).await;
            if self.world.phase() == Phase::Finale {
                return;
            }
            let Some(session) = self.session(user) else { continue };
            let (burst, signs_out, refreshes) = {
                let mut state = self.world.state();
                let signs_out = state.faulty(self.world.plan.sign_outs);
                (state.rng.usize(1..=3), signs_out, state.faulty(0.02))
            };
            if refreshes || signs_out {
                let session = session.clone();
                task::spawn_local(async move { session.refresh().await });
            }
            if signs_out {
                sleep(self.world.pause(0..200)).await;
                self.sign_out(user, session).await;
                continue;
            }
            let burst = (0..burst).map(|_| task::spawn_local(Rc::clone(&self).request(user, session.clone())));
            for request in burst.collect::<Vec<_>>() {
                let _ = request.await;
            }
        }
    }

    /// Signs a user out. From when the session says so no request goes out for him.
    async fn sign_out(&self, user: usize, session: Session) {
        let held = self.world.sign_out(user, self.life, &session);
        let mut states = session.subscribe();
        let signed_out = task::spawn_local(async move { session.sign_out().await });
        let is_over = |state: &SessionState| matches!(state, SessionState::SignedOut | SessionState::Ended);
        let _ = states.wait_for(is_over).await;
        self.world.state().judge.left(self.life, held);
        let _ = signed_out.await;
    }

    /// Once the world has healed, a request has to succeed.
    async fn finish(self: Rc<Self>, user: usize) {
        loop {
            sleep(Duration::from_millis(300)).await;
            if self.world.phase() == Phase::Finale
                && let Some(session) = self.session(user)
                && Rc::clone(&self).request(user, session).await == Some(StatusCode::OK)
            {
                self.world.state().done.insert((self.name.clone(), user));
                return;
            }
        }
    }

    /// One request, and what came of it.
    async fn request(self: Rc<Self>, user: usize, session: Session) -> Option<StatusCode> {
        let world = &self.world;
        let longest_wait = world.plan.refresh_timeout + STORING;
        let limit = 2 * longest_wait + 2 * ATTEMPT + Duration::from_secs(1);
        let mut client = self.client.clone();
        let (id, called, patience) = {
            let tokens = session.tokens();
            let family = tokens.refresh_token().map(|_| family(&tokens));
            let now = world.now();
            let (id, request, patience) = {
                let state = &mut *world.state();
                let method = if state.rng.bool() { Method::POST } else { Method::GET };
                let patience = state.faulty(0.1).then(|| millis(&mut state.rng, 5..3_000));
                let api = state.rng.usize(..world.plan.apis);
                let id = state.judge.asks(now, self.life, family, &method, limit);
                let body = Full::from(body_of(id, &method));
                let request = Request::builder().method(method).uri(format!("http://api-{api}/user-{user}"));
                (id, request.header("x-request", id).extension(Id(id)).extension(session).body(body).unwrap(), patience)
            };
            // Always ready; nothing is awaited between the look at the session and this.
            let _ = futures_util::FutureExt::now_or_never(client.ready());
            (id, client.call(request), patience)
        };
        let had_token = world.state().judge.family_of(id).is_some();
        let answer = timeout(patience.unwrap_or(limit + Duration::from_secs(60)), called).await;
        let now = world.now();
        let mut status = None;
        let body = {
            let state = &mut *world.state();
            match answer {
                Err(_) => {
                    state.judge.count("requests that were dropped");
                    state.judge.answered(now, id, format_args!("dropped"));
                    None
                }
                Ok(Err(error)) => {
                    state.judge.count("requests that failed");
                    state.judge.answered(now, id, format_args!("{error}"));
                    None
                }
                Ok(Ok(response)) => {
                    let report = response.extensions().get::<RefreshReport>();
                    if response.status() == StatusCode::UNAUTHORIZED && had_token && report.is_none() {
                        state.judge.violation(now, "a refusal comes with a report", format!("request {id}"));
                    }
                    let report = report.map(ToString::to_string).unwrap_or_default();
                    state.judge.count(if response.status().is_success() { "answered 2xx" } else { "answered 401" });
                    state.judge.answered(now, id, format_args!("{} {report}", response.status()));
                    status = Some(response.status());
                    Some(response.into_body())
                }
            }
        };
        if let Some(body) = body {
            // So that the connection can be used again.
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
        let Id(id) = *request.extensions().get().expect("every request has one, and so has its replay");
        let now = self.world.now();
        self.world.state().judge.attempts(now, id, Token::bearer(request.headers()));
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
            let world = this.world;
            if world.springs(Trap::BeforePresenting, &this.process) {
                return forever().await;
            }
            let ticket = {
                let at = world.now();
                let state = &mut *world.state();
                let token = refresh_token(request.tokens());
                let superseded = state.authority.is_superseded(token);
                let call = Presented {
                    life: this.life,
                    user: this.user,
                    token,
                    access: access_token(request.tokens()),
                    marked: request.is_in_doubt(),
                    manual: request.trigger() == Trigger::Manual,
                    due: (request.trigger() == Trigger::Early).then(|| {
                        let window = world.plan.early.expect("nobody else refreshes early");
                        let expiry = state.authority.expiry(access_token(request.tokens()));
                        expiry.saturating_sub(window.min(world.plan.access_lifetime / 2))
                    }),
                    flight: task::try_id(),
                    at,
                    ended: None,
                };
                state.judge.presents(call, world.plan.rotation, superseded)
            };
            world.springs_later(Trap::WhilePresenting, &this.process);
            let pending = Pending { world, ticket };
            let answer = this.call.refresh(ticket, request.tokens()).await;
            let outcome = match &answer {
                Ok(tokens) => Outcome::Tokens(access_token(tokens)),
                Err(error) => Outcome::Failed(error.kind()),
            };
            let now = pending.world.now();
            pending.world.state().judge.presented(now, ticket, outcome);
            if answer.is_ok() && pending.world.springs(Trap::AfterAnswer, &this.process) {
                return forever().await;
            }
            answer
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // The clock of a host that dies has stopped.
        let state = &mut *self.world.state();
        state.judge.presented(state.clock, self.ticket, Outcome::Abandoned);
    }
}
