//! Counters, exposed in Prometheus' text format.

mod histogram;
mod refreshes;

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::{Method, Request, StatusCode, Uri};
use tower_auth_refresh::RefreshReport;
use tower_auth_refresh::replay::NotReplayable;
use tracing::Level;

use self::histogram::Histogram;
pub use self::refreshes::RefreshWatch;

/// Values of the `route` label: first path segments, and one value for all others.
const ROUTES: [&str; 8] = ["api", "login", "logout", "session", "healthz", "readyz", "metrics", "other"];

/// The number of statuses from 100 to 599.
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
    /// Counts a response.
    pub(crate) fn count_response(&self, path: &str, status: StatusCode) {
        self.count(route(path), status);
    }

    fn count(&self, route: usize, status: StatusCode) {
        let status = usize::from(status.as_u16()) - 100;
        // Statuses from 600 to 999, which no standard defines, count as 599.
        increment(&self.requests[route][status.min(STATUSES - 1)]);
    }

    /// Counts the outcome of a request that got a 401 from the API.
    pub(crate) fn count_report(&self, report: &RefreshReport) {
        let reason = match report {
            RefreshReport::Replayed => return increment(&self.replays[0]),
            RefreshReport::ReplayRefused => return increment(&self.replays[1]),
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
        page.family("gateway_requests_total", "counter", "Responses, by first path segment and status.");
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
        self.latency.render(&mut page, "gateway_refresh_duration_seconds");
        page.0
    }
}

/// A request under way, counted and logged once its response is known.
pub(crate) struct Observation {
    route: usize,
    /// `None` if the log has no line for it.
    line: Option<Line>,
}

struct Line {
    started: Instant,
    method: Method,
    uri: Uri,
}

impl Observation {
    pub(crate) fn start<B>(request: &Request<B>) -> Self {
        let line = tracing::enabled!(Level::INFO, method, path, status, milliseconds).then(|| Line {
            started: Instant::now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
        });
        Self { route: route(request.uri().path()), line }
    }

    pub(crate) fn finish(self, metrics: &Metrics, status: StatusCode) {
        metrics.count(self.route, status);
        if let Some(Line { started, method, uri }) = self.line {
            let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            // Without the query, which may hold private data.
            tracing::info!(%method, path = uri.path(), status = status.as_u16(), milliseconds, "request completed");
        }
    }
}

/// Returns the position of a path's route in [`ROUTES`].
fn route(path: &str) -> usize {
    let first = path.split('/').nth(1).unwrap_or_default();
    ROUTES.iter().position(|route| *route == first).unwrap_or(ROUTES.len() - 1)
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

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
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
    use super::*;

    #[test]
    fn metrics_are_rendered_in_the_prometheus_text_format() {
        let metrics = Metrics::default();
        metrics.count_response("/api/notes", StatusCode::OK);
        metrics.count_response("/api", StatusCode::OK);
        metrics.count_response("/apian", StatusCode::from_u16(999).unwrap());
        metrics.refresh_started();
        metrics.refresh_ended("refreshed", 3, 0.03);
        metrics.count_report(&RefreshReport::Replayed);
        metrics.count_report(&RefreshReport::NotReplayable(NotReplayable::TooLarge));
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
            assert!(page.lines().any(|found| found == line), "{line} is not in:\n{page}");
        }
    }
}
