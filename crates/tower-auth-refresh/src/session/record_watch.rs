//! The reports of a store that pushes what other processes change.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};

use tower::BoxError;

use super::cell::TokenCell;
use super::config::Config;
use super::lifetime::end_record;
use super::store_call::bounded;
use crate::store::{Record, RecordChanged, TokenStore, WatchRecord};

/// Notes that the record has changed while it was loaded.
#[derive(Default)]
pub(crate) struct WatchedLoad {
    has_changed: AtomicBool,
}

impl WatchedLoad {
    /// Loads the record, watched from before the load on. The session that is made from it is to [watch](Self::go_on) it.
    /// A record past its end is deleted.
    pub(crate) async fn load(
        config: &Arc<Config>,
        store: &dyn TokenStore,
    ) -> (Arc<Self>, Result<Option<Record>, BoxError>) {
        let load = Arc::new(Self::default());
        let weak: Weak<Self> = Arc::downgrade(&load);
        watch(store, RecordChanged::new(weak));
        let found = match bounded(|| store.load()).await {
            Ok(Some(record)) if record.is_past_its_end() => Ok(end_record(config, store, record).await),
            found => found,
        };
        (load, found)
    }

    /// Has the session watch its record. If the record has changed since the load, the next use looks again.
    pub(crate) fn go_on(&self, cell: &Arc<TokenCell>) {
        cell.watch_record();
        if self.has_changed.load(Ordering::Acquire) {
            Arc::clone(cell).mark_stale();
        }
    }
}

impl WatchRecord for WatchedLoad {
    fn look(self: Arc<Self>) {
        self.has_changed.store(true, Ordering::Release);
    }

    fn mark_stale(self: Arc<Self>) {
        self.look();
    }
}

impl TokenCell {
    /// Hands the store the way to report changes.
    pub(crate) fn watch_record(self: &Arc<Self>) {
        let weak: Weak<Self> = Arc::downgrade(self);
        watch(&*self.store, RecordChanged::new(weak));
    }
}

/// A panic of the store costs its reports only.
fn watch(store: &dyn TokenStore, changed: RecordChanged) {
    let _ = catch_unwind(AssertUnwindSafe(|| store.watch(changed)));
}

impl WatchRecord for TokenCell {
    fn look(self: Arc<Self>) {
        drop(self.recheck());
    }

    fn mark_stale(self: Arc<Self>) {
        // A look that is under way may have read the record already, and would count as made now. And a session that is in no
        // registry isn't looked up.
        if self.is_looking() || self.config.limiter.is_none() {
            self.look();
        } else {
            self.config.recheck.expire(&self.last_look);
        }
    }
}
