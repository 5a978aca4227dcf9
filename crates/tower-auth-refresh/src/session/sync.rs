//! Brings the store to what the state says, where a write outside of a flight, or one that failed, is outstanding.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join;
use tokio::time::timeout;

use super::cell::TokenCell;
use super::pace;
use super::state::{Event, Stored};
use crate::TARGET;
use crate::store::{ClearOutcome, CommitOutcome, Epoch, Record, StoreError, StoreFuture};
use crate::token::Tokens;

/// How long a store may take for one call before the session goes on without it.
pub(crate) const SAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A call to the store, bounded in time.
pub(crate) async fn bounded<'a, T>(call: impl FnOnce() -> StoreFuture<'a, T>) -> Result<T, StoreError> {
    match timeout(SAVE_TIMEOUT, shielded(call)).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(StoreError::new(elapsed)),
    }
}

/// A call to the store, whose panic is an error like any other: it must not cost the tokens that are to be saved.
pub(super) async fn shielded<'a, T>(call: impl FnOnce() -> StoreFuture<'a, T>) -> Result<T, StoreError> {
    // Nothing of ours is changed in there, so nothing is seen half-way.
    let answer = AssertUnwindSafe(async { call().await }).catch_unwind().await;
    answer.unwrap_or_else(|_panic| Err(StoreError::new("it panicked")))
}

/// A sign-in that was written, or may have been: its answer was lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    epoch: Epoch,
    /// The epoch of the record that was there.
    over: Option<Epoch>,
}

impl TokenCell {
    /// Writes what is outstanding, until nothing is.
    pub(super) async fn sync(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut attempted = self.writes.lock().await;
        loop {
            let state = Arc::clone(&self.snapshot());
            let epoch = state.epoch;
            match &state.stored {
                Stored::Clean(_) => {
                    *attempted = None;
                    return Ok(());
                }
                Stored::Unwritten(_) => {
                    let found = bounded(|| self.store.load()).await?;
                    let over = found.as_ref().map(|record| record.epoch);
                    let before = attempted.as_deref().filter(|attempt| attempt.epoch == epoch);
                    match found {
                        // A write that seemed to fail was made, and a peer may have gone on from it.
                        Some(record) if record.epoch == epoch => {
                            self.yield_to(epoch, state.tokens.clone(), Some(record), false).await;
                        }
                        // Somebody has signed in since.
                        Some(record) if before.is_some_and(|attempt| attempt.over != over) => {
                            let due = self.due(&record.tokens);
                            self.change(Event::Adopted { epoch, record, due, landed: false }).await;
                        }
                        _ => {
                            *attempted = Some(Box::new(Attempt { epoch, over }));
                            let version = bounded(|| self.store.replace(epoch, &state.tokens)).await?;
                            self.change(Event::Saved { epoch, tokens: state.tokens.clone(), version }).await;
                        }
                    }
                }
                Stored::Unsaved(claim) => {
                    let commit = bounded(|| self.store.commit(claim, &state.tokens));
                    // While the claim stands, no peer presents the refresh token that is used up.
                    let renew = bounded(|| self.store.renew(claim, self.config.lease()));
                    match join(commit, renew).await.0? {
                        CommitOutcome::Stored(version) => {
                            tracing::info!(target: TARGET, "tokens saved");
                            self.change(Event::Saved { epoch, tokens: state.tokens.clone(), version }).await;
                        }
                        CommitOutcome::Conflict(found) => {
                            self.yield_to(epoch, state.tokens.clone(), found, false).await
                        }
                    }
                }
                Stored::Uncleared(epochs) => {
                    self.clear(epochs).await?;
                    self.change(Event::Cleared { epochs: Arc::clone(epochs) }).await;
                }
            }
        }
    }

    /// Writes what is outstanding, and goes on trying in the background where that fails.
    pub(super) async fn sync_or_retry(self: &Arc<Self>) -> Result<(), StoreError> {
        let synced = self.sync().await;
        if synced.is_err() {
            self.save_in_background();
        }
        synced
    }

    /// Deletes the record of an epoch that is over, whatever version a late flight has given it.
    async fn clear(&self, epochs: &[Epoch]) -> Result<(), StoreError> {
        let mut found = bounded(|| self.store.load()).await?;
        while let Some(record) = found.filter(|record| epochs.contains(&record.epoch)) {
            found = match bounded(|| self.store.clear(record.version)).await? {
                ClearOutcome::Cleared => None,
                ClearOutcome::Conflict(record) => Some(record),
            };
        }
        Ok(())
    }

    /// The store holds another write than ours: what is there counts. Tokens of an epoch that is over are revoked.
    pub(super) async fn yield_to(self: &Arc<Self>, epoch: Epoch, ours: Tokens, found: Option<Record>, landed: bool) {
        let event = match found {
            // Ours after all: an earlier call that seemed to fail.
            Some(record) if record.epoch == epoch && record.tokens == ours && !landed => {
                Event::Saved { epoch, tokens: ours, version: record.version }
            }
            Some(record) => {
                if record.epoch != epoch {
                    self.revoke_in_background(ours);
                }
                let due = self.due(&record.tokens);
                Event::Adopted { epoch, record, due, landed }
            }
            None => {
                self.revoke_in_background(ours);
                Event::Vanished { epoch, next: Epoch::random() }
            }
        };
        self.change(event).await;
    }

    /// Retries, in one task, what the store would not take.
    pub(super) fn save_in_background(self: &Arc<Self>) {
        if self.saving.swap(true, Ordering::AcqRel) {
            // It may be about to sleep for longer than what is outstanding now can wait: the lease of a claim runs out.
            self.more_to_save().notify_one();
            return;
        }
        let cell = Arc::clone(self);
        self.spawn(async move {
            let mut failures = 0;
            loop {
                if cell.sync().await.is_err() {
                    failures += 1;
                    let pause = pace::cool_down(failures, None, fastrand::f64());
                    if timeout(pause, cell.more_to_save().notified()).await.is_ok() {
                        failures = 0;
                    }
                    continue;
                }
                cell.saving.store(false, Ordering::Release);
                // Pairs with the fence in `publish`: what became outstanding between the last look and the line above
                // found this task still at work, or is seen here.
                fence(Ordering::SeqCst);
                let clean = matches!(cell.snapshot().stored, Stored::Clean(_));
                if clean || cell.saving.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
    }
}
