//! The reports of a store that pushes what other processes change.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};

use tower::BoxError;

use super::cell::TokenCell;
use super::config::Config;
use super::lifetime::end_record;
use crate::store::{Record, RecordChanged, TokenStore};

/// The session that a store reports to. It is made before the session, whose record is watched from before its load on.
#[derive(Default)]
pub(crate) struct RecordWatch {
    cell: OnceLock<Weak<TokenCell>>,
    /// Read once, when the session is there.
    has_changed: AtomicBool,
}

impl RecordWatch {
    /// Loads the record by a call of the store, `load`. The session that is made from it is to be [told](Self::tell) of
    /// changes. A record past its end is deleted.
    pub(crate) async fn load(
        config: &Arc<Config>,
        store: &dyn TokenStore,
        load: impl Future<Output = Result<Option<Record>, BoxError>>,
    ) -> (Arc<Self>, Result<Option<Record>, BoxError>) {
        let watch = Arc::new(Self::default());
        hand_over(store, &watch);
        let found = match load.await {
            // Boxed, since it is rare.
            Ok(Some(record)) if record.is_past_its_end() => Ok(Box::pin(end_record(config, store, record)).await),
            found => found,
        };
        (watch, found)
    }

    /// Has a session told of changes. If the record has changed since the load, the next use looks again.
    pub(crate) fn tell(&self, cell: &Arc<TokenCell>) {
        self.cell.get_or_init(|| Arc::downgrade(cell));
        // Pairs with the fence in `noted`: either that call sees the session, or this one its note.
        fence(Ordering::SeqCst);
        if self.has_changed.load(Ordering::Acquire) {
            cell.mark_stale();
        }
    }

    /// Starts a look at the record.
    pub(crate) fn look(&self) {
        if let Some(cell) = self.noted() {
            drop(cell.recheck());
        }
    }

    /// Has the next use look at the record.
    pub(crate) fn mark_stale(&self) {
        if let Some(cell) = self.noted() {
            cell.mark_stale();
        }
    }

    /// Returns the session; `None` if it is gone, or is still to be made and will find the note.
    fn noted(&self) -> Option<Arc<TokenCell>> {
        self.has_changed.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.cell.get()?.upgrade()
    }
}

impl TokenCell {
    /// Hands the store the way to report changes.
    pub(crate) fn watch_record(self: &Arc<Self>) {
        let watch = Arc::new(RecordWatch::default());
        watch.tell(self);
        hand_over(&*self.store, &watch);
    }

    fn mark_stale(self: &Arc<Self>) {
        // A look that is under way may have read the record already, and would count as made now. And a session that is in no
        // registry isn't looked up.
        if self.is_looking() || self.config.limiter.is_none() {
            drop(self.recheck());
        } else {
            self.config.recheck.expire(&self.last_look);
        }
    }
}

/// A panic of the store costs its reports only.
fn hand_over(store: &dyn TokenStore, watch: &Arc<RecordWatch>) {
    let changed = RecordChanged::new(Arc::clone(watch));
    let _ = catch_unwind(AssertUnwindSafe(|| store.watch(changed)));
}
