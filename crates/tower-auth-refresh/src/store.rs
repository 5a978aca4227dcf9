//! Stores of tokens: the [`TokenStore`] trait, and [`MemoryStore`], which lives as long as the process.
//!
//! A store holds one [`Record`] for one session. Sessions in several processes may share it: a [claim](TokenStore::claim)
//! (a lease) decides which of them refreshes, and compare-and-set on the record's [`Version`] which write counts. No
//! connection or transaction is held while the authorization server is called.
//!
//! # Rules for implementations
//!
//! `tower-auth-refresh-testkit` has a conformance suite for them.
//!
//! 1. A version is never used again, not even after [`clear`](TokenStore::clear). Otherwise a late
//!    [`commit`](TokenStore::commit) could overwrite the next user's sign-in. Where the store may lose its last writes (a
//!    failover, a restored backup), versions are random, never counters.
//! 2. A claim is as durable as the record. If its lease has expired, the refresh token *may* have been presented: the
//!    next claim is in doubt.
//! 3. An entry comes back as it was written, with the tokens' extra members.
//! 4. A record that can't be read (corrupt, encrypted with an unknown key, of a newer format) is an error. `None` means
//!    that the user has signed out.
//! 5. After its [end](Entry::expires_at) a record may be deleted at any time. Until it is, it is read as before.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! use std::time::Duration;
//! use tower_auth_refresh::store::{ClaimOutcome, CommitOutcome, Entry, Epoch, MemoryStore, TokenStore};
//! use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};
//!
//! let store = MemoryStore::new();
//! let old = Tokens::new(AccessToken::new("a1")?, RefreshToken::new("r1")?);
//! let entry = Entry::new(Epoch::random(), 1, old);
//! let version = store.replace(&entry).await?;
//!
//! // While this claim holds, no other process presents r1.
//! let lease = Duration::from_secs(35);
//! let ClaimOutcome::Claimed(claim) = store.claim(&version, lease).await? else { panic!() };
//! assert!(matches!(store.claim(&version, lease).await?, ClaimOutcome::Busy { .. }));
//!
//! let new = Tokens::new(AccessToken::new("a2")?, RefreshToken::new("r2")?);
//! let entry = Entry::new(entry.epoch(), 2, new);
//! assert!(matches!(store.commit(&claim, &entry).await?, CommitOutcome::Stored(_)));
//! # Ok(()) }
//! ```

mod end;
mod record_changed;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tower::BoxError;

pub(crate) use self::end::{End, EndOfSignIn};
pub use self::record_changed::RecordChanged;
use crate::random;
use crate::token::Tokens;

/// The result of a [`TokenStore`]'s methods, boxed so that a session can erase the store's type.
///
/// Any error will do; it becomes the source of the session's own. It must not contain a secret.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send + 'a>>;

/// A place for one session's tokens, possibly durable and shared with other processes.
///
/// The session bounds every call with a time-out, most of them with 5 s. A call that fails, panics or is dropped may still
/// have taken effect. A sign-in [loads](Self::load) before it [replaces](Self::replace), to tell a write of its own whose
/// answer was lost from another process's. If the record disappears, sessions treat it as a sign-out by another process.
///
/// An `Arc` of a store is a store.
pub trait TokenStore: Send + Sync + 'static {
    /// Reads the record; `None` if no user is signed in.
    ///
    /// Every write that was acknowledged before is seen. A read from a replica that lags behind could sign a user out who
    /// has just signed in.
    fn load(&self) -> StoreFuture<'_, Option<Record>>;

    /// Writes an entry if the store is empty: of several processes that start at the same time, the first one's counts.
    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome>;

    /// Writes the entry of a new sign-in over any record, and drops any claim. Returns the new version.
    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version>;

    /// Claims the record's refresh token, durably, for the time of `lease`: it is about to be presented.
    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome>;

    /// Extends a claim: its lease ends `lease` from now. Returns `false` if the claim is no longer held.
    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool>;

    /// Gives a claim up without new tokens. Does nothing if the claim is no longer held.
    ///
    /// After [`Presented::Unused`] the record is as it was before the claim. After [`Presented::InDoubt`] the next claim is
    /// in doubt.
    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()>;

    /// Writes the successor of the claimed record, if the record still has the version that was claimed. The record then
    /// has a new version and no claim.
    ///
    /// The lease need not last until then: tokens that the authorization server issued late are still newer than the
    /// stored ones.
    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome>;

    /// Deletes the record and any claim on it, if it still has this version. An empty store counts as cleared.
    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome>;

    /// Moves the [end](Entry::expires_at) of the record, later or earlier, if it still has this version. The version, any
    /// claim and the rest of the entry stay as they are.
    ///
    /// Returns `false` if the store holds another version or no record. May be made often: while a session is used,
    /// several times in its idle time-out.
    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool>;

    /// Takes the handle by which the store reports changes that other processes make. Default: it is dropped, and the
    /// session finds out by looking.
    ///
    /// For stores that can push. Such a store keeps the handle for as long as itself, in place of the one before:
    ///
    /// - When another process has deleted the record, it calls [`notify`](RecordChanged::notify). It may do so after any
    ///   other write too.
    /// - When its connection for such messages is up again, it calls [`mark_stale`](RecordChanged::mark_stale): messages
    ///   may have been missed.
    ///
    /// A sign-out and the end of a session are published by [`clear`](Self::clear), a sign-in by
    /// [`replace`](Self::replace). The call does no I/O, and may be made outside of a runtime.
    fn watch(&self, changed: RecordChanged) {
        drop(changed);
    }

    /// Returns `true` if the tokens outlive this process. If they don't, an evicted session can't be brought back.
    fn is_durable(&self) -> bool;
}

impl<S: TokenStore + ?Sized> TokenStore for Arc<S> {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        (**self).load()
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        (**self).insert(entry)
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        (**self).replace(entry)
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        (**self).claim(version, lease)
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        (**self).renew(claim, lease)
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        (**self).release(claim, presented)
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        (**self).commit(claim, entry)
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        (**self).clear(version)
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        (**self).extend(version, expires_at)
    }

    fn watch(&self, changed: RecordChanged) {
        (**self).watch(changed);
    }

    fn is_durable(&self) -> bool {
        (**self).is_durable()
    }
}

/// One write to a store: the tokens, and their place in the session's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    epoch: Epoch,
    generation: u64,
    tokens: Tokens,
    expires_at: Option<End>,
    ends_at: Option<End>,
}

impl Entry {
    /// An entry with the tokens of an epoch. `generation`: their number within the epoch, which starts at 1.
    #[must_use]
    pub fn new(epoch: Epoch, generation: u64, tokens: Tokens) -> Self {
        Self { epoch, generation, tokens, expires_at: None, ends_at: None }
    }

    /// Sets the end of the record, rounded down to a millisecond, between 1970 and 9999. Default: none.
    #[must_use]
    pub fn with_expires_at(self, at: SystemTime) -> Self {
        Self { expires_at: Some(End::from(at)), ..self }
    }

    /// Sets the latest end of all records of the epoch, as [`with_expires_at`](Self::with_expires_at) does. Default: none.
    #[must_use]
    pub fn with_ends_at(self, at: SystemTime) -> Self {
        Self { ends_at: Some(End::from(at)), ..self }
    }

    /// Returns the epoch that the tokens belong to.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the number of the tokens within their epoch: 1 for those of the sign-in, one more after each refresh.
    ///
    /// All processes that share the store count alike (a session's own [`Generation`](crate::refresh::Generation) counts within
    /// its process). A session that holds a higher number than the store knows that the store has lost writes, and writes
    /// its tokens back before it presents or adopts anything.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the tokens.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Returns the end of the record, to the millisecond: from then on no user is signed in.
    ///
    /// A store may delete the record then. It keeps the end beside the entry, or in it, and
    /// [moves](TokenStore::extend) it while the session is used. `None`: the record has no end.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at.map(SystemTime::from)
    }

    /// Returns the latest end of all records of the epoch, if the sign-in has set one. Sessions set it in whole seconds.
    ///
    /// A store returns it as it was written. It is in the entry, since each process that refreshes the tokens writes it
    /// again: the end of the sign-in is the same, whichever process refreshes, and however often.
    #[must_use]
    pub fn ends_at(&self) -> Option<SystemTime> {
        self.ends_at.map(SystemTime::from)
    }

    /// Returns `true` if the entries differ in the end of the record at most, which is moved without a write of the tokens.
    pub(crate) fn is_same_write(&self, other: &Self) -> bool {
        (self.epoch, self.generation, &self.tokens) == (other.epoch, other.generation, &other.tokens)
    }

    pub(crate) fn into_tokens(self) -> Tokens {
        self.tokens
    }
}

/// The content of a store: the last entry that was written, and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    version: Version,
    entry: Entry,
}

impl Record {
    /// A record of an entry under the version that its write was given.
    #[must_use]
    pub fn new(version: Version, entry: Entry) -> Self {
        Self { version, entry }
    }

    /// Returns the version: it changes with every write, and is never used again.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Returns the entry.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Returns the entry's [epoch](Entry::epoch).
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.entry.epoch
    }

    /// Returns the entry's [generation](Entry::generation).
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.entry.generation
    }

    /// Returns the entry's tokens.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.entry.tokens
    }

    pub(crate) fn into_tokens(self) -> Tokens {
        self.entry.tokens
    }
}

/// One sign-in of a session, from which a new epoch begins, as at every sign-out and end.
///
/// Opaque to stores, which keep it as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// A new epoch, unlike any other.
    #[must_use]
    pub fn random() -> Self {
        Self(random::bits())
    }

    /// Returns the epoch as a number, for a store to write.
    #[must_use]
    pub fn to_u64(self) -> u64 {
        self.0
    }
}

impl From<u64> for Epoch {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// An identifier that a store makes and compares: eight bytes inline, or any number of bytes in an allocation, which is one
/// for those of a UUID.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Identifier {
    Short([u8; 8]),
    Medium(Arc<[u8; 16]>),
    // A thin pointer leaves room for the `Option` around it.
    Long(Arc<Box<[u8]>>),
}

impl Identifier {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Medium(bytes) => &**bytes,
            Self::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Identifier {
    fn from(bytes: &[u8]) -> Self {
        let long = |_| Self::Long(Arc::new(bytes.into()));
        let longer = |_| bytes.try_into().map_or_else(long, |bytes| Self::Medium(Arc::new(bytes)));
        bytes.try_into().map_or_else(longer, Self::Short)
    }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Opaque to the session. A store makes it from whatever it compares: a `bigint`, a UUID, an `ETag`.
        #[derive(Clone, PartialEq, Eq, Hash)]
        pub struct $name(Identifier);

        impl $name {
            /// Returns the bytes that it was made from; those of a number are in big-endian order.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }

            /// Returns the number that it was made from, or `None` if it isn't one of 64 bits.
            #[must_use]
            pub fn to_u64(&self) -> Option<u64> {
                self.as_bytes().try_into().ok().map(u64::from_be_bytes)
            }

            /// Returns the number that it was made from, or `None` if it isn't one of 128 bits.
            #[must_use]
            pub fn to_u128(&self) -> Option<u128> {
                self.as_bytes().try_into().ok().map(u128::from_be_bytes)
            }
        }

        impl From<u64> for $name {
            fn from(number: u64) -> Self {
                Self(Identifier::Short(number.to_be_bytes()))
            }
        }

        impl From<u128> for $name {
            fn from(number: u128) -> Self {
                Self::from(&number.to_be_bytes()[..])
            }
        }

        impl From<&[u8]> for $name {
            fn from(bytes: &[u8]) -> Self {
                Self(Identifier::from(bytes))
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::from(text.as_bytes())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.as_bytes().escape_ascii())
            }
        }
    };
}

identifier! {
    /// The version of a [`Record`]: one write of the store.
    Version
}

identifier! {
    /// The identifier of a [`Claim`], unlike that of any other claim on the same version.
    ClaimId
}

/// The right to present the refresh token of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    version: Version,
    id: ClaimId,
    in_doubt: bool,
}

impl Claim {
    /// A claim on a version. `in_doubt`: whether an earlier claim on it ended in doubt or its lease expired.
    #[must_use]
    pub fn new(version: Version, id: ClaimId, in_doubt: bool) -> Self {
        Self { version, id, in_doubt }
    }

    /// Returns the version that was claimed.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Returns the identifier of the claim.
    #[must_use]
    pub fn id(&self) -> &ClaimId {
        &self.id
    }

    /// Returns `true` if the refresh token may have been presented already.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }
}

/// The outcome of [`TokenStore::insert`].
#[derive(Debug)]
#[non_exhaustive]
pub enum InsertOutcome {
    /// The entry is stored, under this version.
    Inserted(Version),
    /// Nothing was written: the store holds this record.
    Exists(Record),
}

/// The outcome of [`TokenStore::claim`].
#[derive(Debug)]
#[non_exhaustive]
pub enum ClaimOutcome {
    /// The claim was granted.
    Claimed(Claim),
    /// Another claim on this version holds.
    Busy {
        /// The time until its lease ends, unless it is renewed.
        retry_in: Duration,
    },
    /// The record has another version, or is gone.
    Changed(Option<Record>),
}

/// The outcome of [`TokenStore::commit`].
#[derive(Debug)]
#[non_exhaustive]
pub enum CommitOutcome {
    /// The entry is stored, under this version.
    Stored(Version),
    /// Nothing was written: the record has another version, or is gone.
    Conflict(Option<Record>),
}

/// The outcome of [`TokenStore::clear`].
#[derive(Debug)]
#[non_exhaustive]
pub enum ClearOutcome {
    /// There is no record any more.
    Cleared,
    /// Nothing was deleted: the record has another version.
    Conflict(Record),
}

/// The fate of a refresh token whose claim is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented {
    /// The token was not used: nothing was sent, or the server said so.
    Unused,
    /// The token may have been used: the answer was lost.
    InDoubt,
}

/// Keeps tokens in memory (the default). They are lost with the process.
#[derive(Default)]
pub struct MemoryStore {
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    record: Option<Record>,
    // Boxed, since claims are rare and there may be many stores.
    lease: Option<Box<Lease>>,
}

/// A claim on the record.
struct Lease {
    id: ClaimId,
    /// `None`: released in doubt.
    until: Option<Instant>,
    in_doubt: bool,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a store in which a user is signed in already, and returns its record.
    pub(crate) fn holding(entry: Entry) -> (Self, Record) {
        let mut slot = Slot::default();
        let version = slot.write(entry.clone());
        (Self { slot: Mutex::new(slot) }, Record { version, entry })
    }

    fn with<T: Send + 'static>(&self, change: impl FnOnce(&mut Slot) -> T) -> StoreFuture<'_, T> {
        // Poisoning is ignored: no change panics half done.
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        Box::pin(std::future::ready(Ok(change(&mut slot))))
    }
}

/// Returns a number that was never returned before, for a version or a claim.
fn next_number() -> u64 {
    // One counter for all stores: one in each would take as much memory as the version itself.
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

impl Slot {
    fn has_version(&self, version: &Version) -> bool {
        self.record.as_ref().is_some_and(|record| record.version == *version)
    }

    fn write(&mut self, entry: Entry) -> Version {
        let version = Version::from(next_number());
        self.record = Some(Record { version: version.clone(), entry });
        self.lease = None;
        version
    }

    fn lease_of(&mut self, claim: &Claim) -> Option<&mut Lease> {
        let is_current = self.has_version(&claim.version);
        self.lease.as_deref_mut().filter(|lease| is_current && lease.id == claim.id)
    }
}

impl TokenStore for MemoryStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.with(|slot| slot.record.clone())
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.with(|slot| match &slot.record {
            Some(record) => InsertOutcome::Exists(record.clone()),
            None => InsertOutcome::Inserted(slot.write(entry.clone())),
        })
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.with(|slot| slot.write(entry.clone()))
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.with(|slot| {
            if !slot.has_version(version) {
                return ClaimOutcome::Changed(slot.record.clone());
            }
            let now = Instant::now();
            let in_doubt = match slot.lease.as_deref() {
                None => false,
                Some(&Lease { until: Some(until), .. }) if now < until => {
                    return ClaimOutcome::Busy { retry_in: until - now };
                }
                Some(_) => true,
            };
            let id = ClaimId::from(next_number());
            slot.lease = Some(Box::new(Lease { id: id.clone(), until: Some(now + lease), in_doubt }));
            ClaimOutcome::Claimed(Claim { version: version.clone(), id, in_doubt })
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.with(|slot| {
            // A claim that was released is no longer held.
            let held = slot.lease_of(claim).filter(|held| held.until.is_some());
            let is_held = held.is_some();
            if let Some(held) = held {
                held.until = Some(Instant::now() + lease);
            }
            is_held
        })
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.with(|slot| {
            // A claim that was released is no longer held.
            let Some(lease) = slot.lease_of(claim).filter(|held| held.until.is_some()) else { return };
            lease.until = None;
            if presented == Presented::Unused && !lease.in_doubt {
                slot.lease = None;
            }
        })
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        self.with(|slot| {
            if slot.has_version(&claim.version) {
                CommitOutcome::Stored(slot.write(entry.clone()))
            } else {
                CommitOutcome::Conflict(slot.record.clone())
            }
        })
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.with(|slot| match &slot.record {
            Some(record) if record.version != *version => ClearOutcome::Conflict(record.clone()),
            _ => {
                slot.record = None;
                slot.lease = None;
                ClearOutcome::Cleared
            }
        })
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.with(|slot| match &mut slot.record {
            Some(record) if record.version == *version => {
                record.entry.expires_at = Some(End::from(expires_at));
                true
            }
            _ => false,
        })
    }

    fn is_durable(&self) -> bool {
        false
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_made_from_a_number_a_uuid_or_an_etag() {
        let bigint = Version::from(0x0102_0304_0506_0708_u64);
        assert_eq!((bigint.to_u64(), bigint.to_u128()), (Some(0x0102_0304_0506_0708), None));
        assert_eq!(bigint, Version::from(&[1, 2, 3, 4, 5, 6, 7, 8][..]));
        let uuid = Version::from(u128::MAX - 1);
        assert_eq!((uuid.to_u64(), uuid.to_u128()), (None, Some(u128::MAX - 1)));
        let etag = Version::from("W/\"abc\"");
        assert_eq!(etag.as_bytes(), b"W/\"abc\"");
        assert_ne!(etag, Version::from("W/\"abd\""));
        assert_eq!(format!("{etag:?}"), r#"Version(W/\"abc\")"#);
        assert!(size_of::<Option<Version>>() <= 16, "kept in each session");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_holds_until_the_moment_at_which_it_expires() {
        let store = MemoryStore::new();
        let entry = Entry::new(Epoch::random(), 1, Tokens::default());
        let version = store.replace(&entry).await.unwrap();
        let lease = Duration::from_secs(30);
        let claim = async || store.claim(&version, lease).await.unwrap();
        assert!(matches!(claim().await, ClaimOutcome::Claimed(first) if !first.is_in_doubt()));
        tokio::time::advance(Duration::from_millis(29_999)).await;
        let ClaimOutcome::Busy { retry_in } = claim().await else { panic!("the lease still holds") };
        tokio::time::advance(retry_in).await;
        assert!(matches!(claim().await, ClaimOutcome::Claimed(second) if second.is_in_doubt()));
    }

    #[test]
    fn an_entry_returns_what_it_was_made_of() {
        let tokens = Tokens::from_access_token(crate::AccessToken::new("a1").unwrap());
        let entry = Entry::new(Epoch::from(7), 3, tokens);
        assert_eq!((entry.epoch(), entry.generation()), (Epoch::from(7), 3));
        assert_eq!(entry.tokens().access_token().unwrap().expose_secret(), "a1");
        assert_eq!((entry.expires_at(), entry.ends_at()), (None, None));
        let [first, last] = [1_000, 2_000].map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let entry = entry.with_expires_at(first).with_ends_at(last);
        assert_eq!((entry.expires_at(), entry.ends_at()), (Some(first), Some(last)));
    }

    #[test]
    fn an_epoch_is_kept_as_a_number() {
        let epoch = Epoch::random();
        assert_eq!(Epoch::from(epoch.to_u64()), epoch);
        assert_ne!(epoch, Epoch::random());
    }
}
