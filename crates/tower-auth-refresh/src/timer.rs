//! Timers that run in the session's own runtime: [`RuntimeSleep`] and [`Ticker`].
//!
//! A future of this crate may be polled on any runtime or none, where a bare `tokio::time::Sleep` would panic.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep, sleep_until};

/// Resolves at a point in time; with an error, if the runtime that it belongs to shuts down first.
pub(crate) struct RuntimeSleep(AbortOnDrop);

/// Calls a function at a point in time, and again after each pause, until it is dropped.
pub(crate) struct Ticker(#[expect(dead_code, reason = "held to be aborted when it is dropped")] AbortOnDrop);

struct AbortOnDrop(JoinHandle<()>);

impl RuntimeSleep {
    pub(crate) fn until(runtime: &Handle, at: Instant) -> Self {
        Self(AbortOnDrop(runtime.spawn(async move { sleep_until(at).await })))
    }
}

impl Ticker {
    pub(crate) fn start(runtime: &Handle, at: Instant, pause: Duration, call: impl Fn() + Send + 'static) -> Self {
        Self(AbortOnDrop(runtime.spawn(async move {
            sleep_until(at).await;
            loop {
                call();
                sleep(pause).await;
            }
        })))
    }
}

impl Future for RuntimeSleep {
    type Output = Result<(), JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0.0).poll(cx)
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
