//! [`ReplayBody`]: the request body of the first attempt and of the replay.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tower::BoxError;

use super::record::Frames;
use super::slot::{Read, Reader, poll_source, slot};
use super::{NotReplayable, Replay};

/// The request body of the inner service: streams the caller's body and records it.
///
/// Each frame passes through as it comes, `Bytes` without a copy, and the first is sent before the second exists. The
/// record is bounded by the [`ReplayLimit`](crate::ReplayLimit).
/// [`size_hint`](Body::size_hint) and [`is_end_stream`](Body::is_end_stream) return for the replay what they returned
/// for the first attempt, so that both have the same framing on the wire.
///
/// If a replay starts before the upload of the first attempt is complete, that attempt's body ends in a [`Superseded`]
/// error, never as if it were complete. Only a body that is in memory as one piece from the start (`Full<Bytes>`,
/// `String`) is sent to its end.
///
/// # Servers that refuse and never read
///
/// A server that responds before it has read the whole request has to read the rest, close the connection (RFC 9112
/// §9.3) or reset the stream (RFC 9113 §8.1). If it does none of these, a replay may wait as long as the next request
/// of a client without this middleware would. With hyper, this happens in two cases:
///
/// - HTTP/1 over a transport without vectored writes, such as native-tls. hyper copies the available part of a body
///   into its own buffer: about 400 KiB, or a single frame of any length. If that is the whole body, hyper considers
///   the connection free at the end of the response, and writes the next request behind the unsent bytes. (Over a
///   socket or rustls, the next request gets another connection.)
/// - HTTP/2, once the number of such requests reaches the server's limit of concurrent streams, each with more to send
///   than its window holds. hyper polls for the next frame, and sees the error, only when the window opens.
///
/// A time-out [inside the middleware](crate::AuthRefreshLayer#the-order-of-layers) ends such a replay: over HTTP/1
/// together with the connection, over HTTP/2 that request alone.
///
/// # Servers that refuse a large upload and close
///
/// A server may answer 401 early, with most of an upload unread, and close the connection at once. Its TCP stack then
/// resets the connection (RFC 9112 §9.6), and the reset may reach the client before the 401 is read. hyper returns
/// "connection reset" in such a case, in place of the response: in 3 of 10 such requests. There is no challenge then,
/// and this middleware can't tell the error from any other. The remedy is to send no expired token:
/// [`refresh_early`](crate::SessionBuilder::refresh_early). An upload that is known to exceed the replay limit waits for
/// a refresh in any case, if the token's known expiry has passed.
pub struct ReplayBody<B> {
    state: State<B>,
}

/// No larger than [`Bytes`]: clients move a request about a dozen times, and each move has a measurable cost.
enum State<B> {
    /// The last frame.
    Single(Bytes),
    Other(Other<B>),
}

/// Every other state. Large variants are boxed, to keep [`State`] small.
enum Other<B> {
    /// Nothing is left to send.
    Empty(SizeHint),
    /// A first attempt that is recorded. Its source is shared with the handle.
    Recording(Box<Recording<B>>),
    /// The body owns the source and keeps no record.
    Streaming(Box<B>),
    /// A replay.
    Replaying(Box<Replaying<B>>),
}

struct Recording<B> {
    reader: Reader<B>,
    remaining: SizeHint,
}

/// Sends the record, then the rest of the source. `source` is `None` if the source has ended.
struct Replaying<B> {
    frames: Frames,
    source: Option<B>,
    remaining: SizeHint,
}

impl<B> ReplayBody<B> {
    /// Returns the whole body, if it is in memory as one piece and nothing of it has been sent; an empty body too.
    ///
    /// For clients whose own body type takes [`Bytes`]: a body that isn't wrapped keeps the client's own retries and its
    /// `Content-Length`.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http_body_util::{BodyExt, Either, Full};
    /// use tower_auth_refresh::ReplayBody;
    ///
    /// fn into_client_body<B>(body: ReplayBody<B>) -> Either<Full<Bytes>, ReplayBody<B>> {
    ///     body.try_into_bytes().map_or_else(Either::Right, |bytes| Either::Left(Full::new(bytes)))
    /// }
    /// # let _ = into_client_body::<String>;
    /// ```
    ///
    /// # Errors
    ///
    /// Returns the body as it was if it is streamed. [`AuthRefreshLayer::one_piece`] recognizes more body types as one
    /// piece than `Full<Bytes>` and `String`.
    ///
    /// [`AuthRefreshLayer::one_piece`]: crate::AuthRefreshLayer::one_piece
    pub fn try_into_bytes(self) -> Result<Bytes, Self> {
        match self.state {
            State::Single(data) => Ok(data),
            State::Other(Other::Empty(_)) => Ok(Bytes::new()),
            State::Other(other) => Err(other.into()),
        }
    }

    /// Creates a body that streams through without a record.
    pub(crate) fn passing(mut body: B, one_piece: &OnePiece) -> Self
    where
        B: Body + 'static,
    {
        if body.is_end_stream() {
            return Self::empty(body.size_hint());
        }
        take_whole(&mut body, one_piece).map_or_else(|| Other::Streaming(Box::new(body)).into(), Self::single)
    }

    #[cfg(test)]
    pub(crate) fn recording(body: B, limit: usize) -> (Self, Replay<B>)
    where
        B: Body + 'static,
    {
        let size = body.size_hint();
        Self::recorded(body, size, limit, &OnePiece::default())
    }

    /// Creates the body of a first attempt, and the handle that replays it if at most `limit` bytes have been sent.
    /// `size`: the body's size hint, which the caller knows already.
    pub(crate) fn recorded(mut body: B, size: SizeHint, limit: usize, one_piece: &OnePiece) -> (Self, Replay<B>)
    where
        B: Body + 'static,
    {
        if body.is_end_stream() {
            return (Self::empty(size), Replay::empty(size));
        }
        if size.lower() > limit as u64 {
            return (Self::passing(body, one_piece), Replay::never(NotReplayable::TooLarge));
        }
        if let Some(data) = take_whole(&mut body, one_piece) {
            return (Self::single(data.clone()), Replay::single(data));
        }
        let (reader, keeper) = slot(body, limit);
        let recording = Box::new(Recording { reader, remaining: size });
        (Other::Recording(recording).into(), Replay::recorded(keeper, size))
    }

    /// `size` is the source's size hint, even if unknown: by it, HTTP/2 sends a `Content-Length` of 0 or none.
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
            // A source may end without having been polled. A replay couldn't report that at the same point.
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

/// The source is never pinned in place: `Body` is implemented only for sources that are `Unpin`.
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

    /// The state after the record: without a lock from here on.
    fn rest(source: Option<B>) -> Self {
        source.map_or_else(Self::ended, |source| Self::Streaming(Box::new(source)))
    }
}

/// The app's way to take a body of a type of its own that is in memory as one piece.
#[derive(Clone, Debug, Default)]
pub(crate) struct OnePiece(Option<Arc<dyn Any + Send + Sync>>);

/// Returns the whole body, or `None` if the body isn't in memory as one piece.
type Take<B> = fn(&B) -> Option<Bytes>;

impl OnePiece {
    pub(crate) fn new<B: 'static>(take: Take<B>) -> Self {
        Self(Some(Arc::new(take)))
    }

    fn take<B: 'static>(&self, body: &B) -> Option<Bytes> {
        let take: &Take<B> = self.0.as_ref()?.downcast_ref()?;
        take(body)
    }
}

/// Takes the data of a body whose type holds it in memory as one piece.
///
/// Decides by the type, or as the app says. Polling would find more such bodies, but a poll has effects: a body that is fed by a
/// server's connection lets that peer send (`100 Continue`); others start to read a file, need a runtime's context, or
/// panic. All that would happen before the inner service has a connection.
///
/// The data stays in one piece. If it were split, so that a replay could stop it, hyper would still buffer 400 KiB of
/// the pieces before a response arrives.
fn take_whole<B: 'static>(body: &mut B, one_piece: &OnePiece) -> Option<Bytes> {
    let any: &mut dyn Any = body;
    if let Some(full) = any.downcast_mut::<Full<Bytes>>() {
        mem::take(full).into_inner()
    } else if let Some(text) = any.downcast_mut::<String>() {
        Some(mem::take(text).into())
    } else {
        one_piece.take(body)
    }
}

/// Returns the size hint that remains of `size` after `frame`.
pub(crate) fn without(size: SizeHint, frame: &Frame<Bytes>) -> SizeHint {
    let sent = frame.data_ref().map_or(0, Bytes::len) as u64;
    let mut remaining = SizeHint::new();
    remaining.set_lower(size.lower().saturating_sub(sent));
    if let Some(upper) = size.upper() {
        remaining.set_upper(upper.saturating_sub(sent));
    }
    remaining
}

/// The error of a [`ReplayBody`] that was superseded by its replay.
///
/// The connection that sends the body resets the stream, or closes, when it polls for the next frame. The caller never
/// sees this error.
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
