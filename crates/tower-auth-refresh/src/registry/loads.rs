//! The loads under way, and the task that gives up those that take too long. It runs only while there are loads.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use hashbrown::HashTable;
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::Inner;
use super::load::{Ended, Load, gone};
use crate::session::{STORE_TIMEOUT, SessionError};

/// The ticks of the task within the time that a load may take. After the last but one, it runs in a task: that its first
/// caller isn't polled is no failure of the store.
const TICKS: u32 = 10;

/// The loads under way, by their keys. The hash of a key is that of the table of sessions.
pub(super) struct Loads<K> {
    by_key: HashTable<Loading<K>>,
    /// The number of the last load.
    last: u64,
    /// The ticks so far. Wraps.
    ticks: u32,
    /// `true` while there is a task that gives up loads, or one is about to be started.
    is_watched: bool,
}

pub(super) struct Loading<K> {
    /// Kept, so that the key's `Hash` isn't called while entries are moved.
    hash: u64,
    key: K,
    number: u64,
    /// The tick after which it has begun.
    begun: u32,
    /// `true` if a caller waits for the session in order to sign it out: it then needs no room.
    pub(super) signs_out: bool,
    pub(super) load: Arc<Load>,
}

/// The loads that have reached an age.
struct Aged<K> {
    /// Those that are to be given up at the next tick.
    late: Vec<Arc<Load>>,
    overdue: Vec<Loading<K>>,
}

impl<K> Default for Loads<K> {
    fn default() -> Self {
        Self { by_key: HashTable::new(), last: 0, ticks: 0, is_watched: false }
    }
}

impl<K: Eq> Loads<K> {
    /// Returns the load of this key that is under way.
    pub(super) fn under_way(&mut self, hash: u64, key: &K) -> Option<&mut Loading<K>> {
        self.by_key.find_mut(hash, |loading| loading.key == *key).filter(|loading| !loading.load.is_over())
    }

    /// Removes the load with this number. Returns `None` if it is out of date.
    pub(super) fn end(&mut self, hash: u64, key: &K, number: u64) -> Option<Loading<K>> {
        let entry = self.by_key.find_entry(hash, |loading| loading.key == *key).ok()?;
        (entry.get().number == number).then(|| entry.remove().0)
    }

    /// Adds a load, which `load` makes from its number. Returns it, and whether the caller is to have the loads
    /// [watched](watch).
    pub(super) fn begin(
        &mut self,
        hash: u64,
        key: K,
        signs_out: bool,
        load: impl FnOnce(u64) -> Load,
    ) -> (Arc<Load>, bool) {
        self.last += 1;
        let (number, load) = (self.last, Arc::new(load(self.last)));
        // One that is over may be there still.
        let over = self.remove(hash, &key);
        let loading = Loading { hash, key, number, begun: self.ticks, signs_out, load: Arc::clone(&load) };
        self.by_key.insert_unique(hash, loading, |loading| loading.hash);
        drop(over);
        (load, !mem::replace(&mut self.is_watched, true))
    }

    /// Removes the load of this key, which is over or out of date. The caller drops it after it has released the lock.
    pub(super) fn remove(&mut self, hash: u64, key: &K) -> Option<Loading<K>> {
        let entry = self.by_key.find_entry(hash, |loading| loading.key == *key).ok()?;
        Some(entry.remove().0)
    }

    /// Advances the clock. Returns `None` if no load is under way, and there is no need to watch.
    fn tick(&mut self) -> Option<Aged<K>> {
        self.is_watched = !self.by_key.is_empty();
        self.ticks = self.ticks.wrapping_add(1);
        let ticks = self.ticks;
        let age = |loading: &Loading<K>| ticks.wrapping_sub(loading.begun);
        let late = self.by_key.iter().filter(|loading| age(loading) == TICKS - 1);
        let late = late.map(|loading| Arc::clone(&loading.load)).collect();
        let overdue = self.by_key.extract_if(|loading| age(loading) >= TICKS).collect();
        self.is_watched.then_some(Aged { late, overdue })
    }

    /// Removes all loads, since the task that watches them is dropped. The next load starts another one.
    fn take_all(&mut self) -> HashTable<Loading<K>> {
        self.is_watched = false;
        mem::take(&mut self.by_key)
    }
}

/// Gives up loads that take too long, until none is under way.
pub(super) fn watch<K: Eq>(sessions: Weak<Inner<K>>, runtime: Handle) -> impl Future<Output = ()> {
    // Made now: the task may be dropped before it is polled.
    let mut watch = Watch(sessions);
    async move {
        loop {
            sleep(STORE_TIMEOUT / TICKS).await;
            let Some(sessions) = watch.0.upgrade() else { return };
            let Some(Aged { late, overdue }) = sessions.insertions().loads.tick() else {
                watch.end();
                return;
            };
            for load in late {
                load.run_on(&runtime);
            }
            for loading in overdue {
                let timed_out = SessionError::store("the store didn't answer in time".into());
                give_up(loading, Some(Err(timed_out.into())));
            }
        }
    }
}

/// The duty of the task. If its runtime shuts down, no load would be given up any more: so all are.
struct Watch<K: Eq>(Weak<Inner<K>>);

impl<K: Eq> Watch<K> {
    fn end(&mut self) {
        self.0 = Weak::new();
    }
}

impl<K: Eq> Drop for Watch<K> {
    fn drop(&mut self) {
        if let Some(sessions) = self.0.upgrade() {
            let loads = sessions.insertions().loads.take_all();
            for loading in loads {
                give_up(loading, Some(Err(gone().into())));
            }
        }
    }
}

/// Ends a load before its time, for all its callers.
pub(super) fn give_up<K>(loading: Loading<K>, ended: Ended) {
    // The key, the future that is dropped and the wakers are foreign.
    let _ = catch_unwind(AssertUnwindSafe(move || loading.load.give_up(ended)));
}
