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
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

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

    /// A task that counts its wake-ups.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "a thread hangs");
            std::thread::yield_now();
        }
    }

    /// The wake-up knows the last task only. It comes when the next one polls already, and has not registered yet.
    #[test]
    fn a_wake_up_during_a_change_of_the_task_is_seen_by_the_next_one() {
        let polls = Arc::new(AtomicUsize::new(0));
        let mut future = Box::pin(OnWake::new({
            let polls = polls.clone();
            poll_fn(move |_| {
                polls.fetch_add(1, Ordering::SeqCst);
                Poll::<()>::Pending
            })
        }));
        let (last, next) = (Arc::new(Task::default()), Arc::new(Task::default()));
        assert!(future.as_mut().poll(&mut Context::from_waker(&last.clone().into())).is_pending());
        let alarm = future.alarm.clone();
        // Both threads stop here.
        let registering = alarm.task();
        let polling = std::thread::spawn({
            let next = next.clone();
            move || future.as_mut().poll(&mut Context::from_waker(&next.into())).is_pending()
        });
        // The test, the context of the poll, and the future have it.
        wait_until(|| Arc::strong_count(&next) == 3);
        let waking = std::thread::spawn({
            let alarm = alarm.clone();
            move || alarm.wake()
        });
        wait_until(|| alarm.is_woken.load(Ordering::SeqCst));
        assert_eq!(polls.load(Ordering::SeqCst), 1);
        drop(registering);
        assert!(polling.join().unwrap());
        waking.join().unwrap();
        assert_eq!(polls.load(Ordering::SeqCst), 2, "the wake-up is lost");
        // Whichever was registered when the wake-up looked.
        assert_eq!(last.0.load(Ordering::SeqCst) + next.0.load(Ordering::SeqCst), 1);
    }

    /// The other order: the next task has registered and found nothing.
    #[test]
    fn a_wake_up_after_a_change_of_the_task_wakes_the_next_one_alone() {
        let mut future = pin!(OnWake::new(std::future::pending::<()>()));
        let (last, next) = (Arc::new(Task::default()), Arc::new(Task::default()));
        for task in [&last, &next] {
            assert!(future.as_mut().poll(&mut Context::from_waker(&task.clone().into())).is_pending());
        }
        future.alarm.clone().wake();
        assert_eq!((last.0.load(Ordering::SeqCst), next.0.load(Ordering::SeqCst)), (0, 1));
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
