//! An in-memory store behind gates: each call waits before it takes effect, and again before it returns.
//!
//! This is not the `FaultyStore` of the testkit: the scheduler chooses the order in which all gates of a test open.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, InsertOutcome, MemoryStore, Presented, Record,
    StoreFuture, TokenStore, Version,
};

use crate::gates::{Gate, Gates, Outcome};
use crate::oracle::Oracle;

pub(crate) struct GatedStore {
    pub(crate) inner: Arc<MemoryStore>,
    pub(crate) gates: Gates,
    pub(crate) oracle: Oracle,
}

/// Reports tokens to the oracle as saved when the commit ends, even if the store failed or the commit was dropped.
struct Saved<'a>(&'a Oracle, &'a Entry);

impl Drop for Saved<'_> {
    fn drop(&mut self) {
        self.0.saved(self.1.tokens());
    }
}

impl GatedStore {
    fn call<'a, T: Send + 'a>(
        &'a self,
        name: &'static str,
        call: impl FnOnce() -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            if self.gates.pass(Gate::Store(name)).await != Outcome::Proceed {
                return Err("the store is down".into());
            }
            let done = call().await;
            if self.gates.pass(Gate::StoreAnswer(name)).await != Outcome::Proceed {
                return Err("the answer was lost".into());
            }
            done
        })
    }
}

impl TokenStore for GatedStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.call("load", || self.inner.load())
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.call("insert", move || self.inner.insert(entry))
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.call("replace", move || self.inner.replace(entry))
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.call("claim", move || self.inner.claim(version, lease))
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.call("renew", move || self.inner.renew(claim, lease))
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.call("release", move || self.inner.release(claim, presented))
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        let committed = self.call("commit", move || {
            self.oracle.saved(entry.tokens());
            self.inner.commit(claim, entry)
        });
        let saved = Saved(&self.oracle, entry);
        Box::pin(async move {
            let _saved = saved;
            committed.await
        })
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.call("clear", move || self.inner.clear(version))
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.call("extend", move || self.inner.extend(version, expires_at))
    }

    fn is_durable(&self) -> bool {
        self.inner.is_durable()
    }
}
