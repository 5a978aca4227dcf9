//! [`CountedStore`]: a store whose errors the metrics count.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tower_auth_refresh::TokenStore;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, InsertOutcome, Presented, Record, RecordChanged,
    StoreFuture, Version,
};

use crate::metrics::{Metrics, StoreOperation};

/// A store whose errors are counted.
pub(crate) struct CountedStore {
    store: Arc<dyn TokenStore>,
    metrics: Arc<Metrics>,
}

/// Counts a call when it is dropped, unless it has succeeded: as failed, or as given up.
struct Unanswered<'a>(&'a Metrics, Option<StoreOperation>);

impl CountedStore {
    pub(crate) fn new(store: Arc<dyn TokenStore>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    fn count<'a, T: 'a>(&'a self, operation: StoreOperation, call: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        let mut unanswered = Unanswered(&self.metrics, Some(operation));
        Box::pin(async move {
            let answer = call.await;
            if answer.is_ok() {
                unanswered.succeeded();
            }
            answer
        })
    }
}

impl Unanswered<'_> {
    fn succeeded(&mut self) {
        self.1 = None;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(operation) = self.1 {
            self.0.store.count(operation);
        }
    }
}

impl TokenStore for CountedStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.count(StoreOperation::Load, self.store.load())
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.count(StoreOperation::Insert, self.store.insert(entry))
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.count(StoreOperation::Replace, self.store.replace(entry))
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.count(StoreOperation::Claim, self.store.claim(version, lease))
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.count(StoreOperation::Renew, self.store.renew(claim, lease))
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.count(StoreOperation::Release, self.store.release(claim, presented))
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        self.count(StoreOperation::Commit, self.store.commit(claim, entry))
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.count(StoreOperation::Clear, self.store.clear(version))
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.count(StoreOperation::Extend, self.store.extend(version, expires_at))
    }

    fn watch(&self, changed: RecordChanged) {
        self.store.watch(changed);
    }

    fn is_durable(&self) -> bool {
        self.store.is_durable()
    }
}
