//! [`Table`]: the sessions by their keys, in shards, each behind a lock of its own.
//!
//! Room is made as in a clock: a hand goes round, and of the next few that can be forgotten the longest unused goes.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::session::TokenCell;

/// About so many shards serve any number of threads.
const SHARDS: usize = 64;

/// The fewest places of a shard.
const FEWEST: usize = 64;

/// How much of a shard's places is taken when the table is full: the shard doubles at seven eighths, and some have more
/// sessions than others.
const FILL: f64 = 0.84;

/// Of how many that can be forgotten the longest unused goes.
const CANDIDATES: usize = 8;

/// How many places are looked at in one go: so many that it takes no longer than a request, even where all is in use.
const PLACES: usize = 4096;

pub(super) struct Table<K> {
    hasher: DefaultHashBuilder,
    shards: Box<[Mutex<HashTable<Slot<K>>>]>,
    len: AtomicUsize,
    /// Goes on by one with every session that is added, and every sweep. Wraps.
    clock: AtomicU32,
}

pub(super) struct Slot<K> {
    /// Kept, so that the table never asks for it while it moves others: a key that panics would cost them their places.
    hash: u64,
    key: K,
    cell: Arc<TokenCell>,
}

/// A place in the table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hand {
    shard: usize,
    place: usize,
}

impl<K: Eq + Hash> Table<K> {
    /// For about so many sessions.
    pub(super) fn new(capacity: usize) -> Self {
        // A shard that doubles for its last few sessions is half empty, so the number of shards goes by what they hold.
        let places = (capacity / SHARDS).next_power_of_two().max(FEWEST);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rough"
        )]
        let shards = (capacity as f64 / (places as f64 * FILL)).ceil().max(1.0) as usize;
        Self {
            hasher: DefaultHashBuilder::default(),
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            len: AtomicUsize::new(0),
            clock: AtomicU32::new(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// The session of this key. It counts as used.
    #[inline]
    pub(super) fn find(&self, key: &K) -> Option<Arc<TokenCell>> {
        let (hash, shard) = self.place_of(key);
        let shard = lock(shard);
        let cell = Arc::clone(&shard.find(hash, |slot| slot.key == *key)?.cell);
        drop(shard);
        self.touch(&cell);
        Some(cell)
    }

    /// Adds a session under a key that has none: the caller sees to it that nobody else adds one meanwhile.
    pub(super) fn insert(&self, key: K, cell: Arc<TokenCell>) {
        cell.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let (hash, shard) = self.place_of(&key);
        lock(shard).insert_unique(hash, Slot { hash, key, cell }, |slot| slot.hash);
        self.len.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes the session of this key out, if nothing is lost with it and it is over.
    pub(super) fn remove_if_over(&self, key: &K) -> Option<Slot<K>> {
        let (hash, shard) = self.place_of(key);
        let mut shard = lock(shard);
        let entry = shard.find_entry(hash, |slot| slot.key == *key).ok()?;
        let over = entry.get().cell.is_over() && entry.get().cell.is_forgettable();
        let (slot, _) = over.then(|| entry.remove())?;
        self.len.fetch_sub(1, Ordering::AcqRel);
        Some(slot)
    }

    /// Takes one out that can be forgotten, from `hand` on; one that was not used for long, if not for the longest.
    pub(super) fn evict(&self, hand: &mut Hand) -> Option<Slot<K>> {
        let mut places = PLACES;
        let now = self.clock.load(Ordering::Relaxed);
        // The shard that the hand stands in is looked at twice, from the hand on and up to it.
        for _ in 0..=self.shards.len() {
            let mut shard = lock(&self.shards[hand.shard]);
            let (mut candidates, mut oldest) = (0, None);
            while hand.place < shard.num_buckets() && candidates < CANDIDATES && places > 0 {
                if let Some(slot) = shard.get_bucket(hand.place).filter(|slot| slot.cell.is_forgettable()) {
                    let age = now.wrapping_sub(slot.cell.used.load(Ordering::Relaxed));
                    oldest = oldest.max(Some((age, hand.place)));
                    candidates += 1;
                }
                hand.place += 1;
                places -= 1;
            }
            if let Some(entry) = oldest.and_then(|(_, place)| shard.get_bucket_entry(place).ok()) {
                let (slot, _) = entry.remove();
                self.len.fetch_sub(1, Ordering::AcqRel);
                return Some(slot);
            }
            if places == 0 {
                break;
            }
            hand.next_shard(self.shards.len());
        }
        None
    }

    /// Looks at the next few sessions from `hand` on, and takes those out that are to `go` and can be forgotten. `None`
    /// once it has been everywhere.
    pub(super) fn sweep(&self, hand: &mut Hand, mut go: impl FnMut(&Arc<TokenCell>) -> bool) -> Option<Vec<Slot<K>>> {
        let mut gone = Vec::new();
        let mut shard = lock(self.shards.get(hand.shard)?);
        let end = shard.num_buckets().min(hand.place + PLACES);
        for place in hand.place..end {
            let Ok(entry) = shard.get_bucket_entry(place) else { continue };
            if go(&entry.get().cell) && entry.get().cell.is_forgettable() {
                gone.push(entry.remove().0);
                self.len.fetch_sub(1, Ordering::AcqRel);
            }
        }
        hand.place = end;
        if end == shard.num_buckets() {
            *hand = Hand { shard: hand.shard + 1, place: 0 };
        }
        Some(gone)
    }

    /// Marks a session as used now.
    #[inline]
    pub(super) fn touch(&self, cell: &TokenCell) {
        // Whatever it says: to look first would cost a look-up more, since there is no telling how it turns out.
        cell.used.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Lets the clock go on: what is used from here on was used later than the time that is returned.
    pub(super) fn tick(&self) -> u32 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn place_of(&self, key: &K) -> (u64, &Mutex<HashTable<Slot<K>>>) {
        let hash = self.hasher.hash_one(key);
        // The table in the shard goes by the lowest and the highest bits.
        let bits = (hash >> 16) & 0xFFFF;
        let shard = (bits as usize * self.shards.len()) >> 16;
        (hash, &self.shards[shard])
    }
}

impl Hand {
    fn next_shard(&mut self, shards: usize) {
        *self = Self { shard: (self.shard + 1) % shards, place: 0 };
    }
}

/// A lock over which the key's own `Eq` runs, for a table can't be searched without it, and the store's `is_durable`. One
/// that panics leaves the table whole.
fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
