//! [`Rewindable`]: a store that can lose its last writes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tower::BoxError;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, InsertOutcome, Presented, Record, RecordChanged,
    StoreFuture, TokenStore, Version,
};

/// A wrapper around a store that can go back to an earlier record.
///
/// The wrapped store gives the record a new version when it is written again. This one shows the earlier version instead:
/// a store that has failed over to a replica knows no other.
pub(super) struct Rewindable {
    inner: Arc<dyn TokenStore>,
    aliases: Mutex<Vec<Alias>>,
}

/// A version that has come back.
struct Alias {
    shown: Version,
    inner: Version,
}

impl Rewindable {
    pub(super) fn new(inner: Arc<dyn TokenStore>) -> Self {
        Self { inner, aliases: Mutex::default() }
    }

    /// Makes the store hold this record, or none, and no claim.
    pub(super) async fn rewind(&self, to: Option<Record>) -> Result<(), BoxError> {
        if let Some(record) = to {
            let inner = self.inner.replace(record.entry()).await?;
            let mut aliases = self.aliases();
            aliases.retain(|alias| alias.shown != *record.version());
            aliases.push(Alias { shown: record.version().clone(), inner });
            return Ok(());
        }
        while let Some(record) = self.inner.load().await? {
            self.inner.clear(record.version()).await?;
        }
        Ok(())
    }

    fn aliases(&self) -> MutexGuard<'_, Vec<Alias>> {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&self, shown: &Version) -> Version {
        let alias = self.aliases().iter().find(|alias| alias.shown == *shown).map(|alias| alias.inner.clone());
        alias.unwrap_or_else(|| shown.clone())
    }

    fn inner_claim(&self, claim: &Claim) -> Claim {
        Claim::new(self.inner(claim.version()), claim.id().clone(), claim.is_in_doubt())
    }

    fn shown(&self, record: Record) -> Record {
        let aliases = self.aliases();
        match aliases.iter().find(|alias| alias.inner == *record.version()) {
            Some(alias) => Record::new(alias.shown.clone(), record.entry().clone()),
            None => record,
        }
    }
}

impl TokenStore for Rewindable {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        Box::pin(async { Ok(self.inner.load().await?.map(|record| self.shown(record))) })
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        Box::pin(async {
            Ok(match self.inner.insert(entry).await? {
                InsertOutcome::Exists(record) => InsertOutcome::Exists(self.shown(record)),
                other => other,
            })
        })
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.inner.replace(entry)
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        Box::pin(async move {
            Ok(match self.inner.claim(&self.inner(version), lease).await? {
                ClaimOutcome::Claimed(claim) => {
                    ClaimOutcome::Claimed(Claim::new(version.clone(), claim.id().clone(), claim.is_in_doubt()))
                }
                ClaimOutcome::Changed(found) => ClaimOutcome::Changed(found.map(|record| self.shown(record))),
                other => other,
            })
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        Box::pin(async move { self.inner.renew(&self.inner_claim(claim), lease).await })
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.inner.release(&self.inner_claim(claim), presented).await })
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        Box::pin(async move {
            Ok(match self.inner.commit(&self.inner_claim(claim), entry).await? {
                CommitOutcome::Conflict(found) => CommitOutcome::Conflict(found.map(|record| self.shown(record))),
                other => other,
            })
        })
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        Box::pin(async move {
            Ok(match self.inner.clear(&self.inner(version)).await? {
                ClearOutcome::Conflict(found) => ClearOutcome::Conflict(self.shown(found)),
                other => other,
            })
        })
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        Box::pin(async move { self.inner.extend(&self.inner(version), expires_at).await })
    }

    fn watch(&self, changed: RecordChanged) {
        self.inner.watch(changed);
    }

    fn is_durable(&self) -> bool {
        self.inner.is_durable()
    }
}
