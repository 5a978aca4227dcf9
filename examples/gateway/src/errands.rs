//! [`Errands`]: what goes on when its client has gone, and is waited for when the gateway stops.

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The errands under way: each holds a receiver, until what it came to is dropped.
#[derive(Debug, Default)]
pub(crate) struct Errands(watch::Sender<()>);

/// That an errand is under way.
#[derive(Debug)]
pub(crate) struct UnderWay {
    _receiver: watch::Receiver<()>,
}

impl Errands {
    /// Begins one in a task of its own. Should nobody wait for what it comes to, that is dropped before the errand counts
    /// as done: another that is begun by the drop is waited for too.
    pub(crate) fn begin<F>(&self, errand: F) -> JoinHandle<(F::Output, UnderWay)>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let under_way = UnderWay { _receiver: self.0.subscribe() };
        tokio::spawn(async move { (errand.await, under_way) })
    }

    /// The same, from where there may be no runtime any more: then it isn't begun.
    pub(crate) fn begin_if_running(&self, errand: impl Future<Output = ()> + Send + 'static) {
        if Handle::try_current().is_ok() {
            drop(self.begin(errand));
        }
    }

    /// Waits until none is under way.
    pub(crate) async fn done(&self) {
        self.0.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    /// Begins an errand when it is dropped.
    struct Begins(Arc<Errands>, oneshot::Receiver<()>, Arc<AtomicBool>);

    impl Drop for Begins {
        fn drop(&mut self) {
            let (gate, done) = (std::mem::replace(&mut self.1, oneshot::channel().1), self.2.clone());
            self.0.begin_if_running(async move {
                let _ = gate.await;
                done.store(true, Ordering::Relaxed);
            });
        }
    }

    #[tokio::test]
    async fn an_errand_that_another_leaves_behind_is_waited_for_too() {
        let (errands, done) = (Arc::<Errands>::default(), Arc::<AtomicBool>::default());
        errands.done().await;
        let (open, gate) = oneshot::channel();
        let left = Begins(errands.clone(), gate, done.clone());
        drop(errands.begin(async move { left }));
        let waiting = errands.done();
        tokio::pin!(waiting);
        for _ in 0..10 {
            tokio::select! {
                biased;
                () = &mut waiting => panic!("one is under way"),
                () = tokio::task::yield_now() => {}
            }
        }
        open.send(()).unwrap();
        waiting.await;
        assert!(done.load(Ordering::Relaxed));
    }
}
