//! [`Replay`]: the handle on a body that is being sent.

use bytes::Bytes;
use http_body::SizeHint;

use super::slot::Keeper;
use super::{NotReplayable, ReplayBody};

/// The handle on a [`ReplayBody`] that was made for a first attempt: it can replay the body.
///
/// To drop it is the answer to any response that asks for no replay: the record is freed at once, and the attempt, if
/// it is still sending, goes on, paused or not, and takes no lock any more.
pub(crate) struct Replay<B> {
    source: Source<B>,
}

enum Source<B> {
    /// Nothing; how it told its size.
    Empty(SizeHint),
    /// All of it, in one frame.
    Single(Bytes),
    /// The slot that the attempt reads from, and the size that the body told at first.
    Recorded { keeper: Keeper<B>, size: SizeHint },
    /// It was plain from the start that it won't be replayed.
    Never(NotReplayable),
}

impl<B> Replay<B> {
    /// Stops the attempt from reading the body further, until the handle is used up or dropped; else the record might
    /// outgrow its limit while a refresh is under way.
    ///
    /// A body that is kept whole isn't stopped: it may go out to its end, and still be replayed.
    ///
    /// # Errors
    ///
    /// The body can't be replayed any more. The attempt isn't stopped.
    pub(crate) fn pause(&mut self) -> Result<(), NotReplayable> {
        match &self.source {
            Source::Empty(_) | Source::Single(_) => Ok(()),
            Source::Recorded { keeper, .. } => keeper.pause(),
            Source::Never(reason) => Err(*reason),
        }
    }

    /// Whether the body can't be replayed any more.
    pub(crate) fn is_lost(&self) -> bool {
        match &self.source {
            Source::Empty(_) | Source::Single(_) => false,
            Source::Recorded { keeper, .. } => keeper.is_lost(),
            Source::Never(_) => true,
        }
    }

    /// Lets the attempt go on, woken if it waits: what dropping the handle does.
    pub(crate) fn resume(self) {
        drop(self);
    }

    /// Makes the body of the replay: the same from the first byte on, whatever of it has been sent. The attempt is
    /// woken, and unless it has seen the end it errs with [`Superseded`](super::Superseded).
    ///
    /// # Errors
    ///
    /// The body can't be replayed, and the attempt goes on. Not after [`pause`](Self::pause) has said that it can.
    pub(crate) fn into_replay(self) -> Result<ReplayBody<B>, NotReplayable> {
        match self.source {
            Source::Empty(size) => Ok(ReplayBody::empty(size)),
            Source::Single(data) => Ok(ReplayBody::single(data)),
            Source::Recorded { keeper, size } => {
                keeper.steal().map(|(record, source)| ReplayBody::replaying(record.into_frames(), source, size))
            }
            Source::Never(reason) => Err(reason),
        }
    }

    pub(super) fn empty(size: SizeHint) -> Self {
        Self { source: Source::Empty(size) }
    }

    pub(super) fn single(data: Bytes) -> Self {
        Self { source: Source::Single(data) }
    }

    pub(super) fn recorded(keeper: Keeper<B>, size: SizeHint) -> Self {
        Self { source: Source::Recorded { keeper, size } }
    }

    pub(super) fn never(reason: NotReplayable) -> Self {
        Self { source: Source::Never(reason) }
    }
}
