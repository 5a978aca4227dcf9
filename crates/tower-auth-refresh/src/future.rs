//! [`ResponseFuture`]: the way of one request, from top to bottom.

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
use crate::options::{Options, SessionSource, SkipAuth};
use crate::refresh::{Generation, NotRefreshed, Trigger};
use crate::replay::{Head, NotReplayable, Replay, ReplayBody, ReplayLimit};
use crate::report::RefreshReport;
use crate::session::{Session, is_near};
use crate::shared_setup::{Setup, SharedSetup};
use crate::store::Epoch;

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
        // Sent without a token, since the session has none.
        Bare { #[pin] future: F, epoch: Epoch },
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
        // Sent again with the token of this generation, or without a token if the session has changed.
        Replayed { #[pin] future: F, generation: Option<Generation> },
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
        let Some(session) = find_session(&setup, &mut request, &mut own) else {
            return Self::pass(ready, setup, own, request.map(ReplayBody::passing));
        };
        // If each request has a session of its own, the last credentials are those of another session.
        let last = setup.source.shared().map(|_| last);
        let cell = session.cell();
        let revision = cell.revision();
        let credentials = if let Some(kept) = last.as_ref().and_then(|last| last.at(revision)) {
            kept
        } else {
            // `attach` finds the caller's own credentials too, but such a request must not wait for a token either.
            if request.headers().contains_key(&setup.options.header) {
                return Self::pass(ready, setup, own, request.map(ReplayBody::passing));
            }
            let snapshot = cell.snapshot();
            let epoch = snapshot.epoch;
            if let Some(trigger) = cell.wait_before_send(&snapshot) {
                // Returns the capacity that is reserved for the request: the refresh call may need it.
                *ready = setup.inner();
                let newer = newer_tokens(session, epoch, snapshot.generation, trigger, None);
                let held = HeldRequest { request, epoch, deadline: cell.deadline(), has_waited: false };
                let state = State::Waiting { newer, request: Some(Box::new(held)) };
                return Self { setup, own, state };
            }
            match last {
                Some(last) => last.write(revision, &snapshot, &setup.options),
                None => Credentials::in_force(&snapshot, &setup.options),
            }
        };
        Self::send(ready, setup, own, credentials, request)
    }

    /// Sends a request untouched. Out of line, to keep [`send`](Self::send), the usual path, short.
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

    /// Sends a request with its credentials and keeps what a replay needs. Without credentials, sends the request bare.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a call of its own, to which the request is handed, costs some 3 ns")]
    fn send(
        ready: &mut Svc,
        setup: SharedSetup<Svc, S>,
        own: Option<Session>,
        credentials: Credentials<'_>,
        request: Request<B>,
    ) -> Self {
        let options = &setup.options;
        let Credentials { epoch, generation, .. } = credentials;
        if credentials.is_empty() {
            let state = State::Bare { future: ready.call(request.map(ReplayBody::passing)), epoch };
            return Self { setup, own, state };
        }
        // First the head is kept, then the request moved, then the token attached: in this order no copy reads bytes
        // that have just been written in smaller pieces, for which store-to-load forwarding fails.
        let head = Head::keep(&request);
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
        let kept = replay.map(|body| Kept { head, body, epoch, generation, has_waited: false });
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

    #[expect(clippy::too_many_lines, reason = "the way of a request is in one place")]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let options = &this.setup.options;
        let session = || {
            let session = this.own.as_ref().or_else(|| this.setup.source.shared());
            session.expect("only a request with a session is in a state that uses the session")
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
                    // The request is sent with the tokens in force, even if the refresh has failed.
                    let _ = ready!(newer.as_mut().poll(cx));
                    let mut request = request.take();
                    if let Some(held) = &mut request {
                        held.has_waited = is_near(held.deadline);
                    }
                    this.state.set(State::Readying { inner: this.setup.inner(), request });
                }
                StateProj::Readying { inner, request } => {
                    ready!(inner.poll_ready(cx))?;
                    let held = request.take().expect("taken once, when the state is left");
                    let snapshot = session().cell().snapshot();
                    let next = if snapshot.epoch == held.epoch {
                        let credentials = Credentials::in_force(&snapshot, options);
                        let (setup, own) = (this.setup.clone(), this.own.clone());
                        let mut next = Self::send(inner, setup, own, credentials, held.request).state;
                        if let State::Sent { kept: Some(kept), .. } = &mut next {
                            kept.has_waited = held.has_waited;
                        }
                        next
                    } else {
                        let future = inner.call(held.request.map(ReplayBody::passing));
                        State::Bare { future, epoch: held.epoch }
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
                            && kept.body.is_lost()
                            && shows_acceptance(response.status())
                        {
                            session().cell().accepted_unreplayable(kept.generation);
                        }
                        // Frees the parts that were kept, and the body's record if the body is still being sent.
                        *kept = None;
                        return answer;
                    }
                    let response = ready!(answer)?;
                    let mut kept = kept.take().expect("taken once, when the state is left");
                    if verdict == Verdict::StepUp {
                        return Poll::Ready(Ok(reported(response, RefreshReport::StepUp)));
                    }
                    let deadline = kept.has_waited.then(Instant::now);
                    let newer = newer_tokens(session(), kept.epoch, kept.generation, Trigger::Challenge, deadline);
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
                    let PendingReplay { mut request, epoch, refused } =
                        *replay.take().expect("taken once, when the state is left");
                    let snapshot = session().cell().snapshot();
                    // In another epoch the request is sent bare, so that the caller gets the server's own refusal.
                    let credentials = (snapshot.epoch == epoch).then(|| Credentials::in_force(&snapshot, options));
                    let attached = Credentials::fill(credentials, request.headers_mut(), options);
                    let generation = attached.then_some(snapshot.generation);
                    tracing::debug!(
                        target: TARGET, refused = refused.0, generation = generation.map(Generation::get), "replaying"
                    );
                    let future = inner.call(request);
                    this.state.set(State::Replayed { future, generation });
                }
                StateProj::Replayed { future, generation } => {
                    let response = ready!(future.poll(cx))?;
                    let Some(generation) = *generation else {
                        let report = RefreshReport::NotRefreshed(NotRefreshed::SessionChanged);
                        return Poll::Ready(Ok(reported(response, report)));
                    };
                    let (report, accepted) = match verdict(&response) {
                        Verdict::Expired => (RefreshReport::ReplayRefused, Some(false)),
                        // The API accepted the token, but requires a stronger authentication.
                        Verdict::StepUp => (RefreshReport::StepUp, None),
                        Verdict::Pass => (RefreshReport::Replayed, shows_acceptance(response.status()).then_some(true)),
                    };
                    if let Some(accepted) = accepted {
                        session().cell().replayed(generation, accepted);
                    }
                    return Poll::Ready(Ok(reported(response, report)));
                }
            }
        }
    }
}

/// Finds the session whose token a request is to carry; `None` if the request is to pass untouched. A session in the
/// request's extensions is moved to `own`.
fn find_session<'a, Svc, S: SessionSource, B>(
    setup: &'a Setup<Svc, S>,
    request: &mut Request<B>,
    own: &'a mut Option<Session>,
) -> Option<&'a Session> {
    if !setup.options.origins.covers(request.uri()) || request.extensions().get::<SkipAuth>().is_some() {
        return None;
    }
    let session = match setup.source.shared() {
        Some(session) => session,
        None => own.insert(request.extensions_mut().remove::<Session>()?),
    };
    // The session's own refresh call, sent through its own layer by mistake, passes.
    (!session.cell().is_refreshing_here()).then_some(session)
}

fn newer_tokens(
    session: &Session,
    epoch: Epoch,
    generation: Generation,
    trigger: Trigger,
    deadline: Option<Instant>,
) -> NewerTokens {
    Box::pin(Arc::clone(session.cell()).wait_for_newer_tokens(epoch, generation, trigger, deadline))
}

/// Returns `true` if a response with this status, which is no challenge, shows that the API accepted the token. A
/// server error doesn't, nor does a 401 for another reason.
fn shows_acceptance(status: StatusCode) -> bool {
    !status.is_server_error() && status != StatusCode::UNAUTHORIZED
}

fn reported<ResB>(mut response: Response<ResB>, report: RefreshReport) -> Response<ResB> {
    tracing::debug!(target: TARGET, report = report.as_str(), status = response.status().as_u16(), "reported");
    response.extensions_mut().insert(report);
    response
}

impl<B> Kept<B> {
    /// Takes the body from the attempt and unpacks the head, with room for the token.
    fn into_pending_replay(self, options: &Options) -> Result<PendingReplay<B>, NotReplayable> {
        let mut head = self.head.rebuild()?;
        if !Credentials::reserve(&mut head.headers, options) {
            return Err(NotReplayable::Head);
        }
        let body = self.body.into_replay()?;
        let request = Request::from_parts(head, body);
        Ok(PendingReplay { request, epoch: self.epoch, refused: self.generation })
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
