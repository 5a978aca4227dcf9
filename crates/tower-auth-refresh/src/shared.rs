//! [`Shared`]: a value that is set once and awaited by many tasks.
//!
//! Not `futures::future::Shared`, which polls the inner future through one of its clones on behalf of all: if that clone
//! is dropped at the wrong moment, or polled only once, the wake-up is lost and the other clones never wake
//! (`futures_shared_loses_a_wake_up` below shows it). It also wakes them under a lock, which a waker that polls at once
//! finds held. Here the work runs in a task of its own, and waiters depend on that task alone.

use std::sync::OnceLock;

use tokio::sync::Notify;

pub(crate) struct Shared<T> {
    value: OnceLock<T>,
    wake: Notify,
}

impl<T> Shared<T> {
    pub(crate) fn new() -> Self {
        Self { value: OnceLock::new(), wake: Notify::new() }
    }

    /// Sets the value and wakes all waiters. Does nothing if it is set already.
    pub(crate) fn set(&self, value: T) {
        if self.value.set(value).is_ok() {
            self.wake.notify_waiters();
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.value.get().is_some()
    }

    /// Wakes all waiters without a value: each checks whether to give up.
    pub(crate) fn wake(&self) {
        self.wake.notify_waiters();
    }

    /// Waits for the value.
    pub(crate) async fn get(&self) -> &T {
        loop {
            if let Some(value) = self.get_unless(|| false).await {
                return value;
            }
        }
    }

    /// Waits for the value; returns `None` if `give_up` is true at the start or after a [`wake`](Self::wake).
    pub(crate) async fn get_unless(&self, give_up: impl Fn() -> bool) -> Option<&T> {
        loop {
            // Registered before the value is read, so that no wake-up is missed.
            let wake = self.wake.notified();
            if let Some(value) = self.value.get() {
                return Some(value);
            }
            if give_up() {
                return None;
            }
            wake.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};
    use std::task::{Context, Poll, Wake, Waker};
    use std::thread;

    use futures_util::FutureExt;

    use super::*;

    #[derive(Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counting() -> (Arc<WakeCount>, Waker) {
        let count = Arc::new(WakeCount::default());
        (Arc::clone(&count), Waker::from(count))
    }

    /// The work completes after the inner future has looked at it and before its poll returns. The clone that polls is
    /// dropped before it is polled again, as by a time-out. The other clone is then never woken.
    #[test]
    fn futures_shared_loses_a_wake_up() {
        let (done, waker) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new(None::<Waker>)));
        let (looked, completed) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let first = AtomicBool::new(true);
        let inner = {
            let (done, waker) = (Arc::clone(&done), Arc::clone(&waker));
            let (looked, completed) = (Arc::clone(&looked), Arc::clone(&completed));
            poll_fn(move |cx: &mut Context<'_>| {
                *waker.lock().unwrap() = Some(cx.waker().clone());
                let ready = done.load(Ordering::SeqCst);
                if first.swap(false, Ordering::SeqCst) {
                    looked.wait();
                    completed.wait();
                }
                if ready { Poll::Ready(7) } else { Poll::Pending }
            })
        };
        let polling = inner.shared();
        let mut waiting = polling.clone();
        let polled = thread::spawn(move || {
            let (_, waker) = counting();
            let mut polling = pin!(polling);
            // Pending, and dropped here.
            polling.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
        });
        looked.wait();
        // Another clone waits while the first one is still in its poll; then the work completes.
        let (woken, waiter) = counting();
        assert!(waiting.poll_unpin(&mut Context::from_waker(&waiter)).is_pending());
        done.store(true, Ordering::SeqCst);
        waker.lock().unwrap().take().unwrap().wake();
        let woken_at_completion = woken.0.load(Ordering::SeqCst);
        // Woken, the other clone is told that another clone is polling, and registers again.
        assert!(waiting.poll_unpin(&mut Context::from_waker(&waiter)).is_pending());
        completed.wait();
        assert!(polled.join().unwrap());
        assert_eq!(woken.0.load(Ordering::SeqCst), woken_at_completion, "not woken again though the work is done");
        assert_eq!(waiting.poll_unpin(&mut Context::from_waker(&waiter)), Poll::Ready(7), "and yet it is done");
    }

    /// The same order of events: the value is set while one waiter is in its poll, and that waiter is dropped.
    #[test]
    fn a_waiter_that_is_dropped_takes_no_wake_up_with_it() {
        let shared = Shared::new();
        let (woken, waker) = counting();
        let mut cx = Context::from_waker(&waker);
        let mut waiting = Box::pin(shared.get());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        {
            let mut dropped = Box::pin(shared.get_unless(|| {
                shared.set(7);
                false
            }));
            assert!(dropped.as_mut().poll(&mut cx).is_ready() || shared.is_set());
        }
        assert!(woken.0.load(Ordering::SeqCst) > 0);
        assert_eq!(waiting.as_mut().poll(&mut cx), Poll::Ready(&7));
    }
}
