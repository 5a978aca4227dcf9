//! [`Replay`]: the handle by which a body that is being sent is replayed.

use bytes::Bytes;
use http_body::SizeHint;

use super::slot::Keeper;
use super::{NotReplayable, ReplayBody};

/// A handle on the [`ReplayBody`] of a first attempt, which can replay that body.
///
/// Drop the handle if the response needs no replay: this frees the record at once. An attempt that is still sending
/// continues, even if it was paused, and takes no lock from then on.
pub(crate) struct Replay<B> {
    source: Source<B>,
}

enum Source<B> {
    /// An empty body, with its size hint.
    Empty(SizeHint),
    /// The whole body as one frame.
    Single(Bytes),
    /// The slot that the attempt reads from, and the body's initial size hint.
    Recorded { keeper: Keeper<B>, size: SizeHint },
    /// A body that can't be replayed, as was known from the start.
    Never(NotReplayable),
}

impl<B> Replay<B> {
    /// Stops the attempt from reading the body until the handle is consumed or dropped. Otherwise the record might
    /// outgrow its limit during a refresh.
    ///
    /// A body that is kept whole isn't stopped: it can be sent to its end and still be replayed.
    ///
    /// # Errors
    ///
    /// The body can no longer be replayed. The attempt isn't stopped.
    pub(crate) fn pause(&mut self) -> Result<(), NotReplayable> {
        match &self.source {
            Source::Empty(_) | Source::Single(_) => Ok(()),
            Source::Recorded { keeper, .. } => keeper.pause(),
            Source::Never(reason) => Err(*reason),
        }
    }

    /// Drops the handle, which resumes the attempt and wakes it if it waits.
    pub(crate) fn resume(self) {
        drop(self);
    }

    /// Creates the body of the replay, from the first byte on, however much has been sent. Wakes the attempt, which
    /// returns a [`Superseded`](super::Superseded) error unless it has seen the end.
    ///
    /// # Errors
    ///
    /// The body can't be replayed, and the attempt continues. Never after a [`pause`](Self::pause) that succeeded.
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
