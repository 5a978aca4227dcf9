//! What is counted, told to Prometheus in its text format.

mod histogram;
mod refreshes;

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::StatusCode;
use tower_auth_refresh::{NotReplayable, RefreshReport};

use self::histogram::Histogram;
pub use self::refreshes::RefreshWatch;
use crate::app::App;

/// The first segments of paths that requests are told apart by; the last stands for all others.
const ROUTES: [&str; 7] = ["api", "login", "logout", "session", "healthz", "metrics", "other"];

/// Statuses are 100 to 599.
const STATUSES: usize = 500;

const OUTCOMES: [&str; 9] = [
    "refreshed",
    "refresh_failed",
    "cooling_down",
    "session_ended",
    "signed_out",
    "session_changed",
    "no_refresh_token",
    "same_token",
    // The task was aborted or panicked.
    "died",
];

const REPLAYS: [&str; 2] = ["accepted", "refused"];

const NOT_REPLAYED: [&str; 13] = [
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
    "step_up",
];

/// The counters. Shared by a gateway and the [`RefreshWatch`] in its process.
#[derive(Debug)]
pub struct Metrics {
    requests: Box<[[AtomicU64; STATUSES]; ROUTES.len()]>,
    refreshes: [AtomicU64; OUTCOMES.len()],
    refreshes_in_flight: AtomicU64,
    waiters: AtomicU64,
    latency: Histogram,
    replays: [AtomicU64; REPLAYS.len()],
    not_replayed: [AtomicU64; NOT_REPLAYED.len()],
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Box::new(std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0)))),
            refreshes: Default::default(),
            refreshes_in_flight: AtomicU64::default(),
            waiters: AtomicU64::default(),
            latency: Histogram::default(),
            replays: Default::default(),
            not_replayed: Default::default(),
        }
    }
}

impl Metrics {
    /// Counts a request.
    pub(crate) fn answered(&self, path: &str, status: StatusCode) {
        let first = path.split('/').nth(1).unwrap_or_default();
        let route = ROUTES.iter().position(|route| *route == first).unwrap_or(ROUTES.len() - 1);
        let status = usize::from(status.as_u16()) - 100;
        // Statuses go up to 999, the sensible ones to 599.
        increment(&self.requests[route][status.min(STATUSES - 1)]);
    }

    /// Counts what became of a request that the API refused.
    pub(crate) fn reported(&self, report: &RefreshReport) {
        let why = match report {
            RefreshReport::Replayed => return increment(&self.replays[0]),
            RefreshReport::ReplayRefused => return increment(&self.replays[1]),
            RefreshReport::NotReplayable(NotReplayable::TooLarge) => "too_large",
            RefreshReport::NotReplayable(NotReplayable::SourceFailed) => "source_failed",
            RefreshReport::NotReplayable(NotReplayable::UnknownFrame) => "unknown_frame",
            RefreshReport::NotReplayable(_) => "head",
            RefreshReport::NotRefreshed(why) => refreshes::name(why),
            _ => "step_up",
        };
        if let Some(at) = NOT_REPLAYED.iter().position(|reason| *reason == why) {
            increment(&self.not_replayed[at]);
        }
    }

    fn refresh_began(&self) {
        increment(&self.refreshes_in_flight);
    }

    fn refresh_ended(&self, outcome: &str, waiters: u64, seconds: f64) {
        self.refreshes_in_flight.fetch_sub(1, Ordering::Relaxed);
        let at = OUTCOMES.iter().position(|name| *name == outcome).unwrap_or(OUTCOMES.len() - 1);
        increment(&self.refreshes[at]);
        // One of them began it.
        self.waiters.fetch_add(waiters.saturating_sub(1), Ordering::Relaxed);
        self.latency.observe(seconds);
    }

    /// Prometheus' text format, 0.0.4.
    pub(crate) fn render(&self, sessions: usize) -> String {
        let mut page = Page(String::with_capacity(8 * 1024));
        page.family("gateway_requests_total", "counter", "Requests answered, by first path segment and status.");
        for (route, statuses) in ROUTES.iter().zip(&*self.requests) {
            for (status, count) in (100..).zip(statuses).filter(|(_, count)| load(count) > 0) {
                let labels = format_args!("route=\"{route}\",code=\"{status}\"");
                page.sample("gateway_requests_total", labels, load(count));
            }
        }
        page.labelled("gateway_refreshes_total", "Refreshes, by outcome.", "outcome", &OUTCOMES, &self.refreshes);
        page.single(
            "gateway_refreshes_in_flight",
            "gauge",
            "Refreshes under way, and those that wait for their turn.",
            load(&self.refreshes_in_flight),
        );
        page.single(
            "gateway_coalesced_waiters_total",
            "counter",
            "Requests that waited for a refresh, the first of each refresh aside.",
            load(&self.waiters),
        );
        page.labelled("gateway_replays_total", "Requests sent again, by result.", "result", &REPLAYS, &self.replays);
        page.labelled(
            "gateway_not_replayed_total",
            "Requests refused by the API and not sent again, by reason.",
            "reason",
            &NOT_REPLAYED,
            &self.not_replayed,
        );
        page.single(
            "gateway_sessions",
            "gauge",
            "Users signed in, and those whose sessions are over and not swept yet: once a minute, when no request is using them.",
            sessions as u64,
        );
        page.family("gateway_refresh_duration_seconds", "histogram", "How long refreshes took, from the first 401 to the new token: waiting for their turn and storing included.");
        self.latency.render(&mut page, "gateway_refresh_duration_seconds");
        page.0
    }
}

/// Counts a request and writes a line about it.
pub(crate) async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let uri = request.uri().clone();
    let response = next.run(request).await;
    let status = response.status();
    app.metrics.answered(uri.path(), status);
    let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    // Without its query: it may hold what is nobody's business.
    tracing::info!(%method, path = uri.path(), status = status.as_u16(), milliseconds, "answered");
    response
}

/// A page of metrics.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: fmt::Arguments<'_>, value: impl fmt::Display) {
        let _ = writeln!(self.0, "{name}{{{labels}}} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// All values of a label, those that are zero too: a rate over a series that appears later would miss its start.
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
    use super::*;

    #[test]
    fn the_page_is_what_prometheus_reads() {
        let metrics = Metrics::default();
        metrics.answered("/api/notes", StatusCode::OK);
        metrics.answered("/api", StatusCode::OK);
        metrics.answered("/apian", StatusCode::from_u16(999).unwrap());
        metrics.refresh_began();
        metrics.refresh_ended("refreshed", 3, 0.03);
        metrics.reported(&RefreshReport::Replayed);
        metrics.reported(&RefreshReport::NotReplayable(NotReplayable::TooLarge));
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
            "gateway_refresh_duration_seconds_bucket{le=\"0.025\"} 0",
            "gateway_refresh_duration_seconds_bucket{le=\"0.05\"} 1",
            "gateway_refresh_duration_seconds_bucket{le=\"+Inf\"} 1",
            "gateway_refresh_duration_seconds_count 1",
        ] {
            assert!(page.lines().any(|said| said == line), "{line} is not in:\n{page}");
        }
    }
}
