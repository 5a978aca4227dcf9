//! [`SessionRegistry`]: many users' sessions by key, bounded.
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
//! // For each of that user's requests:
//! let session = sessions.get(&"alice").await?.expect("alice is signed in");
//! let request = http::Request::get("https://api.example.com/orders").extension(session).body(());
//! # let _ = request;
//!
//! assert!(sessions.get(&"bob").await?.is_none());
//! sessions.sign_out(&"alice").await?;
//!
//! // Before the process exits, so that no refresh is cut off:
//! sessions.wait_idle().await;
//! # Ok(()) }
//! ```
//!
//! With a store that outlives the process, only the sessions in use need to fit. Others are loaded on demand:
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

mod load;
mod loads;
mod sweep;
mod table;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, ready};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use self::load::{Caller, Ended, Load};
use self::loads::Loads;
use self::sweep::Uses;
use self::table::{Cursor, Table};
use crate::session::{
    Config, Look, Recheck, RecordWatch, RefreshLimiter, Session, SessionBuilder, SessionError, SessionStatus,
    TokenCell, run_clock, unbounded,
};
use crate::store::{MemoryStore, TokenStore};
use crate::token::Tokens;

const MAX_SESSIONS: usize = 100_000;

const MAX_CONCURRENT_REFRESHES: usize = 64;

const RECHECK: Duration = Duration::from_secs(5);

/// Many users' sessions by key, bounded: a handle that is cheap to clone.
///
/// - A session that isn't in memory is loaded from its [store](SessionRegistryBuilder::store_factory) on demand: once,
///   however many callers ask for it at the same time, and dropping a caller interrupts nothing. As long as a [`Session`]
///   has a handle it is found again, so a user never has two.
/// - When the registry is full, it evicts a session that has not been used for long (CLOCK eviction). It evicts only
///   sessions that their store can bring back, without another handle or [watcher](Session::subscribe), without a refresh
///   in flight, a pending write or a cool-down, and whose fresh tokens no API has refused within the hour. If there is
///   none, the registry is [full](SessionRegistryError::Full).
/// - All sessions share one [limit](SessionRegistryBuilder::max_concurrent_refreshes) on refreshes in flight. Permits are
///   granted in the order of the requests for them, spread by up to 10 ms. The wait for a permit doesn't count towards the
///   refresh time-out. But no request waits longer than the refresh time-out and 5 s for the permit and the refresh
///   together: it then returns its 401, while the session keeps its place in the queue.
/// - An idle session has no task and no timer, and takes some 670 bytes of memory beside its tokens, including what the
///   allocator leaves unused.
///
/// A registry belongs to the `tokio` runtime in which it was built.
pub struct SessionRegistry<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    table: Table<K>,
    /// Held while a session is inserted, and never across an await.
    insertions: Mutex<Insertions<K>>,
    max_sessions: usize,
    store_factory: Option<Box<StoreFactory<K>>>,
    config: Arc<Config>,
    /// Of the last sweep.
    uses: Mutex<Uses>,
    /// The sweep and the clock. Set once the other fields are: the sweep holds a weak reference to them.
    tasks: OnceLock<[AbortHandle; 2]>,
}

type StoreFactory<K> = dyn Fn(&K) -> Arc<dyn TokenStore> + Send + Sync;

/// The sessions that are being loaded, and the place of the next eviction.
struct Insertions<K> {
    loads: Loads<K>,
    /// The place of the last eviction.
    cursor: Cursor,
}

/// A look-up of a session that isn't in memory.
struct FindOrLoad<'a, K> {
    sessions: &'a Arc<Inner<K>>,
    key: &'a K,
    /// Whether the caller will sign it out.
    signs_out: bool,
    /// `None` until it has been searched for, and again if what was read is out of date.
    load: Option<Caller<'a>>,
}

/// The result of a load, for all its waiters.
type Found = Result<Option<Session>, SessionRegistryError>;

impl<K: Clone + Eq + Hash + Send + Sync + 'static> SessionRegistry<K> {
    /// Starts to build a registry. The template has the settings of all sessions; its tokens and its store are not used.
    ///
    /// Where the sessions need no refresh token ([`Session::client_credentials`]), each is still begun by a
    /// [sign-in](Self::sign_in), with tokens that say in an [extra member](Tokens::extra) whose they are. The refresh
    /// service finds it in the [request](crate::RefreshRequest::tokens).
    pub fn builder(template: SessionBuilder) -> SessionRegistryBuilder<K> {
        SessionRegistryBuilder {
            template,
            max_sessions: MAX_SESSIONS,
            idle_timeout: None,
            max_concurrent_refreshes: MAX_CONCURRENT_REFRESHES,
            store_factory: None,
            recheck: RECHECK,
        }
    }

    /// Returns the session of this key; `None` if no user is signed in.
    ///
    /// The memory is searched at once, before the future is polled. If the session is found there, the future is ready,
    /// unless its durable store was not looked at within the [recheck](SessionRegistryBuilder::recheck) bound. A session
    /// that was signed out or has ended is still found while it has a handle.
    ///
    /// # Errors
    ///
    /// If the store can't be read within 4.5 to 5 s: all callers that waited for the load get the same error, and the next
    /// call tries again. [`SessionRegistryError::Full`] if the session was loaded and there is no room for it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future doesn't interrupt the load or the look at the store.
    // Not an `async fn`: its result would pass through memory, a store-to-load forwarding on every look-up.
    #[inline]
    pub fn get<'a>(
        &'a self,
        key: &'a K,
    ) -> impl Future<Output = Result<Option<Session>, SessionRegistryError>> + Send + use<'a, K> {
        match self.inner.find(key) {
            Some(cell) if self.inner.config.recheck.is_fresh(&cell.last_look) => {
                Either::Left(ready(Ok(Some(Session::of(cell)))))
            }
            Some(cell) => match cell.recheck_if_due() {
                None => Either::Left(ready(Ok(Some(Session::of(cell))))),
                Some(look) => Either::Right(Either::Left(self.inner.find_after(look, key).boxed())),
            },
            None => Either::Right(Either::Right(self.inner.find_or_load(key, false))),
        }
    }

    /// Returns the status of the session of this key, if it is in memory; `None` if it isn't.
    ///
    /// This is not a use of the session: polling it keeps no session from being evicted or from its
    /// [idle time-out](SessionRegistryBuilder::idle_timeout). Nothing is loaded, and no refresh or look at the store is
    /// started: a change by another process shows once a [`get`](Self::get) or [`changed`](Self::changed) has found it.
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<SessionStatus> {
        // The status is made after the lock is released, which may clone and drop a foreign error.
        let table = &self.inner.table;
        let state = table.peek(table.hash_of(key), key, |cell| Arc::clone(&cell.snapshot()))?;
        Some(SessionStatus::of(&state))
    }

    /// Looks at the store of this key's session again, since another process has written or deleted its record. For
    /// stores that push their changes.
    ///
    /// Does nothing if the session isn't in memory. Otherwise the look is made in the background, as by
    /// [`Session::recheck`], and the next [`get`](Self::get) waits for it. If the store can't be read, the session is
    /// served from memory. This is not a use of the session.
    pub fn changed(&self, key: &K) {
        let (inner, hash) = (&self.inner, self.inner.table.hash_of(key));
        let recheck = |cell: Arc<TokenCell>| drop(cell.recheck());
        if let Some(cell) = inner.table.peek(hash, key, Arc::clone) {
            return recheck(cell);
        }
        let mut insertions = inner.insertions();
        // Inserted since.
        let found = inner.table.peek(hash, key, Arc::clone);
        // A load under way may have read the record before.
        let outdated = insertions.loads.remove(hash, key);
        drop(insertions);
        if let Some(loading) = outdated {
            loads::give_up(loading, None);
        }
        if let Some(cell) = found {
            recheck(cell);
        }
    }

    /// Has every session in memory look at its store again before the next [`get`](Self::get) returns it.
    ///
    /// Call it when a connection that brings the calls of [`changed`](Self::changed) is up again: changes may have been
    /// missed. It reads no store by itself.
    pub fn recheck_all(&self) {
        self.inner.config.recheck.expire_all();
    }

    /// Signs a user in.
    ///
    /// The tokens are in force at once, then stored. If a session of this key is in memory, it continues as this user's:
    /// its handles are the same session.
    ///
    /// # Errors
    ///
    /// [`SessionRegistryError::Full`] if there is no room: no user is signed in then. If the store fails: the user is
    /// signed in all the same, [`get`](Self::get) finds the session, and the write is retried in the background. If the
    /// runtime has shut down: a session that was in memory is unchanged; a new one is signed in and not stored.
    pub async fn sign_in(&self, key: K, tokens: Tokens) -> Result<Session, SessionRegistryError> {
        let (inner, hash) = (&self.inner, self.inner.table.hash_of(&key));
        let session = match inner.table.find(hash, &key) {
            Some(cell) => Session::of(cell),
            None => match inner.insert_or_find(hash, key, &tokens)? {
                SignIn::Found(cell) => Session::of(cell),
                SignIn::Inserted(cell) => {
                    if inner.store_factory.is_some() {
                        cell.watch_record();
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

    /// Signs a user out, as [`Session::sign_out`] does, whether or not the session is in memory.
    ///
    /// # Errors
    ///
    /// If the store can't be read: the user is still signed in then. If the store can't be written, or the revoke service
    /// fails: the user is signed out all the same, and deleting and revoking are retried in the background. If the
    /// runtime has shut down: nothing has changed then. A key without a user is no error.
    pub async fn sign_out(&self, key: &K) -> Result<(), SessionRegistryError> {
        let signed_out = self.inner.config.spawn(Arc::clone(&self.inner).sign_out(key.clone()));
        signed_out.await.map_err(SessionError::runtime)?
    }

    /// Returns the number of sessions in memory. Sessions that are over count until they are swept or looked up.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.table.len()
    }

    /// Returns `true` if no session is in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until no refresh is in flight and all writes and revocations are done. A server calls it before it exits, once
    /// it takes no more requests.
    ///
    /// While a store fails it doesn't return, and while the revoke service fails it takes 10 minutes and more: bound it
    /// with a time-out.
    pub async fn wait_idle(&self) {
        if let Some(limiter) = &self.inner.config.limiter {
            limiter.wait_idle().await;
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

/// The session of a sign-in.
enum SignIn {
    /// It was in memory, and continues.
    Found(Arc<TokenCell>),
    /// It is new, and signed in already.
    Inserted(Arc<TokenCell>),
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> Inner<K> {
    /// Returns the session in memory. A session that is over and has no other handle is removed: another process that
    /// shares its store may have signed the user in again.
    #[inline]
    fn find(&self, key: &K) -> Option<Arc<TokenCell>> {
        let hash = self.table.hash_of(key);
        let cell = self.table.find(hash, key)?;
        if cell.is_over() {
            drop(cell);
            drop(self.table.remove_if_over(hash, key));
            return self.table.find(hash, key);
        }
        Some(cell)
    }

    /// Returns the session after a look at its store. The caller holds no handle meanwhile, so that a session that the
    /// look finds signed out is removed.
    async fn find_after(self: &Arc<Self>, look: Arc<Look>, key: &K) -> Found {
        // If the look has failed, the session is served from memory.
        let _ = look.get().await;
        match self.find(key) {
            Some(cell) => Ok(Some(Session::of(cell))),
            None => self.find_or_load(key, false).await,
        }
    }

    /// `signs_out`: whether the caller will sign it out.
    fn find_or_load<'a>(self: &'a Arc<Self>, key: &'a K, signs_out: bool) -> FindOrLoad<'a, K> {
        FindOrLoad { sessions: self, key, signs_out, load: None }
    }

    async fn load(self: Arc<Self>, hash: u64, key: K, number: u64) -> Ended {
        // The factory changes nothing of the registry's, so no change is left half done.
        let store = catch_unwind(AssertUnwindSafe(|| self.store(&key)));
        let looked = self.config.recheck.now();
        let found = match store {
            Ok(store) => {
                let (watch, found) = RecordWatch::load(&self.config, &*store, unbounded(|| store.load())).await;
                found.map(|record| {
                    let config = Arc::clone(&self.config);
                    let cell = Arc::new(TokenCell::new(Some(record?), store, config));
                    cell.set_looked(looked);
                    watch.tell(&cell);
                    Some(cell)
                })
            }
            Err(_panic) => Err("the store factory panicked".into()),
        };
        self.end_load(hash, &key, number, found.map_err(|error| SessionError::store(error).into()))
    }

    /// Inserts a loaded session. Returns `None` if a sign-in was made meanwhile: the record may be out of date.
    fn end_load(
        &self,
        hash: u64,
        key: &K,
        number: u64,
        found: Result<Option<Arc<TokenCell>>, SessionRegistryError>,
    ) -> Ended {
        // Dropped last, after the lock is released.
        let _evicted;
        let mut insertions = self.insertions();
        let ended = insertions.loads.end(hash, key, number)?;
        let found = match found {
            Ok(Some(cell)) => {
                if !ended.signs_out {
                    let (room, evicted) = self.make_room(&mut insertions);
                    _evicted = Evicted(self, evicted);
                    if let Err(full) = room {
                        drop(insertions);
                        return Some(Err(full));
                    }
                }
                self.table.insert(hash, key.clone(), Arc::clone(&cell));
                Ok(Some(Session::of(cell)))
            }
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        drop(insertions);
        drop(ended);
        Some(found)
    }

    /// Returns the session in memory to sign in to, or inserts a new one.
    fn insert_or_find(&self, hash: u64, key: K, tokens: &Tokens) -> Result<SignIn, SessionRegistryError> {
        let (tokens, config) = (tokens.clone(), Arc::clone(&self.config));
        let new = match &self.store_factory {
            Some(store) => TokenCell::signed_in(tokens, store(&key), config),
            // A task that saves would cost more than the rest of a sign-in, and fragment the memory.
            None => Self::kept_in_memory(tokens, config),
        };
        let new = Arc::new(new);
        let mut insertions = self.insertions();
        if let Some(cell) = self.table.find(hash, &key) {
            return Ok(SignIn::Found(cell));
        }
        let (room, evicted) = self.make_room(&mut insertions);
        if let Err(full) = room {
            drop(insertions);
            drop(Evicted(self, evicted));
            return Err(full);
        }
        // A load under way is out of date.
        let overtaken = insertions.loads.remove(hash, &key);
        self.table.insert(hash, key, Arc::clone(&new));
        drop(insertions);
        drop(Evicted(self, evicted));
        if let Some(loading) = overtaken {
            loads::give_up(loading, None);
        }
        Ok(SignIn::Inserted(new))
    }

    async fn sign_out(self: Arc<Self>, key: K) -> Result<(), SessionRegistryError> {
        let session = match self.find(&key) {
            Some(cell) => Some(Session::of(cell)),
            None => self.find_or_load(&key, true).await?,
        };
        let Some(session) = session else { return Ok(()) };
        let signed_out = session.sign_out().await;
        drop(session);
        drop(self.table.remove_if_over(self.table.hash_of(&key), &key));
        Ok(signed_out?)
    }

    fn kept_in_memory(tokens: Tokens, config: Arc<Config>) -> TokenCell {
        let (store, record) = MemoryStore::holding(config.first_entry(tokens));
        TokenCell::new(Some(record), Arc::new(store), config)
    }

    /// Makes room for one more session. The caller drops the evicted ones after it has released the lock.
    fn make_room(&self, insertions: &mut Insertions<K>) -> (Result<(), SessionRegistryError>, Vec<table::Slot<K>>) {
        let mut evicted = Vec::new();
        // More than one is evicted where some were loaded to be signed out.
        while self.table.len() >= self.max_sessions {
            match self.table.evict(&mut insertions.cursor) {
                Some(slot) => evicted.push(slot),
                None => return (Err(SessionRegistryError::Full), evicted),
            }
        }
        (Ok(()), evicted)
    }

    fn store(&self, key: &K) -> Arc<dyn TokenStore> {
        self.store_factory.as_ref().map_or_else(|| Arc::new(MemoryStore::new()) as _, |store| store(key))
    }
}

impl<K> Inner<K> {
    fn insertions(&self) -> MutexGuard<'_, Insertions<K>> {
        // Poisoning is ignored: a panic in the key's `Clone`, `Eq` or `Hash` happens before the first change or after the
        // last.
        self.insertions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        // Poisoning is ignored: nothing panics under this lock.
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> Future for FindOrLoad<'_, K> {
    type Output = Found;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Found> {
        let this = &mut *self;
        let (sessions, key) = (this.sessions, this.key);
        loop {
            if let Some(load) = &mut this.load {
                let ended = ready!(load.poll_unpin(cx));
                // It would keep a handle of the session for as long as this future is kept.
                this.load = None;
                if let Some(found) = ended {
                    return Poll::Ready(found);
                }
            }
            if sessions.store_factory.is_none() {
                // Without stores, a session exists in memory only.
                return Poll::Ready(Ok(None));
            }
            let (runtime, hash) = (&sessions.config.runtime, sessions.table.hash_of(key));
            let mut insertions = sessions.insertions();
            if let Some(cell) = sessions.table.find(hash, key) {
                return Poll::Ready(Ok(Some(Session::of(cell))));
            }
            if let Some(loading) = insertions.loads.under_way(hash, key) {
                loading.signs_out |= this.signs_out;
                let load = Arc::clone(&loading.load);
                drop(insertions);
                this.load = Some(load.join(runtime));
                continue;
            }
            let load = |number| Load::new(Arc::clone(sessions).load(hash, key.clone(), number).boxed());
            let (load, is_first) = insertions.loads.begin(hash, key.clone(), this.signs_out, load);
            drop(insertions);
            this.load = Some(load.run(runtime));
            if is_first {
                // Not under the lock: a runtime that has shut down drops the task at once.
                runtime.spawn(loads::watch(Arc::downgrade(sessions), runtime.clone()));
            }
        }
    }
}

/// Sessions that were evicted. Dropped once the lock is released, it extends their records: no sweep will notice their
/// last use.
struct Evicted<'a, K>(&'a Inner<K>, Vec<table::Slot<K>>);

impl<K> Drop for Evicted<'_, K> {
    fn drop(&mut self) {
        if self.1.is_empty() || self.0.config.lifetimes.idle.is_none() {
            return;
        }
        let uses = self.0.uses().clone();
        for extension in self.1.iter().filter_map(|slot| slot.extension(&uses)) {
            self.0.config.runtime.spawn(extension.run());
        }
    }
}

impl<K> Drop for Inner<K> {
    fn drop(&mut self) {
        self.tasks.get().into_iter().flatten().for_each(AbortHandle::abort);
    }
}

/// Builds a [`SessionRegistry`].
#[must_use = "a builder does nothing until `build`"]
pub struct SessionRegistryBuilder<K> {
    template: SessionBuilder,
    max_sessions: usize,
    idle_timeout: Option<Duration>,
    max_concurrent_refreshes: usize,
    store_factory: Option<Box<StoreFactory<K>>>,
    recheck: Duration,
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> SessionRegistryBuilder<K> {
    /// Bounds the sessions in memory, beside sessions that are loaded to be signed out. Default: 100,000. With 0, every
    /// sign-in fails with [`SessionRegistryError::Full`].
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        self.max_sessions = sessions;
        self
    }

    /// Sets the time after which the user of an unused session is signed out. Default: never.
    ///
    /// A session is in use when it is looked up by [`get`](SessionRegistry::get) or signed in, and while it has a handle or
    /// a watcher. The session is then removed from memory and from its store, and the tokens are revoked, where there is a
    /// [revoke service](SessionBuilder::revoke). It may take a quarter longer, or 20 ms if that is more.
    ///
    /// With a [durable](TokenStore::is_durable) store, the record has an [end](crate::store::Entry::expires_at), which
    /// holds whether or not a process has the session in memory. It is written with the tokens, and
    /// [moved](TokenStore::extend) in the background while the session is used, at most eight times in an idle time-out.
    /// The first process that finds the record past its end deletes it; a store may do so by itself. A session that is in
    /// use elsewhere is only evicted. A record without an end isn't deleted: its session is evicted too.
    ///
    /// The end is a time by the wall clock: while the clock of one process is ahead, users may be idle for so much less. An
    /// end that is too far in the future, since a clock was set back, is corrected when the session is used. If a process is
    /// killed, its uses since the last 32nd of the idle time-out may be lost.
    ///
    /// In memory, idle time is measured by the monotonic clock: a wall clock that is set signs no user out. On some systems
    /// that clock stands still while the machine sleeps, so that a user who returns to the same process is still signed in.
    /// The end of the record isn't moved for it: another process, or the next one, finds the session over.
    pub fn idle_timeout(mut self, after: Duration) -> Self {
        self.idle_timeout = Some(after);
        self
    }

    /// Bounds the refreshes in flight at the same time, so that sessions that expire together don't overload the
    /// authorization server. At least 1. Default: 64.
    pub fn max_concurrent_refreshes(mut self, refreshes: usize) -> Self {
        self.max_concurrent_refreshes = refreshes;
        self
    }

    /// Sets the function that makes the store of a key. Default: a [`MemoryStore`] for each session, so that all
    /// signed-in sessions are in memory.
    ///
    /// It is called each time a session is loaded or begun, and should do no I/O. Stores that outlive the registry should
    /// be [durable](TokenStore::is_durable).
    pub fn store_factory(mut self, store: impl Fn(&K) -> Arc<dyn TokenStore> + Send + Sync + 'static) -> Self {
        self.store_factory = Some(Box::new(store));
        self
    }

    /// Bounds the time within which a sign-out by another process is in force here. Default: 5 s.
    /// [`Duration::MAX`] switches it off.
    ///
    /// It holds for sessions with a [durable](TokenStore::is_durable) store, whether or not the store reports
    /// [changes](SessionRegistry::changed), and from one [`get`](SessionRegistry::get) to the next: if the last look at
    /// the store is older than the bound, `get` waits for a new one. If it is older than half of that, `get` starts one in
    /// the background. A session that isn't looked up causes no load. [`Session::recheck`] describes a look.
    ///
    /// A look takes 5 s at most. If it fails, the session is served from memory with a tracing event, and looked at again
    /// after an eighth of the bound. Until a look succeeds, look-ups wait for one only if the last was tried longer than
    /// half the bound ago.
    pub fn recheck(mut self, bound: Duration) -> Self {
        self.recheck = bound;
        self
    }

    /// Builds the registry. No store is read yet.
    ///
    /// # Errors
    ///
    /// If called outside a `tokio` runtime. The runtime's timers must be enabled (`tokio::runtime::Builder::enable_time`),
    /// which isn't checked: without them nothing is swept, and calls to stores fail.
    pub fn build(self) -> Result<SessionRegistry<K>, SessionError> {
        let runtime = Handle::try_current().map_err(SessionError::runtime)?;
        let limiter = Arc::new(RefreshLimiter::new(self.max_concurrent_refreshes));
        let bound = (self.store_factory.is_some() && self.recheck != Duration::MAX).then_some(self.recheck);
        let mut config = self.template.into_config(runtime.clone(), Some(limiter), Recheck::new(bound));
        config.lifetimes.idle = self.idle_timeout;
        let config = Arc::new(config);
        let inner = Arc::new(Inner {
            table: Table::new(self.max_sessions),
            insertions: Mutex::new(Insertions { loads: Loads::default(), cursor: Cursor::default() }),
            max_sessions: self.max_sessions,
            store_factory: self.store_factory,
            config,
            uses: Mutex::default(),
            tasks: OnceLock::new(),
        });
        let sweep = runtime.spawn(sweep::sweep(Arc::downgrade(&inner), inner.config.lifetimes));
        let clock = runtime.spawn(run_clock(Arc::downgrade(&inner.config)));
        inner.tasks.get_or_init(|| [sweep.abort_handle(), clock.abort_handle()]);
        Ok(SessionRegistry { inner })
    }
}

impl<K> fmt::Debug for SessionRegistryBuilder<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionRegistryBuilder").finish_non_exhaustive()
    }
}

/// A session could not be returned or signed in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionRegistryError {
    /// There is no room: all sessions are in use, or could not be brought back after an eviction.
    ///
    /// Of more than some thousands not all are examined in one call, since other insertions wait for it: later calls
    /// continue where this one stopped.
    Full,
    /// The session's store or another part of it failed; shared by all callers that waited for it.
    Session(Arc<SessionError>),
}

impl fmt::Display for SessionRegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str(
                "the session registry is full: all sessions are in use, or could not be brought back after an eviction",
            ),
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
