//! A store whose every call the test can make fail, hang or panic, before or after it takes effect.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tower_auth_refresh::Tokens;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Epoch, MemoryStore, Presented, Record, StoreError, StoreFuture,
    TokenStore, Version,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Load,
    Replace,
    Claim,
    Renew,
    Release,
    Commit,
    Clear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Fails, and has no effect.
    Fail,
    /// Hangs until the fault is lifted, then takes effect.
    Hang,
    /// Takes effect, then fails: the answer is lost.
    FailLate,
    /// Takes effect, then hangs until the fault is lifted.
    HangLate,
    /// Panics when it is called.
    PanicNow,
    /// Panics when its future is polled.
    Panic,
    /// Of claims: says that the lease of whoever holds it ends this moment.
    Hasty,
}

/// A [`MemoryStore`] under the test's thumb. Sessions of one test may share it.
pub struct FaultyStore {
    inner: Arc<MemoryStore>,
    faults: watch::Sender<HashMap<Op, Fault>>,
    calls: Mutex<Vec<Op>>,
    held: Mutex<HashMap<Op, oneshot::Receiver<()>>>,
}

impl FaultyStore {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::default(),
            faults: watch::Sender::default(),
            calls: Mutex::default(),
            held: Mutex::default(),
        })
    }

    /// The next call takes effect, and is answered once this is dropped. Those after it aren't held.
    pub fn hold(&self, op: Op) -> oneshot::Sender<()> {
        let (release, released) = oneshot::channel();
        self.held.lock().unwrap().insert(op, released);
        release
    }

    pub fn fault(&self, op: Op, fault: Fault) {
        self.faults.send_modify(|faults| _ = faults.insert(op, fault));
    }

    pub fn lift(&self, op: Op) {
        self.faults.send_modify(|faults| _ = faults.remove(&op));
    }

    /// Lifts all faults.
    pub fn heal(&self) {
        self.faults.send_modify(HashMap::clear);
    }

    /// The calls since the last look.
    pub fn calls(&self) -> Vec<Op> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// What is stored, whatever the faults.
    pub async fn record(&self) -> Option<Record> {
        self.inner.load().await.unwrap()
    }

    /// The tokens that are stored, whatever the faults.
    pub async fn tokens(&self) -> Option<Tokens> {
        self.record().await.map(|record| record.tokens)
    }

    /// The store below the faults, as a peer with a better connection sees it.
    pub fn without_faults(&self) -> Arc<MemoryStore> {
        Arc::clone(&self.inner)
    }

    /// Claims what is stored, as a peer would.
    pub async fn claim_as_peer(&self, lease: Duration) -> Claim {
        let record = self.record().await.unwrap();
        match self.inner.claim(record.version, lease).await.unwrap() {
            ClaimOutcome::Claimed(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    /// Stores tokens as a peer that refreshes would.
    pub async fn refresh_as_peer(&self, tokens: &Tokens) {
        let claim = self.claim_as_peer(Duration::from_secs(35)).await;
        assert!(matches!(self.inner.commit(&claim, tokens).await.unwrap(), CommitOutcome::Stored(_)));
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        op: Op,
        call: impl FnOnce() -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        self.calls.lock().unwrap().push(op);
        let fault = self.faults.borrow().get(&op).copied();
        assert!(fault != Some(Fault::PanicNow), "the store panics, as the test wants it to");
        let held = self.held.lock().unwrap().remove(&op);
        Box::pin(async move {
            let lifted = async {
                let mut faults = self.faults.subscribe();
                faults.wait_for(|faults| faults.get(&op) != fault.as_ref()).await.expect("the store is alive");
            };
            // Like a store that is far away: nothing is done at the first poll, nor told at once.
            let call = || async {
                tokio::task::yield_now().await;
                let done = call().await;
                tokio::task::yield_now().await;
                if let Some(held) = held {
                    let _ = held.await;
                }
                done
            };
            match fault {
                None | Some(Fault::PanicNow | Fault::Hasty) => call().await,
                Some(Fault::Fail) => Err(StoreError::new("it is down")),
                Some(Fault::Hang) => {
                    lifted.await;
                    call().await
                }
                Some(Fault::FailLate) => {
                    call().await?;
                    Err(StoreError::new("the answer was lost"))
                }
                Some(Fault::HangLate) => {
                    let done = call().await;
                    lifted.await;
                    done
                }
                Some(Fault::Panic) => panic!("the store panics, as the test wants it to"),
            }
        })
    }
}

impl TokenStore for FaultyStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.call(Op::Load, || self.inner.load())
    }

    fn replace<'a>(&'a self, epoch: Epoch, tokens: &'a Tokens) -> StoreFuture<'a, Version> {
        self.call(Op::Replace, move || self.inner.replace(epoch, tokens))
    }

    fn claim(&self, version: Version, lease: Duration) -> StoreFuture<'_, ClaimOutcome> {
        let claiming = self.call(Op::Claim, move || self.inner.claim(version, lease));
        Box::pin(async move {
            let hasty = self.faults.borrow().get(&Op::Claim) == Some(&Fault::Hasty);
            Ok(match claiming.await? {
                ClaimOutcome::Busy { .. } if hasty => ClaimOutcome::Busy { until: Instant::now() },
                claiming => claiming,
            })
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.call(Op::Renew, move || self.inner.renew(claim, lease))
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.call(Op::Release, move || self.inner.release(claim, presented))
    }

    fn commit<'a>(&'a self, claim: &'a Claim, tokens: &'a Tokens) -> StoreFuture<'a, CommitOutcome> {
        self.call(Op::Commit, move || self.inner.commit(claim, tokens))
    }

    fn clear(&self, version: Version) -> StoreFuture<'_, ClearOutcome> {
        self.call(Op::Clear, move || self.inner.clear(version))
    }
}
