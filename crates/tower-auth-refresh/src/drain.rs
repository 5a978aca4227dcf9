//! Reads a refused response to its end, within bounds, so that its connection can serve the replay.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::timer::RuntimeSleep;

/// A refusal is a few hundred bytes; one longer than this is cheaper to cut off.
const MOST: usize = 64 * 1024;

/// How long the replay waits for the end of it.
const LONGEST: Duration = Duration::from_millis(50);

pin_project! {
    /// Resolves when the body has ended, failed, or used up its bounds.
    pub(crate) struct Drain<B> {
        #[pin]
        body: B,
        left: usize,
        runtime: Handle,
        begun: Instant,
        // Only where the body keeps us waiting.
        sleep: Option<RuntimeSleep>,
    }
}

impl<B> Drain<B> {
    /// `runtime`: where the timer runs, whoever polls this.
    pub(crate) fn new(body: B, runtime: &Handle) -> Self {
        Self { body, left: MOST, runtime: runtime.clone(), begun: Instant::now(), sleep: None }
    }
}

impl<B: Body> Future for Drain<B> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        while !this.body.is_end_stream() {
            let frame = match this.body.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(_) => break,
                Poll::Pending => {
                    let sleep =
                        this.sleep.get_or_insert_with(|| RuntimeSleep::until(this.runtime, *this.begun + LONGEST));
                    return Pin::new(sleep).poll(cx).map(drop);
                }
            };
            // An empty frame counts too, so that endless ones don't hold the task.
            let size = frame.data_ref().map_or(0, Buf::remaining).max(1);
            match this.left.checked_sub(size) {
                Some(left) => *this.left = left,
                None => break,
            }
        }
        Poll::Ready(())
    }
}
