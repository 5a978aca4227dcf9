//! The sessions that are told of changes by a store that pushes, by their storage keys.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tower_auth_refresh::store::RecordChanged;

/// The first bytes of a storage key: enough to tell sessions apart. One that is told by mistake looks in vain.
pub(crate) type ShortKey = [u8; 8];

/// The parts of the index: small enough that a change of one finds its way in few steps, and seldom waits for another.
const SHARDS: usize = 64;

/// An index of sessions. A key may have several: one for each handle, which is known by its address.
pub(crate) struct Watchers<C = RecordChanged>([Mutex<Shard<C>>; SHARDS]);

/// By the number that a short key is.
struct Shard<C> {
    /// The first handle of a key, which mostly has no other.
    first: HashMap<u64, (usize, C)>,
    /// Further ones.
    others: BTreeMap<(u64, usize), C>,
}

impl<C> Default for Shard<C> {
    fn default() -> Self {
        Self { first: HashMap::new(), others: BTreeMap::new() }
    }
}

impl<C> Shard<C> {
    /// The handles of a key, with their sessions.
    fn of(&self, key: u64) -> impl Iterator<Item = (usize, &C)> {
        let first = self.first.get(&key).map(|(handle, changed)| (*handle, changed));
        let others = self.others.range((key, 0)..=(key, usize::MAX)).map(|((_, handle), changed)| (*handle, changed));
        first.into_iter().chain(others)
    }

    fn insert(&mut self, key: u64, handle: usize, changed: C) -> Option<C> {
        match self.first.entry(key) {
            Entry::Vacant(first) if !self.others.contains_key(&(key, handle)) => {
                first.insert((handle, changed));
                None
            }
            Entry::Occupied(mut first) if first.get().0 == handle => Some(first.insert((handle, changed)).1),
            _ => self.others.insert((key, handle), changed),
        }
    }

    fn remove(&mut self, key: u64, handle: usize) -> Option<C> {
        match self.first.entry(key) {
            Entry::Occupied(first) if first.get().0 == handle => Some(first.remove().1),
            _ => self.others.remove(&(key, handle)),
        }
    }
}

impl<C> Default for Watchers<C> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl<C> Watchers<C> {
    /// Adds a session, in place of the one before on this handle.
    pub(crate) fn insert(&self, key: &[u8; 32], handle: usize, changed: C) {
        let key = u64::from_be_bytes(short(key));
        let replaced = self.shard(key).insert(key, handle, changed);
        // Not under the lock.
        drop(replaced);
    }

    /// Removes a handle's session.
    pub(crate) fn remove(&self, key: &[u8; 32], handle: usize) {
        let key = u64::from_be_bytes(short(key));
        let removed = self.shard(key).remove(key, handle);
        drop(removed);
    }

    /// Returns the number of sessions.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(lock).map(|shard| shard.first.len() + shard.others.len()).sum()
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
        let others = shard.of(key).filter(|(handle, _)| Some(*handle) != by);
        let sessions: Vec<_> = others.map(|(_, changed)| changed.clone()).collect();
        // A session that is dropped after the call removes its handle.
        drop(shard);
        sessions.iter().for_each(RecordChanged::notify);
    }

    /// Marks all sessions as stale: changes may have been missed.
    pub(crate) fn mark_all_stale(&self) {
        for shard in &self.0 {
            let shard = lock(shard);
            let first = shard.first.values().map(|(_, changed)| changed);
            let sessions: Vec<_> = first.chain(shard.others.values()).cloned().collect();
            drop(shard);
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

    fn left(watchers: &Watchers<&'static str>) -> Vec<&'static str> {
        let shards = watchers.0.iter().map(lock);
        let mut left: Vec<_> = shards
            .flat_map(|shard| {
                [1, 2].map(|byte| {
                    let key = u64::from_be_bytes([byte; 8]);
                    shard.of(key).map(|(_, changed)| *changed).collect::<Vec<_>>()
                })
            })
            .flatten()
            .collect();
        left.sort_unstable();
        assert_eq!(watchers.len(), left.len());
        left
    }

    #[test]
    fn a_handle_that_is_dropped_leaves_nothing_and_others_on_its_key_stay() {
        let watchers = Watchers::default();
        watchers.insert(&[1; 32], 1, "first");
        watchers.insert(&[1; 32], 2, "second");
        watchers.insert(&[1; 32], 2, "third");
        watchers.insert(&[2; 32], 1, "fourth");
        assert_eq!(left(&watchers), ["first", "fourth", "third"]);
        watchers.insert(&[1; 32], 1, "again");
        assert_eq!(left(&watchers), ["again", "fourth", "third"]);
        watchers.remove(&[1; 32], 1);
        assert_eq!(left(&watchers), ["fourth", "third"]);
        watchers.insert(&[1; 32], 2, "fifth");
        watchers.insert(&[1; 32], 3, "sixth");
        assert_eq!(left(&watchers), ["fifth", "fourth", "sixth"]);
        for handle in [3, 2, 1] {
            watchers.remove(&[1; 32], handle);
        }
        assert_eq!(left(&watchers), ["fourth"]);
    }
}
