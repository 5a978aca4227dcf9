//! [`Observation`]: a request under way, counted and logged when it ends.

mod access_log;
mod login;
mod trace;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::response::Response;
use http::{Method, Request, StatusCode, Version};
use sha2::{Digest, Sha256};
use tower_auth_refresh::Tokens;

pub use self::access_log::AccessLog;
use self::access_log::Line;
pub(crate) use self::login::LOGIN_OUTCOMES;
use self::trace::Trace;
use crate::app::App;
use crate::client_address::ClientAddress;
use crate::cookie::SessionId;
use crate::metrics::{ROUTES, UpstreamOutcome, route};
use crate::problem::Kind;
use crate::user;

/// The status of a request whose client has disconnected before the response, as in the logs of nginx.
const CLIENT_DISCONNECTED: u16 = 499;

/// A request under way.
///
/// Its line of the log is written as its parts become known, from the request to the end of the response.
pub(crate) struct Observation {
    app: App,
    started: Instant,
    /// A position in [`ROUTES`].
    route: usize,
    is_login: bool,
    client: IpAddr,
    trace: Trace,
    received: AtomicU64,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    /// `None` if the log has no line for the request, or has it already.
    line: Option<Line>,
    status: Option<StatusCode>,
    problem: Option<Kind>,
}

impl Observation {
    /// Begins to observe a request.
    pub(crate) fn start<B>(app: &App, request: &Request<B>, client: &ClientAddress, is_proxied: bool) -> Observed {
        let observation = Self {
            app: app.clone(),
            started: Instant::now(),
            route: route(request.uri().path()),
            is_login: request.uri().path() == "/login" && request.method() == Method::POST,
            client: client.ip(),
            trace: Trace::of(request.headers(), is_proxied),
            received: AtomicU64::new(0),
            found: Mutex::default(),
        };
        app.metrics.traffic.begin();
        if let Some(log) = &app.access_log {
            let mut line = log.begin();
            observation.describe(&mut line, request, client);
            observation.found().line = Some(line);
        }
        let has_body = request.method() != Method::HEAD;
        Observed { observation: Arc::new(observation), sent: 0, is_complete: !has_body, has_failed: false }
    }

    fn describe<B>(&self, line: &mut Line, request: &Request<B>, client: &ClientAddress) {
        line.word("client.address", client.text());
        line.word("request.id", self.trace.request_id());
        line.word("trace_id", self.trace.trace_id());
        line.word("span_id", self.trace.span_id());
        if let Some(parent) = self.trace.parent() {
            line.word("parent_span_id", parent);
        }
        // Any token is a method.
        line.text("http.request.method", request.method().as_str());
        // Without the query, which may hold private data.
        line.text("url.path", request.uri().path());
        line.word("route", ROUTES[self.route]);
        let version = match request.version() {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        };
        line.word("network.protocol.version", version);
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds fields to the line, if there is one.
    fn with_line(&self, write: impl FnOnce(&mut Line)) {
        // Set from the start, and never later.
        if self.app.access_log.is_some()
            && let Some(line) = &mut self.found().line
        {
            write(line);
        }
    }

    /// Returns the ids of the request.
    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Notes the session of the request, and its user, if there is one. `tokens` is called if they are to be printed.
    pub(crate) fn session(&self, id: SessionId, tokens: impl FnOnce() -> Option<Tokens>) {
        self.with_line(|line| {
            line.hash("session.hash", hash(id));
            if let Some(user) = tokens().as_ref().and_then(user::of) {
                line.text("user.id", user);
            }
        });
    }

    /// Notes that the upstream has responded, or has failed to, and the time that it took.
    pub(crate) fn upstream(&self, outcome: UpstreamOutcome, address: Option<SocketAddr>, took: Duration) {
        self.app.metrics.traffic.call(outcome, took);
        self.with_line(|line| {
            if let Some(address) = address {
                line.address("upstream.address", address);
            }
            line.seconds("upstream.duration", took);
        });
    }

    /// Notes the outcome of a refresh.
    pub(crate) fn refresh(&self, outcome: &'static str) {
        self.with_line(|line| line.word("refresh.outcome", outcome));
    }

    /// Counts bytes of the request's body.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes the response, and names the request in it.
    pub(crate) fn respond(&self, response: &mut Response) {
        self.trace.write_request_id(response.headers_mut());
        let (status, problem) = (response.status(), response.extensions().get().copied());
        self.app.metrics.traffic.respond(self.route, status.as_u16());
        if let Some(problem) = problem {
            self.app.metrics.count_problem(problem);
        }
        if self.is_login {
            self.login_ended(Some(status), problem);
        }
        let mut found = self.found();
        (found.status, found.problem) = (Some(status), problem);
    }

    /// Counts a login, and logs one that has failed: with the client's address, by which tools like fail2ban ban it. The
    /// name of its user isn't printed, since users type passwords into that field.
    fn login_ended(&self, status: Option<StatusCode>, problem: Option<Kind>) {
        let outcome = login::outcome(status, problem);
        self.app.metrics.count_login(outcome);
        let reason = LOGIN_OUTCOMES[outcome];
        let (client, id) = (self.client, self.trace.request_id());
        if login::is_of_the_client(outcome) {
            tracing::info!(reason, client.address = %client, request.id = id, "login failed");
        } else if outcome > 0 {
            tracing::warn!(reason, client.address = %client, request.id = id, "login failed");
        }
    }

    fn finish(&self, sent: u64, end: End) {
        let mut found = self.found();
        let (status, error) = match (found.status, found.problem, end) {
            (Some(status), Some(kind), _) => (status.as_u16(), Some(kind.name())),
            (Some(status), None, End::Complete) => (status.as_u16(), None),
            (Some(status), None, End::Failed) => (status.as_u16(), Some("response-cut-off")),
            (Some(status), None, End::Dropped) => (status.as_u16(), Some("client-disconnected")),
            (None, ..) => (CLIENT_DISCONNECTED, Some("client-disconnected")),
        };
        if found.status.is_none() {
            self.app.metrics.traffic.respond(self.route, status);
            if self.is_login {
                self.login_ended(None, None);
            }
        }
        let took = self.started.elapsed();
        let received = self.received.load(Ordering::Relaxed);
        self.app.metrics.traffic.end(self.route, took, received, sent);
        let Some((mut line, log)) = found.line.take().zip(self.app.access_log.as_ref()) else { return };
        drop(found);
        line.number("http.response.status_code", status.into());
        if let Some(error) = error {
            line.word("error.type", error);
        }
        line.number("http.request.body.size", received);
        line.number("http.response.body.size", sent);
        line.seconds("duration", took);
        log.end(line);
    }
}

/// The end of a response.
#[derive(Clone, Copy)]
enum End {
    Complete,
    /// Its source has failed.
    Failed,
    /// Its reader has gone.
    Dropped,
}

/// Keeps a request under observation until it is dropped: with its response, or before it if the client disconnects.
pub(crate) struct Observed {
    observation: Arc<Observation>,
    sent: u64,
    is_complete: bool,
    has_failed: bool,
}

impl Observed {
    pub(crate) fn observation(&self) -> &Arc<Observation> {
        &self.observation
    }

    /// Counts bytes of the response's body.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Notes that the body of the response has ended.
    pub(crate) fn complete(&mut self) {
        self.is_complete = true;
    }

    /// Notes that the body of the response has failed.
    pub(crate) fn fail(&mut self) {
        self.has_failed = true;
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        let end = match (self.has_failed, self.is_complete) {
            (true, _) => End::Failed,
            (false, true) => End::Complete,
            (false, false) => End::Dropped,
        };
        self.observation.finish(self.sent, end);
    }
}

/// Returns the name of a session in the log, the same in each process. The session's number, of 128 random bits, can't
/// be guessed from it.
fn hash(id: SessionId) -> [u8; 8] {
    let hash = Sha256::new_with_prefix(b"gateway session\0").chain_update(id.as_bytes()).finalize();
    let mut short = [0; 8];
    short.copy_from_slice(&hash[..8]);
    short
}
