//! A body whose frames come one by one, the second half of them once a gate opens, and whose release is observed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::StreamBody;
use tokio::sync::oneshot;

const FRAME: usize = 4 * 1024;

/// The content of an upload.
pub struct Whole(Vec<u8>);

/// A buffer whose release is observed.
struct Observed(Vec<u8>, #[expect(dead_code, reason = "dropped with it")] oneshot::Sender<Infallible>);

/// Resolves to an error once the body is freed: its source, its record and the socket buffers have dropped it.
pub type Freed = oneshot::Receiver<Infallible>;

impl AsRef<[u8]> for Observed {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Whole {
    pub fn new(length: usize) -> Self {
        Self((0..length).map(|i| u8::try_from((i ^ i >> 8 ^ i >> 16) & 0xff).unwrap()).collect())
    }

    pub fn of(byte: u8, length: usize) -> Self {
        Self(vec![byte; length])
    }

    pub fn shared(&self) -> (Bytes, Freed) {
        let (sender, freed) = oneshot::channel();
        (Bytes::from_owner(Observed(self.0.clone(), sender)), freed)
    }

    /// Splits the content into a frame that is longer than a stream's window, and two short ones.
    pub fn frames(&self) -> (impl Body<Data = Bytes, Error = Infallible> + Send + Unpin + use<>, Freed) {
        let (mut data, freed) = self.shared();
        let long = data.split_to(data.len() - 2 * FRAME);
        let short = data.split_to(FRAME);
        (StreamBody::new(futures_util::stream::iter([long, short, data].map(|data| Ok(Frame::data(data))))), freed)
    }

    pub fn is(&self, read: &[u8]) -> bool {
        self.0 == read
    }
}

/// The request body.
pub struct Upload {
    frames: VecDeque<Frame<Bytes>>,
    left: usize,
    sized: bool,
    /// The number of frames left at which the gate is awaited.
    gate: Option<(usize, Gate)>,
    /// Set while the next frame is ready: each frame is pending once before.
    waited: bool,
}

type Gate = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Upload {
    /// Creates a body of known length, whose second half is available once `gate` has resolved.
    pub fn new(whole: &Whole, gate: impl Future<Output = ()> + Send + 'static) -> (Self, Freed) {
        let (mut data, freed) = whole.shared();
        let (mut frames, left) = (VecDeque::new(), data.len());
        while !data.is_empty() {
            frames.push_back(Frame::data(data.split_to(FRAME.min(data.len()))));
        }
        let gate = Some((frames.len() / 2, Box::pin(gate) as Gate));
        (Self { frames, left, sized: true, gate, waited: false }, freed)
    }

    pub fn of_unknown_length(mut self) -> Self {
        self.sized = false;
        self
    }

    pub fn with_trailers(mut self) -> Self {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        self.frames.push_back(Frame::trailers(trailers));
        self
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = self.frames.len();
        if let Some((at, gate)) = &mut self.gate
            && *at == left
        {
            ready!(gate.as_mut().poll(cx));
            self.gate = None;
        }
        self.waited = !self.waited;
        if self.waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let frame = self.frames.pop_front();
        self.left -= frame.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len);
        Poll::Ready(frame.map(Ok))
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized { SizeHint::with_exact(self.left as u64) } else { SizeHint::default() }
    }
}
