//! [`Exchange`]: the record of one request, which is counted and logged however the request ends.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode, Uri};

use crate::TestKit;
use crate::faults::Route;
use crate::log::Entry;
use crate::token::Token;

/// The number of the connection that a request arrived on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection(pub(crate) u64);

/// One request under way. Dropping the value logs the request: as unanswered, if no status was set.
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

    /// Counts the request as a refresh, which its form shows.
    pub(crate) fn become_refresh(&mut self) {
        self.route = Route::Refresh;
        self.kit.state().journal.counters.refreshes += 1;
    }

    /// Sets the user, from the name in the credentials.
    pub(crate) fn set_user(&mut self, user: &str) {
        self.user = Some(user.into());
    }

    /// Sets the user and the generation, from the token that the request carries.
    pub(crate) fn set_token(&mut self, token: Token) {
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

    pub(crate) fn set_status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// Notes the reason for the log. The first note is kept.
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
