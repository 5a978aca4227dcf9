//! [`ResponseFuture`]: the way of one request, from top to bottom.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response, StatusCode};
use http_body::{Body, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use crate::TARGET;
use crate::challenge::{ChallengeSummary, ResponseHead, StepUp, Verdict};
use crate::credentials::{Credentials, LastCredentials};
use crate::drain::Drain;
use crate::options::{Options, SessionSource, SkipAuth};
use crate::refresh::{Generation, NotRefreshed, Trigger};
use crate::replay::{Head, NotReplayable, Replay, ReplayBody, ReplayLimit};
use crate::report::RefreshReport;
use crate::require_token::TokenMissing;
use crate::session::{Session, Snapshot, is_near, wait_before_handing_out};
use crate::shared_setup::{Setup, SharedSetup};
use crate::store::Epoch;
use crate::target::Target;

pin_project! {
    /// The response future of [`AuthRefresh`](crate::AuthRefresh).
    pub struct ResponseFuture<Svc, S, B, ResB>
    where
        Svc: Service<Request<ReplayBody<B>>>,
    {
        setup: SharedSetup<Svc, S>,
        // The request's own session, where sessions come with requests.
        own: Option<Session>,
        #[pin]
        state: State<Svc, Svc::Future, B, ResB>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<Svc, F, B, ResB> {
        // Sent untouched: the request isn't for this middleware.
        Passing { #[pin] future: F },
        // Sent without a token, since there is none.
        Bare { #[pin] future: F, lack: Lack },
        // Not sent yet: the token in force is known to be refused, or there is none, and a refresh is under way.
        Waiting { newer: NewerTokens, request: Option<Box<HeldRequest<B>>> },
        // Not sent yet: waits for the inner service to be ready again.
        Readying { inner: Svc, request: Option<Box<HeldRequest<B>>> },
        // Sent with a token.
        Sent { #[pin] future: F, kept: Option<Kept<B>> },
        // Challenged: waits for newer tokens.
        Refreshing { newer: NewerTokens, challenged: Option<Box<Challenged<B, ResB>>> },
        // Newer tokens are in force: the challenge is read to its end, so that its connection can be reused.
        Draining { drain: Pin<Box<Drain<ResB>>>, replay: Option<Box<PendingReplay<B>>> },
        // Waits for the inner service to be ready for the replay.
        ReadyingReplay { inner: Svc, replay: Option<Box<PendingReplay<B>>> },
        // Sent again to this target with the token of this generation, or without a token if the session has changed.
        Replayed { #[pin] future: F, target: Target, generation: Option<Generation> },
    }
}

/// Waits until newer tokens are in force. Boxed, since few requests have to wait.
type NewerTokens = Pin<Box<dyn Future<Output = Result<(), NotRefreshed>> + Send>>;

/// A request that is held back until there is a token, and the epoch in which it was made.
struct HeldRequest<B> {
    request: Request<B>,
    epoch: Epoch,
    deadline: Instant,
    /// The request has waited until the deadline.
    has_waited: bool,
    /// The reason why there are no newer tokens, once the wait is over.
    why: Option<NotRefreshed>,
}

/// The reason why a request is sent without a token.
struct Lack {
    /// `None` if the session's state still says why when the response has arrived.
    why: Option<RefreshReport>,
    /// The epoch in which the request was made; `None` if the request has no session.
    epoch: Option<Epoch>,
}

/// The session whose token a request is to carry.
enum Route<'a> {
    Session(&'a Session),
    /// The request should carry a session and doesn't.
    NoSession,
    /// The request isn't for this middleware.
    Untouched,
}

/// The parts of a request that a replay needs, kept while its first attempt is under way.
struct Kept<B> {
    head: Head,
    body: Replay<B>,
    epoch: Epoch,
    generation: Generation,
    /// The request has waited until its deadline before it was sent, and doesn't wait again.
    has_waited: bool,
}

/// A challenge, and the request that it answers, whose attempt is paused.
struct Challenged<B, ResB> {
    response: Response<ResB>,
    kept: Kept<B>,
}

/// A request to be sent again, and the epoch in which it was made.
struct PendingReplay<B> {
    request: Request<ReplayBody<B>>,
    target: Target,
    epoch: Epoch,
    refused: Generation,
}

impl<Svc, S, B, ResB> ResponseFuture<Svc, S, B, ResB>
where
    Svc: Service<Request<ReplayBody<B>>, Response = Response<ResB>> + Clone,
    S: SessionSource,
    B: Body + 'static,
{
    /// Sends the request through `ready`, which is ready, or holds it back until there is a token worth sending.
    /// `last`: the credentials of the last request through the same service.
    pub(crate) fn begin(
        ready: &mut Svc,
        last: &mut LastCredentials,
        setup: SharedSetup<Svc, S>,
        mut request: Request<B>,
    ) -> Self {
        let mut own = None;
        let session = match find_session(&setup, &mut request, &mut own) {
            Route::Session(session) => session,
            Route::NoSession => return Self::without_session(ready, setup, request),
            Route::Untouched => return Self::pass(ready, setup, own, request),
        };
        let limit = replay_limit(&request, &setup.options);
        let size = request.body().size_hint();
        let exceeds_limit = size.lower() > limit.0 as u64;
        // If each request has a session of its own, the last credentials are those of another session.
        let last = setup.source.shared().map(|_| last);
        let cell = session.cell();
        let revision = cell.revision();
        let credentials =
            if let Some(kept) = last.as_ref().and_then(|last| last.at(revision)).filter(|_| !exceeds_limit) {
                kept
            } else {
                // `attach` finds the caller's own credentials too, but such a request must not wait for a token either.
                // Nor must the session's own refresh call, sent through its own layer by mistake.
                if request.headers().contains_key(&setup.options.header) || cell.is_refreshing_here() {
                    return Self::pass(ready, setup, own, request);
                }
                let snapshot = cell.snapshot();
                let epoch = snapshot.epoch;
                let wait = if snapshot.tokens.access_token().is_none() {
                    if let Some(lack) = Lack::of(session, &snapshot) {
                        let request = request.map(|body| ReplayBody::passing(body, &setup.options.one_piece));
                        let state = Self::send_bare(ready, &setup, Some(session), request, lack);
                        return Self { setup, own, state };
                    }
                    Some(Trigger::Acquire)
                } else {
                    let wait = cell.wait_before_send(&snapshot);
                    wait.or_else(|| if exceeds_limit { wait_before_handing_out(&snapshot) } else { None })
                };
                if let Some(trigger) = wait {
                    // Returns the capacity that is reserved for the request: the refresh call may need it.
                    *ready = setup.inner();
                    let newer = newer_tokens(session, epoch, snapshot.generation, trigger, None, None);
                    let held = HeldRequest { request, epoch, deadline: cell.deadline(), has_waited: false, why: None };
                    let state = State::Waiting { newer, request: Some(Box::new(held)) };
                    return Self { setup, own, state };
                }
                match last {
                    Some(last) => last.write(revision, &snapshot, &setup.options),
                    None => Credentials::in_force(&snapshot, &setup.options),
                }
            };
        Self::send(ready, setup, own, credentials, request, size, limit)
    }

    /// Sends a request untouched. Out of line, to keep [`send`](Self::send), the usual path, short.
    #[inline(never)]
    fn pass(ready: &mut Svc, setup: SharedSetup<Svc, S>, own: Option<Session>, request: Request<B>) -> Self {
        let mut request = request.map(|body| ReplayBody::passing(body, &setup.options.one_piece));
        if let Some(session) = own {
            request.extensions_mut().insert(session);
        }
        let state = State::Passing { future: ready.call(request) };
        Self { setup, own: None, state }
    }

    /// Sends a request that should carry a session and doesn't.
    #[inline(never)]
    fn without_session(ready: &mut Svc, setup: SharedSetup<Svc, S>, request: Request<B>) -> Self {
        if request.headers().contains_key(&setup.options.header) {
            return Self::pass(ready, setup, None, request);
        }
        let lack = Lack { why: Some(RefreshReport::NotRefreshed(NotRefreshed::NoSession)), epoch: None };
        let request = request.map(|body| ReplayBody::passing(body, &setup.options.one_piece));
        let state = Self::send_bare(ready, &setup, None, request, lack);
        Self { setup, own: None, state }
    }

    /// Sends a request without a token, or has it refused if the layer requires a token.
    fn send_bare(
        ready: &mut Svc,
        setup: &Setup<Svc, S>,
        session: Option<&Session>,
        mut request: Request<ReplayBody<B>>,
        mut lack: Lack,
    ) -> State<Svc, Svc::Future, B, ResB> {
        if setup.options.require_token {
            request.extensions_mut().insert(TokenMissing(lack.report(session)));
        }
        State::Bare { future: ready.call(request), lack }
    }

    /// Sends a request with its credentials and keeps what a replay needs.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a call of its own, to which the request is handed, costs some 3 ns")]
    fn send(
        ready: &mut Svc,
        setup: SharedSetup<Svc, S>,
        own: Option<Session>,
        credentials: Credentials<'_>,
        request: Request<B>,
        size: SizeHint,
        limit: ReplayLimit,
    ) -> Self {
        let options = &setup.options;
        let Credentials { epoch, generation, .. } = credentials;
        // First the head is kept, then the request moved, then the token attached: in this order no copy reads bytes
        // that have just been written in smaller pieces, for which store-to-load forwarding fails.
        let head = Head::keep(&request);
        let mut replay = None;
        let mut request = request.map(|body| {
            let (body, handle) = ReplayBody::recorded(body, size, limit.0, &options.one_piece);
            replay = Some(handle);
            body
        });
        if !credentials.attach(request.headers_mut(), options) {
            drop(replay);
            return Self::send_unattached(ready, setup, own, request, epoch);
        }
        let kept = replay.map(|body| Kept { head, body, epoch, generation, has_waited: false });
        let future = ready.call(request);
        Self { setup, own, state: State::Sent { future, kept } }
    }

    /// Sends a request to which the token could not be attached.
    #[inline(never)]
    fn send_unattached(
        ready: &mut Svc,
        setup: SharedSetup<Svc, S>,
        own: Option<Session>,
        mut request: Request<ReplayBody<B>>,
        epoch: Epoch,
    ) -> Self {
        let state = if request.headers().contains_key(&setup.options.header) {
            // The caller's own credentials.
            if let Some(session) = &own {
                request.extensions_mut().insert(session.clone());
            }
            State::Passing { future: ready.call(request) }
        } else {
            let why = Some(RefreshReport::NotReplayable(NotReplayable::Head));
            let session = own.as_ref().or_else(|| setup.source.shared());
            Self::send_bare(ready, &setup, session, request, Lack { why, epoch: Some(epoch) })
        };
        Self { setup, own, state }
    }
}

impl<Svc, S, B, ResB> Future for ResponseFuture<Svc, S, B, ResB>
where
    Svc: Service<Request<ReplayBody<B>>, Response = Response<ResB>> + Clone,
    S: SessionSource,
    B: Body + 'static,
    ResB: Body,
{
    type Output = Result<Response<ResB>, Svc::Error>;

    #[expect(clippy::too_many_lines, reason = "the way of a request is in one place")]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let options = &this.setup.options;
        let session = || {
            let session = this.own.as_ref().or_else(|| this.setup.source.shared());
            session.expect("only a request with a session is in a state that uses the session")
        };
        let verdict = |response: &Response<ResB>, generation: Option<Generation>| {
            let sent = || generation.map(|generation| session().cell().sent_token(generation));
            options.challenge.judge(ResponseHead::of(response, &options.scheme), sent)
        };
        loop {
            match this.state.as_mut().project() {
                StateProj::Passing { future } => return future.poll(cx),
                StateProj::Bare { future, lack } => {
                    let response = ready!(future.poll(cx))?;
                    let refused = matches!(verdict(&response, None), Verdict::Expired | Verdict::StepUp)
                        || response.status() == StatusCode::UNAUTHORIZED;
                    if !refused {
                        return Poll::Ready(Ok(response));
                    }
                    let session = this.own.as_ref().or_else(|| this.setup.source.shared());
                    return Poll::Ready(Ok(reported(response, lack.report(session))));
                }
                StateProj::Waiting { newer, request } => {
                    // The request is sent with the tokens in force, even if the refresh has failed.
                    let newer = ready!(newer.as_mut().poll(cx));
                    let mut request = request.take();
                    if let Some(held) = &mut request {
                        held.has_waited = is_near(held.deadline);
                        held.why = newer.err();
                    }
                    this.state.set(State::Readying { inner: this.setup.inner(), request });
                }
                StateProj::Readying { inner, request } => {
                    ready!(inner.poll_ready(cx))?;
                    let held = request.take().expect("taken once, when the state is left");
                    let snapshot = session().cell().snapshot();
                    let next = if snapshot.epoch == held.epoch && snapshot.tokens.access_token().is_some() {
                        let credentials = Credentials::in_force(&snapshot, options);
                        let (setup, own) = (this.setup.clone(), this.own.clone());
                        let (size, limit) = (held.request.body().size_hint(), replay_limit(&held.request, options));
                        let mut next = Self::send(inner, setup, own, credentials, held.request, size, limit).state;
                        if let State::Sent { kept: Some(kept), .. } = &mut next {
                            kept.has_waited = held.has_waited;
                        }
                        next
                    } else {
                        let lack = Lack { why: held.why.map(RefreshReport::NotRefreshed), epoch: Some(held.epoch) };
                        let request = held.request.map(|body| ReplayBody::passing(body, &options.one_piece));
                        Self::send_bare(inner, this.setup, Some(session()), request, lack)
                    };
                    this.state.set(next);
                }
                StateProj::Sent { future, kept } => {
                    let answer = future.poll(cx);
                    let Poll::Ready(Ok(response)) = &answer else {
                        if answer.is_ready() {
                            *kept = None;
                        }
                        return answer;
                    };
                    let verdict = verdict(response, kept.as_ref().map(|kept| kept.generation));
                    if verdict != Verdict::Expired {
                        if let Some(kept) = kept
                            && session().cell().is_watching()
                            && shows_acceptance(response.status())
                        {
                            session().cell().accepted(kept.head.target(), kept.generation);
                        }
                        // Frees the parts that were kept, and the body's record if the body is still being sent.
                        *kept = None;
                        let Some(report) = refusal(verdict, response, options) else { return answer };
                        return answer.map_ok(|response| reported(response, report));
                    }
                    let response = ready!(answer)?;
                    let mut kept = kept.take().expect("taken once, when the state is left");
                    let deadline = kept.has_waited.then(Instant::now);
                    let (trigger, target) = (Trigger::Challenge, Some(kept.head.target()));
                    let newer = newer_tokens(session(), kept.epoch, kept.generation, trigger, target, deadline);
                    match kept.body.pause() {
                        Ok(()) => {
                            let challenged = Some(Box::new(Challenged { response, kept }));
                            // Drops the attempt's future, and with it a permit that the future may hold.
                            this.state.set(State::Refreshing { newer, challenged });
                        }
                        Err(why) => {
                            // For later requests.
                            session().cell().spawn(newer);
                            return Poll::Ready(Ok(reported(response, RefreshReport::NotReplayable(why))));
                        }
                    }
                }
                StateProj::Refreshing { newer, challenged } => {
                    let newer = ready!(newer.as_mut().poll(cx));
                    let Challenged { response, kept } = *challenged.take().expect("taken once, when the state is left");
                    if let Err(why) = newer {
                        kept.body.resume();
                        return Poll::Ready(Ok(reported(response, RefreshReport::NotRefreshed(why))));
                    }
                    // Before the 401 is drained: if this fails, the 401 can still be returned.
                    match kept.into_pending_replay(options) {
                        Ok(replay) => {
                            let (body, replay) = (response.into_body(), Some(Box::new(replay)));
                            let next = if body.is_end_stream() {
                                State::ReadyingReplay { inner: this.setup.inner(), replay }
                            } else {
                                let drain = Box::pin(Drain::new(body, session().cell().runtime()));
                                State::Draining { drain, replay }
                            };
                            this.state.set(next);
                        }
                        Err(why) => {
                            return Poll::Ready(Ok(reported(response, RefreshReport::NotReplayable(why))));
                        }
                    }
                }
                StateProj::Draining { drain, replay } => {
                    ready!(drain.as_mut().poll(cx));
                    let replay = replay.take();
                    this.state.set(State::ReadyingReplay { inner: this.setup.inner(), replay });
                }
                StateProj::ReadyingReplay { inner, replay } => {
                    ready!(inner.poll_ready(cx))?;
                    let PendingReplay { mut request, target, epoch, refused } =
                        *replay.take().expect("taken once, when the state is left");
                    let snapshot = session().cell().snapshot();
                    // In another epoch the request is sent bare, so that the caller gets the server's own refusal.
                    let credentials = (snapshot.epoch == epoch).then(|| Credentials::in_force(&snapshot, options));
                    let attached = Credentials::fill(credentials, request.headers_mut(), options);
                    let generation = attached.then_some(snapshot.generation);
                    if !attached && options.require_token {
                        let report = RefreshReport::NotRefreshed(NotRefreshed::SessionChanged);
                        request.extensions_mut().insert(TokenMissing(report));
                    }
                    tracing::debug!(
                        target: TARGET, refused = refused.0, generation = generation.map(Generation::get), "replaying"
                    );
                    let future = inner.call(request);
                    this.state.set(State::Replayed { future, target, generation });
                }
                StateProj::Replayed { future, target, generation } => {
                    let response = ready!(future.poll(cx))?;
                    let Some(generation) = *generation else {
                        let report = RefreshReport::NotRefreshed(NotRefreshed::SessionChanged);
                        return Poll::Ready(Ok(reported(response, report)));
                    };
                    let report = match verdict(&response, Some(generation)) {
                        Verdict::Expired => {
                            session().cell().refused_again(*target, generation);
                            RefreshReport::ReplayRefused
                        }
                        verdict => {
                            if shows_acceptance(response.status()) {
                                session().cell().accepted(*target, generation);
                            }
                            refusal(verdict, &response, options).unwrap_or(RefreshReport::Replayed)
                        }
                    };
                    return Poll::Ready(Ok(reported(response, report)));
                }
            }
        }
    }
}

/// Finds the session whose token a request is to carry. A session in the request's extensions is moved to `own`.
fn find_session<'a, Svc, S: SessionSource, B>(
    setup: &'a Setup<Svc, S>,
    request: &mut Request<B>,
    own: &'a mut Option<Session>,
) -> Route<'a> {
    if !setup.options.origins.covers(request.uri()) || request.extensions().get::<SkipAuth>().is_some() {
        return Route::Untouched;
    }
    match setup.source.shared() {
        Some(session) => Route::Session(session),
        None => match request.extensions_mut().remove::<Session>() {
            Some(session) => Route::Session(own.insert(session)),
            None => Route::NoSession,
        },
    }
}

fn replay_limit<B>(request: &Request<B>, options: &Options) -> ReplayLimit {
    request.extensions().get::<ReplayLimit>().copied().unwrap_or(options.replay_limit)
}

fn newer_tokens(
    session: &Session,
    epoch: Epoch,
    generation: Generation,
    trigger: Trigger,
    target: Option<Target>,
    deadline: Option<Instant>,
) -> NewerTokens {
    Box::pin(Arc::clone(session.cell()).wait_for_newer_tokens(epoch, generation, trigger, target, deadline))
}

/// Returns `true` if a response with this status, which is no challenge, shows that the API accepted the token. A
/// server error doesn't, nor does a 401 for another reason.
fn shows_acceptance(status: StatusCode) -> bool {
    !status.is_server_error() && status != StatusCode::UNAUTHORIZED
}

/// Returns the report of a response that is no challenge; `None` if nothing was refused.
#[inline]
fn refusal<ResB>(verdict: Verdict, response: &Response<ResB>, options: &Options) -> Option<RefreshReport> {
    match verdict {
        Verdict::StepUp => Some(RefreshReport::StepUp(StepUp::read(response.headers(), &options.scheme))),
        Verdict::Other => {
            Some(RefreshReport::OtherChallenge(ChallengeSummary::read(response.headers(), &options.scheme)))
        }
        Verdict::Pass | Verdict::Expired => None,
    }
}

fn reported<ResB>(mut response: Response<ResB>, report: RefreshReport) -> Response<ResB> {
    tracing::debug!(target: TARGET, report = report.as_str(), status = response.status().as_u16(), "reported");
    response.extensions_mut().insert(report);
    response
}

impl Lack {
    /// Returns why a request of a session without an access token won't get one; `None` if it is to wait for one.
    fn of(session: &Session, snapshot: &Snapshot) -> Option<Self> {
        let epoch = Some(snapshot.epoch);
        if snapshot.is_over() {
            return Some(Self { why: None, epoch });
        }
        // Read now: a cool-down may be over when the response has arrived.
        let why = session.cell().refusal(snapshot.epoch)?;
        Some(Self { why: Some(RefreshReport::NotRefreshed(why)), epoch })
    }

    /// Returns the report of the request. A sign-in or sign-out since the request was made is reported as such.
    fn report(&mut self, session: Option<&Session>) -> RefreshReport {
        let now = match (session, self.epoch) {
            (Some(session), Some(epoch)) if self.why.is_none() || session.cell().snapshot().epoch != epoch => {
                session.cell().refusal(epoch).map(RefreshReport::NotRefreshed)
            }
            _ => None,
        };
        now.or_else(|| self.why.take()).unwrap_or(RefreshReport::NotRefreshed(NotRefreshed::SessionChanged))
    }
}

impl<B> Kept<B> {
    /// Takes the body from the attempt and unpacks the head, with room for the token.
    fn into_pending_replay(self, options: &Options) -> Result<PendingReplay<B>, NotReplayable> {
        let target = self.head.target();
        let mut head = self.head.rebuild()?;
        if !Credentials::reserve(&mut head.headers, options) {
            return Err(NotReplayable::Head);
        }
        let body = self.body.into_replay()?;
        let request = Request::from_parts(head, body);
        Ok(PendingReplay { request, target, epoch: self.epoch, refused: self.generation })
    }
}

impl<Svc, S, B, ResB> fmt::Debug for ResponseFuture<Svc, S, B, ResB>
where
    Svc: Service<Request<ReplayBody<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
