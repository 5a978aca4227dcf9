//! [`SessionBuilder`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};

use super::Session;
use super::cell::TokenCell;
use super::config::{Config, Rotation};
use super::error::SessionError;
use super::lifetime::Lifetimes;
use super::limiter::RefreshLimiter;
use super::recheck_clock::Recheck;
use super::record_watch::RecordWatch;
use super::revocation::MOST_REPEATED;
use super::store_call::bounded;
use crate::refresh::{RefreshRequest, RefreshService, RevokeRequest, RevokeService};
#[cfg(doc)]
use crate::store::Entry;
use crate::store::{InsertOutcome, MemoryStore, Record, TokenStore};
use crate::token::Tokens;

const REFRESH_TIMEOUT: Duration = Duration::from_secs(30);

/// The cap on the refresh time-out, so that deadlines don't overflow.
const LONGEST_REFRESH_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Builds a [`Session`].
#[must_use = "a builder does nothing until `build`"]
pub struct SessionBuilder {
    refresh: BoxCloneSyncService<RefreshRequest, Tokens, BoxError>,
    revoke: Option<BoxCloneSyncService<RevokeRequest, (), BoxError>>,
    tokens: Option<Tokens>,
    store: Arc<dyn TokenStore>,
    refresh_timeout: Duration,
    refresh_early: Option<Duration>,
    rotation: Rotation,
    client_credentials: bool,
    max_lifetime: Option<Duration>,
}

impl SessionBuilder {
    pub(super) fn new(refresh: impl RefreshService, client_credentials: bool) -> Self {
        Self {
            refresh: BoxCloneSyncService::new(refresh.map_err(Into::<BoxError>::into)),
            revoke: None,
            tokens: None,
            store: Arc::new(MemoryStore::new()),
            refresh_timeout: REFRESH_TIMEOUT,
            refresh_early: None,
            rotation: Rotation::Strict,
            client_credentials,
            max_lifetime: None,
        }
    }

    /// Sets the tokens to start with, where the store holds none. Default: none.
    ///
    /// Tokens in the store are newer: the store holds the refresh token that this one was rotated to.
    pub fn tokens(mut self, tokens: Tokens) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Sets the store of the tokens, or an `Arc` of one. Default: a [`MemoryStore`] of its own.
    pub fn store(mut self, store: impl TokenStore) -> Self {
        self.store = Arc::new(store);
        self
    }

    /// Bounds a whole refresh: waiting for a claim, and all attempts. Default: 30 s; at most an hour.
    ///
    /// If a process that shares the store dies while it refreshes, its claim holds for up to 15 s. A shorter time-out makes
    /// refreshes of that session fail until then.
    ///
    /// Storing the new tokens may take another 5 s. A request may wait for the sum of both before it is sent, if the token
    /// in force is known to be refused, and again if it is refused itself, unless it has waited for the whole sum in vain.
    pub fn refresh_timeout(mut self, timeout: Duration) -> Self {
        self.refresh_timeout = timeout.min(LONGEST_REFRESH_TIMEOUT);
        self
    }

    /// Refreshes in the background when an access token is within this time of its known expiry, while requests go on
    /// with it. Default: off; a session refreshes when an API refuses the token.
    ///
    /// A request starts it, never a timer. The window is spread by a quarter, and never reaches into the first half of
    /// the token's life. If the server advises an earlier time ([`Tokens::refresh_at`]), the window begins then. A request
    /// that finds the token expired waits for the refresh.
    pub fn refresh_early(mut self, window: Duration) -> Self {
        self.refresh_early = Some(window);
        self
    }

    /// Sets whether a refresh token may be presented again when an answer was lost. Default: [`Rotation::Strict`].
    pub fn rotation(mut self, rotation: Rotation) -> Self {
        self.rotation = rotation;
        self
    }

    /// Sets the service that revokes tokens at [`sign_out`](Session::sign_out), and tokens that arrive after it.
    /// Default: none.
    ///
    /// A sign-out waits for one call, of at most [`refresh_timeout`](Self::refresh_timeout). If it fails, the tokens are
    /// assumed to be still valid (RFC 7009 §2.2.1), and a task repeats the call: for 10 minutes, with pauses from 1 s
    /// doubling to 60 s, or as long as the server asked for, up to 300 s. It ends early if the failure is
    /// [final](RevokeService), if the user signs in again with the same tokens, or with the runtime. At most 1,024
    /// revocations are repeated at a time, by all sessions of a registry together; any further one that fails isn't.
    /// No sign-in waits for them.
    pub fn revoke(mut self, revoke: impl RevokeService) -> Self {
        self.revoke = Some(BoxCloneSyncService::new(revoke.map_err(Into::<BoxError>::into)));
        self
    }

    /// Ends a sign-in after this time, however much it is used. Default: never.
    ///
    /// The end is fixed at the sign-in, kept in the [record](Entry::ends_at), and written again with each refresh, by
    /// whichever process. The session is then [ended](crate::SessionState::Ended) by an error of the kind
    /// [`LifetimeOver`](crate::RefreshErrorKind::LifetimeOver), its record is deleted, and its tokens are revoked. A
    /// session of a [registry](crate::SessionRegistry) ends at a look at its store, or within a minute, or within a 32nd
    /// of the time. Any other one ends when it refreshes or is [rechecked](Session::recheck).
    ///
    /// The end is a time by the wall clock. A clock that is set forward ends the session early. After a clock was set
    /// back, or if the record of the sign-in has no end, the session lasts for at most this time from when a process has
    /// loaded it.
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.max_lifetime = Some(lifetime);
        self
    }

    /// Reads the store, writes the first tokens to it if it is empty, and returns the session.
    ///
    /// # Errors
    ///
    /// If called outside a `tokio` runtime, if the store can't be read or written within 5 s, or if the first tokens are
    /// empty.
    ///
    /// # Panics
    ///
    /// If the runtime's timers are disabled (`tokio::runtime::Builder::enable_time`).
    pub async fn build(self) -> Result<Session, SessionError> {
        let runtime = Handle::try_current().map_err(SessionError::runtime)?;
        let (first, store) = (self.tokens.clone(), Arc::clone(&self.store));
        let first = match first {
            Some(tokens) if tokens.is_empty() && !self.client_credentials => return Err(SessionError::no_tokens()),
            None if self.client_credentials => Some(Tokens::default()),
            first => first,
        };
        let config = Arc::new(self.into_config(runtime, None, Recheck::new(None)));
        let (watch, found) = RecordWatch::load(&config, &*store, bounded(|| store.load())).await;
        let stored = match (found.map_err(SessionError::store)?, first) {
            (None, Some(first)) => Some(insert(&config, &*store, first).await.map_err(SessionError::store)?),
            (found, _) => found,
        };
        let cell = Arc::new(TokenCell::new(stored, store, config));
        watch.tell(&cell);
        Ok(Session::of(cell))
    }

    /// Takes all settings but the tokens and their store.
    pub(crate) fn into_config(self, runtime: Handle, limiter: Option<Arc<RefreshLimiter>>, recheck: Recheck) -> Config {
        Config {
            refresh: self.refresh,
            revoke: self.revoke,
            repeated_revocations: Arc::new(Semaphore::new(MOST_REPEATED)),
            refresh_timeout: self.refresh_timeout,
            rotation: self.rotation,
            refresh_early: self.refresh_early,
            client_credentials: self.client_credentials,
            lifetimes: Lifetimes { idle: None, longest: self.max_lifetime },
            runtime,
            limiter,
            recheck,
        }
    }
}

async fn insert(config: &Config, store: &dyn TokenStore, first: Tokens) -> Result<Record, BoxError> {
    let entry = config.first_entry(first);
    match bounded(|| store.insert(&entry)).await? {
        InsertOutcome::Inserted(version) => Ok(Record::new(version, entry)),
        // It could not be deleted.
        InsertOutcome::Exists(record) if record.is_past_its_end() => Err("the record is past its end".into()),
        // Another process has started at the same time.
        InsertOutcome::Exists(record) => Ok(record),
    }
}

impl fmt::Debug for SessionBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionBuilder").finish_non_exhaustive()
    }
}
