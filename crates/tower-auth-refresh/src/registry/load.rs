//! A load of a session: in the task of its first caller, where it costs no task of its own. Once another caller waits for
//! it, or the first is dropped, it goes on in a task of the registry's: a caller that isn't polled holds up no other.
//!
//! The registry [gives up](Load::give_up) the loads that take too long: a timer for each would cost as much as a task.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::task::{Context, Poll, Waker, ready};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either, select};
use tokio::runtime::Handle;

use super::Found;
use crate::session::SessionError;
use crate::shared::Shared;

/// The end of a load. `None`: what it has read is out of date.
pub(super) type Ended = Option<Found>;

pub(super) struct Load {
    /// `None`: in a task of its own, or over. Held only to poll or to take it, and never waited for.
    own: Mutex<Option<Own>>,
    /// `true` if a caller beside the first waits.
    is_shared: AtomicBool,
    ended: Shared<Ended>,
}

/// A load in the task of its first caller.
struct Own {
    future: BoxFuture<'static, Ended>,
    /// That of the first caller, which is told when the load is taken.
    waker: Option<Waker>,
}

impl Load {
    pub(super) fn new(future: BoxFuture<'static, Ended>) -> Self {
        Self {
            own: Mutex::new(Some(Own { future, waker: None })),
            is_shared: AtomicBool::new(false),
            ended: Shared::new(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended.is_set()
    }

    /// Runs the load to its end, for its first caller. If that is dropped, it runs on in a task.
    pub(super) fn run(self: Arc<Self>, runtime: &Handle) -> Caller<'_> {
        Caller { load: self, runtime, waits: None }
    }

    /// Waits for the end of the load, which runs in a task from now on.
    pub(super) fn join(self: Arc<Self>, runtime: &Handle) -> Caller<'_> {
        self.is_shared.store(true, Ordering::Relaxed);
        // Pairs with the fence in `poll`: if the load is being polled, that call sees the mark once it is done.
        fence(Ordering::SeqCst);
        self.run_on(runtime);
        let waits = Some(Arc::clone(&self).wait().boxed());
        Caller { load: self, runtime, waits }
    }

    /// Ends the load before its time, for all its callers.
    pub(super) fn give_up(&self, ended: Ended) {
        self.ended.set(ended);
        // Pairs with the fence in `poll`, as in `join`.
        fence(Ordering::SeqCst);
        let rest = self.own().and_then(|mut own| own.take());
        if let Some(Own { future, waker }) = rest {
            if let Some(waker) = waker {
                waker.wake();
            }
            drop(future);
        }
    }

    async fn wait(self: Arc<Self>) -> Ended {
        self.ended.get().await.clone()
    }

    /// Polls the load for its first caller. Returns `None` if it runs in a task, or was given up.
    fn poll(self: &Arc<Self>, cx: &mut Context<'_>, runtime: &Handle) -> Poll<Option<Ended>> {
        // If it isn't free, it is being taken.
        let Some(mut own) = self.own() else { return Poll::Ready(None) };
        let Some(Own { future, waker }) = &mut *own else { return Poll::Ready(None) };
        let polled = {
            // The caller's runtime may be another.
            let _context = runtime.enter();
            poll_once(future, cx)
        };
        let Poll::Ready(ended) = polled else {
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            drop(own);
            fence(Ordering::SeqCst);
            if self.is_over() {
                drop(self.own().and_then(|mut own| own.take()));
                return Poll::Ready(None);
            }
            if self.is_shared.load(Ordering::Relaxed) {
                self.run_on(runtime);
                return Poll::Ready(None);
            }
            return Poll::Pending;
        };
        let over = own.take();
        drop(own);
        self.ended.set(ended.clone());
        drop(over);
        Poll::Ready(Some(ended))
    }

    /// Has what is left of the load run in a task.
    pub(super) fn run_on(self: &Arc<Self>, runtime: &Handle) {
        let rest = self.own().and_then(|mut own| own.take());
        if let Some(Own { future, waker }) = rest {
            runtime.spawn(run_in_task(future, Answers(Arc::clone(self))));
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn own(&self) -> Option<MutexGuard<'_, Option<Own>>> {
        match self.own.try_lock() {
            Ok(own) => Some(own),
            // A foreign waker may panic in its `Clone`: the load goes on.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Polls a load. One that panics has failed, and isn't polled again.
fn poll_once(load: &mut BoxFuture<'static, Ended>, cx: &mut Context<'_>) -> Poll<Ended> {
    let polled = catch_unwind(AssertUnwindSafe(|| load.poll_unpin(cx)));
    polled.unwrap_or_else(|_panic| Poll::Ready(Some(Err(gone().into()))))
}

pub(super) fn gone() -> SessionError {
    SessionError::runtime("the task that loads the session is gone")
}

/// A caller of a load.
pub(super) struct Caller<'a> {
    load: Arc<Load>,
    runtime: &'a Handle,
    /// `None`: the first caller, in whose task the load runs.
    waits: Option<BoxFuture<'static, Ended>>,
}

impl Future for Caller<'_> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self { load, runtime, waits } = &mut *self;
        if waits.is_none()
            && let Some(ended) = ready!(load.poll(cx, runtime))
        {
            return Poll::Ready(ended);
        }
        waits.get_or_insert_with(|| Arc::clone(load).wait().boxed()).poll_unpin(cx)
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.waits.is_none() {
            self.load.run_on(self.runtime);
        }
    }
}

/// Runs the rest of a load, until it ends or is given up.
async fn run_in_task(mut rest: BoxFuture<'static, Ended>, answers: Answers) {
    let rest = poll_fn(|cx| poll_once(&mut rest, cx));
    if let Either::Left((ended, _)) = select(rest, pin!(answers.0.ended.get())).await {
        answers.0.ended.set(ended);
    }
}

/// The duty of a load's task: if it is dropped before its end, the callers get an error.
struct Answers(Arc<Load>);

impl Drop for Answers {
    fn drop(&mut self) {
        if !self.0.is_over() {
            self.0.ended.set(Some(Err(gone().into())));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::oneshot;

    use super::*;

    fn load(load: impl Future<Output = Ended> + Send + 'static) -> Arc<Load> {
        Arc::new(Load::new(load.boxed()))
    }

    /// Returns a load that ends once it is told to.
    fn gated() -> (Arc<Load>, oneshot::Sender<()>) {
        let (end, ended) = oneshot::channel();
        (load(async { ended.await.map_or(None, |()| Some(Ok(None))) }), end)
    }

    fn is_none(ended: &Ended) -> bool {
        matches!(ended, Some(Ok(None)))
    }

    fn is_gone(ended: &Ended) -> bool {
        matches!(ended, Some(Err(error)) if error.to_string().contains("runtime"))
    }

    fn tasks(runtime: &Handle) -> usize {
        runtime.metrics().num_alive_tasks()
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().build().unwrap()
    }

    #[tokio::test]
    async fn the_load_of_one_caller_takes_no_task() {
        let runtime = Handle::current();
        let (load, end) = gated();
        let mut caller = Box::pin(load.run(&runtime));
        assert!((&mut caller).now_or_never().is_none());
        assert_eq!(tasks(&runtime), 0);
        end.send(()).unwrap();
        assert!(is_none(&caller.await));
        assert_eq!(tasks(&runtime), 0);
    }

    #[tokio::test]
    async fn a_first_caller_that_is_not_polled_holds_up_no_other() {
        let runtime = Handle::current();
        let (load, end) = gated();
        let mut first = Box::pin(Arc::clone(&load).run(&runtime));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(Arc::clone(&load).join(&runtime));
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(tasks(&runtime), 1);
        end.send(()).unwrap();
        assert!(is_none(&second.await));
        assert!(is_none(&first.await));
    }

    #[tokio::test]
    async fn the_first_caller_is_woken_when_another_has_taken_the_load() {
        let runtime = Handle::current();
        let (load, end) = gated();
        let first = tokio::spawn({
            let (load, runtime) = (Arc::clone(&load), runtime.clone());
            async move { load.run(&runtime).await }
        });
        tokio::task::yield_now().await;
        let mut second = Box::pin(load.join(&runtime));
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(tasks(&runtime), 2);
        end.send(()).unwrap();
        assert!(is_none(&second.await));
        assert!(is_none(&first.await.unwrap()));
    }

    #[tokio::test]
    async fn the_load_of_a_caller_that_is_dropped_runs_on() {
        let runtime = Handle::current();
        let (load, end) = gated();
        let mut first = Box::pin(Arc::clone(&load).run(&runtime));
        assert!((&mut first).now_or_never().is_none());
        drop(first);
        assert_eq!(tasks(&runtime), 1);
        end.send(()).unwrap();
        assert!(is_none(&load.join(&runtime).await));
    }

    #[tokio::test]
    async fn a_caller_that_comes_while_the_load_is_polled_has_it_run_in_a_task() {
        let runtime = Handle::current();
        let (itself, joins) = (Arc::new(OnceLock::<Arc<Load>>::new()), runtime.clone());
        let (found, has_found) = oneshot::channel();
        let begun = load({
            let itself = Arc::clone(&itself);
            async move {
                let second = joins.clone();
                let mut second = Box::pin(Arc::clone(itself.get().unwrap()).join(&second));
                assert!((&mut second).now_or_never().is_none(), "it waits, and not for the lock");
                assert_eq!(tasks(&joins), 0);
                has_found.await.map_or(None, |()| Some(Ok(None)))
            }
        });
        itself.set(Arc::clone(&begun)).ok().unwrap();
        let mut first = Box::pin(begun.run(&runtime));
        assert!((&mut first).now_or_never().is_none());
        assert_eq!(tasks(&runtime), 1);
        found.send(()).unwrap();
        assert!(is_none(&first.await));
    }

    #[tokio::test]
    async fn a_load_that_panics_answers_all_its_callers_with_an_error() {
        let runtime = Handle::current();
        let panics = load(async { panic!("in a load") });
        assert!(is_gone(&Arc::clone(&panics).run(&runtime).await));
        assert!(is_gone(&panics.join(&runtime).await));
        let (end, ended) = oneshot::channel::<()>();
        let panics = load(async {
            let _ = ended.await;
            panic!("in a load")
        });
        let mut first = Box::pin(Arc::clone(&panics).run(&runtime));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(panics.join(&runtime));
        assert!((&mut second).now_or_never().is_none());
        drop(end);
        assert!(is_gone(&second.await) && is_gone(&first.await));
    }

    #[test]
    fn a_load_whose_runtime_has_shut_down_answers_its_callers_with_an_error() {
        let (home, other) = (runtime(), runtime());
        let handle = home.handle().clone();
        let [(shared, _keep), (late, _end)] = [gated(), gated()];
        other.block_on(async {
            let mut first = Box::pin(Arc::clone(&shared).run(&handle));
            assert!((&mut first).now_or_never().is_none());
            let mut second = Box::pin(shared.join(&handle));
            assert!((&mut second).now_or_never().is_none());
            let mut alone = Box::pin(Arc::clone(&late).run(&handle));
            assert!((&mut alone).now_or_never().is_none());
            // Elsewhere, since a runtime must not be dropped within another.
            std::thread::spawn(move || drop(home)).join().unwrap();
            assert!(is_gone(&first.await) && is_gone(&second.await));
            drop(alone);
            assert!(is_gone(&late.join(&handle).await));
        });
    }

    #[test]
    fn a_load_is_polled_in_the_context_of_its_registrys_runtime() {
        let (home, other) = (runtime(), runtime());
        let spawns = load(async {
            drop(tokio::spawn(std::future::pending::<()>()));
            Some(Ok(None))
        });
        assert!(is_none(&other.block_on(spawns.run(home.handle()))));
        assert_eq!([tasks(home.handle()), tasks(other.handle())], [1, 0]);
        let outside = load(async { Handle::try_current().map_or(None, |_| Some(Ok(None))) });
        assert!(outside.run(home.handle()).now_or_never().is_some_and(|ended| is_none(&ended)));
    }
}
