//! [`Activity`]: the state of a connection, as its socket and its requests see it.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Protocol;

/// The state of one connection, shared by its socket and its requests.
#[derive(Debug)]
pub(super) struct Activity {
    protocol: Protocol,
    /// Bytes have arrived that belong to no request yet: the head of the next one.
    in_head: AtomicBool,
    /// A request has been answered before its body has arrived.
    body_unread: AtomicBool,
    /// A response has been cut off whose end is the end of the connection.
    cut_off: AtomicBool,
}

impl Activity {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            in_head: AtomicBool::new(false),
            body_unread: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
        }
    }

    /// Notes that bytes have arrived.
    pub(super) fn bytes_arrived(&self) {
        self.in_head.store(true, Ordering::Relaxed);
    }

    /// Notes that the head of a request is complete.
    pub(super) fn request_started(&self) {
        self.in_head.store(false, Ordering::Relaxed);
    }

    /// Notes that the rest of a request's body will not be read.
    pub(super) fn body_abandoned(&self) {
        self.body_unread.store(true, Ordering::Relaxed);
    }

    /// Notes that a response without framing has been cut off.
    pub(super) fn response_cut_off(&self) {
        self.cut_off.store(true, Ordering::Relaxed);
    }

    /// Checks if the connection has to be reset, so that a response doesn't look complete.
    pub(super) fn must_reset(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Checks if the client may be sending what nothing reads: the rest of an upload, or of a malformed head.
    ///
    /// Over HTTP/2, each stream ends by itself.
    pub(super) fn client_sends_on(&self) -> bool {
        let sends_on = self.body_unread.load(Ordering::Relaxed) || self.in_head.load(Ordering::Relaxed);
        self.protocol == Protocol::Http1 && sends_on
    }
}
