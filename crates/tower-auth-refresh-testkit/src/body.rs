//! The bodies that the servers send, and the measured body of a request.

use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::stream;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};

use crate::TestKit;

/// Any error, boxed.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a response from a [`TestKit`].
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// The block that `/api/bytes` repeats: byte `i` is `i % 251`.
static PATTERN: LazyLock<Bytes> = LazyLock::new(|| (0..=250).cycle().take(251 * 256).collect());

static FILLER: Bytes = Bytes::from_static(&[b'a'; 16 * 1024]);

pub(crate) fn full(bytes: Bytes) -> ResponseBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn pattern(length: u64) -> ResponseBody {
    Repeat { head: Bytes::new(), block: PATTERN.clone(), left: Some(length) }.boxed_unsync()
}

/// A body that begins like a token response and never closes its string: `length` bytes, or endless.
pub(crate) fn huge(length: Option<u64>) -> ResponseBody {
    let head = Bytes::from_static(br#"{"access_token":""#);
    Repeat { head, block: FILLER.clone(), left: length }.boxed_unsync()
}

/// Sends `body` one byte at a time.
pub(crate) fn dripping(body: ResponseBody, every: Duration) -> ResponseBody {
    let drops = stream::unfold((body, Bytes::new()), move |(mut body, mut rest)| async move {
        while rest.is_empty() {
            match body.frame().await?.map(Frame::into_data) {
                Ok(Ok(data)) => rest = data,
                Ok(Err(other)) => return Some((Ok(other), (body, rest))),
                Err(error) => return Some((Err(error), (body, rest))),
            }
        }
        tokio::time::sleep(every).await;
        Some((Ok(Frame::data(rest.split_to(1))), (body, rest)))
    });
    StreamBody::new(drops).boxed_unsync()
}

/// Sends the whole of `body`, and never ends.
pub(crate) fn stalling(body: ResponseBody) -> ResponseBody {
    let frames = stream::unfold(body, |mut body| async move {
        match body.frame().await {
            Some(frame) => Some((frame, body)),
            None => std::future::pending().await,
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

struct Repeat {
    head: Bytes,
    block: Bytes,
    left: Option<u64>,
}

impl Body for Repeat {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let mut next = std::mem::take(&mut self.head);
        if next.is_empty() {
            next = self.block.clone();
        }
        if let Some(left) = &mut self.left {
            next.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= next.len() as u64;
        }
        Poll::Ready(Some(Ok(Frame::data(next))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

/// A checksum of a body (FNV-1a, 64 bits).
///
/// The checksum doesn't depend on how the body is divided into chunks.
///
/// ```
/// use tower_auth_refresh_testkit::Checksum;
///
/// let mut checksum = Checksum::default();
/// checksum.update(b"foo");
/// checksum.update(b"bar");
/// assert_eq!(checksum.to_string(), "85944171f73967e8");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(u64);

impl Checksum {
    /// Returns the checksum of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut checksum = Self::default();
        checksum.update(bytes);
        checksum
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A request body that is measured as it is read, and compared at its end with what the headers announced.
pub(crate) struct Inspected<B> {
    body: Pin<Box<B>>,
    kit: TestKit,
    length: u64,
    checksum: Option<Checksum>,
    announced_length: Option<String>,
    announced_checksum: Option<String>,
    ended: bool,
}

impl<B> Inspected<B> {
    pub(crate) fn new(body: B, headers: &HeaderMap, kit: &TestKit, with_checksum: bool) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let announced_checksum = text(crate::BODY_CHECKSUM);
        Self {
            body: Box::pin(body),
            kit: kit.clone(),
            length: 0,
            checksum: (with_checksum || announced_checksum.is_some()).then(Checksum::default),
            announced_length: text(crate::BODY_LENGTH).or_else(|| text("content-length")),
            announced_checksum,
            ended: false,
        }
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn checksum(&self) -> Option<Checksum> {
        self.checksum
    }

    fn end(&mut self, is_complete: bool) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let differs =
            |announced: &Option<String>, found: String| announced.as_ref().is_some_and(|announced| *announced != found);
        let mismatch = differs(&self.announced_length, self.length.to_string())
            || self.checksum.is_some_and(|sum| differs(&self.announced_checksum, sum.to_string()));
        let counters = &mut self.kit.state().journal.counters;
        counters.bodies_cut_short += u64::from(!is_complete);
        counters.body_mismatches += u64::from(is_complete && mismatch);
    }
}

impl<B> Inspected<B>
where
    B: Body<Data: Buf, Error: Into<BoxError>>,
{
    /// Reads the body to its end and discards the data.
    pub(crate) async fn drain(&mut self) -> Result<(), BoxError> {
        while let Some(frame) = self.frame().await {
            frame?;
        }
        Ok(())
    }
}

impl<B> Body for Inspected<B>
where
    B: Body<Data: Buf, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = ready!(self.body.as_mut().poll_frame(cx));
        Poll::Ready(match polled {
            None => {
                self.end(true);
                None
            }
            Some(Err(error)) => {
                self.end(false);
                Some(Err(error.into()))
            }
            Some(Ok(frame)) => {
                let frame = frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
                if let Some(data) = frame.data_ref() {
                    self.length += data.len() as u64;
                    if let Some(checksum) = &mut self.checksum {
                        checksum.update(data);
                    }
                }
                // A reader that checks `is_end_stream` doesn't poll again.
                if self.body.is_end_stream() {
                    self.end(true);
                }
                Some(Ok(frame))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
