//! [`Exchange`]: one request on its way through the servers, counted and logged whatever becomes of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::Body;

use crate::TestKit;
use crate::answer::Answer;
use crate::body::{BoxError, ResponseBody};
use crate::faults::{Act, Fault, Moment, Pace, Route};
use crate::gate::Bar;
use crate::kit::Held;
use crate::log::Entry;
use crate::routes::Call;
use crate::service::ConnectionDropped;
use crate::token::Token;

/// The connection that a request came over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection(pub(crate) u64);

/// Dropping it logs the request, as unanswered if no status was noted.
pub(crate) struct Exchange {
    pub(crate) kit: TestKit,
    pub(crate) route: Route,
    number: u64,
    at: Duration,
    method: Method,
    uri: Uri,
    connection: Option<u64>,
    user: Option<Arc<str>>,
    generation: Option<u64>,
    note: Option<&'static str>,
    status: Option<StatusCode>,
    refreshing: bool,
}

impl Exchange {
    pub(crate) fn begin<B>(kit: &TestKit, request: &Request<B>) -> Self {
        let route = Route::of(request.uri().path());
        Self {
            kit: kit.clone(),
            route,
            number: kit.state().journal.arrived(route),
            at: kit.elapsed(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            connection: request.extensions().get().map(|Connection(id)| *id),
            user: None,
            generation: None,
            note: None,
            status: None,
            refreshing: false,
        }
    }

    /// The whole story of one request.
    pub(crate) async fn run<B>(mut self, request: Request<B>) -> Result<Response<ResponseBody>, ConnectionDropped>
    where
        B: Body<Data: Buf, Error: Into<BoxError>> + Send + 'static,
    {
        let call = Call::read(&mut self, request).await;
        let fault = self.next_fault();
        let fault = fault.as_ref();

        let mut answer = match self.suffer(fault, Moment::Before).await? {
            Some(instead) => {
                call.leave(&self.kit);
                instead
            }
            None => call.process(&mut self, fault.map(Fault::grant).unwrap_or_default()).await,
        };

        let mut successor = answer.successor.take();
        let bars = self.bars(&answer);
        if let Some(successor) = &mut successor {
            successor.is_at_risk = fault.is_some() || !bars.is_empty();
        }
        for bar in bars {
            bar.pass().await;
        }

        let mut is_spoilt = false;
        if let Some(instead) = self.suffer(fault, Moment::After).await? {
            answer = instead;
            is_spoilt = true;
        }
        if let Some(change) = fault.and_then(Fault::alteration) {
            answer.alter(change);
            is_spoilt = true;
        }
        self.status = Some(answer.status);
        let pace = fault.map(Fault::pace).unwrap_or_default();
        if let (Some(successor), false, Pace::Whole) = (successor, is_spoilt, pace) {
            successor.delivered();
        }
        Ok(answer.into_response(pace))
    }

    /// What the fault does at this moment: an answer of its own, if it has one.
    async fn suffer(&self, fault: Option<&Fault>, moment: Moment) -> Result<Option<Answer>, ConnectionDropped> {
        let Some(fault) = fault else { return Ok(None) };
        let (delay, act) = fault.at(moment);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match act {
            Some(Act::Hang) => std::future::pending().await,
            Some(Act::Drop) => Err(ConnectionDropped(())),
            Some(act) => Ok(Answer::of_fault(act)),
            None => Ok(None),
        }
    }

    fn next_fault(&mut self) -> Option<Fault> {
        let fault = self.kit.state().next_fault(self.route, self.user.as_deref());
        if fault.is_some() {
            self.note("fault");
        }
        fault
    }

    fn bars(&self, answer: &Answer) -> Vec<Bar> {
        let what = match self.route {
            Route::Refresh => Held::Refreshes,
            Route::Api if answer.status == StatusCode::UNAUTHORIZED => Held::Unauthorized,
            _ => return Vec::new(),
        };
        self.kit.state().bars(what, self.user.as_deref())
    }

    /// Whose request it is, by the name that he signs in with.
    pub(crate) fn is_by(&mut self, user: &str) {
        self.user = Some(user.into());
    }

    /// Whose request it is, by the token.
    pub(crate) fn carries(&mut self, token: Token) {
        let state = &mut *self.kit.state();
        self.generation = Some(token.generation);
        self.user = state.families.user(token).cloned();
        if let (Route::Refresh, Some(user)) = (self.route, &self.user) {
            state.journal.refresh_began(user);
            self.refreshing = true;
        }
    }

    pub(crate) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    pub(crate) fn generation(&self) -> Option<u64> {
        self.generation
    }

    pub(crate) fn note(&mut self, note: &'static str) {
        self.note.get_or_insert(note);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let took = self.kit.elapsed().saturating_sub(self.at);
        let status = self.status.map(|status| status.as_u16());
        tracing::debug!(
            number = self.number,
            method = %self.method,
            path = self.uri.path(),
            status,
            user = self.user.as_deref(),
            generation = self.generation,
            connection = self.connection,
            note = self.note,
            "request"
        );
        let state = &mut *self.kit.state();
        if let (true, Some(user)) = (self.refreshing, &self.user) {
            state.journal.refresh_ended(user);
        }
        state.journal.answered(self.route, self.user.as_ref(), status);
        state.journal.log(state.settings.log_capacity, || Entry {
            number: self.number,
            at: self.at,
            took,
            method: self.method.clone(),
            path: self.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            route: self.route,
            status,
            user: self.user.clone(),
            generation: self.generation,
            connection: self.connection,
            note: self.note,
        });
    }
}

/// A successor that is on its way to the client. If a fault or a gate keeps it from him, he is excused for presenting
/// the superseded token again.
pub(crate) struct Successor {
    kit: TestKit,
    superseded: Token,
    is_at_risk: bool,
}

impl Successor {
    pub(crate) fn to(superseded: Token, kit: &TestKit) -> Self {
        Self { kit: kit.clone(), superseded, is_at_risk: false }
    }

    fn delivered(mut self) {
        self.is_at_risk = false;
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if self.is_at_risk {
            self.kit.state().families.excuse(self.superseded);
        }
    }
}
