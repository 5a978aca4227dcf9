//! What a call costs when several threads make theirs through one session.

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

/// Calls of one thread in one round: all requests are made before it begins.
const CALLS: usize = 8192;

/// The stacks that threads share a token in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// No token.
    Bare,
    /// One [`Session`].
    Ours,
    /// The token in a `tokio` lock, as most are written.
    RwLock,
}

/// What `threads` share.
pub struct Contention {
    session: Session,
    lock: Arc<RwLock<HeaderValue>>,
}

impl Contention {
    /// Threads will share this session.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn new(session: Session) -> Self {
        let value = HeaderValue::try_from(format!("Bearer {TOKEN}")).expect("a valid header");
        Self { session, lock: Arc::new(RwLock::new(value)) }
    }

    /// Nanoseconds per call, as the mean of the threads sees it: the median of the rounds, for each of `stacks`.
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

    /// One round: each thread makes its calls at the same time as the others.
    ///
    /// # Panics
    ///
    /// If a thread does.
    #[must_use]
    pub fn round(&self, stack: Shared, threads: usize) -> f64 {
        let arrived = AtomicUsize::new(0);
        let time = || {
            let mut candidate = self.candidate(stack);
            let requests = Requests::new(self.session.clone());
            candidate.call(&mut requests.batch(Shape::Get0, 64));
            let mut batch = requests.batch(Shape::Get0, CALLS);
            // Awake when it begins: to be woken takes about as long as all the calls.
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < threads {
                thread::yield_now();
            }
            let begun = std::time::Instant::now();
            candidate.call(&mut batch);
            begun.elapsed().as_secs_f64() * 1e9
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

/// What contention adds: the cost over the bare call with several threads, over the same with one.
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
