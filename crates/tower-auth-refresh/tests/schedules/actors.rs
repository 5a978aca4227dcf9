//! [`Actor`]: a caller or a task of the app, which only the schedule polls.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use tokio::time::Instant;

pub(crate) struct Actor {
    /// The caller's number, if the actor is a caller.
    pub(crate) caller: Option<usize>,
    /// Any wait that isn't for the API is a wait for newer tokens.
    waits_for_tokens: bool,
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    woken: Arc<Woken>,
    has_started: bool,
    pub(crate) waiting_since: Option<Instant>,
    pub(crate) polled_at: Instant,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl Actor {
    pub(crate) fn new(
        caller: Option<usize>,
        waits_for_tokens: bool,
        future: impl Future<Output = ()> + 'static,
    ) -> Self {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(future);
        let polled_at = Instant::now();
        Self {
            caller,
            waits_for_tokens,
            future: Some(future),
            woken,
            has_started: false,
            waiting_since: None,
            polled_at,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.future.is_some()
    }

    pub(crate) fn has_started(&self) -> bool {
        self.has_started
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.is_running() && self.woken.0.load(Ordering::Acquire)
    }

    pub(crate) fn poll(&mut self) {
        let future = self.future.as_mut().expect("the actor is not done");
        self.has_started = true;
        self.woken.0.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&self.woken));
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.future = None;
        }
    }

    /// Records the state after a poll. `at_api`: the actor waits for the API.
    pub(crate) fn record_wait(&mut self, at_api: bool) {
        self.polled_at = Instant::now();
        let waits = self.is_running() && self.waits_for_tokens && !at_api;
        self.waiting_since = waits.then(|| self.waiting_since.unwrap_or(self.polled_at));
    }

    pub(crate) fn cancel(&mut self) {
        self.future = None;
    }
}
