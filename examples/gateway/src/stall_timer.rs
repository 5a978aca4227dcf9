//! [`StallTimer`]: limits the time without progress.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Measures how long something has been pending. The timer is allocated on the first wait.
#[derive(Debug)]
pub(crate) struct StallTimer {
    timeout: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl StallTimer {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, since: None, timer: None }
    }

    /// Completes when the body has been pending for the time-out.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.timeout;
        let deadline = *self.since.get_or_insert_with(Instant::now) + timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    pub(crate) fn reset(&mut self) {
        self.since = None;
    }
}
