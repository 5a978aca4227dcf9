//! [`SessionRegistry`]: many users' sessions by key, as many as fit.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! use std::time::Duration;
//! use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionRegistry, Tokens};
//!
//! # let refresh_service = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
//! let sessions = SessionRegistry::builder(Session::builder(refresh_service))
//!     .max_sessions(10_000)
//!     .idle_timeout(Duration::from_secs(60 * 60))
//!     .max_concurrent_refreshes(50)
//!     .build()?;
//!
//! // At the login:
//! let tokens = Tokens::new(AccessToken::new("a1")?, RefreshToken::new("r1")?);
//! sessions.sign_in("alice", tokens).await?;
//!
//! // For each request of hers:
//! let session = sessions.get(&"alice").await?.expect("she is signed in");
//! let request = http::Request::get("https://api.example.com/orders").extension(session).body(());
//! # let _ = request;
//!
//! assert!(sessions.get(&"bob").await?.is_none());
//! sessions.sign_out(&"alice").await?;
//!
//! // At the end, so that no refresh is cut off:
//! sessions.wait_idle().await;
//! # Ok(()) }
//! ```
//!
//! With a store that outlives the process, only those in use need to fit. The others are read when they are asked for:
//!
//! ```
//! # use std::sync::Arc;
//! # use tower_auth_refresh::{MemoryStore, RefreshError, RefreshRequest, Session, SessionRegistry, SessionRegistryError, Tokens};
//! # use tower_auth_refresh::TokenStore;
//! # struct Database; impl Database { fn row(self: &Arc<Self>, _: u64) -> MemoryStore { MemoryStore::new() } }
//! # fn example(
//! #     database: Arc<Database>,
//! #     template: tower_auth_refresh::SessionBuilder,
//! # ) -> Result<(), tower_auth_refresh::SessionError> {
//! let sessions = SessionRegistry::builder(template)
//!     .store_factory(move |user: &u64| Arc::new(database.row(*user)) as Arc<dyn TokenStore>)
//!     .build()?;
//! # Ok(()) }
//! ```

mod sweep;
mod table;

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either, ready};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use self::table::{Hand, Table};
use crate::announcement::Announcement;
use crate::session::{Config, Session, SessionBuilder, SessionError, TokenCell, Traffic, bounded};
use crate::store::{Epoch, MemoryStore, StoreError, TokenStore};
use crate::token::Tokens;

/// How many sessions fit, unless the builder says otherwise.
const CAPACITY: usize = 100_000;

/// How many refreshes are in flight at most, unless the builder says otherwise.
const REFRESHES: usize = 64;

/// Many users' sessions by key, as many as fit: a cheap handle, to be cloned freely.
///
/// - One that is missing is read from its [store](SessionRegistryBuilder::store_factory) when it is asked for: once, however many ask
///   at the same moment, and none of them interrupts it by going away. A [`Session`] that somebody holds is always
///   found again: no user has two.
/// - When they don't fit, one that has not been used for long goes: only where its store can bring it back, nobody holds
///   it or [watches](Session::subscribe) it, no refresh is in flight, nothing is unsaved, it isn't cooling down and no API
///   has refused its fresh tokens within the hour. If none can go there is no room for another.
/// - All share one [limit](SessionRegistryBuilder::max_concurrent_refreshes) on refreshes in flight. Those who wait for their turn
///   get it in the order in which they came, spread by some milliseconds. Waiting is no attempt, and takes nothing of
///   the time that a refresh may take; but nobody waits for his turn and the refresh together for longer than the
///   time-out and 5 s: he then gets his 401, while his session keeps its place.
/// - An idle session costs no task and no timer, only memory: some 650 bytes beside its tokens, what an allocator leaves
///   unused included.
///
/// They belong to the `tokio` runtime that they were built in.
pub struct SessionRegistry<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    table: Table<K>,
    /// Held while one is added, and never across an await.
    arrivals: Mutex<Arrivals<K>>,
    capacity: usize,
    stores: Option<Box<Stores<K>>>,
    config: Arc<Config>,
    /// Begun when all the rest is there.
    sweep: OnceLock<AbortHandle>,
}

type Stores<K> = dyn Fn(&K) -> Arc<dyn TokenStore> + Send + Sync;

/// How sessions get into the table.
struct Arrivals<K> {
    /// Those that are being read from their stores.
    loads: HashMap<K, Load>,
    /// The number of the last load.
    last: u64,
    /// Where room was last made.
    hand: Hand,
}

struct Load {
    number: u64,
    /// Somebody waits for it to sign it out: nobody has to make room for one that goes.
    goes: Arc<AtomicBool>,
    found: Arc<Announcement<Found>>,
}

/// Held by the task of a load. If that is gone before it has found anything, it never will.
struct Loading(Arc<Announcement<Found>>);

impl Drop for Loading {
    fn drop(&mut self) {
        if !self.0.is_made() {
            self.0.make(Err(SessionError::runtime("the task that read the session is gone").into()));
        }
    }
}

/// What was found under a key, for all who asked.
type Found = Result<Option<Session>, SessionRegistryError>;

impl<K: Clone + Eq + Hash + Send + Sync + 'static> SessionRegistry<K> {
    /// Starts to build them. All are built as the template says; its tokens and its store are not used.
    ///
    /// Where it needs no refresh token ([`SessionBuilder::client_credentials`]) a session is still begun by a
    /// [sign-in](Self::sign_in) alone: with tokens that say in a [further member](Tokens::extra) whose it is, if nothing
    /// else. The refresh service finds it in the [request](crate::RefreshRequest::tokens).
    pub fn builder(template: SessionBuilder) -> SessionRegistryBuilder<K> {
        SessionRegistryBuilder { template, capacity: CAPACITY, idle: None, refreshes: REFRESHES, stores: None }
    }

    /// The session of this key; `None` where nobody is signed in. One that was signed out or has ended is still found
    /// while somebody holds it.
    ///
    /// It is looked for in memory at once, before the future is polled; where it is there the future is ready.
    ///
    /// # Errors
    ///
    /// If its store can't be read within 5 s: all who asked meanwhile get the same error, and the next to ask makes a new
    /// attempt. [`SessionRegistryError::Full`] if it was read, and there is no room for it.
    // No `async fn`: its result would pass through memory, where the processor waits for it on every look-up.
    #[inline]
    pub fn get<'a>(
        &'a self,
        key: &'a K,
    ) -> impl Future<Output = Result<Option<Session>, SessionRegistryError>> + Send + use<'a, K> {
        match self.inner.find(key) {
            Some(cell) => Either::Left(ready(Ok(Some(Session::of(cell))))),
            None => Either::Right(self.inner.find_or_load(key, false).boxed()),
        }
    }

    /// Signs a user in. The tokens are in force at once, then stored. Where a session of this key is in memory it goes on
    /// as this user's: whoever holds it has the same one.
    ///
    /// # Errors
    ///
    /// [`SessionRegistryError::Full`] if there is no room: then nobody is signed in. If the store fails the user is signed in all
    /// the same, [`get`](Self::get) finds the session, and the write is retried in the background. If the runtime has shut
    /// down a session that was in memory is unchanged; a new one is signed in, and no store is told of it.
    pub async fn sign_in(&self, key: K, tokens: Tokens) -> Result<Session, SessionRegistryError> {
        let inner = &self.inner;
        let session = match inner.table.find(&key) {
            Some(cell) => Session::of(cell),
            None => match inner.arrive(key, &tokens)? {
                Arrival::There(cell) => Session::of(cell),
                Arrival::New(cell) => {
                    if inner.stores.is_some() {
                        let saved = cell.spawn(Arc::clone(&cell).save()).await;
                        saved.map_err(SessionError::runtime).flatten()?;
                    }
                    return Ok(Session::of(cell));
                }
            },
        };
        session.sign_in(tokens).await?;
        Ok(session)
    }

    /// Signs a user out, as [`Session::sign_out`] does, whether or not his session is in memory. No other is touched.
    ///
    /// # Errors
    ///
    /// If the store can't be read: then he is still signed in. If the store can't be written, or the revoke service fails:
    /// the user is signed out all the same, and deleting from the store is retried in the background. If the runtime has
    /// shut down: then nothing is changed. A key that nobody is signed in under is no error.
    pub async fn sign_out(&self, key: &K) -> Result<(), SessionRegistryError> {
        let signed_out = self.inner.config.spawn(Arc::clone(&self.inner).sign_out(key.clone()));
        signed_out.await.map_err(SessionError::runtime)?
    }

    /// How many are in memory. Those that are over are counted until they are swept or asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.table.len()
    }

    /// Whether none is in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until no refresh is in flight, everything is saved, and all that is to be revoked is revoked: what a server
    /// does before it exits, once it takes no more requests. It takes as long as a store fails: bound it with a time-out.
    pub async fn wait_idle(&self) {
        if let Some(traffic) = &self.inner.config.traffic {
            traffic.wait_idle().await;
        }
    }
}

impl<K> Clone for SessionRegistry<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K> fmt::Debug for SessionRegistry<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionRegistry").finish_non_exhaustive()
    }
}

/// What a sign-in finds under its key.
enum Arrival {
    /// A session that it goes on in.
    There(Arc<TokenCell>),
    /// None: this is a new one, already signed in.
    New(Arc<TokenCell>),
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> Inner<K> {
    /// What is in memory under this key. One that is over, and that nobody holds, is not: a peer that shares its store may
    /// have signed the user in again.
    #[inline]
    fn find(&self, key: &K) -> Option<Arc<TokenCell>> {
        let cell = self.table.find(key)?;
        if cell.is_over() {
            drop(cell);
            drop(self.table.remove_if_over(key));
            return self.table.find(key);
        }
        Some(cell)
    }

    /// `goes`: it is to be signed out.
    async fn find_or_load(self: &Arc<Self>, key: &K, goes: bool) -> Found {
        if self.stores.is_none() {
            // What was in memory alone is nowhere else.
            return Ok(None);
        }
        let load = {
            let mut arrivals = self.arrivals();
            if let Some(cell) = self.table.find(key) {
                return Ok(Some(Session::of(cell)));
            }
            match arrivals.loads.get(key).filter(|load| !load.found.is_made()) {
                Some(load) => {
                    load.goes.fetch_or(goes, Ordering::Relaxed);
                    Arc::clone(&load.found)
                }
                None => self.begin_load(&mut arrivals, key, goes),
            }
        };
        load.heard().await.clone()
    }

    /// Reads a session in a task of its own.
    fn begin_load(self: &Arc<Self>, arrivals: &mut Arrivals<K>, key: &K, goes: bool) -> Arc<Announcement<Found>> {
        arrivals.last += 1;
        let number = arrivals.last;
        let (found, goes) = (Arc::new(Announcement::new()), Arc::new(AtomicBool::new(goes)));
        let load = Load { number, goes: Arc::clone(&goes), found: Arc::clone(&found) };
        arrivals.loads.insert(key.clone(), load);
        let (loading, load) = (Loading(Arc::clone(&found)), Arc::clone(self).load(key.clone(), number, goes));
        self.config.runtime.spawn(async move { loading.0.make(load.await) });
        found
    }

    // Boxed, since it may begin anew.
    fn load(self: Arc<Self>, key: K, number: u64, goes: Arc<AtomicBool>) -> BoxFuture<'static, Found> {
        async move {
            // Nothing of ours is changed in there, so nothing is seen half-way.
            let store = catch_unwind(AssertUnwindSafe(|| self.store(&key)));
            let found = match store {
                Ok(store) => bounded(|| store.load()).await.map(|record| {
                    let config = Arc::clone(&self.config);
                    record.map(|record| Arc::new(TokenCell::new(Some(record), store, config)))
                }),
                Err(_panic) => Err(StoreError::new("it panicked")),
            };
            let found = found.map_err(|error| SessionError::store(error).into());
            match self.end_load(&key, number, found) {
                Some(found) => found,
                None => self.find_or_load(&key, goes.load(Ordering::Relaxed)).await,
            }
        }
        .boxed()
    }

    /// Puts what was read into the table. `None` if a sign-in was quicker: what was read may be out of date.
    fn end_load(
        &self,
        key: &K,
        number: u64,
        found: Result<Option<Arc<TokenCell>>, SessionRegistryError>,
    ) -> Option<Found> {
        // Dropped last, when nothing is locked any more.
        let _gone;
        let mut arrivals = self.arrivals();
        let goes = arrivals.loads.get(key).filter(|load| load.number == number)?.goes.load(Ordering::Relaxed);
        let ended = arrivals.loads.remove(key);
        let found = match found {
            Ok(Some(cell)) => {
                if !goes {
                    let (room, gone) = self.make_room(&mut arrivals);
                    _gone = gone;
                    if let Err(full) = room {
                        drop(arrivals);
                        return Some(Err(full));
                    }
                }
                self.table.insert(key.clone(), Arc::clone(&cell));
                Ok(Some(Session::of(cell)))
            }
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        drop(arrivals);
        drop(ended);
        Some(found)
    }

    /// The session to sign in to: the one that is there, or a new one.
    fn arrive(&self, key: K, tokens: &Tokens) -> Result<Arrival, SessionRegistryError> {
        let (tokens, config) = (tokens.clone(), Arc::clone(&self.config));
        let new = match &self.stores {
            Some(stores) => TokenCell::signed_in(tokens, stores(&key), config),
            // A task that saves would cost more than all the rest of a sign-in, and leave a hole in memory behind.
            None => Self::kept_in_memory(tokens, config),
        };
        let new = Arc::new(new);
        let mut arrivals = self.arrivals();
        if let Some(cell) = self.table.find(&key) {
            return Ok(Arrival::There(cell));
        }
        let (room, gone) = self.make_room(&mut arrivals);
        if let Err(full) = room {
            drop(arrivals);
            return Err(full);
        }
        // What is being read meanwhile is out of date.
        let overtaken = arrivals.loads.remove_entry(&key);
        self.table.insert(key, Arc::clone(&new));
        drop(arrivals);
        drop((gone, overtaken));
        Ok(Arrival::New(new))
    }

    async fn sign_out(self: Arc<Self>, key: K) -> Result<(), SessionRegistryError> {
        let session = match self.find(&key) {
            Some(cell) => Some(Session::of(cell)),
            None => self.find_or_load(&key, true).await?,
        };
        let Some(session) = session else { return Ok(()) };
        let signed_out = session.sign_out().await;
        drop(session);
        drop(self.table.remove_if_over(&key));
        Ok(signed_out?)
    }

    fn kept_in_memory(tokens: Tokens, config: Arc<Config>) -> TokenCell {
        let (store, record) = MemoryStore::holding(Epoch::random(), tokens);
        TokenCell::new(Some(record), Arc::new(store), config)
    }

    /// Makes room for one more. What had to go for it is to be dropped when nothing is locked any more.
    fn make_room(&self, arrivals: &mut Arrivals<K>) -> (Result<(), SessionRegistryError>, Vec<table::Slot<K>>) {
        let mut gone = Vec::new();
        // More than one goes where some were read to be signed out.
        while self.table.len() >= self.capacity {
            match self.table.evict(&mut arrivals.hand) {
                Some(slot) => gone.push(slot),
                None => return (Err(SessionRegistryError::Full), gone),
            }
        }
        (Ok(()), gone)
    }

    fn store(&self, key: &K) -> Arc<dyn TokenStore> {
        self.stores.as_ref().map_or_else(|| Arc::new(MemoryStore::new()) as _, |stores| stores(key))
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals<K>> {
        // Whoever panics in here (a key's `Clone`, `Eq` or `Hash`) has changed nothing yet, or all.
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Drop for Inner<K> {
    fn drop(&mut self) {
        if let Some(sweep) = self.sweep.get() {
            sweep.abort();
        }
    }
}

/// Builds [`SessionRegistry`].
#[must_use = "a builder does nothing until `build`"]
pub struct SessionRegistryBuilder<K> {
    template: SessionBuilder,
    capacity: usize,
    idle: Option<Duration>,
    refreshes: usize,
    stores: Option<Box<Stores<K>>>,
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> SessionRegistryBuilder<K> {
    /// How many sessions are kept in memory at most, beside those that are read to be signed out. Default: 100,000. With
    /// none, every sign-in is [`SessionRegistryError::Full`].
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        self.capacity = sessions;
        self
    }

    /// After which time a session that nobody asks for, holds or watches goes: one whose store can bring it back is
    /// forgotten, another's user is signed out and his tokens are revoked, where there is a
    /// [revoke service](SessionBuilder::revoke). It may take a quarter longer, or 20 ms where that is more. Default:
    /// never.
    pub fn idle_timeout(mut self, after: Duration) -> Self {
        self.idle = Some(after);
        self
    }

    /// How many refreshes are in flight at the same time at most, so that sessions that expire together don't overwhelm
    /// the authorization server. At least 1. Default: 64.
    pub fn max_concurrent_refreshes(mut self, refreshes: usize) -> Self {
        self.refreshes = refreshes;
        self
    }

    /// Where the tokens of a key are kept. Stores that outlive this object should be [durable](TokenStore::is_durable).
    /// Default: a [`MemoryStore`] for each session, so that whoever is signed in is in memory.
    ///
    /// It is asked again each time a session is read or begun. It should do no more than make the store.
    pub fn store_factory(mut self, stores: impl Fn(&K) -> Arc<dyn TokenStore> + Send + Sync + 'static) -> Self {
        self.stores = Some(Box::new(stores));
        self
    }

    /// Builds them. No store is read yet.
    ///
    /// # Errors
    ///
    /// If called outside a `tokio` runtime. Its timers must be enabled (`tokio::runtime::Builder::enable_time`), which
    /// isn't checked: without them nothing is swept, and every call to a store fails.
    pub fn build(self) -> Result<SessionRegistry<K>, SessionError> {
        let runtime = Handle::try_current().map_err(SessionError::runtime)?;
        let traffic = Arc::new(Traffic::new(self.refreshes));
        let config = Arc::new(self.template.into_config(runtime.clone(), Some(traffic)));
        let inner = Arc::new(Inner {
            table: Table::new(self.capacity),
            arrivals: Mutex::new(Arrivals { loads: HashMap::new(), last: 0, hand: Hand::default() }),
            capacity: self.capacity,
            stores: self.stores,
            config,
            sweep: OnceLock::new(),
        });
        let sweep = runtime.spawn(sweep::sweep(Arc::downgrade(&inner), self.idle));
        inner.sweep.get_or_init(|| sweep.abort_handle());
        Ok(SessionRegistry { inner })
    }
}

impl<K> fmt::Debug for SessionRegistryBuilder<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionRegistryBuilder").finish_non_exhaustive()
    }
}

/// A session could not be had.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionRegistryError {
    /// There is no room: as many as fit are in use, or could not be brought back. Of more than some thousands not all are
    /// looked at, since the others wait for it: where one could go after all, the next attempts come to it.
    Full,
    /// What its store, or another part of it, failed with; shared by all who asked for it.
    Session(Arc<SessionError>),
}

impl fmt::Display for SessionRegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => {
                f.write_str("there is no room for another session: all are in use, or could not be brought back")
            }
            Self::Session(error) => error.fmt(f),
        }
    }
}

impl Error for SessionRegistryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Full => None,
            Self::Session(error) => error.source(),
        }
    }
}

impl From<SessionError> for SessionRegistryError {
    fn from(error: SessionError) -> Self {
        Self::Session(Arc::new(error))
    }
}
