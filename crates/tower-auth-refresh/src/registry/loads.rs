//! The loads that begin at the same time, which share a task: after a restart there are many, and a task for each would
//! cost as much as the rest of the load.
//!
//! The first load starts the task, which lets the callers that are ready to run begin theirs. The task polls each load
//! by itself, so that one that waits or panics holds up no other.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::runtime::Handle;
use tokio::task::yield_now;

use super::Found;
use crate::session::SessionError;
use crate::shared::Shared;

/// The loads of one task: few enough that the other threads get some.
const LARGEST: usize = 64;

/// The loads that no task has taken yet. While there are some, there is a task that will take or drop them.
#[derive(Default)]
pub(super) struct BegunLoads(Mutex<VecDeque<LoadTask>>);

/// A load, which answers its waiters with an error if it is dropped before it has found anything.
pub(super) struct LoadTask {
    load: BoxFuture<'static, Found>,
    found: Arc<Shared<Found>>,
}

impl BegunLoads {
    /// Runs a load to its end, unless the runtime shuts down before.
    pub(super) fn run(self: &Arc<Self>, runtime: &Handle, load: LoadTask) {
        let mut begun = self.lock();
        begun.push_back(load);
        let is_first = begun.len() == 1;
        drop(begun);
        if is_first {
            runtime.spawn(Runner(Some(Arc::clone(self))).run());
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<LoadTask>> {
        // Poisoning is ignored: nothing panics under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LoadTask {
    pub(super) fn new(load: BoxFuture<'static, Found>, found: Arc<Shared<Found>>) -> Self {
        Self { load, found }
    }
}

impl Future for LoadTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // A load that has panicked isn't polled again.
        let polled = catch_unwind(AssertUnwindSafe(|| self.load.poll_unpin(cx)));
        if let Ok(polled) = polled {
            let found = ready!(polled);
            self.found.set(found);
        }
        Poll::Ready(())
    }
}

impl Drop for LoadTask {
    fn drop(&mut self) {
        if !self.found.is_set() {
            self.found.set(Err(SessionError::runtime("the task that loads the session is gone").into()));
        }
    }
}

/// The task of the loads that have begun. `None`: it has taken them.
struct Runner(Option<Arc<BegunLoads>>);

impl Runner {
    async fn run(mut self) {
        // Tasks that are ready to run add their loads.
        yield_now().await;
        let mut loads: FuturesUnordered<_> = self.take().into_iter().collect();
        while loads.next().await.is_some() {}
    }

    /// Takes the loads that have waited longest, and leaves the others to another task.
    fn take(&mut self) -> Vec<LoadTask> {
        let Some(begun) = self.0.take() else { return Vec::new() };
        let mut loads = begun.lock();
        let count = LARGEST.min(loads.len());
        let taken = loads.drain(..count).collect();
        let is_last = loads.is_empty();
        drop(loads);
        if !is_last {
            tokio::spawn(Self(Some(begun)).run());
        }
        taken
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Some(begun) = self.0.take() {
            let loads = mem::take(&mut *begun.lock());
            // Not under the lock: their waiters are woken.
            drop(loads);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::runtime::Builder;
    use tokio::sync::oneshot;

    use super::*;

    fn load(load: impl Future<Output = Found> + Send + 'static) -> (LoadTask, Arc<Shared<Found>>) {
        let found = Arc::new(Shared::new());
        (LoadTask::new(load.boxed(), Arc::clone(&found)), found)
    }

    #[tokio::test]
    async fn a_load_that_waits_or_panics_holds_up_no_other_of_its_task() {
        let (begun, runtime) = (Arc::new(BegunLoads::default()), Handle::current());
        let (end, ended) = oneshot::channel();
        let (waits, late) = load(async { ended.await.map_or(Ok(None), |()| Ok(None)) });
        let (panics, failed) = load(async { panic!("in a load") });
        let (last, found) = load(async { Ok(None) });
        for task in [waits, panics, last] {
            begun.run(&runtime, task);
        }
        assert!(found.get().await.as_ref().is_ok_and(Option::is_none));
        assert_eq!(runtime.metrics().num_alive_tasks(), 1, "the load that waits");
        let error = failed.get().await.as_ref().err().map(ToString::to_string);
        assert!(error.is_some_and(|error| error.contains("runtime")), "answered");
        assert!(!late.is_set());
        end.send(()).unwrap();
        assert!(late.get().await.is_ok());
    }

    #[tokio::test]
    async fn each_task_takes_a_bounded_number_of_the_loads_of_one_moment() {
        let (begun, runtime) = (Arc::new(BegunLoads::default()), Handle::current());
        for _ in 0..=2 * LARGEST {
            begun.run(&runtime, load(pending()).0);
        }
        assert_eq!(runtime.metrics().num_alive_tasks(), 1);
        // As the last load of a later task, it is begun after the others.
        let (last, found) = load(async { Ok(None) });
        begun.run(&runtime, last);
        assert!(found.get().await.is_ok());
        assert_eq!(runtime.metrics().num_alive_tasks(), 3);
    }

    #[test]
    fn loads_whose_runtime_has_shut_down_are_answered_with_an_error() {
        let runtime = Builder::new_current_thread().build().unwrap();
        let (begun, handle) = (Arc::new(BegunLoads::default()), runtime.handle().clone());
        let (before, first) = load(pending());
        let (beside, second) = load(pending());
        begun.run(&handle, before);
        begun.run(&handle, beside);
        drop(runtime);
        let (after, third) = load(pending());
        begun.run(&handle, after);
        for found in [first, second, third] {
            assert!(found.get().now_or_never().is_some_and(Result::is_err));
        }
    }
}
