//! [`Session`]: one user's tokens, and the one refresh at a time that renews them.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionState, Tokens};
//!
//! # let refresh_service = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
//! let session = Session::builder(refresh_service).build().await?;
//! assert_eq!(session.state(), SessionState::SignedOut);
//!
//! session.sign_in(Tokens::new(AccessToken::new("a1")?, RefreshToken::new("r1")?)).await?;
//! assert_eq!(session.state(), SessionState::Active);
//!
//! // Elsewhere in the app: send the user to sign in when the session ends.
//! let mut changes = session.subscribe();
//! tokio::spawn(async move {
//!     while changes.changed().await.is_ok() {
//!         if *changes.borrow_and_update() == SessionState::Ended { /* … */ }
//!     }
//! });
//! # Ok(()) }
//! ```

mod cell;
mod flight;
mod pace;
mod state;
mod sync;
mod traffic;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};

pub(crate) use self::cell::{Config, Outlook, Revision, TokenCell};
pub(crate) use self::flight::is_near;
use self::state::Phase;
pub(crate) use self::state::State as Snapshot;
pub(crate) use self::sync::bounded;
pub(crate) use self::traffic::Traffic;
use crate::refresh::{Generation, NotRefreshed, RefreshService, RevokeService, Trigger};
use crate::store::{Epoch, MemoryStore, Record, StoreError, TokenStore};
use crate::token::Tokens;

/// How long a refresh may take, unless the builder says otherwise.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(30);

/// A refresh that takes longer is no use to anybody, and deadlines must not overflow.
const LONGEST_REFRESH_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// One user's tokens: a cheap handle, to be cloned freely.
///
/// It belongs to the `tokio` runtime that it was built in; refreshes run there, in tasks of their own, so that no
/// caller who goes away can interrupt one.
#[derive(Clone)]
pub struct Session {
    cell: Arc<TokenCell>,
}

impl Session {
    /// Starts to build a session around the service that renews its tokens.
    pub fn builder(refresh: impl RefreshService) -> SessionBuilder {
        SessionBuilder {
            refresh: BoxCloneSyncService::new(refresh.map_err(Into::<BoxError>::into)),
            revoke: None,
            tokens: None,
            store: Arc::new(MemoryStore::new()),
            refresh_timeout: REFRESH_TIMEOUT,
            refresh_early: None,
            rotation: Rotation::Strict,
            client_credentials: false,
        }
    }

    /// Signs a user in, or another user. Requests made before belong to the user before, and are never repeated as
    /// this one.
    ///
    /// The tokens are in force at once, then stored.
    ///
    /// # Errors
    ///
    /// If the store fails: the user is signed in all the same, and the write is retried in the background. If the
    /// session's runtime has shut down: then nothing is changed.
    pub async fn sign_in(&self, tokens: Tokens) -> Result<(), SessionError> {
        let task = self.cell.spawn(Arc::clone(&self.cell).sign_in(tokens));
        task.await.map_err(SessionError::runtime)?
    }

    /// Signs the user out: the tokens are forgotten at once, then deleted from the store and revoked, where the session
    /// has a [revoke service](SessionBuilder::revoke). Tokens that a refresh under way brings later are revoked too.
    ///
    /// # Errors
    ///
    /// If the store or the revoke service fails: the user is signed out all the same. Deleting from the store is
    /// retried in the background, revoking isn't. If the session's runtime has shut down: then nothing is changed.
    pub async fn sign_out(&self) -> Result<(), SessionError> {
        let task = self.cell.spawn(Arc::clone(&self.cell).sign_out());
        task.await.map_err(SessionError::runtime)?
    }

    /// Refreshes now, whatever the tokens' age, even while the session cools down; joins a refresh that is under way.
    ///
    /// # Errors
    ///
    /// Why there are no newer tokens.
    pub async fn refresh(&self) -> Result<(), NotRefreshed> {
        let (epoch, generation) = {
            let state = self.cell.snapshot();
            (state.epoch, state.generation)
        };
        Arc::clone(&self.cell).newer_than(epoch, generation, Trigger::Manual, None).await
    }

    /// Where the session stands now.
    #[must_use]
    pub fn state(&self) -> SessionState {
        SessionState::of(&self.cell.snapshot())
    }

    /// Watches where the session stands: how an app learns that it has [ended](SessionState::Ended). It ends when the
    /// last handle is dropped; among [`SessionRegistry`](crate::SessionRegistry) whoever watches a session holds it.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<SessionState> {
        self.cell.subscribe()
    }

    /// The tokens in force; empty when nobody is signed in.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        self.cell.snapshot().tokens.clone()
    }

    /// The number of the tokens in force.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.cell.snapshot().generation
    }

    pub(crate) fn of(cell: Arc<TokenCell>) -> Self {
        Self { cell }
    }

    pub(crate) fn cell(&self) -> &Arc<TokenCell> {
        &self.cell
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.cell.snapshot();
        f.debug_struct("Session")
            .field("state", &SessionState::of(&state))
            .field("generation", &state.generation.get())
            .finish_non_exhaustive()
    }
}

/// Where a [`Session`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionState {
    /// Nobody is signed in.
    SignedOut,
    /// A user is signed in.
    Active,
    /// A user is signed in, and a refresh is under way.
    Refreshing,
    /// The authorization server ended the session: the user must sign in again.
    Ended,
}

impl SessionState {
    fn of(state: &Snapshot) -> Self {
        match state.phase {
            Phase::SignedOut => Self::SignedOut,
            Phase::Active => Self::Active,
            Phase::Refreshing => Self::Refreshing,
            Phase::Ended => Self::Ended,
        }
    }
}

/// May a refresh token be presented again, within one refresh, when the answer to the first call was lost?
///
/// A server that rotates refresh tokens may have used it up, and take the second call for a theft: it then revokes the
/// whole session (RFC 9700 §4.14.2). Once the cool-down is over, the next refresh presents it again in any case, marked
/// [in doubt](crate::RefreshRequest::is_in_doubt): there is no other way to find out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rotation {
    /// No: the default.
    #[default]
    Strict,
    /// Within this time of the first call: the server answers a repeated call with the same successor.
    Grace(Duration),
    /// Yes: the server doesn't rotate.
    Reusable,
}

impl Rotation {
    /// Whether it may be presented again this long after the first time.
    fn allows(self, since: Duration) -> bool {
        match self {
            Self::Strict => false,
            Self::Grace(window) => since < window,
            Self::Reusable => true,
        }
    }
}

/// Builds a [`Session`].
#[must_use = "a builder does nothing until `build`"]
pub struct SessionBuilder {
    refresh: BoxCloneSyncService<crate::RefreshRequest, Tokens, BoxError>,
    revoke: Option<BoxCloneSyncService<crate::RevokeRequest, (), BoxError>>,
    tokens: Option<Tokens>,
    store: Arc<dyn TokenStore>,
    refresh_timeout: Duration,
    refresh_early: Option<Duration>,
    rotation: Rotation,
    client_credentials: bool,
}

impl SessionBuilder {
    /// The tokens to start with, where the store holds none. What the store holds is newer: it has the refresh token
    /// that this one was rotated to. Default: none.
    pub fn tokens(mut self, tokens: Tokens) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Where the tokens are kept. Default: a [`MemoryStore`] of its own.
    pub fn store(self, store: impl TokenStore) -> Self {
        self.shared_store(Arc::new(store))
    }

    /// Like [`store`](Self::store), for one that is shared already.
    pub fn shared_store(mut self, store: Arc<dyn TokenStore>) -> Self {
        self.store = store;
        self
    }

    /// How long a refresh may take in all, waiting for a claim and repeated attempts included. Default: 30 s; an hour
    /// at most.
    ///
    /// Storing the new tokens has another 5 s. A request may wait for the sum before it is sent, where the token in
    /// force is known to be refused; and once more if it is refused itself, unless it has waited all that time
    /// in vain.
    pub fn refresh_timeout(mut self, timeout: Duration) -> Self {
        self.refresh_timeout = timeout.min(LONGEST_REFRESH_TIMEOUT);
        self
    }

    /// Refreshes in the background when an access token is within this time of its known expiry, while requests go on
    /// with it. It waits for a request to notice, never for a timer. Default: off, a session refreshes when an API
    /// refuses the token.
    ///
    /// The window is spread by a quarter, and never reaches into the first half of the token's life. A request that
    /// finds the token expired waits for the refresh.
    pub fn refresh_early(mut self, window: Duration) -> Self {
        self.refresh_early = Some(window);
        self
    }

    /// Whether a refresh token may be presented again when an answer was lost. Default: [`Rotation::Strict`].
    pub fn rotation(mut self, rotation: Rotation) -> Self {
        self.rotation = rotation;
        self
    }

    /// The service that revokes tokens at [`sign_out`](Session::sign_out), and those that arrive too late. Default:
    /// none.
    pub fn revoke(mut self, revoke: impl RevokeService) -> Self {
        self.revoke = Some(BoxCloneSyncService::new(revoke.map_err(Into::<BoxError>::into)));
        self
    }

    /// The refresh service needs no refresh token (RFC 6749 §4.4): the session is active from the start, and gets its
    /// access tokens on its own. Default: off.
    pub fn client_credentials(mut self) -> Self {
        self.client_credentials = true;
        self
    }

    /// Reads the store, writes the first tokens to it where it is empty, and returns the session.
    ///
    /// # Errors
    ///
    /// If called outside a `tokio` runtime, or if the store can't be read or written within 5 s.
    ///
    /// # Panics
    ///
    /// If the runtime's timers are disabled (`tokio::runtime::Builder::enable_time`).
    pub async fn build(self) -> Result<Session, SessionError> {
        let runtime = Handle::try_current().map_err(SessionError::runtime)?;
        let (first, store) = (self.tokens.clone(), Arc::clone(&self.store));
        let config = Arc::new(self.into_config(runtime, None));
        let first = first.or_else(|| config.client_credentials.then(Tokens::default));
        let stored = Self::load_or_write(&*store, first).await.map_err(SessionError::store)?;
        Ok(Session::of(Arc::new(TokenCell::new(stored, store, config))))
    }

    /// All but the tokens and their store.
    pub(crate) fn into_config(self, runtime: Handle, traffic: Option<Arc<Traffic>>) -> Config {
        Config {
            refresh: self.refresh,
            revoke: self.revoke,
            refresh_timeout: self.refresh_timeout,
            rotation: self.rotation,
            refresh_early: self.refresh_early,
            client_credentials: self.client_credentials,
            runtime,
            traffic,
        }
    }

    async fn load_or_write(store: &dyn TokenStore, first: Option<Tokens>) -> Result<Option<Record>, StoreError> {
        let stored = bounded(|| store.load()).await?;
        match first.filter(|_| stored.is_none()) {
            None => Ok(stored),
            Some(tokens) => {
                bounded(|| store.replace(Epoch::random(), &tokens)).await?;
                // Read again: a peer that starts at the same moment may have written after us.
                bounded(|| store.load()).await
            }
        }
    }
}

impl fmt::Debug for SessionBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionBuilder").finish_non_exhaustive()
    }
}

/// A session could not be built, or could not carry out all that was asked of it.
#[derive(Debug)]
pub struct SessionError {
    message: &'static str,
    source: BoxError,
}

impl SessionError {
    pub(crate) fn store(source: StoreError) -> Self {
        Self { message: "the session's store failed", source: source.into() }
    }

    fn revoke(source: BoxError) -> Self {
        Self { message: "the tokens could not be revoked", source }
    }

    pub(crate) fn runtime(source: impl Into<BoxError>) -> Self {
        Self { message: "the session has no running tokio runtime", source: source.into() }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message)
    }
}

impl Error for SessionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_period_is_over_when_its_time_is() {
        let second = Duration::from_secs(1);
        let grace = Rotation::Grace(5 * second);
        assert!(grace.allows(Duration::ZERO) && grace.allows(Duration::from_nanos(4_999_999_999)));
        assert!(!grace.allows(5 * second) && !Rotation::Grace(Duration::ZERO).allows(Duration::ZERO));
        assert!(Rotation::Reusable.allows(Duration::MAX) && !Rotation::Strict.allows(Duration::ZERO));
    }
}
