//! [`ResponseFuture`]: the whole story of one request, from top to bottom.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response, StatusCode};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use crate::TARGET;
use crate::challenge::Verdict;
use crate::credentials::{Credentials, LastCredentials};
use crate::drain::Drain;
use crate::layer::{Options, SessionSource, SkipAuth};
use crate::refresh::{Generation, NotRefreshed, Trigger};
use crate::replay::{Head, NotReplayable, Replay, ReplayBody, ReplayLimit};
use crate::report::RefreshReport;
use crate::scope::Spelling;
use crate::service::{Setup, SharedSetup};
use crate::session::{Session, is_near};
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
        // Not this middleware's business.
        Passing { #[pin] future: F },
        // Sent without a token, since the session has none.
        Bare { #[pin] future: F, epoch: Epoch },
        // Not sent yet: the token in force is known to be refused, or there is none, and newer tokens are coming.
        Waiting { newer: NewerTokens, request: Option<Box<Unsent<B>>> },
        // Not sent yet: the inner service is to be made ready anew.
        Readying { inner: Svc, request: Option<Box<Unsent<B>>> },
        // Sent with a token.
        Sent { #[pin] future: F, kept: Option<Kept<B>> },
        // Challenged: newer tokens are coming.
        Refreshing { newer: NewerTokens, challenged: Option<Box<Challenged<B, ResB>>> },
        // Newer tokens are in force: the challenge is read to its end, for its connection's sake.
        Draining { drain: Pin<Box<Drain<ResB>>>, replay: Option<Box<Unreplayed<B>>> },
        // The inner service is to be made ready for the replay.
        ReadyingReplay { inner: Svc, replay: Option<Box<Unreplayed<B>>> },
        // Sent again, with the token of this generation, or without one since the session has changed.
        Replayed { #[pin] future: F, with: Option<Replayed> },
    }
}

/// Waits until newer tokens are in force. Boxed: only requests that are held up have one.
type NewerTokens = Pin<Box<dyn Future<Output = Result<(), NotRefreshed>> + Send>>;

/// A request that waits to be sent, and the epoch that it was made in.
struct Unsent<B> {
    request: Request<B>,
    spelling: Spelling,
    epoch: Epoch,
    deadline: Instant,
    /// Until the deadline.
    has_waited: bool,
}

/// What is kept of a request beside the attempt that was sent.
struct Kept<B> {
    head: Head,
    body: Replay<B>,
    epoch: Epoch,
    generation: Generation,
    /// Not 0 if its acceptance is to be recorded.
    watch: u32,
    /// As long as it may, before it was sent: it is not kept waiting again.
    has_waited: bool,
}

/// A request that was challenged, its attempt paused.
struct Challenged<B, ResB> {
    response: Response<ResB>,
    kept: Kept<B>,
}

/// A request to be sent again, and the epoch that it was made in.
struct Unreplayed<B> {
    request: Request<ReplayBody<B>>,
    target: Target,
    epoch: Epoch,
    refused: Generation,
}

/// The token that a replay carries.
struct Replayed {
    target: Target,
    generation: Generation,
    watch: u32,
}

impl<Svc, S, B, ResB> ResponseFuture<Svc, S, B, ResB>
where
    Svc: Service<Request<ReplayBody<B>>, Response = Response<ResB>> + Clone,
    S: SessionSource,
    B: Body + 'static,
{
    /// Sends the request through `ready`, which is so; or holds it back until there is a token worth sending.
    /// `last`: what the requests through the same service carried.
    pub(crate) fn begin(
        ready: &mut Svc,
        last: &mut LastCredentials,
        setup: SharedSetup<Svc, S>,
        mut request: Request<B>,
    ) -> Self {
        let mut own = None;
        let Some((session, spelling)) = find_session(&setup, &mut request, &mut own) else {
            return Self::pass(ready, setup, own, request.map(ReplayBody::passing));
        };
        // Where requests have a session each, the last one says nothing about the next.
        let last = setup.source.shared().map(|_| last);
        let cell = session.cell();
        let revision = cell.revision();
        let credentials = if let Some(kept) = last.as_ref().and_then(|last| last.at(revision)) {
            kept
        } else {
            // That a request has credentials of its own is seen as they are put on it. Only it should not wait for ours.
            if request.headers().contains_key(&setup.options.header) {
                return Self::pass(ready, setup, own, request.map(ReplayBody::passing));
            }
            let snapshot = cell.snapshot();
            let epoch = snapshot.epoch;
            if let Some(trigger) = cell.wait_before_send(&snapshot) {
                // What was reserved for it is given back: the refresh call may need the same.
                *ready = setup.inner();
                let newer = newer_tokens(session, epoch, snapshot.generation, trigger, None, None);
                let unsent = Unsent { request, spelling, epoch, deadline: cell.deadline(), has_waited: false };
                let state = State::Waiting { newer, request: Some(Box::new(unsent)) };
                return Self { setup, own, state };
            }
            match last {
                Some(last) => last.write(revision, &snapshot, &setup.options),
                None => Credentials::in_force(&snapshot, &setup.options),
            }
        };
        Self::send(ready, setup, own, credentials, request, spelling)
    }

    /// Sends a request as it came: it is not this middleware's business. Kept out of [`send`](Self::send), which is
    /// for the many.
    #[inline(never)]
    fn pass(
        ready: &mut Svc,
        setup: SharedSetup<Svc, S>,
        own: Option<Session>,
        mut request: Request<ReplayBody<B>>,
    ) -> Self {
        if let Some(session) = own {
            request.extensions_mut().insert(session);
        }
        let state = State::Passing { future: ready.call(request) };
        Self { setup, own: None, state }
    }

    /// Sends a request with its credentials, and keeps what a replay would need; without any it goes out bare.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a call of its own, to which the request is handed, costs some 3 ns")]
    fn send(
        ready: &mut Svc,
        setup: SharedSetup<Svc, S>,
        own: Option<Session>,
        credentials: Credentials<'_>,
        request: Request<B>,
        spelling: Spelling,
    ) -> Self {
        let options = &setup.options;
        let Credentials { epoch, generation, watch, .. } = credentials;
        if credentials.is_empty() {
            let state = State::Bare { future: ready.call(request.map(ReplayBody::passing)), epoch };
            return Self { setup, own, state };
        }
        // The head is kept, then the request moved, then the token put on it: in this order what has just been written
        // is not copied at once, which processors are slow at.
        let head = Head::keep(&request, spelling);
        let limit = request.extensions().get::<ReplayLimit>().copied().unwrap_or(options.replay_limit);
        let mut replay = None;
        let mut request = request.map(|body| {
            let (body, handle) = ReplayBody::recording(body, limit.0);
            replay = Some(handle);
            body
        });
        if !credentials.attach(request.headers_mut(), options) {
            drop(replay);
            return Self::pass(ready, setup, own, request);
        }
        let kept = replay.map(|body| Kept { head, body, epoch, generation, watch, has_waited: false });
        let future = ready.call(request);
        Self { setup, own, state: State::Sent { future, kept } }
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

    #[expect(clippy::too_many_lines, reason = "a request's way is told in one place")]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let options = &this.setup.options;
        let session = || {
            let session = this.own.as_ref().or_else(|| this.setup.source.shared());
            session.expect("only a request that has a session gets into a state that asks for it")
        };
        let verdict =
            |response: &Response<ResB>| options.challenge.read(response.status(), response.headers(), &options.scheme);
        loop {
            match this.state.as_mut().project() {
                StateProj::Passing { future } => return future.poll(cx),
                StateProj::Bare { future, epoch } => {
                    let response = ready!(future.poll(cx))?;
                    let refusal = (verdict(&response) == Verdict::Expired).then(|| session().cell().refusal(*epoch));
                    return Poll::Ready(Ok(match refusal.flatten() {
                        Some(why) => reported(response, RefreshReport::NotRefreshed(why)),
                        None => response,
                    }));
                }
                StateProj::Waiting { newer, request } => {
                    // Whatever comes of it, the request is sent, with what is in force then.
                    let _ = ready!(newer.as_mut().poll(cx));
                    let mut request = request.take();
                    if let Some(unsent) = &mut request {
                        unsent.has_waited = is_near(unsent.deadline);
                    }
                    this.state.set(State::Readying { inner: this.setup.inner(), request });
                }
                StateProj::Readying { inner, request } => {
                    ready!(inner.poll_ready(cx))?;
                    let unsent = request.take().expect("taken once, when the state is left");
                    let snapshot = session().cell().snapshot();
                    let next = if snapshot.epoch == unsent.epoch {
                        let credentials = Credentials::in_force(&snapshot, options);
                        let (setup, own) = (Arc::clone(this.setup), this.own.clone());
                        let mut next =
                            Self::send(inner, setup, own, credentials, unsent.request, unsent.spelling).state;
                        if let State::Sent { kept: Some(kept), .. } = &mut next {
                            kept.has_waited = unsent.has_waited;
                        }
                        next
                    } else {
                        let future = inner.call(unsent.request.map(ReplayBody::passing));
                        State::Bare { future, epoch: unsent.epoch }
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
                    let verdict = verdict(response);
                    if verdict == Verdict::Pass {
                        if let Some(kept) = kept
                            && (kept.watch != 0 || kept.body.is_lost())
                            && says_good(response.status())
                        {
                            kept.record_acceptance(session(), options);
                        }
                        // Frees what was kept, and the record of the body if it is still being sent.
                        *kept = None;
                        return answer;
                    }
                    let response = ready!(answer)?;
                    let mut kept = kept.take().expect("taken once, when the state is left");
                    if verdict == Verdict::StepUp {
                        return Poll::Ready(Ok(reported(response, RefreshReport::StepUp)));
                    }
                    let deadline = kept.has_waited.then(Instant::now);
                    let target = kept.head.target(&options.origins);
                    let trigger = Trigger::Challenge;
                    let newer = newer_tokens(session(), kept.epoch, kept.generation, trigger, Some(target), deadline);
                    match kept.body.pause() {
                        Ok(()) => {
                            let challenged = Some(Box::new(Challenged { response, kept }));
                            // The attempt's future is dropped here, and with it a permit that it may hold.
                            this.state.set(State::Refreshing { newer, challenged });
                        }
                        Err(why) => {
                            // For the sake of the requests to come.
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
                    // While the 401 can still be returned.
                    match kept.into_unreplayed(options) {
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
                    let Unreplayed { mut request, target, epoch, refused } =
                        *replay.take().expect("taken once, when the state is left");
                    let snapshot = session().cell().snapshot();
                    // In another epoch it goes bare, so that the server's own refusal results.
                    let credentials = (snapshot.epoch == epoch).then(|| Credentials::in_force(&snapshot, options));
                    let attached = Credentials::fill(credentials, request.headers_mut(), options);
                    let (generation, watch) = (snapshot.generation, snapshot.watch());
                    let with = attached.then_some(Replayed { target, generation, watch });
                    tracing::debug!(
                        target: TARGET, refused = refused.0, generation = with.as_ref().map(|it| it.generation.0),
                        "replaying"
                    );
                    let future = inner.call(request);
                    this.state.set(State::Replayed { future, with });
                }
                StateProj::Replayed { future, with } => {
                    let response = ready!(future.poll(cx))?;
                    let Some(Replayed { target, generation, watch }) = *with else {
                        let report = RefreshReport::NotRefreshed(NotRefreshed::SessionChanged);
                        return Poll::Ready(Ok(reported(response, report)));
                    };
                    let report = match verdict(&response) {
                        Verdict::Expired => {
                            session().cell().refused(target, generation);
                            RefreshReport::ReplayRefused
                        }
                        // The token was good, if not good enough.
                        Verdict::StepUp => RefreshReport::StepUp,
                        Verdict::Pass => {
                            if says_good(response.status()) {
                                session().cell().accepted(target, generation, watch);
                            }
                            RefreshReport::Replayed
                        }
                    };
                    return Poll::Ready(Ok(reported(response, report)));
                }
            }
        }
    }
}

/// The session whose token a request is to carry, and how its target spells its origin; `None` where it is to pass
/// untouched. A session that came with the request is moved to `own`.
fn find_session<'a, Svc, S: SessionSource, B>(
    setup: &'a Setup<Svc, S>,
    request: &mut Request<B>,
    own: &'a mut Option<Session>,
) -> Option<(&'a Session, Spelling)> {
    let spelling = setup.options.origins.covers(request.uri())?;
    if request.extensions().get::<SkipAuth>().is_some() {
        return None;
    }
    let session = match setup.source.shared() {
        Some(session) => session,
        None => own.insert(request.extensions_mut().remove::<Session>()?),
    };
    // Its own refresh call, sent through its own layer by mistake.
    (!session.cell().is_refreshing_here()).then_some((session, spelling))
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

/// Whether an answer says that the token is good. A server's own failure says nothing of it, nor does a 401 for another
/// reason.
fn says_good(status: StatusCode) -> bool {
    !status.is_server_error() && status != StatusCode::UNAUTHORIZED
}

fn reported<ResB>(mut response: Response<ResB>, report: RefreshReport) -> Response<ResB> {
    tracing::debug!(target: TARGET, report = report.as_str(), status = response.status().as_u16(), "reported");
    response.extensions_mut().insert(report);
    response
}

impl<B> Kept<B> {
    /// Records that the first attempt was accepted.
    #[cold]
    fn record_acceptance(&self, session: &Session, options: &Options) {
        if self.watch == 0 {
            session.cell().accepted_unreplayable(self.generation);
        } else {
            session.cell().accepted(self.head.target(&options.origins), self.generation, self.watch);
        }
    }

    /// Takes the body from the attempt, and the head out of its packing, with room in it for the token.
    fn into_unreplayed(self, options: &Options) -> Result<Unreplayed<B>, NotReplayable> {
        let target = self.head.target(&options.origins);
        let mut head = self.head.rebuild(&options.origins)?;
        if !Credentials::reserve(&mut head.headers, options) {
            return Err(NotReplayable::Head);
        }
        let body = self.body.into_replay()?;
        let request = Request::from_parts(head, body);
        Ok(Unreplayed { request, target, epoch: self.epoch, refused: self.generation })
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
