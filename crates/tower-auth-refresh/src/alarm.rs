//! [`Alarm`]: a timer for futures that anybody may poll, on any runtime or none.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until};

/// Resolves at its time; or, with an error, when the runtime that it belongs to shuts down: a bare `Sleep` would panic
/// then.
pub(crate) struct Alarm {
    task: JoinHandle<()>,
}

impl Alarm {
    /// `runtime`: where the timer runs, whoever polls this.
    pub(crate) fn new(runtime: &Handle, at: Instant) -> Self {
        Self { task: runtime.spawn(async move { sleep_until(at).await }) }
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
