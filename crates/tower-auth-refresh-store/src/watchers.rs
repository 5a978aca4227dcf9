//! The sessions that are told of changes by a store that pushes, by their storage keys.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tower_auth_refresh::store::RecordChanged;

/// The first bytes of a storage key: enough to tell sessions apart. One that is told by mistake looks in vain.
pub(crate) type ShortKey = [u8; 8];

/// An index of sessions. A key may have several: one for each handle, which is known by its address.
pub(crate) struct Watchers<C = RecordChanged>(Mutex<BTreeMap<(ShortKey, usize), C>>);

impl<C> Default for Watchers<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C> Watchers<C> {
    /// Adds a session, in place of the one before on this handle.
    pub(crate) fn insert(&self, key: &[u8; 32], handle: usize, changed: C) {
        self.lock().insert((short(key), handle), changed);
    }

    /// Removes a handle's session.
    pub(crate) fn remove(&self, key: &[u8; 32], handle: usize) {
        let removed = self.lock().remove(&(short(key), handle));
        // Not under the lock.
        drop(removed);
    }

    /// Returns the number of sessions.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(ShortKey, usize), C>> {
        // Poisoning is ignored: nothing panics under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watchers {
    /// Notifies the sessions of a key, but for that of the handle that has made the change.
    pub(crate) fn notify(&self, key: ShortKey, by: Option<usize>) {
        let index = self.lock();
        let others = index.range((key, 0)..=(key, usize::MAX)).filter(|((_, handle), _)| Some(*handle) != by);
        let sessions: Vec<_> = others.map(|(_, changed)| changed.clone()).collect();
        // A session that is dropped after the call removes its handle.
        drop(index);
        sessions.iter().for_each(RecordChanged::notify);
    }

    /// Marks all sessions as stale: changes may have been missed.
    pub(crate) fn mark_all_stale(&self) {
        let sessions: Vec<_> = self.lock().values().cloned().collect();
        sessions.iter().for_each(RecordChanged::mark_stale);
    }
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
        assert_eq!(watchers.lock().values().copied().collect::<Vec<_>>(), ["third", "fourth"]);
    }
}
