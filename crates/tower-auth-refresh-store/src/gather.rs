//! Reads that are made at the same time, gathered so that they share one call: to the server, or to a thread that may
//! block.
//!
//! The first read starts a task, which lets the callers that are ready to run add theirs, and makes the call for all.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

/// The time for which reads are gathered. A call that takes longer holds up no other.
const PATIENCE: Duration = Duration::from_millis(5);

/// Reads of records by their keys `K`, each with an answer `A` or the error `E` of its call.
pub(crate) struct Gather<K, A, E>(Arc<Shared<K, A, E>>);

struct Shared<K, A, E> {
    queue: Mutex<Queue<K, A, E>>,
    /// The reads that share a call.
    largest: usize,
    /// The calls under way while which further reads are gathered.
    turns: usize,
}

struct Queue<K, A, E> {
    /// The reads that are in no call yet.
    waiting: VecDeque<Waiting<K, A, E>>,
    /// The calls under way, by their numbers and beginnings.
    calls: Vec<(u64, Instant)>,
    /// The number of the last call.
    last: u64,
    /// The time at which a task was started that is about to take reads.
    gathering: Option<Instant>,
}

type Waiting<K, A, E> = (K, oneshot::Sender<Result<A, E>>);

impl<K, A, E> Gather<K, A, E> {
    /// `largest`: the reads that share a call. `turns`: the calls under way while which further reads are gathered.
    pub(crate) fn new(largest: usize, turns: usize) -> Self {
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), calls: Vec::new(), last: 0, gathering: None });
        Self(Arc::new(Shared { queue, largest, turns }))
    }
}

impl<K, A, E> fmt::Debug for Gather<K, A, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather").finish_non_exhaustive()
    }
}

impl<K, A, E> Gather<K, A, E>
where
    K: Clone + Send + 'static,
    A: Send + 'static,
    E: Clone + Send + 'static,
{
    /// Reads the record of a key. `reader` returns the function that makes a call, or fails if there is no runtime. The call
    /// returns an answer for each key, in their order. It is made in a task, so that no caller that is dropped takes the
    /// answers of others with it.
    ///
    /// The call begins after this one, so that it finds what was written before.
    pub(crate) async fn read<F, R>(&self, key: K, reader: impl Fn() -> Result<F, E>) -> Result<A, E>
    where
        F: Fn(Vec<K>) -> R + Clone + Send + 'static,
        R: Future<Output = Result<Vec<A>, E>> + Send + 'static,
    {
        loop {
            let (sender, answer) = oneshot::channel();
            if self.0.add(key.clone(), sender) {
                let turn = Turn::new(Arc::clone(&self.0));
                start(turn, reader()?);
            }
            // There is none if the runtime of the task has shut down: that need not be this caller's.
            if let Ok(found) = answer.await {
                return found;
            }
        }
    }
}

impl<K, A, E> Shared<K, A, E> {
    /// Adds a read. Returns `true` if the caller is to start a task.
    fn add(&self, key: K, sender: oneshot::Sender<Result<A, E>>) -> bool {
        let mut queue = self.queue();
        queue.waiting.push_back((key, sender));
        queue.begins_to_gather(self.turns)
    }

    /// Takes the reads that have waited longest, for a call. Returns also the number of the call, and whether a task is to be
    /// started for the others.
    fn take(&self) -> (Vec<Waiting<K, A, E>>, u64, bool) {
        let mut queue = self.queue();
        queue.gathering = None;
        queue.last += 1;
        let number = queue.last;
        let count = self.largest.min(queue.waiting.len());
        let taken: Vec<_> = queue.waiting.drain(..count).collect();
        if !taken.is_empty() {
            queue.calls.push((number, Instant::now()));
        }
        let is_next = queue.begins_to_gather(self.turns);
        (taken, number, is_next)
    }

    /// Ends the time in which others wait for a call. Returns `true` if a task is to be started for them.
    fn end_turn(&self, call: u64) -> bool {
        let mut queue = self.queue();
        queue.calls.retain(|(number, _)| *number != call);
        queue.begins_to_gather(self.turns)
    }

    fn queue(&self) -> MutexGuard<'_, Queue<K, A, E>> {
        // Poisoning is ignored: nothing panics under this lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, A, E> Queue<K, A, E> {
    /// Returns `true` if a task is to be started for the reads that wait. What has begun too long ago isn't waited for: it may
    /// be a task of a runtime that isn't driven.
    fn begins_to_gather(&mut self, turns: usize) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let now = Instant::now();
        let is_recent = |begun: Instant| now.saturating_duration_since(begun) <= PATIENCE;
        if self.gathering.is_some_and(is_recent) {
            return false;
        }
        self.calls.retain(|(_, begun)| is_recent(*begun));
        let begins = self.calls.len() < turns;
        if begins {
            self.gathering = Some(now);
        }
        begins
    }
}

/// Starts a task that makes a call for the reads that wait.
fn start<K, A, E, F, R>(mut turn: Turn<K, A, E>, read: F)
where
    K: Send + 'static,
    A: Send + 'static,
    E: Clone + Send + 'static,
    F: Fn(Vec<K>) -> R + Clone + Send + 'static,
    R: Future<Output = Result<Vec<A>, E>> + Send + 'static,
{
    tokio::spawn(async move {
        // Tasks that are ready to run add their reads.
        yield_now().await;
        let (taken, is_next) = turn.begin();
        if is_next && let Some(shared) = &turn.shared {
            start(Turn::new(Arc::clone(shared)), read.clone());
        }
        if taken.is_empty() {
            // Another task has taken them.
            drop(turn.end());
            return;
        }
        let (keys, senders): (Vec<_>, Vec<_>) = taken.into_iter().unzip();
        let mut call = pin!(read(keys));
        let answers = timeout(PATIENCE, &mut call).await;
        if let Some(shared) = turn.end() {
            start(Turn::new(shared), read);
        }
        let answers = match answers {
            Ok(answers) => answers,
            Err(_elapsed) => call.await,
        };
        // A caller that was dropped needs no answer.
        match answers {
            Ok(answers) => {
                senders.into_iter().zip(answers).for_each(|(sender, answer)| drop(sender.send(Ok(answer))));
            }
            Err(error) => senders.into_iter().for_each(|sender| drop(sender.send(Err(error.clone())))),
        }
    });
}

/// The part of a task in what the others wait for. If it is dropped before its end, since the call panics or the runtime
/// shuts down, all reads that wait are made again by their callers.
struct Turn<K, A, E> {
    /// `None`: over.
    shared: Option<Arc<Shared<K, A, E>>>,
    /// The number of the call under way.
    call: Option<u64>,
}

impl<K, A, E> Turn<K, A, E> {
    fn new(shared: Arc<Shared<K, A, E>>) -> Self {
        Self { shared: Some(shared), call: None }
    }

    /// Takes reads for a call, if there are any. Returns also whether a task is to be started for others.
    fn begin(&mut self) -> (Vec<Waiting<K, A, E>>, bool) {
        let Some(shared) = &self.shared else { return (Vec::new(), false) };
        let (taken, call, is_next) = shared.take();
        self.call = Some(call);
        (taken, is_next)
    }

    /// Ends the turn. Returns the queue if a task is to be started for it.
    fn end(&mut self) -> Option<Arc<Shared<K, A, E>>> {
        self.shared.take().filter(|shared| self.call.is_some_and(|call| shared.end_turn(call)))
    }
}

impl<K, A, E> Drop for Turn<K, A, E> {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        let mut queue = shared.queue();
        match self.call {
            Some(call) => queue.calls.retain(|(number, _)| *number != call),
            None => queue.gathering = None,
        }
        let waiting = mem::take(&mut queue.waiting);
        drop(queue);
        // Not under the lock: their callers are woken.
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::{Ready, pending, ready};
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::{BoxFuture, join, join_all};
    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::Semaphore;
    use tokio::time::{Instant, sleep};

    use super::*;

    const LARGEST: usize = 64;
    const TURNS: usize = 2;

    /// Counts the calls, and answers each key with its double and the number of keys of its call.
    #[derive(Clone, Default)]
    struct Server(Arc<AtomicUsize>);

    impl Server {
        fn calls(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }

        async fn read(&self, gather: &Gather<usize, (usize, usize), &'static str>, key: usize) -> (usize, usize) {
            let read = |keys: Vec<usize>| -> Ready<Result<_, _>> {
                let count = keys.len();
                ready(Ok(keys.into_iter().map(|key| (2 * key, count)).collect()))
            };
            let calls = &self.0;
            let counted = || {
                let calls = Arc::clone(calls);
                Ok(move |keys| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    read(keys)
                })
            };
            gather.read(key, counted).await.unwrap()
        }
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
    }

    async fn settle() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", Gather::<usize, (), ()>::new(LARGEST, TURNS)), "Gather { .. }");
    }

    #[tokio::test]
    async fn reads_of_one_moment_share_calls_of_bounded_size_and_get_their_own_answers() {
        let (gather, server) = (Gather::new(LARGEST, TURNS), Server::default());
        let answers = join_all((0..=2 * LARGEST).map(|key| server.read(&gather, key))).await;
        for (key, answer) in answers.into_iter().enumerate() {
            let shares = if key < 2 * LARGEST { LARGEST } else { 1 };
            assert_eq!(answer, (2 * key, shares));
        }
        assert_eq!(server.calls(), 3);
        assert_eq!(server.read(&gather, 7).await, (14, 1), "a read alone waits for no other");
    }

    #[tokio::test]
    async fn a_caller_that_is_dropped_leaves_the_reads_of_others_to_be_made() {
        let (gather, server) = (Gather::new(LARGEST, TURNS), Server::default());
        let mut dropped = Box::pin(server.read(&gather, 1));
        assert!(futures_util::poll!(&mut dropped).is_pending());
        let mut kept = Box::pin(server.read(&gather, 2));
        assert!(futures_util::poll!(&mut kept).is_pending());
        // The first has started the task.
        drop(dropped);
        assert_eq!(kept.await, (4, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn reads_gather_while_calls_are_under_way_and_wait_for_none_that_is_slow() {
        let (gather, calls) =
            (Arc::new(Gather::<usize, usize, ()>::new(LARGEST, TURNS)), Arc::new(AtomicUsize::new(0)));
        let begun = Instant::now();
        // The milliseconds that the call of a key takes.
        let length = |key| match key {
            0 => 3,
            11 => 1,
            _ => 1000,
        };
        let read = |key| {
            let (gather, calls) = (Arc::clone(&gather), Arc::clone(&calls));
            let reader = move || {
                let calls = Arc::clone(&calls);
                Ok(move |keys: Vec<usize>| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(length(keys[0]))).map(|()| Ok(keys))
                })
            };
            tokio::spawn(async move { gather.read(key, reader).await })
        };
        // One after the other, so that each has a call: they take all turns.
        let first = read(0);
        settle().await;
        let second = read(1);
        settle().await;
        assert_eq!(calls.load(Ordering::Relaxed), TURNS);
        // They wait for the first to end.
        let others: Vec<_> = (2..9).map(read).collect();
        settle().await;
        assert_eq!(calls.load(Ordering::Relaxed), TURNS);
        assert_eq!(first.await.unwrap(), Ok(0));
        let answers: Vec<_> = join_all(others).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (2..9).map(Ok).collect::<Vec<_>>());
        assert_eq!(calls.load(Ordering::Relaxed), TURNS + 1, "all share a call");
        assert!(begun.elapsed() < Duration::from_millis(1010), "{:?}", begun.elapsed());
        drop(second);
        // All turns are taken by calls that take a second.
        let slow = read(9);
        settle().await;
        let slower = read(10);
        settle().await;
        let begun = Instant::now();
        let late = read(11);
        assert_eq!(late.await.unwrap(), Ok(11));
        assert!(begun.elapsed() < Duration::from_millis(10), "{:?}", begun.elapsed());
        let (slow, slower) = join(slow, slower).await;
        assert_eq!([slow.unwrap(), slower.unwrap()], [Ok(9), Ok(10)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_ends_makes_room_for_one_other() {
        for turns in 1..4 {
            let (gather, calls) = (Gather::<usize, usize, ()>::new(LARGEST, turns), Arc::new(AtomicUsize::new(0)));
            let ends: [_; 9] = std::array::from_fn(|_| Semaphore::new(0));
            let ends = Arc::new(ends);
            let read = |key| {
                let (calls, ends) = (&calls, &ends);
                gather.read(key, move || {
                    let (calls, ends) = (Arc::clone(calls), Arc::clone(ends));
                    Ok(move |keys: Vec<usize>| {
                        calls.fetch_add(1, Ordering::Relaxed);
                        let ends = Arc::clone(&ends);
                        async move {
                            ends[keys[0]].acquire().await.unwrap().forget();
                            Ok(keys)
                        }
                    })
                })
            };
            let begun = Instant::now();
            let mut reads = VecDeque::new();
            for key in 0..9 {
                let mut read = Box::pin(read(key));
                assert!(futures_util::poll!(&mut read).is_pending());
                settle().await;
                if let Some(oldest) = key.checked_sub(turns) {
                    assert_eq!(calls.load(Ordering::Relaxed), key, "all {turns} turns are taken");
                    ends[oldest].add_permits(1);
                    settle().await;
                    assert_eq!(reads.pop_front().and_then(Pin::<Box<_>>::now_or_never), Some(Ok(oldest)));
                }
                assert_eq!(calls.load(Ordering::Relaxed), key + 1, "one of {turns} turns is free");
                reads.push_back(read);
            }
            assert_eq!(begun.elapsed(), Duration::ZERO, "no call was given up");
        }
    }

    #[tokio::test]
    async fn a_call_that_fails_fails_all_its_reads() {
        let gather = Gather::<usize, (), _>::new(LARGEST, TURNS);
        let answers = join_all((0..3).map(|key| gather.read(key, || Ok(|_| ready(Err("down")))))).await;
        assert_eq!(answers, [Err("down"); 3]);
    }

    #[tokio::test]
    async fn a_caller_that_cannot_start_a_call_fails_and_leaves_the_reads_of_others_to_be_made() {
        let gather = Gather::<usize, usize, _>::new(LARGEST, TURNS);
        let reader = |is_in_runtime| {
            let read = |keys: Vec<usize>| ready(Ok(keys));
            if is_in_runtime { Ok(read) } else { Err("no runtime") }
        };
        let other = RefCell::new(Box::pin(gather.read(2, || reader(true))));
        let failed = gather.read(1, || {
            let mut other = other.borrow_mut();
            assert!((&mut *other).now_or_never().is_none(), "it waits for the call of the first");
            reader(false)
        });
        assert_eq!(failed.await, Err("no runtime"));
        assert_eq!(other.into_inner().await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_whose_call_panics_is_made_again() {
        // The only turn: the call that panics has to end it.
        let gather = Gather::<usize, usize, ()>::new(LARGEST, 1);
        let calls = Arc::new(AtomicUsize::new(0));
        let reader = || {
            let calls = Arc::clone(&calls);
            Ok(move |keys| {
                assert!(calls.fetch_add(1, Ordering::Relaxed) > 0, "in a call");
                ready(Ok(keys))
            })
        };
        let mut read = Box::pin(gather.read(1, reader));
        for _ in 0..2 {
            assert!(futures_util::poll!(&mut read).is_pending());
            settle().await;
        }
        assert_eq!(read.now_or_never(), Some(Ok(1)));
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_read_whose_task_ends_with_another_runtime_is_made_again() {
        let gather = Gather::new(LARGEST, TURNS);
        let [ends, stays] = [runtime(), runtime()];
        let mut taken = Box::pin(gather.read(1, || Ok(|_| pending::<Result<Vec<usize>, ()>>().boxed())));
        ends.block_on(async {
            assert!(futures_util::poll!(&mut taken).is_pending());
            // Its call is under way.
            settle().await;
        });
        let mut starts = Box::pin(gather.read(2, || Ok(|_| pending::<Result<Vec<usize>, ()>>().boxed())));
        ends.block_on(async { assert!(futures_util::poll!(&mut starts).is_pending()) });
        let read = |keys: Vec<usize>| -> BoxFuture<'static, Result<Vec<usize>, ()>> { ready(Ok(keys)).boxed() };
        let mut waits = Box::pin(gather.read(3, || Ok(read)));
        stays.block_on(async { assert!(futures_util::poll!(&mut waits).is_pending()) });
        drop((ends, starts));
        assert_eq!(stays.block_on(waits), Ok(3));
        let again = gather.read(4, || Ok(read));
        assert_eq!(stays.block_on(again), Ok(4));
    }

    #[test]
    fn a_runtime_that_is_not_driven_holds_up_no_read_for_long() {
        let gather = Gather::new(LARGEST, TURNS);
        let [idle, driven] = [runtime(), runtime()];
        let read = |keys: Vec<usize>| -> BoxFuture<'static, Result<Vec<usize>, ()>> { ready(Ok(keys)).boxed() };
        let never = |_: Vec<usize>| pending::<Result<Vec<usize>, ()>>().boxed();
        let mut stuck: Vec<_> = (0..=TURNS).map(|key| Box::pin(gather.read(key, || Ok(never)))).collect();
        for stuck in &mut stuck {
            // The last one's task is started, and doesn't begin.
            idle.block_on(async { assert!(futures_util::poll!(stuck).is_pending()) });
        }
        driven.block_on(async {
            sleep(2 * PATIENCE).await;
            assert_eq!(gather.read(9, || Ok(read)).await, Ok(9));
        });
    }
}
