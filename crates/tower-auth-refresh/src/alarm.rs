//! [`Alarm`]: a timer for futures that anybody may poll, on any runtime or none.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep, sleep_until};

/// Resolves at its time; or, with an error, when the runtime that it belongs to shuts down: a bare `Sleep` would panic
/// then. To drop it is to stop it.
pub(crate) struct Alarm {
    task: JoinHandle<()>,
}

impl Alarm {
    /// `runtime`: where the timer runs, whoever polls this.
    pub(crate) fn new(runtime: &Handle, at: Instant) -> Self {
        Self { task: runtime.spawn(async move { sleep_until(at).await }) }
    }

    /// One that never resolves: it calls at its time, and again after each pause.
    pub(crate) fn calling(runtime: &Handle, at: Instant, pause: Duration, call: impl Fn() + Send + 'static) -> Self {
        Self {
            task: runtime.spawn(async move {
                sleep_until(at).await;
                loop {
                    call();
                    sleep(pause).await;
                }
            }),
        }
    }
}

impl Future for Alarm {
    type Output = Result<(), JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.task).poll(cx)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.task.abort();
    }
}
