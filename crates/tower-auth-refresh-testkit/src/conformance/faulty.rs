//! [`FaultyStore`]: a store whose calls fail, hang, panic or wait when the test injects a fault.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::yield_now;
use tower::BoxError;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, InsertOutcome, Presented, Record, RecordChanged,
    StoreFuture, TokenStore, Version,
};

use super::rewind::Rewindable;
use crate::gate::{Bar, Gate};

/// A method of [`TokenStore`], into which a [`StoreFault`] is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the method of `TokenStore` of that name")]
pub enum Call {
    Load,
    Insert,
    Replace,
    Claim,
    Renew,
    Release,
    Commit,
    Clear,
    Extend,
}

/// A wrapper around a store, which logs the calls and makes them fail, hang or wait, can lose its last writes, and can
/// push changes.
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
    inner: Arc<Rewindable>,
    state: Arc<Mutex<State>>,
    yields: bool,
    durable: bool,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    faults: Vec<Injected>,
    holds: Vec<(Call, Bar)>,
    watchers: Vec<RecordChanged>,
    push: Push,
}

/// The connection by which sign-ins and sign-outs are reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Push {
    #[default]
    Absent,
    Up,
    Cut,
}

struct Injected {
    /// `None`: all calls.
    call: Option<Call>,
    fault: StoreFault,
    /// Dropped when the fault is cleared.
    cleared: watch::Sender<()>,
}

/// A fault that applies to calls of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a fault has no effect until it is injected"]
pub struct StoreFault {
    kind: Kind,
    after: bool,
    skip: usize,
    times: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fail,
    Hang,
    HangUntilCleared,
    Delay(Duration),
    Panic,
    PanicOnCall,
    BusyUntilNow,
}

/// The gates and the fault of a call.
struct Plan {
    call: Call,
    bars: Vec<Bar>,
    fault: Option<(StoreFault, watch::Receiver<()>)>,
}

impl StoreFault {
    const fn new(kind: Kind) -> Self {
        Self { kind, after: false, skip: 0, times: usize::MAX }
    }

    /// Makes the call fail.
    pub const fn fail() -> Self {
        Self::new(Kind::Fail)
    }

    /// Makes the call hang forever, even after the fault is cleared.
    pub const fn hang() -> Self {
        Self::new(Kind::Hang)
    }

    /// Makes the call wait until the fault is cleared.
    pub const fn hang_until_cleared() -> Self {
        Self::new(Kind::HangUntilCleared)
    }

    /// Delays the call.
    pub const fn delay(delay: Duration) -> Self {
        Self::new(Kind::Delay(delay))
    }

    /// Makes the future of the call panic when it is polled.
    pub const fn panic() -> Self {
        Self::new(Kind::Panic)
    }

    /// Makes the method panic before it returns a future.
    pub const fn panic_on_call() -> Self {
        Self::new(Kind::PanicOnCall)
    }

    /// Makes a [claim](TokenStore::claim) that finds another one report that its lease ends now.
    ///
    /// Has no effect on other calls.
    pub const fn busy_until_now() -> Self {
        Self::new(Kind::BusyUntilNow)
    }

    /// Applies the fault after the call has taken effect. Default: before its effect.
    pub const fn after_effect(mut self) -> Self {
        self.after = true;
        self
    }

    /// Applies the fault only after this many calls. Default: 0.
    pub const fn after_calls(mut self, calls: usize) -> Self {
        self.skip = calls;
        self
    }

    /// Applies the fault to this many calls. Default: to all until it is cleared.
    pub const fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Counts a call that matches, and returns true if the fault applies to it.
    fn count_call(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let applies = self.times > 0;
        if self.times != usize::MAX {
            self.times = self.times.saturating_sub(1);
        }
        applies
    }

    async fn apply(self, mut cleared: watch::Receiver<()>) -> Result<(), BoxError> {
        match self.kind {
            Kind::Fail => return Err("injected fault".into()),
            Kind::Hang => std::future::pending().await,
            // Nothing is ever sent: the error says that the sender was dropped.
            Kind::HangUntilCleared => _ = cleared.changed().await,
            Kind::Delay(delay) => tokio::time::sleep(delay).await,
            Kind::Panic => panic!("the store panics: injected fault"),
            Kind::PanicOnCall | Kind::BusyUntilNow => {}
        }
        Ok(())
    }
}

impl FaultyStore {
    /// Wraps a store, without faults. Each process of a fleet can have its own faults: by wrapping an `Arc` of the store
    /// that they share.
    pub fn new(inner: impl TokenStore) -> Self {
        Self { inner: Arc::new(Rewindable::new(Arc::new(inner))), state: Arc::default(), yields: false, durable: false }
    }

    /// Makes every call yield to the scheduler before and after its effect, as a remote store does. Default: off.
    #[must_use]
    pub fn yielding(mut self) -> Self {
        self.yields = true;
        self
    }

    /// Reports the store as durable. Default: what the wrapped store reports.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Reports every sign-in and sign-out that is made through this store to all sessions on it, as a store with a push
    /// connection does. Default: off.
    #[must_use]
    pub fn pushing(self) -> Self {
        self.state().push = Push::Up;
        self
    }

    /// Cuts the push connection: reports are lost.
    pub fn cut_push(&self) {
        self.state().push = Push::Cut;
    }

    /// Brings the push connection up again. All sessions look at the store before their next use.
    pub fn restore_push(&self) {
        let watchers = {
            let mut state = self.state();
            state.push = Push::Up;
            state.watchers.clone()
        };
        watchers.iter().for_each(RecordChanged::mark_stale);
    }

    /// Returns the wrapped store, which the faults do not affect.
    #[must_use]
    pub fn inner(&self) -> Arc<dyn TokenStore> {
        Arc::clone(&self.inner) as _
    }

    /// Returns the record that the wrapped store holds, for a later [`rewind`](Self::rewind). The faults do not affect it.
    ///
    /// # Panics
    ///
    /// If the wrapped store fails.
    pub async fn snapshot(&self) -> Option<Record> {
        self.inner.load().await.expect("the wrapped store works")
    }

    /// Makes the wrapped store lose its last writes: it holds an earlier record again, under its earlier version, and no
    /// claim. A failover to a replica that lags behind does the same, or a backup that is restored.
    ///
    /// The faults do not affect it. Stores that wrap this one, or an `Arc` of it, go back too.
    ///
    /// # Panics
    ///
    /// If the wrapped store fails.
    pub async fn rewind(&self, to: Option<Record>) {
        self.inner.rewind(to).await.expect("the wrapped store works");
    }

    /// Injects a fault into a method. If several faults apply to a call, the first one injected is used.
    pub fn inject(&self, call: Call, fault: StoreFault) {
        self.push(Some(call), fault);
    }

    /// Injects a fault into every method. With [`StoreFault::after_calls`], a test can cover each call in turn.
    pub fn inject_any(&self, fault: StoreFault) {
        self.push(None, fault);
    }

    /// Clears all faults.
    pub fn clear_faults(&self) {
        let cleared = std::mem::take(&mut self.state().faults);
        // Wakes the calls that hang, so not under the lock.
        drop(cleared);
    }

    /// Clears the faults that were injected into this method alone.
    pub fn clear_faults_of(&self, call: Call) {
        let cleared: Vec<_> = self.state().faults.extract_if(.., |injected| injected.call == Some(call)).collect();
        drop(cleared);
    }

    /// Holds the calls of a method back, before they take effect, until the gate is opened or dropped.
    pub fn hold(&self, call: Call) -> Gate {
        let bar = Bar::new();
        self.state().holds.push((call, bar.clone()));
        Gate::on(bar)
    }

    /// Returns the log of calls, in the order in which they began.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Returns the number of calls of a method in the log.
    #[must_use]
    pub fn count(&self, call: Call) -> usize {
        self.state().calls.iter().filter(|logged| **logged == call).count()
    }

    /// Empties the log of calls.
    pub fn clear_calls(&self) {
        self.state().calls.clear();
    }

    fn push(&self, call: Option<Call>, fault: StoreFault) {
        self.state().faults.push(Injected { call, fault, cleared: watch::Sender::new(()) });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        inner: impl FnOnce(&'a dyn TokenStore) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        self.run(self.begin(call), inner)
    }

    fn begin(&self, call: Call) -> Plan {
        let plan = self.state().begin(call);
        assert!(!plan.is(Kind::PanicOnCall), "the store panics: injected fault");
        plan
    }

    fn run<'a, T: Send + 'a>(
        &'a self,
        plan: Plan,
        inner: impl FnOnce(&'a dyn TokenStore) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let inner = async move || {
            if self.yields {
                yield_now().await;
            }
            let answer = inner(&*self.inner).await;
            self.report(plan.call);
            if self.yields {
                yield_now().await;
            }
            answer
        };
        Box::pin(async move {
            for bar in plan.bars {
                bar.pass().await;
            }
            match plan.fault {
                None => inner().await,
                Some((fault, cleared)) if fault.after => {
                    let answer = inner().await;
                    fault.apply(cleared).await?;
                    answer
                }
                Some((fault, cleared)) => {
                    fault.apply(cleared).await?;
                    inner().await
                }
            }
        })
    }

    /// Reports a call that has taken effect.
    fn report(&self, call: Call) {
        let is_reported = matches!(call, Call::Replace | Call::Clear);
        let watchers = {
            let state = self.state();
            if is_reported && state.push == Push::Up { state.watchers.clone() } else { Vec::new() }
        };
        watchers.iter().for_each(RecordChanged::notify);
    }
}

impl State {
    fn begin(&mut self, call: Call) -> Plan {
        self.calls.push(call);
        self.holds.retain(|(_, bar)| !bar.is_open());
        let bars = self.holds.iter().filter(|(held, _)| *held == call).map(|(_, bar)| bar.clone()).collect();
        let mut matching = self.faults.iter_mut().filter(|injected| injected.call.is_none_or(|of| of == call));
        let applied = matching.find_map(|injected| injected.fault.count_call().then_some(injected));
        Plan { call, bars, fault: applied.map(|injected| (injected.fault, injected.cleared.subscribe())) }
    }
}

impl Plan {
    fn is(&self, kind: Kind) -> bool {
        self.fault.as_ref().is_some_and(|(fault, _)| fault.kind == kind)
    }
}

impl TokenStore for FaultyStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.call(Call::Load, |inner| inner.load())
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.call(Call::Insert, move |inner| inner.insert(entry))
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.call(Call::Replace, move |inner| inner.replace(entry))
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        let plan = self.begin(Call::Claim);
        let busy_until_now = plan.is(Kind::BusyUntilNow);
        let claiming = self.run(plan, move |inner| inner.claim(version, lease));
        Box::pin(async move {
            Ok(match claiming.await? {
                ClaimOutcome::Busy { .. } if busy_until_now => ClaimOutcome::Busy { retry_in: Duration::ZERO },
                outcome => outcome,
            })
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.call(Call::Renew, move |inner| inner.renew(claim, lease))
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.call(Call::Release, move |inner| inner.release(claim, presented))
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        self.call(Call::Commit, move |inner| inner.commit(claim, entry))
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.call(Call::Clear, move |inner| inner.clear(version))
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.call(Call::Extend, move |inner| inner.extend(version, expires_at))
    }

    fn watch(&self, changed: RecordChanged) {
        self.state().watchers.push(changed.clone());
        self.inner.watch(changed);
    }

    fn is_durable(&self) -> bool {
        self.durable || self.inner.is_durable()
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("FaultyStore")
            .field("calls", &state.calls.len())
            .field("faults", &state.faults.iter().map(|injected| injected.fault).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
