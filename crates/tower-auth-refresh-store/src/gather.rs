//! Reads that are made at the same time, gathered so that they share one call: to the server, or to a thread that may
//! block.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::yield_now;
use tokio::time::timeout;

/// The reads that share a call to a server. Their answers arrive together: few enough that none waits for long.
const LARGEST: usize = 64;
/// The calls under way while which further reads are gathered: the server works on one, and has the next.
const TURNS: usize = 2;
/// The time for which reads are gathered. A call that takes longer holds up no other.
const PATIENCE: Duration = Duration::from_millis(5);

/// Reads of records by their keys `K`, each with an answer `A` or the error `E` of its call.
pub(crate) struct Gather<K, A, E> {
    /// The reads that are in no call yet.
    waiting: Mutex<VecDeque<Waiting<K, A, E>>>,
    turns: Arc<Semaphore>,
    largest: usize,
}

type Waiting<K, A, E> = (K, oneshot::Sender<Result<A, E>>);

impl<K, A, E> Default for Gather<K, A, E> {
    fn default() -> Self {
        Self::new(LARGEST, TURNS)
    }
}

impl<K, A, E> Gather<K, A, E> {
    /// `largest`: the reads that share a call. `turns`: the calls under way while which further reads are gathered.
    pub(crate) fn new(largest: usize, turns: usize) -> Self {
        Self { waiting: Mutex::default(), turns: Arc::new(Semaphore::new(turns)), largest }
    }
}

impl<K, A, E> fmt::Debug for Gather<K, A, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather").finish_non_exhaustive()
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
            let (sender, mut answer) = oneshot::channel();
            self.waiting().push_back((key.clone(), sender));
            // Tasks that are ready to run add their reads.
            yield_now().await;
            // Whichever comes first takes others with it: no read waits for a task that may not run again.
            let found = loop {
                if self.waiting().is_empty() {
                    break answer.await;
                }
                tokio::select! {
                    biased;
                    found = &mut answer => break found,
                    turn = timeout(PATIENCE, Arc::clone(&self.turns).acquire_owned()) => {
                        self.call(turn.ok().and_then(Result::ok), &read);
                    }
                }
            };
            // There is none if the runtime of the task has shut down: that need not be this caller's.
            if let Ok(found) = found {
                return found;
            }
        }
    }

    /// Makes a call for the reads that have waited longest.
    fn call<R>(&self, turn: Option<OwnedSemaphorePermit>, read: impl Fn(Vec<K>) -> R)
    where
        R: Future<Output = Result<Vec<A>, E>> + Send + 'static,
    {
        let mut waiting = self.waiting();
        let count = self.largest.min(waiting.len());
        let (keys, senders): (Vec<_>, Vec<_>) = waiting.drain(..count).unzip();
        drop(waiting);
        if keys.is_empty() {
            return;
        }
        let answers = read(keys);
        tokio::spawn(async move {
            let answers = answers.await;
            drop(turn);
            // A caller that was dropped needs no answer.
            match answers {
                Ok(answers) => {
                    senders.into_iter().zip(answers).for_each(|(sender, answer)| drop(sender.send(Ok(answer))));
                }
                Err(error) => senders.into_iter().for_each(|sender| drop(sender.send(Err(error.clone())))),
            }
        });
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting<K, A, E>>> {
        // Poisoning is ignored: nothing panics under this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, pending, ready};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::{join, join_all};
    use tokio::runtime::Builder;
    use tokio::time::{Instant, sleep};

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

    #[tokio::test(start_paused = true)]
    async fn reads_gather_while_calls_are_under_way_and_wait_for_none_that_is_slow() {
        let (gather, calls) = (Gather::<usize, usize, ()>::default(), AtomicUsize::new(0));
        let begun = Instant::now();
        let read = |length: u64| {
            let calls = &calls;
            move |keys: Vec<usize>| {
                calls.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(length)).map(|()| Ok(keys))
            }
        };
        // One after the other, so that each has a call: they take all turns.
        let (mut first, mut second) = (Box::pin(gather.read(0, read(3))), Box::pin(gather.read(1, read(1000))));
        for _ in 0..2 {
            assert!(futures_util::poll!(&mut first).is_pending());
        }
        for _ in 0..2 {
            assert!(futures_util::poll!(&mut second).is_pending());
        }
        assert_eq!(calls.load(Ordering::Relaxed), TURNS);
        // They wait for the first to end.
        let answers = join(first, join_all((2..9).map(|key| gather.read(key, read(1000))))).await;
        assert_eq!(answers, (Ok(0), (2..9).map(Ok).collect()));
        assert_eq!(calls.load(Ordering::Relaxed), TURNS + 1, "all share a call");
        assert!(begun.elapsed() < Duration::from_millis(1010));
        let slow = gather.read(9, read(1000));
        assert_eq!(join(slow, gather.read(10, read(1))).await, (Ok(9), Ok(10)));
        // Both turns are taken by calls that take a second.
        let mut taken: Vec<_> = (11..13).map(|key| Box::pin(gather.read(key, read(1000)))).collect();
        for read in &mut taken {
            for _ in 0..2 {
                assert!(futures_util::poll!(&mut *read).is_pending());
            }
        }
        let begun = Instant::now();
        assert_eq!(gather.read(13, read(1)).await, Ok(13));
        assert!(begun.elapsed() < Duration::from_millis(10), "{:?}", begun.elapsed());
        drop(second);
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
        let [ends, stays] = std::array::from_fn(|_| Builder::new_current_thread().enable_time().build().unwrap());
        let mut taken = Box::pin(gather.read(1, |_| pending::<Result<Vec<usize>, ()>>()));
        ends.block_on(async { assert!(futures_util::poll!(&mut taken).is_pending()) });
        let mut waits = Box::pin(gather.read(2, |keys| ready(Ok(keys))));
        stays.block_on(async { assert!(futures_util::poll!(&mut waits).is_pending()) });
        ends.block_on(async { assert!(futures_util::poll!(&mut taken).is_pending()) });
        drop(ends);
        assert_eq!(stays.block_on(waits), Ok(2));
    }
}
