//! [`Table`]: the sessions by key, in shards with a lock each.
//!
//! Eviction is a variant of CLOCK: a cursor goes round, and of the next few evictable sessions the longest unused is
//! evicted.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

use super::sweep::Uses;
use crate::session::{Extension, TokenCell};

/// The approximate number of shards: enough for any number of threads.
const SHARDS: usize = 64;

/// The smallest capacity of a shard.
const SMALLEST_SHARD: usize = 64;

/// The load of the shards when the table is full: a shard doubles at seven eighths, and some hold more sessions than
/// others.
const LOAD_FACTOR: f64 = 0.84;

/// The number of evictable sessions among which the longest unused is evicted.
const CANDIDATES: usize = 8;

/// The buckets that are examined in one call: few enough that the call takes no longer than a request.
const BUCKETS_A_CALL: usize = 4096;

pub(super) struct Table<K> {
    hasher: RandomState,
    shards: Box<[Mutex<HashTable<Slot<K>>>]>,
    len: AtomicUsize,
    /// Advances with every insertion and every sweep. Wraps.
    clock: AtomicU32,
}

pub(super) struct Slot<K> {
    /// Kept, so that the table never calls the key's `Hash` while it moves entries: a panic there would lose them.
    hash: u64,
    key: K,
    cell: Arc<TokenCell>,
}

impl<K> Slot<K> {
    /// Prepares the extension of an evicted session's record, if one is due.
    pub(super) fn extension(&self, uses: &Uses) -> Option<Extension> {
        self.cell.extension(uses.last_use(self.cell.used.load(Ordering::Relaxed)))
    }
}

/// A position in the table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    shard: usize,
    bucket: usize,
}

impl<K: Eq + Hash> Table<K> {
    /// Makes a table for about so many sessions.
    pub(super) fn new(capacity: usize) -> Self {
        // A shard that doubles for its last few sessions is half empty: so the number of shards follows from their capacity.
        let shard_capacity = (capacity / SHARDS).next_power_of_two().max(SMALLEST_SHARD);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rough"
        )]
        let shards = (capacity as f64 / (shard_capacity as f64 * LOAD_FACTOR)).ceil().max(1.0) as usize;
        Self {
            hasher: RandomState::default(),
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            len: AtomicUsize::new(0),
            clock: AtomicU32::new(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Returns the hash of a key.
    #[inline]
    pub(super) fn hash_of(&self, key: &K) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Returns the session of this key, and marks it as used.
    #[inline]
    pub(super) fn find(&self, hash: u64, key: &K) -> Option<Arc<TokenCell>> {
        let cell = self.peek(hash, key, Arc::clone)?;
        self.touch(&cell);
        Some(cell)
    }

    /// Reads from the session of this key, under its shard's lock, without marking it as used.
    #[inline]
    pub(super) fn peek<T>(&self, hash: u64, key: &K, read: impl FnOnce(&Arc<TokenCell>) -> T) -> Option<T> {
        let shard = lock(self.shard_of(hash));
        shard.find(hash, |slot| slot.key == *key).map(|slot| read(&slot.cell))
    }

    /// Inserts a session under a key that has none. The caller's lock excludes concurrent insertions.
    pub(super) fn insert(&self, hash: u64, key: K, cell: Arc<TokenCell>) {
        cell.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        lock(self.shard_of(hash)).insert_unique(hash, Slot { hash, key, cell }, |slot| slot.hash);
        self.len.fetch_add(1, Ordering::AcqRel);
    }

    /// Removes the session of this key if it is over and evictable.
    pub(super) fn remove_if_over(&self, hash: u64, key: &K) -> Option<Slot<K>> {
        let mut shard = lock(self.shard_of(hash));
        let entry = shard.find_entry(hash, |slot| slot.key == *key).ok()?;
        let over = entry.get().cell.is_over() && entry.get().cell.is_evictable();
        let (slot, _) = over.then(|| entry.remove())?;
        self.len.fetch_sub(1, Ordering::AcqRel);
        Some(slot)
    }

    /// Evicts a session that was not used for long, from the cursor on.
    pub(super) fn evict(&self, cursor: &mut Cursor) -> Option<Slot<K>> {
        let mut buckets = BUCKETS_A_CALL;
        let now = self.clock.load(Ordering::Relaxed);
        // The cursor's shard is examined twice: from the cursor on, and up to it.
        for _ in 0..=self.shards.len() {
            let mut shard = lock(&self.shards[cursor.shard]);
            let (mut candidates, mut oldest) = (0, None);
            while cursor.bucket < shard.num_buckets() && candidates < CANDIDATES && buckets > 0 {
                if let Some(slot) = shard.get_bucket(cursor.bucket).filter(|slot| slot.cell.is_evictable()) {
                    let age = now.wrapping_sub(slot.cell.used.load(Ordering::Relaxed));
                    oldest = oldest.max(Some((age, cursor.bucket)));
                    candidates += 1;
                }
                cursor.bucket += 1;
                buckets -= 1;
            }
            if let Some(entry) = oldest.and_then(|(_, bucket)| shard.get_bucket_entry(bucket).ok()) {
                let (slot, _) = entry.remove();
                self.len.fetch_sub(1, Ordering::AcqRel);
                return Some(slot);
            }
            if buckets == 0 {
                break;
            }
            cursor.next_shard(self.shards.len());
        }
        None
    }

    /// Removes, of the next few sessions from the cursor on, those that are evictable and for which `remove` is true.
    /// Returns `None` after the last one.
    pub(super) fn sweep(
        &self,
        cursor: &mut Cursor,
        mut remove: impl FnMut(&Arc<TokenCell>) -> bool,
    ) -> Option<Vec<Slot<K>>> {
        let mut removed = Vec::new();
        let mut shard = lock(self.shards.get(cursor.shard)?);
        let end = shard.num_buckets().min(cursor.bucket + BUCKETS_A_CALL);
        for bucket in cursor.bucket..end {
            let Ok(entry) = shard.get_bucket_entry(bucket) else { continue };
            if remove(&entry.get().cell) && entry.get().cell.is_evictable() {
                removed.push(entry.remove().0);
                self.len.fetch_sub(1, Ordering::AcqRel);
            }
        }
        cursor.bucket = end;
        if end == shard.num_buckets() {
            *cursor = Cursor { shard: cursor.shard + 1, bucket: 0 };
        }
        Some(removed)
    }

    /// Marks a session as used now.
    #[inline]
    pub(super) fn touch(&self, cell: &TokenCell) {
        // Stores without loading first: the branch would be unpredictable, and cost a look-up more.
        cell.used.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Advances the clock: a session that is used from now on was used later than the returned time.
    pub(super) fn tick(&self) -> u32 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn shard_of(&self, hash: u64) -> &Mutex<HashTable<Slot<K>>> {
        // The table in the shard uses the lowest and the highest bits.
        let bits = (hash >> 16) & 0xFFFF;
        let shard = (bits as usize * self.shards.len()) >> 16;
        &self.shards[shard]
    }
}

impl Cursor {
    fn next_shard(&mut self, shards: usize) {
        *self = Self { shard: (self.shard + 1) % shards, bucket: 0 };
    }
}

/// Locks a shard. The key's `Eq` and the store's `is_durable` run under this lock; if one of them panics, the table is
/// intact, so poisoning is ignored.
fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tokio::runtime::Handle;
    use tower::service_fn;

    use super::*;
    use crate::session::{Recheck, Session};
    use crate::{MemoryStore, RefreshError, RefreshRequest, Tokens};

    /// Makes sessions without a user, which can be evicted unless another handle of theirs is kept.
    fn cells() -> impl Iterator<Item = Arc<TokenCell>> {
        let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
        let config = Session::builder(refresh).into_config(Handle::current(), None, Recheck::new(None));
        let config = Arc::new(config);
        std::iter::repeat_with(move || {
            Arc::new(TokenCell::new(None, Arc::new(MemoryStore::new()), Arc::clone(&config)))
        })
    }

    #[test]
    fn the_keys_are_spread_over_all_shards() {
        let table = Table::<u32>::new(10_000);
        let mut keys = HashMap::<*const _, u32>::new();
        for key in 0..10_000 {
            *keys.entry(std::ptr::from_ref(table.shard_of(table.hash_of(&key)))).or_default() += 1;
        }
        assert!(table.shards.len() > 40);
        assert_eq!(keys.len(), table.shards.len());
        let average = 10_000 / u32::try_from(keys.len()).unwrap();
        assert!(keys.values().all(|here| (average / 2..average * 2).contains(here)), "{keys:?}");
    }

    #[tokio::test]
    async fn an_eviction_compares_the_next_eight_sessions_that_can_be_evicted() {
        let table = Table::<u32>::new(1);
        for (key, cell) in (0..100).zip(cells()) {
            table.insert(table.hash_of(&key), key, cell);
        }
        let occupied: Vec<_> = {
            let shard = lock(&table.shards[0]);
            (0..shard.num_buckets()).filter_map(|bucket| Some((bucket, shard.get_bucket(bucket)?.key))).collect()
        };
        let mut cursor = Cursor::default();
        let evicted = table.evict(&mut cursor).unwrap();
        assert_eq!(cursor.bucket, occupied[7].0 + 1);
        assert_eq!(Some(evicted.key), occupied[..8].iter().map(|(_, key)| *key).min(), "the longest unused");
    }

    #[tokio::test]
    async fn an_eviction_examines_a_bounded_number_of_buckets() {
        let table = Table::<u32>::new(1);
        let in_use: Vec<_> = cells().take(4000).collect();
        for (key, cell) in (0..).zip(&in_use) {
            table.insert(table.hash_of(&key), key, Arc::clone(cell));
        }
        let buckets = lock(&table.shards[0]).num_buckets();
        assert!(buckets > BUCKETS_A_CALL);
        let mut cursor = Cursor::default();
        assert!(table.evict(&mut cursor).is_none());
        assert_eq!(cursor.bucket, BUCKETS_A_CALL);
        drop(in_use);
        assert!(table.evict(&mut cursor).is_some(), "goes on from there");
        assert!(cursor.bucket > BUCKETS_A_CALL);
    }
}
