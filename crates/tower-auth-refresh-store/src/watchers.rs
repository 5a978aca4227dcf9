//! The sessions that are told of changes by a store that pushes, by their storage keys.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tower_auth_refresh::store::RecordChanged;

/// The first bytes of a storage key: enough to tell sessions apart. One that is told by mistake looks in vain.
pub(crate) type ShortKey = [u8; 8];

/// The parts of the index: small enough that a change of one finds its way in few steps, and seldom waits for another.
const SHARDS: usize = 64;

/// An index of sessions. A key may have several: one for each handle, which is known by its address.
pub(crate) struct Watchers<C = RecordChanged>([Mutex<Shard<C>>; SHARDS]);

/// By the number that a short key is, and the handle.
type Shard<C> = BTreeMap<(u64, usize), C>;

impl<C> Default for Watchers<C> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl<C> Watchers<C> {
    /// Adds a session, in place of the one before on this handle.
    pub(crate) fn insert(&self, key: &[u8; 32], handle: usize, changed: C) {
        let key = u64::from_be_bytes(short(key));
        self.shard(key).insert((key, handle), changed);
    }

    /// Removes a handle's session.
    pub(crate) fn remove(&self, key: &[u8; 32], handle: usize) {
        let key = u64::from_be_bytes(short(key));
        let removed = self.shard(key).remove(&(key, handle));
        // Not under the lock.
        drop(removed);
    }

    /// Returns the number of sessions.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|shard| lock(shard).len()).sum()
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Shard<C>> {
        lock(&self.0[usize::from(key.to_le_bytes()[0]) % SHARDS])
    }
}

impl Watchers {
    /// Notifies the sessions of a key, but for that of the handle that has made the change.
    pub(crate) fn notify(&self, key: ShortKey, by: Option<usize>) {
        let key = u64::from_be_bytes(key);
        let shard = self.shard(key);
        let others = shard.range((key, 0)..=(key, usize::MAX)).filter(|((_, handle), _)| Some(*handle) != by);
        let sessions: Vec<_> = others.map(|(_, changed)| changed.clone()).collect();
        // A session that is dropped after the call removes its handle.
        drop(shard);
        sessions.iter().for_each(RecordChanged::notify);
    }

    /// Marks all sessions as stale: changes may have been missed.
    pub(crate) fn mark_all_stale(&self) {
        for shard in &self.0 {
            let sessions: Vec<_> = lock(shard).values().cloned().collect();
            sessions.iter().for_each(RecordChanged::mark_stale);
        }
    }
}

fn lock<C>(shard: &Mutex<Shard<C>>) -> MutexGuard<'_, Shard<C>> {
    // Poisoning is ignored: nothing panics under this lock.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn short(key: &[u8; 32]) -> ShortKey {
    std::array::from_fn(|at| key[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_that_is_dropped_leaves_nothing_and_others_on_its_key_stay() {
        let watchers = Watchers::default();
        watchers.insert(&[1; 32], 1, "first");
        watchers.insert(&[1; 32], 2, "second");
        watchers.insert(&[1; 32], 2, "third");
        watchers.insert(&[2; 32], 1, "fourth");
        watchers.remove(&[1; 32], 1);
        let left = watchers.0.iter().flat_map(|shard| lock(shard).values().copied().collect::<Vec<_>>());
        assert_eq!(left.collect::<Vec<_>>(), ["third", "fourth"]);
    }
}
