//! Where tokens are kept: the [`TokenStore`] trait, and [`MemoryStore`], which keeps them for the life of the process.
//!
//! A store holds one [`Record`] for one session. Several sessions, in several processes, may share it: they find out
//! who refreshes by [claims](TokenStore::claim), and who wrote first by compare-and-set on the record's [`Version`].
//! No connection or transaction is held while the authorization server is called.
//!
//! The rules that every store keeps (`tower-auth-refresh-testkit` has a conformance suite for them):
//!
//! 1. A version is never used again, not even after [`clear`](TokenStore::clear): or a late
//!    [`commit`](TokenStore::commit) could land on the next user's sign-in.
//! 2. A claim is as durable as the record. One whose lease has expired means that the refresh token *may* have been
//!    presented: it is handed on as in doubt, never as unclaimed.
//! 3. What a record holds comes back as it came, further members of the server's answer included.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! use std::time::Duration;
//! use tower_auth_refresh::store::{ClaimOutcome, CommitOutcome, Epoch, MemoryStore, TokenStore};
//! use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};
//!
//! let store = MemoryStore::new();
//! let old = Tokens::new(AccessToken::new("a1")?, RefreshToken::new("r1")?);
//! let version = store.replace(Epoch::random(), &old).await?;
//!
//! // Nobody else presents r1 while this claim stands.
//! let ClaimOutcome::Claimed(claim) = store.claim(version, Duration::from_secs(35)).await? else { panic!() };
//! assert!(matches!(store.claim(version, Duration::from_secs(35)).await?, ClaimOutcome::Busy { .. }));
//!
//! let new = Tokens::new(AccessToken::new("a2")?, RefreshToken::new("r2")?);
//! assert!(matches!(store.commit(&claim, &new).await?, CommitOutcome::Stored(_)));
//! # Ok(()) }
//! ```

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tower::BoxError;

use crate::token::Tokens;

/// What a [`TokenStore`]'s methods return: boxed, since a session erases its store. None of them is on the way of a
/// request that succeeds.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A durable place for one session's tokens, possibly shared with other processes.
///
/// The session bounds every call with a time-out, 5 s for most; a store need not. A call that fails, panics or is dropped may still
/// have taken effect. A sign-in [loads](Self::load) before it [replaces](Self::replace), to tell a write of its own whose
/// answer was lost from a peer's. A store that loses its record says that a peer signed out.
pub trait TokenStore: Send + Sync + 'static {
    /// Reads the record; `None` where nobody is signed in.
    fn load(&self) -> StoreFuture<'_, Option<Record>>;

    /// Writes a record for a new sign-in, whatever is there, and drops any claim. Returns its new version.
    fn replace<'a>(&'a self, epoch: Epoch, tokens: &'a Tokens) -> StoreFuture<'a, Version>;

    /// Marks, durably, "the refresh token of `version` is about to be presented", for the time of `lease`.
    fn claim(&self, version: Version, lease: Duration) -> StoreFuture<'_, ClaimOutcome>;

    /// Extends a claim: its lease lasts `lease` from now. `false` if the claim is no longer held.
    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool>;

    /// Gives a claim back without new tokens. With [`Presented::Unused`] the record is as it was before the claim; with
    /// [`Presented::InDoubt`] the next claim is in doubt. Does nothing if the claim is no longer held.
    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()>;

    /// Writes the tokens that the claimed refresh token bought, in the record's epoch, if the record still has the
    /// version that was claimed; it then has a new one and no claim. The lease need not last until then: who was
    /// answered late still knows better than what is stored.
    fn commit<'a>(&'a self, claim: &'a Claim, tokens: &'a Tokens) -> StoreFuture<'a, CommitOutcome>;

    /// Deletes the record, and any claim on it, if it still has this version. A store without a record is cleared.
    fn clear(&self, version: Version) -> StoreFuture<'_, ClearOutcome>;

    /// Whether the tokens outlive this process. Where they don't, nothing can bring a forgotten session back.
    fn is_durable(&self) -> bool {
        true
    }
}

/// What a store holds for a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Changes with every write, and never comes back.
    pub version: Version,
    /// The signed-in stretch that the tokens belong to.
    pub epoch: Epoch,
    /// The tokens.
    pub tokens: Tokens,
}

/// The version of a [`Record`]: opaque to the session, for the store to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub u64);

/// One signed-in stretch of a session: a new one at every sign-in, sign-out and end. Only ever compared for equality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// A new epoch, unlike any other.
    #[must_use]
    pub fn random() -> Self {
        Self(fastrand::u64(..))
    }
}

/// The right to present the refresh token of one version.
#[derive(Debug)]
pub struct Claim {
    /// The version claimed.
    pub version: Version,
    /// Tells this claim from others on the same version.
    pub id: u64,
    /// Whether an earlier claim on this version ended in doubt: the refresh token may have been presented already.
    pub in_doubt: bool,
}

/// What [`TokenStore::claim`] found.
#[derive(Debug)]
pub enum ClaimOutcome {
    /// The claim is ours.
    Claimed(Claim),
    /// Somebody else holds a claim on this version.
    Busy {
        /// When his lease ends, unless he renews it.
        until: Instant,
    },
    /// The record has another version, or is gone.
    Changed(Option<Record>),
}

/// What [`TokenStore::commit`] did.
#[derive(Debug)]
pub enum CommitOutcome {
    /// The tokens are stored, under this version.
    Stored(Version),
    /// Nothing is stored: the record has another version, or is gone.
    Conflict(Option<Record>),
}

/// What [`TokenStore::clear`] did.
#[derive(Debug)]
pub enum ClearOutcome {
    /// There is no record any more.
    Cleared,
    /// Nothing is deleted: the record has another version.
    Conflict(Record),
}

/// What became of a refresh token whose claim is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented {
    /// It was not used: nothing was sent, or the server said so.
    Unused,
    /// It may have been used: the answer was lost.
    InDoubt,
}

/// A store could not be read or written.
#[derive(Debug)]
pub struct StoreError(BoxError);

impl StoreError {
    /// Wraps the store's own error.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self(source.into())
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the token store failed")
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// Keeps tokens in memory: the default. They are gone with the process.
#[derive(Default)]
pub struct MemoryStore {
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    record: Option<Record>,
    // Boxed, since it is rare, and there may be many stores.
    claim: Option<Box<Mark>>,
}

struct Mark {
    id: u64,
    /// `None`: ended in doubt.
    until: Option<Instant>,
    in_doubt: bool,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A store in which somebody is signed in already, and its record.
    pub(crate) fn holding(epoch: Epoch, tokens: Tokens) -> (Self, Record) {
        let mut slot = Slot::default();
        let version = slot.write(epoch, tokens.clone());
        (Self { slot: Mutex::new(slot) }, Record { version, epoch, tokens })
    }

    fn with<T: Send + 'static>(&self, change: impl FnOnce(&mut Slot) -> T) -> StoreFuture<'_, T> {
        // Nothing in here panics half-way, so a poisoned slot is whole.
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        Box::pin(std::future::ready(Ok(change(&mut slot))))
    }
}

/// A version or a claim's id, given out for the first time.
fn next() -> u64 {
    // One for all stores: a counter in each would take as much room as the version that it gives out.
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

impl Slot {
    fn is(&self, version: Version) -> bool {
        self.record.as_ref().is_some_and(|record| record.version == version)
    }

    fn write(&mut self, epoch: Epoch, tokens: Tokens) -> Version {
        let version = Version(next());
        self.record = Some(Record { version, epoch, tokens });
        self.claim = None;
        version
    }

    fn held(&mut self, claim: &Claim) -> Option<&mut Mark> {
        let current = self.is(claim.version);
        self.claim.as_deref_mut().filter(|mark| current && mark.id == claim.id)
    }
}

impl TokenStore for MemoryStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.with(|slot| slot.record.clone())
    }

    fn replace<'a>(&'a self, epoch: Epoch, tokens: &'a Tokens) -> StoreFuture<'a, Version> {
        self.with(|slot| slot.write(epoch, tokens.clone()))
    }

    fn claim(&self, version: Version, lease: Duration) -> StoreFuture<'_, ClaimOutcome> {
        self.with(|slot| {
            if !slot.is(version) {
                return ClaimOutcome::Changed(slot.record.clone());
            }
            let now = Instant::now();
            let in_doubt = match slot.claim.as_deref() {
                None => false,
                Some(&Mark { until: Some(until), .. }) if now < until => return ClaimOutcome::Busy { until },
                Some(_) => true,
            };
            let id = next();
            slot.claim = Some(Box::new(Mark { id, until: Some(now + lease), in_doubt }));
            ClaimOutcome::Claimed(Claim { version, id, in_doubt })
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.with(|slot| {
            // One that was given back is over.
            let mark = slot.held(claim).filter(|mark| mark.until.is_some());
            let held = mark.is_some();
            if let Some(mark) = mark {
                mark.until = Some(Instant::now() + lease);
            }
            held
        })
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.with(|slot| {
            let Some(mark) = slot.held(claim) else { return };
            mark.until = None;
            if presented == Presented::Unused && !mark.in_doubt {
                slot.claim = None;
            }
        })
    }

    fn commit<'a>(&'a self, claim: &'a Claim, tokens: &'a Tokens) -> StoreFuture<'a, CommitOutcome> {
        self.with(|slot| match &slot.record {
            Some(record) if record.version == claim.version => {
                let epoch = record.epoch;
                CommitOutcome::Stored(slot.write(epoch, tokens.clone()))
            }
            other => CommitOutcome::Conflict(other.clone()),
        })
    }

    fn clear(&self, version: Version) -> StoreFuture<'_, ClearOutcome> {
        self.with(|slot| match &slot.record {
            Some(record) if record.version != version => ClearOutcome::Conflict(record.clone()),
            _ => {
                slot.record = None;
                slot.claim = None;
                ClearOutcome::Cleared
            }
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
