//! The slot that a first attempt and its replay handle share: the source of the body, and the record of the frames that
//! the source has yielded.
//!
//! The attempt has a [`Reader`], the handle a [`Keeper`]. While both may need the source, it stays in the slot, so that
//! a replay can take it at any moment. As soon as only one of them may need it, the source moves there, and no lock is
//! taken any more.
//!
//! The lock is held while the source, which is user code, is polled: a replay that takes record and source must find in
//! the record every frame that the source has yielded. For the same reason, data of a type other than `Bytes` is copied
//! under the lock. No other user code runs under the lock: wakers are cloned, woken and dropped without it, and so are
//! copied data and the parts that the slot gives up. (Therefore a body must not drop the response future of its own
//! request from within its `poll_frame`. A body that only wakes other tasks doesn't.)

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

/// The attempt's end of a slot. It reads the source.
pub(super) struct Reader<B>(Arc<Slot<B>>);

/// The handle's end of a slot. It can stop the reader and take everything. If dropped, it leaves the source to the
/// reader.
pub(super) struct Keeper<B>(Arc<Slot<B>>);

/// The result of a reader's poll.
pub(super) enum Read<B: Body> {
    /// A frame, which is in the record too.
    Frame(Frame<Bytes>),
    /// A frame as above, and the source has ended with it.
    LastFrame(Frame<Bytes>),
    /// The end, with the source, to be dropped outside the lock.
    End(Option<B>),
    /// A frame or error that can't be recorded. The reader owns the source from here on; the record is to be dropped
    /// outside the lock.
    Unrecorded { read: Result<Frame<Bytes>, B::Error>, source: Option<B>, record: Record },
    /// The record is no longer needed: the reader owns the source, unless it has ended.
    Released(Option<B>),
    /// A replay has taken the source.
    Superseded,
    /// The source panicked earlier.
    Panicked,
}

struct Slot<B>(Mutex<Shared<B>>);

struct Shared<B> {
    phase: Phase,
    /// `None` after the source has ended or was taken.
    source: Option<B>,
    record: Record,
    /// The waker of the reading task, if its last poll was pending.
    waker: Option<Waker>,
}

/// The phase of a slot. It starts as `Recording`, may become `Paused`, and each of the other phases is final.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The reader reads, and the record grows.
    Recording,
    /// The reader waits.
    Paused,
    /// The keeper was dropped: the reader takes the source at its next poll.
    Released,
    /// A replay has taken the source and the record: the reader returns an error.
    Stolen,
    /// The record is incomplete: the reader has taken the source, or the source panicked.
    Lost(NotReplayable),
}

/// Puts `source` into a new slot whose record takes up to `limit` bytes.
pub(super) fn slot<B>(source: B, limit: usize) -> (Reader<B>, Keeper<B>) {
    let (record, source) = (Record::with_limit(limit), Some(source));
    let slot = Arc::new(Slot(Mutex::new(Shared { phase: Phase::Recording, source, record, waker: None })));
    (Reader(Arc::clone(&slot)), Keeper(slot))
}

/// Polls `source` for its next frame and copies its data into `Bytes`. The data that was copied is left in `spent`, for
/// the caller to drop outside the lock.
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
            // Outlives the lock, even if copying the data panics.
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
            // Otherwise the keeper changed the phase in between without this waker: poll again.
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
    /// Pauses the reader: the source isn't polled from here on.
    pub(super) fn pause(&self) -> Result<(), NotReplayable> {
        let mut shared = self.0.lock();
        if let Phase::Lost(reason) = shared.phase {
            return Err(reason);
        }
        shared.phase = Phase::Paused;
        Ok(())
    }

    /// Takes the record and the source, which is `None` if it has ended. Wakes the reader, which returns an error.
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
            // The reader was dropped, as is usual by now: the slot is dropped with everything in it.
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
            // Only the source or its data can have panicked under the lock. The frame in question is in no record.
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
