//! What of a request is kept, so that it can be sent a second time: its [`Head`], and its body as a [`ReplayBody`].
//!
//! The head is packed into one buffer and unpacked only for a replay. The body isn't collected first: the attempt
//! streams it, and a [`Replay`] beside the attempt holds a record of what has gone out, by reference count but for tiny
//! frames and trailers. A replay takes over both the record and whatever the attempt hasn't read yet; the attempt it was
//! taken from ends in a [`Superseded`] error.

use std::fmt;

mod body;
mod handle;
mod head;
mod record;
mod slot;

#[cfg(test)]
mod tests;

pub use body::{ReplayBody, Superseded};
pub(crate) use handle::Replay;
pub(crate) use head::Head;

/// How many bytes of a request's body are kept for a replay: 64 KiB unless set otherwise.
///
/// Put it into a request's extensions to set the limit for that request alone. It bounds what has been *sent* when
/// the challenge arrives; what the attempt hasn't read yet is replayed from its source and may be of any length. Data
/// and trailers count, a frame with nothing in it as one byte. A body that outgrows the limit, or says beforehand
/// that it will, streams through and isn't replayed.
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

/// Why a request can't be sent a second time exactly as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotReplayable {
    /// More of the body went out than the limit allows to keep, or it said beforehand that it is longer.
    TooLarge,
    /// The body ended in an error, or panicked.
    SourceFailed,
    /// The body yielded a frame that is neither data nor trailers.
    UnknownFrame,
    /// The head holds something that its own parser wouldn't accept, or so many headers that a new token doesn't fit.
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
