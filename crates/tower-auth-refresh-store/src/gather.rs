//! Reads that are made at the same time, gathered so that they share one call to the server.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::task::yield_now;

/// The reads that share a call. Their answers arrive together: few enough that none waits for long.
const LARGEST: usize = 32;

/// Reads of records by their keys `K`, each with an answer `A` or the error `E` of its call.
pub(crate) struct Gather<K, A, E> {
    /// The reads that are in no call yet.
    waiting: Mutex<Vec<Waiting<K, A, E>>>,
}

type Waiting<K, A, E> = (K, oneshot::Sender<Result<A, E>>);

impl<K, A, E> Default for Gather<K, A, E> {
    fn default() -> Self {
        Self { waiting: Mutex::default() }
    }
}

impl<K: Clone, A: Send + 'static, E: Clone + Send + 'static> Gather<K, A, E> {
    /// Reads the record of a key. `read` returns an answer for each key, in their order. It runs in a task, so that no caller
    /// that is dropped takes the answers of others with it.
    ///
    /// The call begins after this one, so that it finds what was written before.
    pub(crate) async fn read<R>(&self, key: K, read: impl Fn(Vec<K>) -> R) -> Result<A, E>
    where
        R: Future<Output = Result<Vec<A>, E>> + Send + 'static,
    {
        loop {
            let (sender, answer) = oneshot::channel();
            self.waiting().push((key.clone(), sender));
            // Tasks that are ready to run add their reads.
            yield_now().await;
            // Whichever comes first takes all, its own included: no read waits for a task that may not run again.
            let mut waiting = std::mem::take(&mut *self.waiting());
            while !waiting.is_empty() {
                let rest = waiting.split_off(LARGEST.min(waiting.len()));
                let (keys, senders): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
                let answers = read(keys);
                tokio::spawn(async move {
                    // A caller that was dropped needs no answer.
                    match answers.await {
                        Ok(answers) => {
                            senders.into_iter().zip(answers).for_each(|(sender, answer)| drop(sender.send(Ok(answer))));
                        }
                        Err(error) => senders.into_iter().for_each(|sender| drop(sender.send(Err(error.clone())))),
                    }
                });
                waiting = rest;
            }
            // There is none if the runtime of the task has shut down: that need not be this caller's.
            if let Ok(answer) = answer.await {
                return answer;
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting<K, A, E>>> {
        // Poisoning is ignored: nothing panics under this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, pending, ready};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::runtime::Builder;

    use super::*;

    /// Counts the calls, and answers each key with its double and the number of keys of its call.
    #[derive(Default)]
    struct Server(AtomicUsize);

    impl Server {
        fn read(&self, keys: Vec<usize>) -> Ready<Result<Vec<(usize, usize)>, &'static str>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let count = keys.len();
            ready(Ok(keys.into_iter().map(|key| (2 * key, count)).collect()))
        }
    }

    #[tokio::test]
    async fn reads_of_one_moment_share_calls_of_bounded_size_and_get_their_own_answers() {
        let (gather, server) = (Gather::default(), Server::default());
        let answers = join_all((0..=2 * LARGEST).map(|key| gather.read(key, |keys| server.read(keys)))).await;
        for (key, answer) in answers.into_iter().enumerate() {
            let shares = if key < 2 * LARGEST { LARGEST } else { 1 };
            assert_eq!(answer, Ok((2 * key, shares)));
        }
        assert_eq!(server.0.load(Ordering::Relaxed), 3);
        assert_eq!(gather.read(7, |keys| server.read(keys)).await, Ok((14, 1)), "a read alone waits for no other");
    }

    #[tokio::test]
    async fn a_caller_that_is_dropped_leaves_the_reads_of_others_to_be_made() {
        let (gather, server) = (Gather::default(), Server::default());
        let mut dropped = Box::pin(gather.read(1, |keys| server.read(keys)));
        assert!(futures_util::poll!(&mut dropped).is_pending());
        let kept = gather.read(2, |keys| server.read(keys));
        let mut kept = Box::pin(kept);
        assert!(futures_util::poll!(&mut kept).is_pending());
        // Takes both reads, and is dropped before they are answered.
        assert!(futures_util::poll!(&mut dropped).is_pending());
        drop(dropped);
        assert_eq!(kept.await, Ok((4, 2)));
    }

    #[tokio::test]
    async fn a_call_that_fails_fails_all_its_reads() {
        let gather = Gather::<usize, (), _>::default();
        let answers = join_all((0..3).map(|key| gather.read(key, |_| ready(Err("down"))))).await;
        assert_eq!(answers, [Err("down"); 3]);
    }

    #[test]
    fn a_read_whose_task_ends_with_another_runtime_is_made_again() {
        let gather = Arc::new(Gather::default());
        let [ends, stays] = std::array::from_fn(|_| Builder::new_current_thread().build().unwrap());
        let mut taken = Box::pin(gather.read(1, |_| pending::<Result<Vec<usize>, ()>>()));
        ends.block_on(async { assert!(futures_util::poll!(&mut taken).is_pending()) });
        let mut waits = Box::pin(gather.read(2, |keys| ready(Ok(keys))));
        stays.block_on(async { assert!(futures_util::poll!(&mut waits).is_pending()) });
        ends.block_on(async { assert!(futures_util::poll!(&mut taken).is_pending()) });
        drop(ends);
        assert_eq!(stays.block_on(waits), Ok(2));
    }
}
