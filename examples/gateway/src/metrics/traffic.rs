//! [`Traffic`]: the counters that each request increments.

use std::array;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::available_parallelism;
use std::time::Duration;

use http::StatusCode;

use super::histogram::Histogram;
use super::{Exposition, increment, load};

/// Values of the `route` label: first path segments, and one value for all others.
pub(crate) const ROUTES: [&str; 8] = ["api", "login", "logout", "session", "healthz", "readyz", "metrics", "other"];

/// The number of statuses from 100 to 599.
const STATUSES: usize = 500;

const UPSTREAM_OUTCOMES: [&str; 9] =
    ["1xx", "2xx", "3xx", "4xx", "5xx", "connect_error", "timeout", "upload_failed", "error"];

/// The outcome of a call to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamOutcome {
    Responded(StatusCode),
    ConnectFailed,
    TimedOut,
    /// The client has failed during its upload.
    UploadFailed,
    Failed,
}

/// The counters that each request increments, in shards: threads don't contend for cache lines.
#[derive(Debug)]
pub(crate) struct Traffic {
    shards: Box<[Shard]>,
}

#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    responses: Box<[[AtomicU64; STATUSES]]>,
    /// Wraps below zero: a request may end on another thread than it has begun.
    in_flight: AtomicU64,
    durations: [Histogram; ROUTES.len()],
    upstream_durations: Histogram,
    upstream: [AtomicU64; UPSTREAM_OUTCOMES.len()],
    received: AtomicU64,
    sent: AtomicU64,
}

impl Default for Traffic {
    fn default() -> Self {
        let shard = |_| Shard {
            responses: ROUTES.iter().map(|_| [const { AtomicU64::new(0) }; STATUSES]).collect(),
            in_flight: AtomicU64::new(0),
            durations: array::from_fn(|_| Histogram::default()),
            upstream_durations: Histogram::default(),
            upstream: Default::default(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        };
        let threads = available_parallelism().map_or(1, usize::from);
        Self { shards: (0..threads.min(16)).map(shard).collect() }
    }
}

impl Traffic {
    /// Returns the counters of this thread.
    fn shard(&self) -> &Shard {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        &self.shards[THREAD.with(|thread| *thread) % self.shards.len()]
    }

    /// Counts a request that has begun.
    pub(crate) fn begin(&self) {
        increment(&self.shard().in_flight);
    }

    /// Counts a response. `route` is a position in [`ROUTES`].
    pub(crate) fn respond(&self, route: usize, status: u16) {
        // Statuses from 600 to 999, which no standard defines, count as 599.
        let at = usize::from(status).saturating_sub(100).min(STATUSES - 1);
        increment(&self.shard().responses[route][at]);
    }

    /// Counts the end of a request and its response.
    pub(crate) fn end(&self, route: usize, took: Duration, received: u64, sent: u64) {
        let shard = self.shard();
        shard.in_flight.fetch_sub(1, Ordering::Relaxed);
        shard.durations[route].observe(took.as_secs_f64());
        if received > 0 {
            shard.received.fetch_add(received, Ordering::Relaxed);
        }
        shard.sent.fetch_add(sent, Ordering::Relaxed);
    }

    /// Counts a call to the upstream.
    pub(crate) fn call(&self, outcome: UpstreamOutcome, took: Duration) {
        let at = match outcome {
            UpstreamOutcome::Responded(status) => usize::from(status.as_u16() / 100).clamp(1, 5) - 1,
            UpstreamOutcome::ConnectFailed => 5,
            UpstreamOutcome::TimedOut => 6,
            UpstreamOutcome::UploadFailed => 7,
            UpstreamOutcome::Failed => 8,
        };
        let shard = self.shard();
        increment(&shard.upstream[at]);
        if matches!(outcome, UpstreamOutcome::Responded(_)) {
            shard.upstream_durations.observe(took.as_secs_f64());
        }
    }

    fn sum(&self, counter: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.wrapping_add(load(counter(shard))))
    }

    pub(super) fn render(&self, page: &mut Exposition) {
        page.family("gateway_requests_total", "counter", "Responses, by first path segment and status.");
        for (route, name) in ROUTES.iter().enumerate() {
            for status in 0..STATUSES {
                let count = self.sum(|shard| &shard.responses[route][status]);
                if count > 0 {
                    let code = status + 100;
                    page.sample("gateway_requests_total", format_args!("route=\"{name}\",code=\"{code}\""), count);
                }
            }
        }
        let in_flight = self.sum(|shard| &shard.in_flight);
        page.single("gateway_requests_in_flight", "gauge", "Requests whose response has not ended.", in_flight);
        let name = "gateway_request_duration_seconds";
        page.family(name, "histogram", "Duration of requests until the end of the response, by first path segment.");
        for (route, label) in ROUTES.iter().enumerate() {
            let sum = Histogram::sum(self.shards.iter().map(|shard| &shard.durations[route]));
            sum.render(page, name, &format!("route=\"{label}\""));
        }
        let name = "gateway_upstream_duration_seconds";
        page.family(name, "histogram", "Time until the upstream's response begins, refreshes and replays included.");
        Histogram::sum(self.shards.iter().map(|shard| &shard.upstream_durations)).render(page, name, "");
        let name = "gateway_upstream_calls_total";
        page.family(name, "counter", "Calls to the upstream, by class of the status or kind of failure.");
        for (at, outcome) in UPSTREAM_OUTCOMES.iter().enumerate() {
            page.sample(name, format_args!("outcome=\"{outcome}\""), self.sum(|shard| &shard.upstream[at]));
        }
        let received = self.sum(|shard| &shard.received);
        page.single("gateway_request_body_bytes_total", "counter", "Bytes of requests' bodies.", received);
        let sent = self.sum(|shard| &shard.sent);
        page.single("gateway_response_body_bytes_total", "counter", "Bytes of responses' bodies.", sent);
    }
}

/// Returns the position of a path's route in [`ROUTES`].
pub(crate) fn route(path: &str) -> usize {
    let first = path.split('/').nth(1).unwrap_or_default();
    ROUTES.iter().position(|route| *route == first).unwrap_or(ROUTES.len() - 1)
}
