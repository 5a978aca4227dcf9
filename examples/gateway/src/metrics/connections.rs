//! [`Connections`]: counts the connections of clients.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Exposition, increment, load};

/// The reasons for which connections are closed.
const REASONS: [&str; 8] =
    ["done", "idle", "slow_head", "evicted", "flood", "shutdown", "address_limit", "proxy_protocol"];

/// The reason for which a connection is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The client has closed it, or a response was its last, or it has failed.
    #[default]
    Done,
    /// No request has come for too long.
    Idle,
    /// The head of a request has not arrived in time.
    SlowHead,
    /// It has made room for another.
    Evicted,
    /// A flood of frames.
    Flood,
    /// The gateway shuts down.
    Shutdown,
    /// It was not admitted, since its address has too many.
    AddressLimit,
    /// The header of the PROXY protocol was malformed or late, or the peer is no trusted proxy.
    ProxyProtocol,
}

#[derive(Debug, Default)]
pub(crate) struct Connections {
    accepted: AtomicU64,
    open: AtomicU64,
    closed: [AtomicU64; REASONS.len()],
}

impl Connections {
    pub(crate) fn open(&self) {
        increment(&self.accepted);
        increment(&self.open);
    }

    /// Counts a connection that is closed at once.
    pub(crate) fn refuse(&self, reason: CloseReason) {
        self.open();
        self.close(reason);
    }

    pub(crate) fn close(&self, reason: CloseReason) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        increment(&self.closed[reason as usize]);
    }

    pub(super) fn render(&self, page: &mut Exposition) {
        page.single("gateway_connections", "gauge", "Open connections of clients.", load(&self.open));
        let accepted = load(&self.accepted);
        page.single("gateway_connections_accepted_total", "counter", "Connections of clients.", accepted);
        let help = "Connections that have been closed, by reason.";
        page.labelled("gateway_connections_closed_total", help, "reason", &REASONS, &self.closed);
    }
}
