//! [`OnWake`]: polls a future only when that future itself has been woken.
//!
//! A connection's task is woken for each request, by the client and by the upstream. Beside hyper it waits for timers,
//! limits and the shutdown, and would look at all of them each time.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use pin_project_lite::pin_project;

pin_project! {
    /// A future that is polled only when it has been woken.
    pub(super) struct OnWake<F> {
        #[pin]
        future: F,
        alarm: Arc<Alarm>,
        waker: Waker,
        // The task that the alarm wakes. Compared at each poll, which is cheaper than to register it.
        task: Waker,
    }
}

/// The state behind the waker of the future.
struct Alarm {
    is_woken: AtomicBool,
    task: Mutex<Waker>,
}

impl<F> OnWake<F> {
    pub(super) fn new(future: F) -> Self {
        let task = Waker::noop().clone();
        let alarm = Arc::new(Alarm { is_woken: AtomicBool::new(true), task: Mutex::new(task.clone()) });
        let waker = alarm.clone().into();
        Self { future, alarm, waker, task }
    }
}

impl<F: Future> Future for OnWake<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // First the task, then the flag: a wake-up in between finds one of them.
        if !this.task.will_wake(cx.waker()) {
            this.task.clone_from(cx.waker());
            this.alarm.task().clone_from(cx.waker());
        }
        if !this.alarm.is_woken.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        this.alarm.is_woken.swap(false, Ordering::AcqRel);
        this.future.poll(&mut Context::from_waker(this.waker))
    }
}

impl Alarm {
    fn task(&self) -> MutexGuard<'_, Waker> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        let task = self.task().clone();
        task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;

    use futures_util::task::noop_waker;
    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn a_future_is_polled_once_for_each_time_that_it_is_woken() {
        let (polls, own) = (Cell::new(0), Cell::new(None::<Waker>));
        let mut future = pin!(OnWake::new(poll_fn(|cx| {
            polls.set(polls.get() + 1);
            own.set(Some(cx.waker().clone()));
            if polls.get() < 3 { Poll::Pending } else { Poll::Ready(()) }
        })));
        let waker = noop_waker();
        let mut poll = || future.as_mut().poll(&mut Context::from_waker(&waker));
        for expected in [1, 2] {
            for _ in 0..3 {
                assert!(poll().is_pending());
            }
            assert_eq!(polls.get(), expected);
            own.take().unwrap().wake();
        }
        assert!(poll().is_ready());
        assert_eq!(polls.get(), 3);
    }

    #[test]
    fn a_future_that_wakes_itself_is_polled_again() {
        let mut left = 3;
        let mut future = pin!(OnWake::new(poll_fn(|cx| {
            left -= 1;
            cx.waker().wake_by_ref();
            if left > 0 { Poll::Pending } else { Poll::Ready(()) }
        })));
        let waker = noop_waker();
        let mut polls = 1;
        while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            polls += 1;
        }
        assert_eq!(polls, 3);
    }

    /// The task may be another one at each poll, as in `select!` after a move.
    #[tokio::test]
    async fn a_wake_up_reaches_the_task_that_polled_last() {
        let notify = Arc::new(Notify::new());
        let mut future = Box::pin(OnWake::new({
            let notify = notify.clone();
            async move { notify.notified().await }
        }));
        assert!(future.as_mut().poll(&mut Context::from_waker(&noop_waker())).is_pending());
        let waiting = tokio::spawn(future);
        tokio::task::yield_now().await;
        notify.notify_one();
        waiting.await.unwrap();
    }
}
