//! A scripted body, and helpers that poll a body and describe the result.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};

/// One step of a [`Script`].
pub(super) enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Returns pending until the gate lets one step pass.
    Wait(Gate),
    Fail,
    Panic,
}

/// A body that executes its steps. Panics if it is polled after its end.
pub(super) struct Script {
    steps: VecDeque<Step>,
    size: SizeHint,
    /// `is_end_stream` reports the end before the last poll does.
    reports_end: bool,
    ended: bool,
}

impl Script {
    /// Creates a body of unknown length that doesn't report its end beforehand.
    pub(super) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), size: SizeHint::default(), reports_end: false, ended: false }
    }

    pub(super) fn chunks(chunks: impl IntoIterator<Item = &'static str>) -> Self {
        Self::new(chunks.into_iter().map(|chunk| Step::Data(Bytes::from_static(chunk.as_bytes()))))
    }

    pub(super) fn size(mut self, size: SizeHint) -> Self {
        self.size = size;
        self
    }

    /// Sets the exact size, as computed from the steps.
    pub(super) fn exact(self) -> Self {
        let size = self.steps.iter().map(|step| if let Step::Data(data) = step { data.len() as u64 } else { 0 }).sum();
        self.size(SizeHint::with_exact(size))
    }

    pub(super) fn reports_end(mut self) -> Self {
        self.reports_end = true;
        self
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        assert!(!self.ended, "the script was polled after its end");
        if let Some(Step::Wait(gate)) = self.steps.front() {
            if !gate.poll_pass(cx) {
                return Poll::Pending;
            }
            self.steps.pop_front();
            return self.poll_frame(cx);
        }
        Poll::Ready(match self.steps.pop_front() {
            Some(Step::Data(data)) => {
                let (lower, upper) = (self.size.lower(), self.size.upper());
                self.size = SizeHint::default();
                self.size.set_lower(lower.saturating_sub(data.len() as u64));
                if let Some(upper) = upper {
                    self.size.set_upper(upper.saturating_sub(data.len() as u64));
                }
                Some(Ok(Frame::data(data)))
            }
            Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Step::Fail) => Some(Err(io::Error::other("the disk failed"))),
            Some(Step::Panic) => panic!("the source panics"),
            Some(Step::Wait(_)) => unreachable!("a wait is handled above"),
            None => {
                self.ended = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.reports_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

/// Lets one waiting step pass for each call of `open`.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<(usize, Option<Waker>)>>);

impl Gate {
    pub(super) fn open(&self) {
        let mut gate = self.0.lock().unwrap();
        gate.0 += 1;
        let waker = gate.1.take();
        drop(gate);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll_pass(&self, cx: &mut Context<'_>) -> bool {
        let mut gate = self.0.lock().unwrap();
        if gate.0 == 0 {
            gate.1 = Some(cx.waker().clone());
            return false;
        }
        gate.0 -= 1;
        true
    }
}

/// A waker that counts wake-ups.
#[derive(Default)]
pub(super) struct Task(AtomicUsize);

impl Task {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn wakes(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The result of a poll.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Seen {
    Data(Bytes),
    Trailers(HeaderMap),
    Error(String),
    End,
    Pending,
}

/// Polls once, with `task`'s waker.
pub(super) fn poll<B>(body: &mut B, task: &Arc<Task>) -> Seen
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: ToString,
{
    let waker = Waker::from(Arc::clone(task));
    match Pin::new(body).poll_frame(&mut Context::from_waker(&waker)) {
        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
            Ok(data) => Seen::Data(data),
            Err(frame) => Seen::Trailers(frame.into_trailers().unwrap()),
        },
        Poll::Ready(Some(Err(error))) => Seen::Error(error.to_string()),
        Poll::Ready(None) => Seen::End,
        Poll::Pending => Seen::Pending,
    }
}

/// Polls until there is no further frame. The last element is the end, an error or pending.
pub(super) fn drain<B>(body: &mut B) -> Vec<Seen>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: ToString,
{
    let task = Task::new();
    let mut seen = Vec::new();
    loop {
        seen.push(poll(body, &task));
        if !matches!(seen.last(), Some(Seen::Data(_) | Seen::Trailers(_))) {
            return seen;
        }
    }
}

pub(super) fn data(data: &'static str) -> Seen {
    Seen::Data(Bytes::from_static(data.as_bytes()))
}

pub(super) fn superseded() -> Seen {
    Seen::Error("the request body was superseded by its replay".to_owned())
}

pub(super) fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}

/// Returns whether two data frames share their memory.
pub(super) fn same_memory(one: &Seen, other: &Seen) -> bool {
    match (one, other) {
        (Seen::Data(one), Seen::Data(other)) => one.as_ptr() == other.as_ptr() && one.len() == other.len(),
        _ => false,
    }
}

/// Returns the bounds of the size hint.
pub(super) fn bounds<B: Body>(body: &B) -> (u64, Option<u64>) {
    (body.size_hint().lower(), body.size_hint().upper())
}
