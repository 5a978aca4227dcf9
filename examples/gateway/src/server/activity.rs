//! [`Activity`]: the state of a connection, as its socket, its requests and its supervisor see it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::CloseReason;

/// The state of one connection. Times are milliseconds since its start.
#[derive(Debug)]
pub(super) struct Activity {
    started: Instant,
    requests: AtomicUsize,
    idle_since: AtomicU64,
    /// The time at which the head of the next request began to arrive; 0 if none has.
    head_since: AtomicU64,
    /// The number of HTTP/2 control frames since a response or data.
    control_frames: AtomicU32,
    body_unread: AtomicBool,
    cut_off: AtomicBool,
    /// The shutdown of all connections has begun.
    closing: Arc<AtomicBool>,
    evicted: AtomicBool,
    eviction: Notify,
    /// The reason for which the gateway closes the connection, for the metrics.
    close_reason: OnceLock<CloseReason>,
}

/// The state of a connection at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A request is being answered.
    Busy,
    /// The head of a request has been arriving since this time.
    Head(Instant),
    /// Nothing has arrived since this time.
    Idle(Instant),
}

impl Activity {
    /// Creates the state of a new connection. `closing` is shared by all.
    pub(super) fn new(closing: Arc<AtomicBool>) -> Self {
        Self {
            started: Instant::now(),
            requests: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            control_frames: AtomicU32::new(0),
            body_unread: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            closing,
            evicted: AtomicBool::new(false),
            eviction: Notify::new(),
            close_reason: OnceLock::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn time(&self, milliseconds: u64) -> Instant {
        self.started + Duration::from_millis(milliseconds)
    }

    pub(super) fn state(&self) -> State {
        if self.requests.load(Ordering::Relaxed) > 0 {
            return State::Busy;
        }
        match self.head_since.load(Ordering::Relaxed) {
            0 => State::Idle(self.time(self.idle_since.load(Ordering::Relaxed))),
            since => State::Head(self.time(since)),
        }
    }

    /// Notes that bytes have arrived on a connection of HTTP/1.
    pub(super) fn bytes_arrived(&self) {
        if self.head_since.load(Ordering::Relaxed) == 0 && self.requests.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Notes that a request has arrived. It is being answered until the drop of the returned guard.
    pub(super) fn request_started(self: &Arc<Self>) -> Answering {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// Notes that a response, or data of a body, is on its way.
    pub(super) fn progress(&self) {
        self.control_frames.store(0, Ordering::Relaxed);
    }

    /// Counts control frames, and returns their number since the last [progress](Self::progress).
    pub(super) fn count_control_frames(&self, frames: u32) -> u32 {
        self.control_frames.fetch_add(frames, Ordering::Relaxed).saturating_add(frames)
    }

    /// Notes that the rest of a request's body will not be read.
    pub(super) fn body_abandoned(&self) {
        self.body_unread.store(true, Ordering::Relaxed);
    }

    /// Checks if the client may be sending what nothing reads: the rest of an upload, or of a malformed head.
    pub(super) fn client_sends_on(&self) -> bool {
        self.body_unread.load(Ordering::Relaxed) || self.head_since.load(Ordering::Relaxed) > 0
    }

    /// Notes that a response without framing has been cut off.
    pub(super) fn response_cut_off(&self) {
        self.cut_off.store(true, Ordering::Relaxed);
    }

    /// Checks if the connection has to be reset, so that a response doesn't look complete.
    pub(super) fn must_reset(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Checks if each further response is the last of its connection.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Notes the reason for which the connection is closed, unless there is one already.
    pub(super) fn closes_for(&self, reason: CloseReason) {
        let _ = self.close_reason.set(reason);
    }

    pub(super) fn close_reason(&self) -> CloseReason {
        self.close_reason.get().copied().unwrap_or_default()
    }

    /// Ends the connection to make room for another. Returns `false` if it is ending already.
    pub(super) fn evict(&self) -> bool {
        self.closes_for(CloseReason::Evicted);
        let first = !self.evicted.swap(true, Ordering::Relaxed);
        self.eviction.notify_one();
        first
    }

    /// Checks if the connection has to make room for another.
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Waits for [`evict`](Self::evict).
    pub(super) async fn eviction(&self) {
        self.eviction.notified().await;
    }
}

/// Keeps a request counted as being answered.
#[derive(Debug)]
pub(super) struct Answering(Arc<Activity>);

impl Answering {
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.0
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}
