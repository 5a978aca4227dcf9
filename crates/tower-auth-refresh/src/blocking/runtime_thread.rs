//! [`RuntimeThread`]: a runtime that is driven by a thread of its own, and callers that wait for it.

use std::future::Future;
use std::io;
use std::mem;
use std::pin::pin;
use std::process;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::unconstrained;
use tokio::time::timeout_at;

use crate::session::{Session, SessionState};

pub(super) const FORKED: &str = "this process was forked: the thread of the session stayed in its parent";
pub(super) const OWN_THREAD: &str = "a call of a blocking session on the session's own thread would wait for itself";
pub(super) const LATE: &str = "no answer by the deadline: the thread of the session is blocked";

/// A runtime that is driven by a thread of its own.
pub(super) struct RuntimeThread {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    /// Ends the thread, once the session has finished its work.
    stop: Option<oneshot::Sender<Session>>,
    process: u32,
}

impl RuntimeThread {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("auth-refresh".to_owned()).spawn(move || {
            runtime.block_on(async {
                if let Ok(session) = stopped.await {
                    finish(&session).await;
                }
            });
            // Functions that still block threads of the runtime aren't waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, thread: Some(thread), stop: Some(stop), process: process::id() })
    }

    /// Polls a future on this thread, and parks the thread in between, for as long as `limit`.
    ///
    /// # Errors
    ///
    /// If the future could never end here; it isn't polled then. If it hasn't ended by the limit.
    pub(super) fn block_on<F: Future>(&self, future: F, limit: Duration) -> Result<F::Output, &'static str> {
        if self.is_forked() {
            return Err(FORKED);
        }
        if self.is_here() {
            return Err(OWN_THREAD);
        }
        let _entered = self.handle.enter();
        let deadline = Instant::now().checked_add(limit);
        let (wake, woken) = sync_channel(1);
        let waker = Waker::from(Arc::new(WakeThread(wake)));
        let mut context = Context::from_waker(&waker);
        // In a task whose budget is used up, tokio's futures would never be ready: the task doesn't yield here.
        let mut future = pin!(unconstrained(future));
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return Ok(output);
            }
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            woken.recv_timeout(left).map_err(|_| LATE)?;
        }
    }

    /// Ends the thread once the session has finished its work, and waits for the end.
    pub(super) fn stop_after(&mut self, session: Session) {
        if let Some(stop) = self.stop.take() {
            if self.is_forked() {
                // To wake a thread that isn't there could wait for a lock that it held.
                mem::forget((stop, session));
                return;
            }
            let _ = stop.send(session);
        }
    }

    /// Returns `true` if this process is a child of the one that has the thread.
    fn is_forked(&self) -> bool {
        self.process != process::id()
    }

    fn is_here(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| thread.thread().id() == thread::current().id())
    }
}

impl Drop for RuntimeThread {
    fn drop(&mut self) {
        if self.is_forked() {
            mem::forget(self.stop.take());
            return;
        }
        // Without a session, the thread ends at once.
        self.stop = None;
        if !self.is_here()
            && let Some(thread) = self.thread.take()
        {
            // A panic there was reported there.
            let _ = thread.join();
        }
    }
}

/// Waits for a refresh under way, and makes the writes that are pending, until the session's deadline.
async fn finish(session: &Session) {
    let cell = session.cell();
    let finished = async {
        let mut states = session.subscribe();
        let _ = states.wait_for(|state| *state != SessionState::Refreshing).await;
        let _ = Arc::clone(cell).save().await;
    };
    let _ = timeout_at(cell.deadline(), finished).await;
}

struct WakeThread(SyncSender<()>);

impl Wake for WakeThread {
    fn wake(self: Arc<Self>) {
        // If the channel is full, the thread is about to poll.
        let _ = self.0.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::{RefreshError, RefreshRequest, Tokens};

    #[test]
    fn in_a_child_that_was_forked_nothing_is_polled_and_the_thread_is_left_alone() {
        for with_session in [false, true] {
            let mut child = RuntimeThread::start().unwrap();
            let refresh = tower::service_fn(|_: RefreshRequest| pending::<Result<Tokens, RefreshError>>());
            let session = child.block_on(Session::builder(refresh).build(), Duration::MAX).unwrap().unwrap();
            let handle = child.handle.clone();
            child.process += 1;
            assert_eq!(child.block_on(async { panic!("polled") }, Duration::MAX), Err(FORKED));
            if with_session {
                child.stop_after(session);
            }
            drop(child);
            let (run, ran) = sync_channel(1);
            handle.spawn(async move { run.send(()) });
            assert_eq!(ran.recv(), Ok(()), "the thread has ended");
        }
    }

    #[test]
    fn a_future_is_given_up_at_the_limit_and_not_before() {
        let runtime = RuntimeThread::start().unwrap();
        let (begun, limit) = (Instant::now(), Duration::from_millis(50));
        assert_eq!(runtime.block_on(pending::<()>(), limit), Err(LATE));
        assert!(begun.elapsed() >= limit);
        assert_eq!(runtime.block_on(ready(7), Duration::ZERO), Ok(7));
    }
}
