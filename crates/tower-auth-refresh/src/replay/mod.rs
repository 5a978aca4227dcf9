//! [`ReplayBody`] and the rest of what is kept of a request for its replay.
//!
//! The head is packed into one buffer and unpacked only for a replay. The body isn't collected first: the attempt
//! streams it, and a record is kept of the frames that were sent, by reference count except for tiny frames and
//! trailers. A replay takes over the record and the part of the source that the attempt hasn't read yet. The body of the
//! superseded attempt ends in a [`Superseded`] error.

use std::error::Error;
use std::fmt;

mod body;
mod handle;
mod head;
mod record;
mod slot;

#[cfg(test)]
mod tests;

pub(crate) use body::{OnePiece, without};
pub use body::{ReplayBody, Superseded};
pub(crate) use handle::Replay;
pub(crate) use head::Head;

/// The number of bytes of a request's body that are kept for a replay.
///
/// The default is 64 KiB. Insert a `ReplayLimit` into a request's extensions to set the limit for that request alone.
/// The limit applies to the bytes that have been *sent* when the challenge arrives. The rest is replayed from its
/// source and may be of any length. Data and trailers count, an empty frame as one byte. A body that outgrows the
/// limit, or whose size hint exceeds it, streams through and isn't replayed.
///
/// ```
/// use http::Request;
/// use tower_auth_refresh::ReplayLimit;
///
/// let upload = Request::post("https://api.example.com/files").extension(ReplayLimit(1024 * 1024)).body(());
/// # upload.unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayLimit(pub usize);

impl ReplayLimit {
    /// 64 KiB.
    pub const DEFAULT: Self = Self(64 * 1024);
}

impl Default for ReplayLimit {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The reason why a request can't be replayed exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotReplayable {
    /// More of the body was sent than the limit allows to keep, or the body's size hint exceeds the limit.
    TooLarge,
    /// The body returned an error or panicked.
    SourceFailed,
    /// The body yielded a frame that is neither data nor trailers.
    UnknownFrame,
    /// The head has a part that its own parser doesn't accept, or so many headers that a new token doesn't fit.
    Head,
}

impl fmt::Display for NotReplayable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "more of the request's body was sent than is kept for a replay",
            Self::SourceFailed => "the request's body failed",
            Self::UnknownFrame => "the request's body holds a frame of an unknown kind",
            Self::Head => "the request's head can't be rebuilt exactly",
        })
    }
}

impl Error for NotReplayable {}
