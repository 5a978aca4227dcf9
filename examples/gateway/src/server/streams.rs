//! [`Streams`]: runs the streams of an HTTP/2 connection, and resets those that their client doesn't read.
//!
//! hyper asks a response for data only when its stream has a window. A client that opens none would keep the request in
//! flight, and all that it holds, for as long as it reads another stream of the connection. hyper knows of no time-out for
//! that, but each of its streams is a future of its own: a dropped one resets its stream.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use pin_project_lite::pin_project;

use crate::stall_timer::StallTimer;

/// The executor of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams {
    client_timeout: Duration,
}

impl Streams {
    pub(super) fn new(client_timeout: Duration) -> Self {
        Self { client_timeout }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(Stream { future, waits_for_client: false, stall: StallTimer::new(self.client_timeout) });
    }
}

/// What a response did last while its stream was polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It had no data yet.
    HadNone,
    /// It gave its head or data to hyper, which asks for more when the client has taken some.
    Gave,
}

thread_local! {
    static LAST_STEP: Cell<Option<Step>> = const { Cell::new(None) };
}

/// Notes a step of the response whose stream this thread polls.
pub(super) fn note(step: Step) {
    LAST_STEP.set(Some(step));
}

pin_project! {
    /// A stream, which ends when its client takes no data for the time-out.
    struct Stream<F> {
        #[pin]
        future: F,
        waits_for_client: bool,
        stall: StallTimer,
    }
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        LAST_STEP.set(None);
        if this.future.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if let Some(step) = LAST_STEP.take() {
            *this.waits_for_client = step == Step::Gave;
            this.stall.reset();
        }
        if *this.waits_for_client {
            ready!(this.stall.poll(cx));
            tracing::debug!("stream reset: the client doesn't read it");
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::{sleep, timeout};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// Runs a stream, and returns `true` if it has not been reset.
    async fn is_completed(future: impl Future<Output = ()>) -> bool {
        let mut completed = false;
        let future = async {
            future.await;
            completed = true;
        };
        let stream = Stream { future, waits_for_client: false, stall: StallTimer::new(TIMEOUT) };
        let ended = timeout(TIMEOUT * 100, stream).await;
        assert!(ended.is_ok(), "the stream is held");
        completed
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_its_client_reads_steadily_is_not_reset() {
        let reads = async {
            for _ in 0..10 {
                note(Step::Gave);
                sleep(TIMEOUT * 9 / 10).await;
            }
        };
        assert!(is_completed(reads).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_its_client_stops_reading_is_reset() {
        let stops = async {
            note(Step::Gave);
            sleep(TIMEOUT / 2).await;
            note(Step::Gave);
            pending::<()>().await;
        };
        assert!(!is_completed(stops).await);
    }

    /// The upstream has time-outs of its own.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_waits_for_its_response_is_not_reset() {
        let waits = async {
            sleep(TIMEOUT * 3).await;
            note(Step::Gave);
            sleep(TIMEOUT / 2).await;
            note(Step::HadNone);
            sleep(TIMEOUT * 3).await;
        };
        assert!(is_completed(waits).await);
    }

    /// A client may wake its stream by other frames than those that open a window.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_woken_without_progress_is_reset() {
        let stops = async {
            note(Step::Gave);
            loop {
                sleep(TIMEOUT / 10).await;
            }
        };
        assert!(!is_completed(stops).await);
    }
}
