//! Store sync: brings the store in line with the state where a write outside of a flight, or a failed one, is pending.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use futures_util::future::join;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower::BoxError;

use super::backoff;
use super::cell::{SignInAttempt, TokenCell};
use super::held_claim::LEASE;
use super::state::{Event, Stored};
use super::store_call::bounded;
use crate::TARGET;
use crate::random;
use crate::store::{Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, Epoch, Record, Version};

/// Another process has claimed the older record that is to be written over.
#[derive(Debug)]
pub(super) struct ClaimedByPeer;

/// A revocation in a task of its own.
pub(super) type RevocationTask = JoinHandle<Result<(), BoxError>>;

impl fmt::Display for ClaimedByPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another process has claimed the older record")
    }
}

impl Error for ClaimedByPeer {}

impl TokenCell {
    /// Makes all pending writes.
    pub(super) async fn sync(self: &Arc<Self>) -> Result<(), BoxError> {
        self.sync_with(&mut Vec::new()).await
    }

    /// Makes all pending writes. `revocations`: receives the revocations of tokens that only the store held.
    async fn sync_with(self: &Arc<Self>, revocations: &mut Vec<RevocationTask>) -> Result<(), BoxError> {
        let mut attempted = self.writes.lock().await;
        // Tokens that a flight could not save are reported once they are saved, even over an older record; a renewal by the
        // app, which begins with such a record, isn't.
        let mut is_reported = None;
        loop {
            let state = Arc::clone(&self.snapshot());
            let epoch = state.epoch;
            match &state.stored {
                Stored::Clean(_) => {
                    *attempted = None;
                    return Ok(());
                }
                Stored::SignInPending(_) => {
                    let found = bounded(|| self.store.load()).await?;
                    let over = found.as_ref().map(Record::epoch);
                    let before = attempted.as_deref().filter(|attempt| attempt.epoch == epoch);
                    match found {
                        // A write that seemed to fail was made, and another process may have gone on from it.
                        Some(record) if record.epoch() == epoch => {
                            self.adopt_conflicting_write(state.entry(), Some(record), false).await;
                        }
                        // Another process has signed a user in since.
                        Some(record)
                            if before.is_some_and(|attempt| attempt.over != over) && !record.is_past_its_end() =>
                        {
                            let due = self.schedule(record.tokens());
                            self.change(Event::Adopted { epoch, record, due, ends_flight: false }).await;
                        }
                        _ => {
                            *attempted = Some(Box::new(SignInAttempt { epoch, over }));
                            let entry = self.with_ends(state.entry());
                            let version = bounded(|| self.store.replace(&entry)).await?;
                            self.saved(entry, version).await;
                        }
                    }
                }
                Stored::CommitPending(claim) => {
                    let is_reported = *is_reported.get_or_insert(true);
                    let saved = self.commit(claim, self.with_ends(state.entry())).await?;
                    if saved && is_reported {
                        tracing::info!(target: TARGET, "tokens saved");
                    }
                }
                Stored::OverwritePending(version) => {
                    // The commit renews it.
                    match bounded(|| self.store.claim(version, LEASE)).await? {
                        ClaimOutcome::Claimed(claim) => {
                            is_reported.get_or_insert(false);
                            self.change(Event::OverwriteClaimed { epoch, claim: Arc::new(claim) }).await;
                        }
                        ClaimOutcome::Busy { .. } => return Err(ClaimedByPeer.into()),
                        ClaimOutcome::Changed(found) => {
                            self.adopt_conflicting_write(state.entry(), found, false).await;
                        }
                    }
                }
                Stored::DeletePending(epochs) => {
                    let revocations = (!state.was_rejected()).then_some(&mut *revocations);
                    self.delete_record_of(epochs, revocations).await?;
                    self.change(Event::Deleted { epochs: Arc::clone(epochs) }).await;
                }
            }
        }
    }

    /// Writes tokens under the claim that was made for them. Returns whether the store took them.
    async fn commit(self: &Arc<Self>, claim: &Claim, entry: Entry) -> Result<bool, BoxError> {
        let commit = bounded(|| self.store.commit(claim, &entry));
        // While the claim holds, no other process presents the refresh token that is used up.
        let renew = bounded(|| self.store.renew(claim, self.config.lease()));
        match join(commit, renew).await.0? {
            CommitOutcome::Stored(version) => {
                self.saved(entry, version).await;
                Ok(true)
            }
            CommitOutcome::Conflict(found) => {
                self.adopt_conflicting_write(entry, found, false).await;
                Ok(false)
            }
        }
    }

    async fn saved(self: &Arc<Self>, entry: Entry, version: Version) {
        let epoch = entry.epoch();
        self.change(Event::Saved { epoch, tokens: entry.into_tokens(), version }).await;
    }

    /// Makes all pending writes, and goes on trying in the background if one fails.
    pub(super) async fn sync_or_retry(self: &Arc<Self>) -> Result<(), BoxError> {
        self.sync_or_retry_with(&mut Vec::new()).await
    }

    pub(super) async fn sync_or_retry_with(
        self: &Arc<Self>,
        revocations: &mut Vec<RevocationTask>,
    ) -> Result<(), BoxError> {
        let synced = self.sync_with(revocations).await;
        if synced.is_err() {
            self.save_in_background();
        }
        synced
    }

    /// Deletes the record of an epoch that is over, whatever version a late flight has given it. Revokes its tokens, unless
    /// the server has ended them: they may be newer than those that this process knew.
    async fn delete_record_of(
        self: &Arc<Self>,
        epochs: &[Epoch],
        mut revocations: Option<&mut Vec<RevocationTask>>,
    ) -> Result<(), BoxError> {
        let mut found = bounded(|| self.store.load()).await?;
        while let Some(record) = found.filter(|record| epochs.contains(&record.epoch())) {
            // Before the record is deleted: if the answer is lost, its tokens are no longer known.
            if let Some(revocations) = &mut revocations {
                revocations.extend(self.revoke_in_background(record.tokens().clone()));
            }
            found = match bounded(|| self.store.clear(record.version())).await? {
                ClearOutcome::Cleared => None,
                ClearOutcome::Conflict(record) => Some(record),
            };
        }
        Ok(())
    }

    /// Adopts a write that the store holds instead of ours. If it is of another epoch, our tokens are revoked. If it is
    /// older than the state, the store has lost writes, and the step that adopts it has the state written back.
    pub(super) async fn adopt_conflicting_write(
        self: &Arc<Self>,
        ours: Entry,
        found: Option<Record>,
        ends_flight: bool,
    ) {
        let epoch = ours.epoch();
        let event = match self.unless_ended(found) {
            // It is ours after all: an earlier call that seemed to fail.
            Some(record) if record.entry().is_same_write(&ours) && !ends_flight => {
                Event::Saved { epoch, tokens: ours.into_tokens(), version: record.version().clone() }
            }
            Some(record) => {
                if record.epoch() != epoch {
                    self.revoke_in_background(ours.into_tokens());
                }
                let due = self.schedule(record.tokens());
                Event::Adopted { epoch, record, due, ends_flight }
            }
            None => {
                self.revoke_in_background(ours.into_tokens());
                Event::RecordGone { epoch, next: Epoch::random() }
            }
        };
        self.change(event).await;
    }

    /// Retries, in one task, the writes that the store has failed.
    pub(super) fn save_in_background(self: &Arc<Self>) {
        if self.saving.swap(true, Ordering::AcqRel) {
            // The task may be about to sleep for longer than the new write can wait: the lease of a claim runs out.
            self.more_to_save().notify_one();
            return;
        }
        let cell = Arc::clone(self);
        self.spawn(async move {
            let mut failures = 0;
            loop {
                if cell.sync().await.is_err() {
                    failures += 1;
                    let pause = backoff::cool_down(failures, None, random::fraction());
                    if timeout(pause, cell.more_to_save().notified()).await.is_ok() {
                        failures = 0;
                    }
                    continue;
                }
                cell.saving.store(false, Ordering::Release);
                // Pairs with the fence in `publish`: a write that became pending between the last look and the line above
                // either found this task still at work, or is seen here.
                fence(Ordering::SeqCst);
                let clean = matches!(cell.snapshot().stored, Stored::Clean(_));
                if clean || cell.saving.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
    }
}
