//! Reads the body of a refused response to its end, within bounds, so that the replay can reuse its connection.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::alarm::Alarm;

/// A 401's body is a few hundred bytes. A body longer than this is cheaper to cut off.
const MAX_BYTES: usize = 64 * 1024;

/// The replay waits at most this long for the end of the body.
const MAX_WAIT: Duration = Duration::from_millis(50);

pin_project! {
    /// Resolves when the body has ended, failed, or used up its bounds.
    pub(crate) struct Drain<B> {
        #[pin]
        body: B,
        left: usize,
        runtime: Handle,
        started_at: Instant,
        // Created at the first pending poll.
        alarm: Option<Alarm>,
    }
}

impl<B> Drain<B> {
    /// The timer runs on `runtime`, whatever context polls the future.
    pub(crate) fn new(body: B, runtime: &Handle) -> Self {
        Self { body, left: MAX_BYTES, runtime: runtime.clone(), started_at: Instant::now(), alarm: None }
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
                    let alarm = this.alarm.get_or_insert_with(|| Alarm::new(this.runtime, *this.started_at + MAX_WAIT));
                    return Pin::new(alarm).poll(cx).map(drop);
                }
            };
            // An empty frame counts as one byte, so that an endless series of them ends too.
            let size = frame.data_ref().map_or(0, Buf::remaining).max(1);
            match this.left.checked_sub(size) {
                Some(left) => *this.left = left,
                None => break,
            }
        }
        Poll::Ready(())
    }
}
