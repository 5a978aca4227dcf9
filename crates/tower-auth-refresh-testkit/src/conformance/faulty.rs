//! [`FaultyStore`]: a store that fails, hangs or waits when the test says so.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tower_auth_refresh::Tokens;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Epoch, Presented, Record, StoreError, StoreFuture, TokenStore,
    Version,
};

use crate::gate::{Bar, Gate};

/// A call to a store: what a [`StoreFault`] is injected into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the method of `TokenStore` of that name")]
pub enum Call {
    Load,
    Replace,
    Claim,
    Renew,
    Release,
    Commit,
    Clear,
}

/// Wraps a store; its calls fail, hang or wait when the test says so, and are counted.
///
/// Clones are handles on the same store with the same faults.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use tower_auth_refresh::store::{MemoryStore, TokenStore};
/// use tower_auth_refresh_testkit::conformance::{Call, FaultyStore, StoreFault};
///
/// let store = FaultyStore::new(MemoryStore::new());
/// store.inject(Call::Load, StoreFault::fail().times(1));
/// assert!(store.load().await.is_err());
/// assert!(store.load().await.is_ok());
/// assert_eq!(store.calls(), [Call::Load, Call::Load]);
/// # }
/// ```
#[derive(Clone)]
pub struct FaultyStore {
    inner: Arc<dyn TokenStore>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    faults: Vec<(Option<Call>, StoreFault)>,
    holds: Vec<(Call, Bar)>,
}

/// Something that goes wrong with a store's call.
#[derive(Clone, Copy, Debug)]
#[must_use = "a fault does nothing until it is injected"]
pub struct StoreFault {
    act: Act,
    after: bool,
    skip: usize,
    times: usize,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Fail,
    Hang,
    Delay(Duration),
}

impl StoreFault {
    fn new(act: Act) -> Self {
        Self { act, after: false, skip: 0, times: usize::MAX }
    }

    /// The call fails.
    pub fn fail() -> Self {
        Self::new(Act::Fail)
    }

    /// The call never returns.
    pub fn hang() -> Self {
        Self::new(Act::Hang)
    }

    /// The call takes this long.
    pub fn delay(delay: Duration) -> Self {
        Self::new(Act::Delay(delay))
    }

    /// It happens after the call has taken effect. Default: before, and it has none.
    pub fn after_effect(mut self) -> Self {
        self.after = true;
        self
    }

    /// The first calls pass unharmed. Default: none.
    pub fn after_calls(mut self, calls: usize) -> Self {
        self.skip = calls;
        self
    }

    /// It happens this many times. Default: until it is cleared.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Whether it strikes this call, which is one that it is injected into.
    fn strikes(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let strikes = self.times > 0;
        if self.times != usize::MAX {
            self.times = self.times.saturating_sub(1);
        }
        strikes
    }

    async fn strike(self) -> Result<(), StoreError> {
        match self.act {
            Act::Fail => Err(StoreError::new("the test made it fail")),
            Act::Hang => std::future::pending().await,
            Act::Delay(delay) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
        }
    }
}

impl FaultyStore {
    /// A store without faults.
    pub fn new(inner: impl TokenStore) -> Self {
        Self::shared(Arc::new(inner))
    }

    /// As [`new`](Self::new), over a store that is shared already: each process of a fleet may have its own faults.
    pub fn shared(inner: Arc<dyn TokenStore>) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// From now on something goes wrong with these calls. Of several faults, the one injected first strikes, alone.
    pub fn inject(&self, call: Call, fault: StoreFault) {
        self.state().faults.push((Some(call), fault));
    }

    /// As [`inject`](Self::inject), for every call: with [`StoreFault::after_calls`], a test can let each one in turn
    /// go wrong.
    pub fn inject_any(&self, fault: StoreFault) {
        self.state().faults.push((None, fault));
    }

    /// From now on nothing goes wrong.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Holds these calls back, before they take effect, until the gate is opened or dropped.
    pub fn hold(&self, call: Call) -> Gate {
        let bar = Bar::new();
        self.state().holds.push((call, bar.clone()));
        Gate::on(bar)
    }

    /// All calls so far, in the order in which they began.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// How often this was called.
    #[must_use]
    pub fn count(&self, call: Call) -> usize {
        self.state().calls.iter().filter(|seen| **seen == call).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        inner: impl FnOnce(&'a dyn TokenStore) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let (bars, fault) = self.state().begin(call);
        Box::pin(async move {
            for bar in bars {
                bar.pass().await;
            }
            match fault {
                None => inner(&*self.inner).await,
                Some(fault) if fault.after => {
                    let answer = inner(&*self.inner).await;
                    fault.strike().await?;
                    answer
                }
                Some(fault) => {
                    fault.strike().await?;
                    inner(&*self.inner).await
                }
            }
        })
    }
}

impl State {
    fn begin(&mut self, call: Call) -> (Vec<Bar>, Option<StoreFault>) {
        self.calls.push(call);
        self.holds.retain(|(_, bar)| !bar.is_open());
        let bars = self.holds.iter().filter(|(held, _)| *held == call).map(|(_, bar)| bar.clone()).collect();
        let mut fitting = self.faults.iter_mut().filter(|(of, _)| of.is_none_or(|of| of == call));
        let fault = fitting.find_map(|(_, fault)| fault.strikes().then_some(*fault));
        (bars, fault)
    }
}

impl TokenStore for FaultyStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.call(Call::Load, |inner| inner.load())
    }

    fn replace<'a>(&'a self, epoch: Epoch, tokens: &'a Tokens) -> StoreFuture<'a, Version> {
        self.call(Call::Replace, move |inner| inner.replace(epoch, tokens))
    }

    fn claim(&self, version: Version, lease: Duration) -> StoreFuture<'_, ClaimOutcome> {
        self.call(Call::Claim, move |inner| inner.claim(version, lease))
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.call(Call::Renew, move |inner| inner.renew(claim, lease))
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.call(Call::Release, move |inner| inner.release(claim, presented))
    }

    fn commit<'a>(&'a self, claim: &'a Claim, tokens: &'a Tokens) -> StoreFuture<'a, CommitOutcome> {
        self.call(Call::Commit, move |inner| inner.commit(claim, tokens))
    }

    fn clear(&self, version: Version) -> StoreFuture<'_, ClearOutcome> {
        self.call(Call::Clear, move |inner| inner.clear(version))
    }

    fn is_durable(&self) -> bool {
        self.inner.is_durable()
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("FaultyStore")
            .field("calls", &state.calls.len())
            .field("faults", &state.faults)
            .finish_non_exhaustive()
    }
}
