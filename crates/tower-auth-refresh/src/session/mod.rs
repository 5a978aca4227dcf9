//! [`Session`]: one user's tokens, and the one refresh at a time that renews them.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionState, Tokens};
//!
//! # let refresh_service = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
//! let session = Session::builder(refresh_service).build().await?;
//! assert!(matches!(session.state(), SessionState::SignedOut));
//!
//! session.sign_in(Tokens::new(AccessToken::new("a1")?, RefreshToken::new("r1")?)).await?;
//! assert!(session.state().is_signed_in());
//!
//! // Elsewhere in the app: send the user to sign in when the session ends.
//! let mut changes = session.subscribe();
//! tokio::spawn(async move {
//!     while changes.changed().await.is_ok() {
//!         if let SessionState::Ended(why) = &*changes.borrow_and_update() {
//!             println!("sign in again: {why}");
//!         }
//!     }
//! });
//! # Ok(()) }
//! ```

mod acquire;
mod backoff;
mod builder;
mod cell;
mod config;
mod credential;
mod error;
mod flight;
mod held_claim;
mod lifetime;
mod limiter;
mod loop_guard;
mod recheck;
mod recheck_clock;
mod record_watch;
mod refresh_task;
mod revocation;
mod state;
mod status;
mod store_call;
mod store_sync;
mod waiter_clock;

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

pub use self::builder::SessionBuilder;
pub(crate) use self::cell::{Revision, TokenCell};
pub(crate) use self::config::Config;
pub use self::config::Rotation;
pub use self::credential::Credential;
pub(crate) use self::credential::wait_before_handing_out;
pub use self::error::{SessionError, SessionErrorKind};
pub(crate) use self::lifetime::{Extension, Idleness, Lifetimes};
pub(crate) use self::limiter::RefreshLimiter;
pub(crate) use self::recheck::run_clock;
pub(crate) use self::recheck_clock::{Look, Recheck};
pub(crate) use self::record_watch::RecordWatch;
pub(crate) use self::revocation::Revocation;
pub(crate) use self::state::{Phase, State as Snapshot};
pub use self::status::{RefreshFailure, SessionState, SessionStatus};
pub(crate) use self::store_call::{STORE_TIMEOUT, unbounded};
pub(crate) use self::waiter_clock::is_near;
use crate::refresh::{Generation, NotRefreshed, RefreshService, Trigger};
use crate::token::Tokens;

/// One user's tokens: a handle that is cheap to clone.
///
/// It belongs to the `tokio` runtime in which it was built. Refreshes run there, in tasks of their own, so that dropping
/// a caller interrupts none.
#[derive(Clone)]
pub struct Session {
    cell: Arc<TokenCell>,
}

impl Session {
    /// Starts to build a session around the service that renews its tokens.
    pub fn builder(refresh: impl RefreshService) -> SessionBuilder {
        SessionBuilder::new(refresh, false)
    }

    /// Starts to build a session of a client that acts for itself (client credentials, RFC 6749 §4.4).
    ///
    /// The service needs no refresh token. The session is active from the start, and obtains its access tokens by itself.
    pub fn client_credentials(grant: impl RefreshService) -> SessionBuilder {
        SessionBuilder::new(grant, true)
    }

    /// Signs a user in: the first one, or another one in place of the last.
    ///
    /// The tokens are in force at once, then stored. Requests made before belong to the user before, and are never
    /// replayed as this one.
    ///
    /// # Errors
    ///
    /// If the store fails: the user is signed in all the same, and the write is retried in the background. If the tokens
    /// are empty, or the session's runtime has shut down: nothing has changed then.
    /// [`took_effect`](SessionError::took_effect) tells the two apart.
    ///
    /// # Cancel safety
    ///
    /// Once it was polled it completes, whether or not the future is dropped.
    pub async fn sign_in(&self, tokens: Tokens) -> Result<(), SessionError> {
        let task = self.cell.spawn(Arc::clone(&self.cell).sign_in(tokens));
        task.await.map_err(SessionError::runtime)?
    }

    /// Signs the user out.
    ///
    /// The tokens are dropped at once, then deleted from the store and revoked, where the session has a
    /// [revoke service](SessionBuilder::revoke). Tokens that a refresh under way obtains later are revoked too.
    ///
    /// # Errors
    ///
    /// If the store or the revoke service fails: the user is signed out all the same. Deleting from the store is retried
    /// in the background, and so is revoking, [within bounds](SessionBuilder::revoke). If the session's runtime has shut
    /// down: nothing has changed then.
    ///
    /// # Cancel safety
    ///
    /// Once it was polled it completes, whether or not the future is dropped.
    pub async fn sign_out(&self) -> Result<(), SessionError> {
        let task = self.cell.spawn(Arc::clone(&self.cell).sign_out());
        task.await.map_err(SessionError::runtime)?
    }

    /// Refreshes now, whatever the tokens' age, and during a cool-down too. Joins a refresh that is under way. Returns the
    /// new tokens.
    ///
    /// # Errors
    ///
    /// The reason why there are no newer tokens.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future interrupts no refresh.
    pub async fn refresh(&self) -> Result<Tokens, NotRefreshed> {
        let (epoch, generation) = {
            let state = self.cell.snapshot();
            (state.epoch, state.generation)
        };
        Arc::clone(&self.cell).wait_for_newer_tokens(epoch, generation, Trigger::Manual, None, None).await?;
        let state = self.cell.snapshot();
        if state.epoch == epoch { Ok(state.tokens.clone()) } else { Err(NotRefreshed::SessionChanged) }
    }

    /// Looks at the store again, where other processes share it.
    ///
    /// - If the record is gone, the user is signed out here too.
    /// - A sign-in of another process, and newer tokens, are adopted; also if the session was signed out or has ended.
    ///   Newer tokens that expire within 500 ms are left to the next refresh, which goes on from them.
    /// - If the record is older than the tokens here, the store has lost writes, and the tokens are written back.
    ///
    /// A refresh under way is left alone, unless the record is gone or of another sign-in: tokens that it obtains then are
    /// revoked, as after a [sign-out](Self::sign_out) here. While a write is pending, nothing is read: that write finds
    /// out.
    ///
    /// A [`SessionRegistry`](crate::SessionRegistry) does it [by itself](crate::registry::SessionRegistryBuilder::recheck). Callers
    /// at the same time share two reads of the store at most: the one under way and one that begins after it.
    ///
    /// # Errors
    ///
    /// If the store can't be read within 5 s, or the session's runtime has shut down: nothing has changed then.
    ///
    /// # Cancel safety
    ///
    /// Once it was polled it completes, whether or not the future is dropped.
    pub async fn recheck(&self) -> Result<(), SessionError> {
        self.cell.recheck().get().await.clone().map_err(SessionError::from)
    }

    /// Returns the state now.
    #[must_use]
    pub fn state(&self) -> SessionState {
        SessionState::of(&self.cell.snapshot())
    }

    /// Watches the state: an app learns from it that the session has [ended](SessionState::Ended).
    ///
    /// The channel closes when the last handle is dropped. In a [`SessionRegistry`](crate::SessionRegistry) a watched
    /// session counts as in use.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<SessionState> {
        self.cell.subscribe()
    }

    /// Returns the tokens in force; empty if no user is signed in.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        self.cell.snapshot().tokens.clone()
    }

    /// Returns the generation of the tokens in force.
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
