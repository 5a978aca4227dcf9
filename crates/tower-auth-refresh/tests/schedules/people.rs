//! [`Person`]: a caller or a part of the app, polled when the schedule says so and at no other time.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use tokio::time::Instant;

pub(crate) struct Person {
    /// The caller's number, if it is one.
    pub(crate) caller: Option<usize>,
    /// Whether it waits for newer tokens wherever it waits for anything but the API.
    waits_for_tokens: bool,
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    woken: Arc<Woken>,
    has_begun: bool,
    pub(crate) waits_since: Option<Instant>,
    pub(crate) polled_at: Instant,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl Person {
    pub(crate) fn new(
        caller: Option<usize>,
        waits_for_tokens: bool,
        future: impl Future<Output = ()> + 'static,
    ) -> Self {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(future);
        let polled_at = Instant::now();
        Self { caller, waits_for_tokens, future: Some(future), woken, has_begun: false, waits_since: None, polled_at }
    }

    pub(crate) fn is_here(&self) -> bool {
        self.future.is_some()
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.is_here() && self.woken.0.load(Ordering::Acquire)
    }

    pub(crate) fn poll(&mut self) {
        let future = self.future.as_mut().expect("it is here");
        self.has_begun = true;
        self.woken.0.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&self.woken));
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.future = None;
        }
    }

    /// It is pending now; `at_api`: because of the API.
    pub(crate) fn note_wait(&mut self, at_api: bool) {
        self.polled_at = Instant::now();
        let waits = self.is_here() && self.waits_for_tokens && !at_api;
        self.waits_since = waits.then(|| self.waits_since.unwrap_or(self.polled_at));
    }

    pub(crate) fn go_away(&mut self) {
        self.future = None;
    }
}
