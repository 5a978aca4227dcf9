//! [`Session`]: a session for programs without an async runtime: ureq, `reqwest::blocking`, build scripts, FFI.
//!
//! Its refreshes run on a `tokio` runtime on a thread of its own, which is parked while there is nothing to do. With ureq:
//!
//! ```
//! # use hyper_util::client::legacy::Client;
//! # use hyper_util::rt::TokioExecutor;
//! # use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};
//! # use tower_auth_refresh_http::{AuthClient, JsonRefresh};
//! # fn main() -> Result<(), tower::BoxError> {
//! # let servers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
//! # let server = servers.block_on(tower_auth_refresh_testkit::TestServer::start())?;
//! # let auth = AuthClient::new(Client::builder(TokioExecutor::new()).build_http());
//! # let refresh = JsonRefresh::new(auth, &server.url("/auth/refresh"))?;
//! # let pair = server.sign_in("ada");
//! # let tokens = Tokens::new(AccessToken::new(pair.access_token)?, RefreshToken::new(pair.refresh_token)?);
//! # server.expire_access_tokens();
//! # let api = server.url("/api/notes");
//! use tower_auth_refresh::blocking::{self, is_challenge};
//!
//! let session = blocking::Session::start(tower_auth_refresh::Session::builder(refresh).build())?;
//! session.sign_in(tokens)?;
//!
//! let agent = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).build().new_agent();
//! let mut response = session.send(
//!     |token| agent.get(&api).header("authorization", token.bearer()).call(),
//!     |answer| answer.as_ref().is_ok_and(|response| is_challenge(response.status(), response.headers())),
//! )??;
//! println!("{}", response.body_mut().read_to_string()?);
//! # assert_eq!(response.status(), 200);
//! # assert_eq!(server.counters().refreshes, 1);
//! # Ok(()) }
//! ```
//!
//! # The client
//!
//! `session.send` knows nothing of URLs, so the client decides where a token goes. Two settings matter:
//!
//! - **Redirects are not followed.** A client may strip `Authorization` on the way to another host, but no other header
//!   that holds a token, and a 401 of the other host would be taken for one of the API.
//! - **A 401 is an answer and no error**, so that its headers say whether the token has expired.
//!
//! | client | settings | refused |
//! | --- | --- | --- |
//! | ureq 3 | `http_status_as_error(false)`, `max_redirects(0)` | as above; `matches!(answer, Err(ureq::Error::StatusCode(401)))` without the first setting |
//! | `reqwest::blocking` | `redirect(reqwest::redirect::Policy::none())` | as above |
//!
//! The function is called again for the second attempt: it builds the request anew, its body included.
//!
//! # Waiting
//!
//! | call | blocks its thread |
//! | --- | --- |
//! | [`credential`](Session::credential), [`send`](Session::send) before the first attempt | not at all while the token in force is good; otherwise for a refresh |
//! | [`renewed`](Session::renewed), [`send`](Session::send) after a refusal | for a refresh; not at all if a newer token is in force |
//! | [`refresh`](Session::refresh) | for a refresh |
//! | [`sign_in`](Session::sign_in) | until the tokens are stored |
//! | [`sign_out`](Session::sign_out) | until the tokens are deleted, and revoked or not |
//! | the drop of the last handle | for a refresh under way: see [`Session`] |
//!
//! All threads that wait for a refresh wait for the same one. They are answered by the session's deadline, at most a
//! second later: also if a refresh service or a store blocks the session's thread, which it should not. Blocking
//! functions belong in a [`service_fn`].
//!
//! # Async programs
//!
//! Where there is a runtime already, [`tower_auth_refresh::Session`](crate::Session) is the better one. On a thread of an
//! async runtime the calls here work, and block all of that thread's tasks. They never wait for the runtime of their
//! caller, unless the refresh service or the store does (a connection pool that was built there): then they wait until
//! the deadline.

mod runtime_thread;
mod service_fn;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use self::runtime_thread::RuntimeThread;
pub use self::service_fn::{ServiceFn, service_fn};
use crate::challenge::{ChallengePolicy, ResponseHead};
use crate::refresh::{NotRefreshed, RefreshError};
use crate::session::{Credential, SessionError};
use crate::token::{AccessToken, Tokens};

/// The time after the session's own deadline at which a caller stops to wait for the session's thread.
const GRACE: Duration = Duration::from_secs(1);

/// A session that is used without an async runtime: a handle that is cheap to clone.
///
/// # Dropping
///
/// When the last handle is dropped, the session's thread ends. A refresh that is under way is finished first, and its
/// tokens are stored: otherwise a refresh token that the server has used up would be lost, and the user signed out. The
/// drop waits for it, for at most the refresh time-out and 5 s, then joins the thread. On the session's own thread the
/// drop waits for nothing: the thread ends by itself.
///
/// Writes that the store has failed are tried once more. Revocations that are repeated in the background end.
///
/// # Forks
///
/// A child process that was forked has a copy of the session, but not its thread. Every call there fails at once, and
/// the drop does nothing. A session that is started after the fork works; with a durable store it has the user's tokens.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    session: crate::Session,
    runtime: RuntimeThread,
}

impl Session {
    /// Starts the thread, and builds the session by a future that runs in its runtime.
    ///
    /// The future is usually [`SessionBuilder::build`](crate::SessionBuilder::build). It is polled on this thread, so it
    /// may borrow.
    ///
    /// # Errors
    ///
    /// That of the future; a [`SessionError`] if the system gives no thread.
    ///
    /// # Panics
    ///
    /// If the future does.
    pub fn start<E>(session: impl Future<Output = Result<crate::Session, E>>) -> Result<Self, E>
    where
        E: From<SessionError>,
    {
        let runtime = RuntimeThread::start().map_err(SessionError::runtime)?;
        let session = runtime.block_on(session, Duration::MAX).map_err(SessionError::runtime)??;
        Ok(Self { inner: Arc::new(Inner { session, runtime }) })
    }

    /// Calls a function with a token, and once more with a newer one if the token was refused.
    ///
    /// `call` sends a request: [`AccessToken::bearer`] is the value of its header. `refused` says whether an answer
    /// refuses the token; [`is_challenge`] decides by the status and the headers. However many threads are refused at the
    /// same time, one refresh is made. The second answer is returned whatever it is.
    ///
    /// # Errors
    ///
    /// The reason why there is no token, before anything is sent; or no newer one, after the first answer, which is
    /// dropped. [`NotRefreshed::requires_sign_in`] tells whether to send the user to sign in. A program that needs the
    /// refused answer calls [`credential`](Self::credential) and [`renewed`](Self::renewed) itself.
    ///
    /// # Panics
    ///
    /// If a function does. The session isn't affected.
    pub fn send<T>(
        &self,
        mut call: impl FnMut(&AccessToken) -> T,
        refused: impl Fn(&T) -> bool,
    ) -> Result<T, NotRefreshed> {
        let mut credential = self.credential()?;
        let mut answer = call(credential.access_token());
        if refused(&answer) {
            // Its connection may be the only one that the client has.
            drop(answer);
            credential = self.renewed(&credential)?;
            answer = call(credential.access_token());
        }
        if !refused(&answer) {
            self.inner.session.accepted(&credential);
        }
        Ok(answer)
    }

    /// Returns a credential that is worth sending now, as [`Session::credential`](crate::Session::credential) does.
    ///
    /// # Errors
    ///
    /// The reason why there is no access token, or none but a refused one.
    pub fn credential(&self) -> Result<Credential, NotRefreshed> {
        self.wait_for_tokens(self.inner.session.credential())
    }

    /// Returns a newer credential than one that an API has refused, as [`Session::renewed`](crate::Session::renewed) does.
    ///
    /// # Errors
    ///
    /// The reason why there is no newer credential.
    pub fn renewed(&self, refused: &Credential) -> Result<Credential, NotRefreshed> {
        self.wait_for_tokens(self.inner.session.renewed(refused))
    }

    /// Refreshes now, as [`Session::refresh`](crate::Session::refresh) does.
    ///
    /// # Errors
    ///
    /// The reason why there are no newer tokens.
    pub fn refresh(&self) -> Result<Tokens, NotRefreshed> {
        self.wait_for_tokens(self.inner.session.refresh())
    }

    /// Signs a user in, as [`Session::sign_in`](crate::Session::sign_in) does.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn sign_in(&self, tokens: Tokens) -> Result<(), SessionError> {
        self.wait(self.inner.session.sign_in(tokens)).map_err(SessionError::runtime)?
    }

    /// Signs the user out, as [`Session::sign_out`](crate::Session::sign_out) does.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn sign_out(&self) -> Result<(), SessionError> {
        self.wait(self.inner.session.sign_out()).map_err(SessionError::runtime)?
    }

    /// Waits for a future, which may use the timers and sockets of the session's runtime.
    ///
    /// For calls that have no blocking form, such as a login: `session.block_on(login.sign_in(session.as_async(), &form))`.
    /// The future is polled on this thread, so it may borrow; tasks that it spawns run on the session's.
    ///
    /// # Panics
    ///
    /// If the future does. On the session's own thread, and in a child process that was forked: there the future would
    /// never end.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self.wait(future) {
            Ok(output) => output,
            Err(problem) => panic!("{problem}"),
        }
    }

    /// Returns the session as async code sees it: its state, its tokens, and what has no blocking form.
    ///
    /// A clone of it doesn't keep the thread: without a handle of this type, its calls fail.
    #[must_use]
    pub fn as_async(&self) -> &crate::Session {
        &self.inner.session
    }

    fn wait<F: Future>(&self, future: F) -> Result<F::Output, &'static str> {
        self.inner.runtime.block_on(future, Duration::MAX)
    }

    fn wait_for_tokens<T>(&self, future: impl Future<Output = Result<T, NotRefreshed>>) -> Result<T, NotRefreshed> {
        let limit = self.inner.session.cell().deadline().saturating_duration_since(Instant::now()) + GRACE;
        let failed = |problem| NotRefreshed::Failed(Arc::new(RefreshError::in_doubt(problem)));
        self.inner.runtime.block_on(future, limit).map_err(failed)?
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session").field(&self.inner.session).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.runtime.stop_after(self.session.clone());
    }
}

/// Returns `true` if a response with this status and these headers says that the token has expired.
///
/// The rule is that of [`ChallengePolicy::bearer`].
#[must_use]
pub fn is_challenge(status: StatusCode, headers: &HeaderMap) -> bool {
    ChallengePolicy::bearer().matches(&ResponseHead::new(status, headers))
}
