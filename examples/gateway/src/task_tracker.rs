//! [`TaskTracker`]: tasks that outlive their request and are awaited at shutdown.

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Tracks tasks until their outputs are dropped.
///
/// Unlike `tokio_util`'s tracker, which counts a task until its future ends: the drop of an output may spawn the next
/// task. Each task holds a receiver of the channel.
#[derive(Debug, Default)]
pub(crate) struct TaskTracker(watch::Sender<()>);

/// Keeps a task counted as running.
#[derive(Debug)]
pub(crate) struct TaskGuard {
    _receiver: watch::Receiver<()>,
}

impl TaskTracker {
    /// Spawns a tracked task.
    ///
    /// If the handle is dropped, the output is dropped before the guard: a task that the drop spawns is awaited too.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<(F::Output, TaskGuard)>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let guard = TaskGuard { _receiver: self.0.subscribe() };
        tokio::spawn(async move { (task.await, guard) })
    }

    /// Spawns a tracked task and detaches it. Outside of a runtime, drops the task instead.
    pub(crate) fn spawn_detached(&self, task: impl Future<Output = ()> + Send + 'static) {
        if Handle::try_current().is_ok() {
            drop(self.spawn(task));
        }
    }

    /// Waits until no task is running.
    pub(crate) async fn wait_idle(&self) {
        self.0.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    /// Spawns a task on drop.
    struct SpawnOnDrop(Arc<TaskTracker>, oneshot::Receiver<()>, Arc<AtomicBool>);

    impl Drop for SpawnOnDrop {
        fn drop(&mut self) {
            let (gate, done) = (std::mem::replace(&mut self.1, oneshot::channel().1), self.2.clone());
            self.0.spawn_detached(async move {
                let _ = gate.await;
                done.store(true, Ordering::Relaxed);
            });
        }
    }

    #[tokio::test]
    async fn a_task_spawned_by_the_drop_of_an_output_is_awaited() {
        let (tasks, done) = (Arc::<TaskTracker>::default(), Arc::<AtomicBool>::default());
        tasks.wait_idle().await;
        let (open, gate) = oneshot::channel();
        let output = SpawnOnDrop(tasks.clone(), gate, done.clone());
        drop(tasks.spawn(async move { output }));
        let idle = tasks.wait_idle();
        tokio::pin!(idle);
        for _ in 0..10 {
            tokio::select! {
                biased;
                () = &mut idle => panic!("a task is still running"),
                () = tokio::task::yield_now() => {}
            }
        }
        open.send(()).unwrap();
        idle.await;
        assert!(done.load(Ordering::Relaxed));
    }
}
