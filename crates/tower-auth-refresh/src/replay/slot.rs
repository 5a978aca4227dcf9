//! The slot that a first attempt and its replay handle share: the source of the body, and the record of what it
//! yielded.
//!
//! The attempt has a [`Reader`], the handle a [`Keeper`]. The source stays in the slot while both may want it, so that
//! a replay can have it at any moment; as soon as only one of them may, it moves there, and takes no lock any more.
//!
//! The lock is held while the source is polled, which is the user's code: whoever takes record and source must find
//! in the record all that the source has yielded. Data of its own type is copied under it, for the same reason. Nothing
//! else of the user's runs under it: wakers are cloned, woken and dropped, and what was copied and what the slot gives
//! up is dropped, without it. (So a body must not drop, from within its own `poll_frame`, the response future of its
//! request; nor does any that only wakes what it has to.)

use std::mem;
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame};
#[cfg(all(test, loom))]
use loom::sync::{Arc, Mutex, MutexGuard};
#[cfg(not(all(test, loom)))]
use std::sync::{Arc, Mutex, MutexGuard};

use super::NotReplayable;
use super::record::Record;

/// The attempt's end of a slot: it reads the source.
pub(super) struct Reader<B>(Arc<Slot<B>>);

/// The handle's end of a slot: it can stop the reader and take everything. Dropped, it leaves the source to the reader.
pub(super) struct Keeper<B>(Arc<Slot<B>>);

/// What came of a reader's poll.
pub(super) enum Read<B: Body> {
    /// A frame; it is in the record too.
    Frame(Frame<Bytes>),
    /// The same, and the source says that it was the last.
    LastFrame(Frame<Bytes>),
    /// The end. The source comes along to be dropped.
    End(Option<B>),
    /// What came can't be recorded: the source is the reader's from here on, and the record comes along to be dropped.
    Unrecorded { read: Result<Frame<Bytes>, B::Error>, source: Option<B>, record: Record },
    /// No record is wanted any more: the source is the reader's, unless it has ended.
    Released(Option<B>),
    /// A replay has taken the source.
    Superseded,
    /// The source panicked earlier.
    Panicked,
}

struct Slot<B>(Mutex<Shared<B>>);

struct Shared<B> {
    phase: Phase,
    /// `None` once it has ended or moved out.
    source: Option<B>,
    record: Record,
    /// Of the task that reads, if its last poll was pending.
    waker: Option<Waker>,
}

/// A slot begins in the first phase, may come to the second, and stays in whichever of the others it comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The reader reads, and the record grows.
    Recording,
    /// The reader waits.
    Paused,
    /// The keeper is gone: the reader takes the source when it comes by.
    Released,
    /// A replay has the source and the record: the reader errs.
    Stolen,
    /// More was read than is in the record: the reader has taken the source, or else it panicked.
    Lost(NotReplayable),
}

/// Puts `source` into a new slot whose record takes up to `limit` bytes.
pub(super) fn slot<B>(source: B, limit: usize) -> (Reader<B>, Keeper<B>) {
    let (record, source) = (Record::with_limit(limit), Some(source));
    let slot = Arc::new(Slot(Mutex::new(Shared { phase: Phase::Recording, source, record, waker: None })));
    (Reader(Arc::clone(&slot)), Keeper(slot))
}

/// Polls `source` for its next frame. Data other than `Bytes` is copied into them, and left in `spent`, to be dropped
/// when the caller holds no lock.
pub(super) fn poll_source<B>(
    source: &mut B,
    spent: &mut Option<B::Data>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, B::Error>>>
where
    B: Body + Unpin,
{
    let read = ready!(Pin::new(source).poll_frame(cx));
    let copied = |data| {
        let data = spent.insert(data);
        data.copy_to_bytes(data.remaining())
    };
    Poll::Ready(read.map(|read| read.map(|frame| frame.map_data(copied))))
}

impl<B: Body + Unpin> Reader<B> {
    pub(super) fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Read<B>> {
        loop {
            // Outlives the lock, even where the copying of it panics.
            let mut spent = None;
            let mut shared = self.0.lock();
            let phase = shared.phase;
            match phase {
                Phase::Recording => {
                    if let Poll::Ready(read) = shared.poll_read(&mut spent, cx) {
                        return Poll::Ready(read);
                    }
                }
                Phase::Paused => {}
                Phase::Released => return Poll::Ready(Read::Released(shared.source.take())),
                Phase::Stolen => return Poll::Ready(Read::Superseded),
                Phase::Lost(_) => return Poll::Ready(Read::Panicked),
            }
            if shared.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            drop(shared);

            let waker = cx.waker().clone();
            let mut shared = self.0.lock();
            // Else the keeper came in between and didn't find this waker: look again.
            if shared.phase == phase {
                let stale = shared.waker.replace(waker);
                drop(shared);
                drop(stale);
                return Poll::Pending;
            }
        }
    }
}

impl<B> Keeper<B> {
    /// Makes the reader wait: the source isn't polled from here on.
    pub(super) fn pause(&self) -> Result<(), NotReplayable> {
        let mut shared = self.0.lock();
        if let Phase::Lost(reason) = shared.phase {
            return Err(reason);
        }
        shared.phase = Phase::Paused;
        Ok(())
    }

    /// Whether more was read than is in the record.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.0.lock().phase, Phase::Lost(_))
    }

    /// Takes the record and the source, the latter `None` if it has ended; the reader is woken and errs.
    pub(super) fn steal(self) -> Result<(Record, Option<B>), NotReplayable> {
        let mut shared = self.0.lock();
        if let Phase::Lost(reason) = shared.phase {
            return Err(reason);
        }
        shared.phase = Phase::Stolen;
        let stolen = (mem::take(&mut shared.record), shared.source.take());
        let waker = shared.waker.take();
        drop(shared);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(stolen)
    }
}

impl<B> Drop for Keeper<B> {
    fn drop(&mut self) {
        if Arc::strong_count(&self.0) == 1 {
            // The reader is gone, as it mostly is by now: all there is goes with the slot.
            return;
        }
        let mut shared = self.0.lock();
        let paused = shared.phase == Phase::Paused;
        if matches!(shared.phase, Phase::Recording | Phase::Paused) {
            shared.phase = Phase::Released;
        }
        let (record, waker) = (mem::take(&mut shared.record), shared.waker.take());
        drop(shared);
        drop(record);
        if let Some(waker) = waker.filter(|_| paused) {
            waker.wake();
        }
    }
}

impl<B> Slot<B> {
    fn lock(&self) -> MutexGuard<'_, Shared<B>> {
        self.0.lock().unwrap_or_else(|poisoned| {
            // Only the source, or data of its own type, can have panicked here; what it was yielding is in no record.
            let mut shared = PoisonError::into_inner(poisoned);
            shared.phase = Phase::Lost(NotReplayable::SourceFailed);
            shared
        })
    }
}

impl<B: Body + Unpin> Shared<B> {
    fn poll_read(&mut self, spent: &mut Option<B::Data>, cx: &mut Context<'_>) -> Poll<Read<B>> {
        let Some(source) = &mut self.source else { return Poll::Ready(Read::End(None)) };
        let Some(read) = ready!(poll_source(source, spent, cx)) else {
            return Poll::Ready(Read::End(self.source.take()));
        };
        Poll::Ready(match read {
            Ok(frame) => match self.record.push(&frame) {
                Ok(()) if source.is_end_stream() => Read::LastFrame(frame),
                Ok(()) => Read::Frame(frame),
                Err(reason) => self.lose(Ok(frame), reason),
            },
            Err(error) => self.lose(Err(error), NotReplayable::SourceFailed),
        })
    }

    fn lose(&mut self, read: Result<Frame<Bytes>, B::Error>, reason: NotReplayable) -> Read<B> {
        self.phase = Phase::Lost(reason);
        Read::Unrecorded { read, source: self.source.take(), record: mem::take(&mut self.record) }
    }
}
