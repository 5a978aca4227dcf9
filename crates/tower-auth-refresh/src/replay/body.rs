//! [`ReplayBody`]: the body that is sent, on either attempt.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tower::BoxError;

use super::record::Frames;
use super::slot::{Read, Reader, poll_source, slot};
use super::{NotReplayable, Replay};

/// The request body that the inner service gets: the caller's, and within a limit a record of it for a replay.
///
/// It streams: each frame passes as it comes, `Bytes` uncopied, and the first has left before the second exists.
/// [`size_hint`](Body::size_hint) and [`is_end_stream`](Body::is_end_stream) tell of a replay what they told of the
/// request, so that both are framed alike on the wire.
///
/// When a replay takes the place of an attempt whose upload isn't complete, that attempt's body ends in a
/// [`Superseded`] error, never as if it were complete. Only what is in memory as one piece to begin with (`Full<Bytes>`,
/// `String`) goes out to its end.
///
/// # Servers that refuse and never read
///
/// A server that answers before it has read the whole request reads the rest of it, closes the connection (RFC 9112
/// §9.3) or resets the stream (RFC 9113 §8.1). Behind one that does none of these a replay may wait, for as long as the
/// next request of a client without this middleware would. With hyper, that is in two places:
///
/// - HTTP/1 over a transport that doesn't take several buffers in one write, such as native-tls. hyper copies what
///   there is of a body into a buffer of its own: 400 KiB or so, a single frame whatever its length. If that is all of
///   the body, it takes the connection to be free when the response is over, and writes the next request behind what
///   isn't sent yet. (Over a socket or rustls, the next request gets another connection.)
/// - HTTP/2, once such requests are as many as the server allows streams at a time, each with more to send than its
///   window holds. hyper asks for a further frame, and sees the error, when the window opens.
///
/// A time-out [inside the middleware](crate::AuthRefreshLayer#the-order-of-layers) ends such a replay: over HTTP/1 along
/// with the connection, over HTTP/2 that request alone.
pub struct ReplayBody<B> {
    state: State<B>,
}

/// Together no larger than [`Bytes`]: clients move a request a dozen times on its way, and each move is felt.
enum State<B> {
    /// One frame is left, and no more will come.
    Single(Bytes),
    Other(Other<B>),
}

/// What isn't in memory as one piece, in boxes where it is large for the sake of what is.
enum Other<B> {
    /// Nothing is left to send.
    Empty(SizeHint),
    /// A first attempt that is being recorded; its source is shared with the handle.
    Recording(Box<Recording<B>>),
    /// The source is the body's own; nothing is kept.
    Streaming(Box<B>),
    /// A replay.
    Replaying(Box<Replaying<B>>),
}

struct Recording<B> {
    reader: Reader<B>,
    remaining: SizeHint,
}

/// First the record, then the source, which has ended if there is none.
struct Replaying<B> {
    frames: Frames,
    source: Option<B>,
    remaining: SizeHint,
}

impl<B> ReplayBody<B> {
    /// A body that streams through, with no record.
    pub(crate) fn passing(mut body: B) -> Self
    where
        B: Body + 'static,
    {
        if body.is_end_stream() {
            return Self::empty(body.size_hint());
        }
        take_whole(&mut body).map_or_else(|| Other::Streaming(Box::new(body)).into(), Self::single)
    }

    /// A body for the first attempt, and the handle that can replay it if at most `limit` bytes of it have been sent.
    pub(crate) fn recording(mut body: B, limit: usize) -> (Self, Replay<B>)
    where
        B: Body + 'static,
    {
        let size = body.size_hint();
        if body.is_end_stream() {
            return (Self::empty(size), Replay::empty(size));
        }
        if size.lower() > limit as u64 {
            return (Self::passing(body), Replay::never(NotReplayable::TooLarge));
        }
        if let Some(data) = take_whole(&mut body) {
            return (Self::single(data.clone()), Replay::single(data));
        }
        let (reader, keeper) = slot(body, limit);
        let recording = Box::new(Recording { reader, remaining: size });
        (Other::Recording(recording).into(), Replay::recorded(keeper, size))
    }

    /// `size` is what the source says of itself, be it unknown: HTTP/2 writes a `Content-Length` of 0 by it, or none.
    pub(super) fn empty(size: SizeHint) -> Self {
        Other::Empty(size).into()
    }

    pub(super) fn single(data: Bytes) -> Self {
        Self { state: State::Single(data) }
    }

    pub(super) fn replaying(frames: Frames, source: Option<B>, size: SizeHint) -> Self {
        Other::Replaying(Box::new(Replaying { frames, source, remaining: size })).into()
    }
}

impl<B> From<Other<B>> for ReplayBody<B> {
    fn from(other: Other<B>) -> Self {
        Self { state: State::Other(other) }
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let state = &mut self.get_mut().state;
        loop {
            let other = match state {
                State::Single(data) => {
                    let data = mem::take(data);
                    *state = State::Other(Other::ended());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                State::Other(other) => other,
            };
            match other {
                Other::Empty(_) => return Poll::Ready(None),
                Other::Recording(it) => match ready!(it.reader.poll_read(cx)) {
                    Read::Frame(frame) => {
                        it.remaining = without(it.remaining, &frame);
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Read::LastFrame(frame) => {
                        *other = Other::ended();
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Read::End(_) => *other = Other::ended(),
                    Read::Unrecorded { read, source, record } => {
                        drop(record);
                        *other = Other::rest(source);
                        return Poll::Ready(Some(read.map_err(Into::into)));
                    }
                    Read::Released(source) => *other = Other::rest(source),
                    Read::Superseded => return Poll::Ready(Some(Err(Superseded(()).into()))),
                    Read::Panicked => return Poll::Ready(Some(Err(Panicked.into()))),
                },
                Other::Streaming(source) => return poll_source(&mut **source, &mut None, cx).map_err(Into::into),
                Other::Replaying(it) => {
                    let Some(frame) = it.frames.next() else {
                        *other = Other::rest(it.source.take());
                        continue;
                    };
                    it.remaining = without(it.remaining, &frame);
                    if it.frames.is_empty()
                        && let Some(source) = it.source.take()
                    {
                        *other = Other::rest(Some(source).filter(|source| !source.is_end_stream()));
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Other(Other::Empty(_)) => true,
            State::Other(Other::Streaming(source)) => source.is_end_stream(),
            // A source may have ended without having been polled: that a replay couldn't tell at the same point.
            State::Single(_) | State::Other(Other::Recording(_) | Other::Replaying(_)) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Single(data) => SizeHint::with_exact(data.len() as u64),
            State::Other(Other::Empty(size)) => *size,
            State::Other(Other::Recording(it)) => it.remaining,
            State::Other(Other::Streaming(source)) => source.size_hint(),
            State::Other(Other::Replaying(it)) => it.remaining,
        }
    }
}

/// The source is never pinned where it stands: as a body, it is asked to be `Unpin` itself.
impl<B> Unpin for ReplayBody<B> {}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody").finish_non_exhaustive()
    }
}

impl<B> Other<B> {
    fn ended() -> Self {
        Self::Empty(SizeHint::with_exact(0))
    }

    /// Lock-free from here on.
    fn rest(source: Option<B>) -> Self {
        source.map_or_else(Self::ended, |source| Self::Streaming(Box::new(source)))
    }
}

/// The data of a body that is known by its type to hold it all in memory, in one piece.
///
/// Only by its type. To poll a body here would tell the same of more of them, but a poll is felt: one that is fed by a
/// server's connection lets that peer send (`100 Continue`), another begins to read a file, needs a runtime's context,
/// or panics, all of it before the inner service has so much as a connection.
///
/// It stays in one piece. Were it cut up, so that a replay could stop it, hyper would still take in 400 KiB of the pieces
/// before there is an answer.
fn take_whole<B: 'static>(body: &mut B) -> Option<Bytes> {
    let body: &mut dyn Any = body;
    if let Some(full) = body.downcast_mut::<Full<Bytes>>() {
        mem::take(full).into_inner()
    } else {
        body.downcast_mut::<String>().map(|text| mem::take(text).into())
    }
}

/// What remains of `size` after `frame`.
fn without(size: SizeHint, frame: &Frame<Bytes>) -> SizeHint {
    let sent = frame.data_ref().map_or(0, Bytes::len) as u64;
    let mut remaining = SizeHint::new();
    remaining.set_lower(size.lower().saturating_sub(sent));
    if let Some(upper) = size.upper() {
        remaining.set_upper(upper.saturating_sub(sent));
    }
    remaining
}

/// The error of a [`ReplayBody`] whose place a replay has taken.
///
/// The connection that was sending it resets the stream, or closes, as soon as it asks for the next frame. The caller
/// never sees it.
#[derive(Debug)]
pub struct Superseded(());

impl fmt::Display for Superseded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request body was superseded by its replay")
    }
}

impl Error for Superseded {}

/// The error of a [`ReplayBody`] that is polled again after its source has panicked.
#[derive(Debug)]
struct Panicked;

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request body panicked")
    }
}

impl Error for Panicked {}
