//! The cost of a call when several threads share one session.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use tokio::sync::RwLock;
use tower::{Layer, Service};
use tower_auth_refresh::Session;

use crate::api::Api;
use crate::rounds::Median;
use crate::shape::{Body, Requests, Shape};
use crate::stack::{self, Candidate, TOKEN};

/// Calls per thread and round. All requests are built before the round starts.
const CALLS: usize = 8192;

/// A stack in which threads share a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// No token.
    Bare,
    /// One [`Session`].
    Ours,
    /// The token in a `tokio` lock, the common approach.
    RwLock,
}

/// The token that the threads share, as a session and in a lock.
pub struct Contention {
    session: Session,
    lock: Arc<RwLock<HeaderValue>>,
}

impl Contention {
    /// Creates the experiment, with the session that the threads share.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn new(session: Session) -> Self {
        let value = HeaderValue::try_from(format!("Bearer {TOKEN}")).expect("valid header value");
        Self { session, lock: Arc::new(RwLock::new(value)) }
    }

    /// Returns the nanoseconds per call of each round, for each of `stacks`: the mean over the threads.
    #[must_use]
    pub fn measure<const N: usize>(&self, stacks: [Shared; N], threads: usize, rounds: usize) -> [Vec<f64>; N] {
        let mut figures = [const { Vec::new() }; N];
        for round in 0..rounds {
            for i in 0..N {
                let i = (i + round) % N;
                figures[i].push(self.round(stacks[i], threads));
            }
        }
        figures
    }

    /// Runs one round, in which all threads call concurrently, and returns the nanoseconds per call.
    ///
    /// # Panics
    ///
    /// If a thread panics.
    #[must_use]
    pub fn round(&self, stack: Shared, threads: usize) -> f64 {
        let arrived = AtomicUsize::new(0);
        let time = || {
            let mut candidate = self.candidate(stack);
            let requests = Requests::new(self.session.clone());
            candidate.call(&mut requests.batch(Shape::Get0, 64));
            let mut batch = requests.batch(Shape::Get0, CALLS);
            // A spinning barrier: waking a parked thread takes about as long as all its calls.
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < threads {
                thread::yield_now();
            }
            let start = std::time::Instant::now();
            candidate.call(&mut batch);
            start.elapsed().as_secs_f64() * 1e9
        };
        let total: f64 = thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(time)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no thread panics")).sum()
        });
        #[expect(clippy::cast_precision_loss, reason = "a few thousand calls")]
        let calls = (threads * CALLS) as f64;
        total / calls
    }

    fn candidate(&self, stack: Shared) -> Candidate {
        match stack {
            Shared::Bare => Candidate::new("bare", <Api>::new()),
            Shared::Ours => Candidate::new("ours", stack::ours(&self.session).layer(<Api>::new())),
            Shared::RwLock => Candidate::new("rwlock", Locked { lock: Arc::clone(&self.lock), inner: <Api>::new() }),
        }
    }
}

/// Returns the effect of contention: the overhead with several threads divided by the overhead with one.
#[must_use]
pub fn growth(one: [&[f64]; 2], several: [&[f64]; 2]) -> f64 {
    let over_bare =
        |[stack, bare]: [&[f64]; 2]| Median::of(stack.iter().zip(bare).map(|(stack, bare)| stack - bare)).value;
    over_bare(several) / over_bare(one)
}

struct Locked<S> {
    lock: Arc<RwLock<HeaderValue>>,
    inner: S,
}

impl<S, R> Service<Request<Body>> for Locked<S>
where
    S: Service<Request<Body>, Response = Response<R>, Future: Send> + Clone + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let lock = Arc::clone(&self.lock);
        async move {
            let value = lock.read().await.clone();
            request.headers_mut().insert(AUTHORIZATION, value);
            inner.call(request).await
        }
        .boxed()
    }
}
