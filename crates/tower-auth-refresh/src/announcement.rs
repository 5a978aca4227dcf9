//! [`Announcement`]: what many wait for, told once to all.
//!
//! `futures::future::Shared` is the usual way, and not taken: it is polled by one of those who wait on behalf of all, so
//! that one who is dropped at the wrong moment, or polls but once, leaves the others asleep for good; and it wakes them
//! under a lock, which a waker that polls at once finds held.

use std::sync::OnceLock;

use tokio::sync::Notify;

pub(crate) struct Announcement<T> {
    value: OnceLock<T>,
    bell: Notify,
}

impl<T> Announcement<T> {
    pub(crate) fn new() -> Self {
        Self { value: OnceLock::new(), bell: Notify::new() }
    }

    /// Tells it to all who wait, and to all who come. Only the first time counts.
    pub(crate) fn make(&self, value: T) {
        if self.value.set(value).is_ok() {
            self.bell.notify_waiters();
        }
    }

    pub(crate) fn is_made(&self) -> bool {
        self.value.get().is_some()
    }

    /// Rings for all who wait: each looks whether he has waited enough.
    pub(crate) fn ring(&self) {
        self.bell.notify_waiters();
    }

    /// Waits for it.
    pub(crate) async fn heard(&self) -> &T {
        loop {
            if let Some(value) = self.heard_unless(|| false).await {
                return value;
            }
        }
    }

    /// Waits for it, but no longer than until the bell rings and `enough` is true.
    pub(crate) async fn heard_unless(&self, enough: impl Fn() -> bool) -> Option<&T> {
        loop {
            // Before the look, so that nothing is missed.
            let bell = self.bell.notified();
            if let Some(value) = self.value.get() {
                return Some(value);
            }
            if enough() {
                return None;
            }
            bell.await;
        }
    }
}
