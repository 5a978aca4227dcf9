//! Counters, exposed in Prometheus' text format.

mod connections;
mod histogram;
mod process;
mod refreshes;
mod store;
mod tls;
mod traffic;

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tower_auth_refresh::RefreshReport;
use tower_auth_refresh::replay::NotReplayable;

pub(crate) use self::connections::{CloseReason, Connections};
use self::histogram::Histogram;
pub use self::refreshes::RefreshWatch;
pub(crate) use self::store::{StoreErrors, StoreOperation};
pub(crate) use self::tls::{HandshakeFailure, Tls};
pub(crate) use self::traffic::{ROUTES, Traffic, UpstreamOutcome, route};
use crate::observation::LOGIN_OUTCOMES;
use crate::problem::Kind;

/// Limits that are exceeded, named after their settings.
const LIMITS: [&str; 12] = [
    "requests_in_flight",
    "requests_in_flight_per_session",
    "logins_in_flight",
    "max_sessions",
    "body_limit",
    "client_timeout",
    "upstream_timeout",
    "requests_in_flight_per_address",
    "logins_in_flight_per_address",
    "sessions_per_user",
    "max_connections",
    "max_connections_per_address",
];

/// A limit that is exceeded without a [problem](Kind).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    SessionsPerUser = 9,
    Connections = 10,
    ConnectionsPerAddress = 11,
}

const OUTCOMES: [&str; 9] = [
    "refreshed",
    "refresh_failed",
    "cooling_down",
    "session_ended",
    "signed_out",
    "session_changed",
    "no_refresh_token",
    "same_token",
    // The refresh task was aborted or has panicked.
    "died",
];

const REPLAYS: [&str; 2] = ["accepted", "refused"];

const NOT_REPLAYED: [&str; 14] = [
    "too_large",
    "source_failed",
    "unknown_frame",
    "head",
    "refresh_failed",
    "cooling_down",
    "session_ended",
    "signed_out",
    "session_changed",
    "no_refresh_token",
    "same_token",
    "looping",
    "request_refused",
    "step_up",
];

/// Counters shared by a gateway and the [`RefreshWatch`] in its process.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) traffic: Traffic,
    pub(crate) connections: Connections,
    pub(crate) tls: Tls,
    pub(crate) store: StoreErrors,
    started: SystemTime,
    refreshes: [AtomicU64; OUTCOMES.len()],
    refreshes_in_flight: AtomicU64,
    waiters: AtomicU64,
    latency: Histogram,
    replays: [AtomicU64; REPLAYS.len()],
    not_replayed: [AtomicU64; NOT_REPLAYED.len()],
    logins: [AtomicU64; LOGIN_OUTCOMES.len()],
    limits: [AtomicU64; LIMITS.len()],
    dropped_lines: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            traffic: Traffic::default(),
            connections: Connections::default(),
            tls: Tls::default(),
            store: StoreErrors::default(),
            started: SystemTime::now(),
            refreshes: Default::default(),
            refreshes_in_flight: AtomicU64::default(),
            waiters: AtomicU64::default(),
            latency: Histogram::default(),
            replays: Default::default(),
            not_replayed: Default::default(),
            logins: Default::default(),
            limits: Default::default(),
            dropped_lines: AtomicU64::default(),
        }
    }
}

impl Metrics {
    /// Counts the outcome of a request that got a 401 from the API, and returns its name.
    pub(crate) fn count_report(&self, report: &RefreshReport) -> &'static str {
        let reason = match report {
            RefreshReport::Replayed => {
                increment(&self.replays[0]);
                return "replayed";
            }
            RefreshReport::ReplayRefused => {
                increment(&self.replays[1]);
                return "replay_refused";
            }
            RefreshReport::NotReplayable(NotReplayable::TooLarge) => "too_large",
            RefreshReport::NotReplayable(NotReplayable::SourceFailed) => "source_failed",
            RefreshReport::NotReplayable(NotReplayable::UnknownFrame) => "unknown_frame",
            RefreshReport::NotReplayable(_) => "head",
            RefreshReport::NotRefreshed(cause) => refreshes::name(cause),
            _ => "step_up",
        };
        if let Some(at) = NOT_REPLAYED.iter().position(|name| *name == reason) {
            increment(&self.not_replayed[at]);
        }
        reason
    }

    /// Counts a login. `outcome` is a position in [`LOGIN_OUTCOMES`].
    pub(crate) fn count_login(&self, outcome: usize) {
        increment(&self.logins[outcome]);
    }

    /// Counts a problem, if it says that a limit is exceeded.
    pub(crate) fn count_problem(&self, problem: Kind) {
        let limit = match problem {
            Kind::Overloaded => 0,
            Kind::TooManyRequests => 1,
            Kind::TooManyLogins => 2,
            Kind::TooManySessions => 3,
            Kind::BodyTooLarge => 4,
            Kind::RequestTooSlow => 5,
            Kind::UpstreamTooSlow => 6,
            Kind::TooManyRequestsOfAddress => 7,
            Kind::TooManyLoginsOfAddress => 8,
            _ => return,
        };
        increment(&self.limits[limit]);
    }

    /// Counts that a limit is exceeded.
    pub(crate) fn count_limit(&self, limit: Limit) {
        increment(&self.limits[limit as usize]);
    }

    /// Counts a line of the log that is dropped.
    pub(crate) fn count_dropped_line(&self) {
        increment(&self.dropped_lines);
    }

    pub(crate) fn dropped_lines(&self) -> u64 {
        load(&self.dropped_lines)
    }

    fn refresh_started(&self) {
        increment(&self.refreshes_in_flight);
    }

    fn refresh_ended(&self, outcome: &str, waiters: u64, seconds: f64) {
        self.refreshes_in_flight.fetch_sub(1, Ordering::Relaxed);
        let at = OUTCOMES.iter().position(|name| *name == outcome).unwrap_or(OUTCOMES.len() - 1);
        increment(&self.refreshes[at]);
        // The first waiter is the request that started the refresh.
        self.waiters.fetch_add(waiters.saturating_sub(1), Ordering::Relaxed);
        self.latency.observe(seconds);
    }

    /// Renders all metrics in Prometheus' text format, version 0.0.4.
    pub(crate) fn render(&self, sessions: usize) -> String {
        let mut page = Exposition(String::with_capacity(8 * 1024));
        self.traffic.render(&mut page);
        self.connections.render(&mut page);
        self.tls.render(&mut page);
        self.store.render(&mut page);
        page.labelled(
            "gateway_limits_exceeded_total",
            "Times that a limit was exceeded, by its setting.",
            "limit",
            &LIMITS,
            &self.limits,
        );
        page.labelled("gateway_refreshes_total", "Refreshes, by outcome.", "outcome", &OUTCOMES, &self.refreshes);
        page.single(
            "gateway_refreshes_in_flight",
            "gauge",
            "Refreshes that are running or waiting for a permit.",
            load(&self.refreshes_in_flight),
        );
        page.single(
            "gateway_coalesced_waiters_total",
            "counter",
            "Requests that waited for a refresh started by another request.",
            load(&self.waiters),
        );
        page.labelled(
            "gateway_replays_total",
            "Requests replayed after a refresh, by result.",
            "result",
            &REPLAYS,
            &self.replays,
        );
        page.labelled(
            "gateway_not_replayed_total",
            "Requests with a 401 from the API that were not replayed, by reason.",
            "reason",
            &NOT_REPLAYED,
            &self.not_replayed,
        );
        page.labelled("gateway_logins_total", "Logins, by outcome.", "outcome", &LOGIN_OUTCOMES, &self.logins);
        page.single(
            "gateway_sessions",
            "gauge",
            "Sessions, including ended ones until the sweep removes them: once a minute, unless a request uses them.",
            sessions as u64,
        );
        page.family(
            "gateway_refresh_duration_seconds",
            "histogram",
            "Duration of refreshes from the first 401 to the new token, including the wait for a permit and the store.",
        );
        self.latency.render(&mut page, "gateway_refresh_duration_seconds", "");
        let help = "Lines of the log that were dropped, since it was not read fast enough.";
        page.single("gateway_log_lines_dropped_total", "counter", help, self.dropped_lines());
        process::render(&mut page, self.started);
        page.0
    }
}

/// A document in Prometheus' text format.
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: fmt::Arguments<'_>, value: impl fmt::Display) {
        let _ = writeln!(self.0, "{name}{{{labels}}} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl fmt::Display) {
        self.family(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// Writes all values of a label, zeros too: a rate over a series that appears later would miss its first increment.
    fn labelled(&mut self, name: &str, help: &str, label: &str, values: &[&str], counts: &[AtomicU64]) {
        self.family(name, "counter", help);
        for (value, count) in values.iter().zip(counts) {
            self.sample(name, format_args!("{label}=\"{value}\""), load(count));
        }
    }
}

fn increment(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::*;

    #[test]
    fn metrics_are_rendered_in_the_prometheus_text_format() {
        let metrics = Metrics::default();
        metrics.traffic.respond(route("/api/notes"), 200);
        metrics.traffic.respond(route("/api"), 200);
        metrics.traffic.respond(route("/apian"), 999);
        metrics.refresh_started();
        metrics.refresh_ended("refreshed", 3, 0.03);
        metrics.count_report(&RefreshReport::Replayed);
        metrics.count_report(&RefreshReport::NotReplayable(NotReplayable::TooLarge));
        metrics.traffic.begin();
        metrics.traffic.call(UpstreamOutcome::Responded(StatusCode::OK), Duration::from_millis(20));
        metrics.traffic.call(UpstreamOutcome::ConnectFailed, Duration::from_secs(5));
        metrics.traffic.end(route("/api/notes"), Duration::from_millis(30), 5, 7);
        metrics.connections.open();
        metrics.connections.open();
        metrics.connections.close(CloseReason::Flood);
        metrics.count_problem(Kind::TooManyLogins);
        let page = metrics.render(7);
        for line in [
            "gateway_requests_total{route=\"api\",code=\"200\"} 2",
            "gateway_requests_total{route=\"other\",code=\"599\"} 1",
            "gateway_refreshes_total{outcome=\"refreshed\"} 1",
            "gateway_refreshes_total{outcome=\"session_ended\"} 0",
            "gateway_refreshes_in_flight 0",
            "gateway_coalesced_waiters_total 2",
            "gateway_replays_total{result=\"accepted\"} 1",
            "gateway_not_replayed_total{reason=\"too_large\"} 1",
            "gateway_sessions 7",
            "gateway_requests_in_flight 0",
            "gateway_request_duration_seconds_bucket{route=\"api\",le=\"0.025\"} 0",
            "gateway_request_duration_seconds_bucket{route=\"api\",le=\"0.05\"} 1",
            "gateway_request_duration_seconds_count{route=\"api\"} 1",
            "gateway_upstream_duration_seconds_count 1",
            "gateway_upstream_calls_total{outcome=\"2xx\"} 1",
            "gateway_upstream_calls_total{outcome=\"connect_error\"} 1",
            "gateway_request_body_bytes_total 5",
            "gateway_response_body_bytes_total 7",
            "gateway_connections 1",
            "gateway_connections_accepted_total 2",
            "gateway_connections_closed_total{reason=\"flood\"} 1",
            "gateway_limits_exceeded_total{limit=\"logins_in_flight\"} 1",
            "gateway_refresh_duration_seconds_bucket{le=\"0.025\"} 0",
            "gateway_refresh_duration_seconds_bucket{le=\"0.05\"} 1",
            "gateway_refresh_duration_seconds_bucket{le=\"+Inf\"} 1",
            "gateway_refresh_duration_seconds_count 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in:\n{page}");
        }
    }
}
