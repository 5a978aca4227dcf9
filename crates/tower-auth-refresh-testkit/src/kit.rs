//! [`TestKit`]: the state of the servers, and the handle by which a test controls them.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::families::{Families, micros};
use crate::faults::{Fault, Route};
use crate::gate::{Bar, Gate};
use crate::journal::Journal;
use crate::log::{Counters, Entry, UserCounters, Violation};
use crate::settings::{Settings, UnreadBody};
use crate::sign_ins::SignIns;
use crate::token::TokenPair;

/// An authorization server and an API in one, without a socket.
///
/// The kit is a `tower` service from `http::Request` to `http::Response`, for benchmarks and for tests on paused time.
/// [`serve`](Self::serve) puts the kit on a socket. Clones are handles to the same servers.
#[derive(Clone)]
pub struct TestKit {
    shared: Arc<Shared>,
}

struct Shared {
    start: Instant,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) families: Families,
    pub(crate) journal: Journal,
    pub(crate) sign_ins: SignIns,
    faults: Vec<(Route, Fault)>,
    holds: Vec<Hold>,
    /// Request bodies that are neither read nor dropped: see [`UnreadBody::Held`].
    unread: Vec<Box<dyn Any + Send>>,
}

/// A gate, and the responses that wait at it.
struct Hold {
    bar: Bar,
    responses: HeldResponses,
    user: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldResponses {
    Refreshes,
    Unauthorized,
}

impl TestKit {
    /// Creates servers with the default [`Settings`] and without users.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            settings: Settings::default(),
            families: Families::new(),
            journal: Journal::new(),
            sign_ins: SignIns::default(),
            faults: Vec::new(),
            holds: Vec::new(),
            unread: Vec::new(),
        };
        Self { shared: Arc::new(Shared { start: Instant::now(), state: Mutex::new(state) }) }
    }

    /// Changes the [`Settings`]. The change takes effect at once.
    pub fn configure(&self, change: impl FnOnce(&mut Settings)) {
        // On a copy, so that no code of the caller runs under the lock.
        let mut settings = self.settings();
        change(&mut settings);
        let mut state = self.state();
        let released = match settings.unread_body {
            UnreadBody::Held => Vec::new(),
            UnreadBody::Dropped | UnreadBody::Read => std::mem::take(&mut state.unread),
        };
        state.settings = settings;
        drop(state);
        drop(released);
    }

    /// Returns the current settings.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.state().settings.clone()
    }

    /// Signs a user in without a request.
    ///
    /// No password is checked, and nothing is logged or counted.
    #[must_use]
    pub fn sign_in(&self, user: &str) -> TokenPair {
        let now = self.now();
        let state = &mut *self.state();
        state.families.sign_in(user, &state.settings, now)
    }

    /// Approves a device grant, as a user does that enters the code at `/oauth/verify`.
    ///
    /// Returns `false` if no device waits with this code.
    #[expect(clippy::must_use_candidate, reason = "a test that was just given the code knows the result")]
    pub fn approve_device(&self, user_code: &str, user: &str) -> bool {
        let now = self.now();
        self.state().sign_ins.decide(user_code, Some(user), now)
    }

    /// Denies a device grant: see [`approve_device`](Self::approve_device).
    #[expect(clippy::must_use_candidate, reason = "a test that was just given the code knows the result")]
    pub fn deny_device(&self, user_code: &str) -> bool {
        let now = self.now();
        self.state().sign_ins.decide(user_code, None, now)
    }

    /// Expires all access tokens issued so far: the API refuses them from now on.
    pub fn expire_access_tokens(&self) {
        self.state().families.expire(None);
    }

    /// Expires the access tokens of one user: see [`expire_access_tokens`](Self::expire_access_tokens).
    pub fn expire_access_tokens_of(&self, user: &str) {
        self.state().families.expire(Some(user));
    }

    /// Ends all sign-ins of a user.
    ///
    /// That user's access and refresh tokens are refused from now on.
    pub fn revoke(&self, user: &str) {
        self.state().families.revoke(Some(user));
    }

    /// Ends all sign-ins of all users: see [`revoke`](Self::revoke).
    pub fn revoke_all(&self) {
        self.state().families.revoke(None);
    }

    /// Allows one more use of the user's last superseded refresh token.
    ///
    /// For a test that loses the response itself, in a proxy or a simulated network. The next use of that token is
    /// counted in [`Counters::allowed_reuses`] instead of being a [`Violation`].
    pub fn allow_reuse_once(&self, user: &str) {
        self.state().families.allow_reuse_once_by(user);
    }

    /// Injects a fault into the requests of a route.
    pub fn inject(&self, route: Route, fault: Fault) {
        self.state().faults.push((route, fault));
    }

    /// Removes all faults. A request that hangs already keeps hanging.
    pub fn clear_faults(&self) {
        let cleared = std::mem::take(&mut self.state().faults);
        drop(cleared);
    }

    /// Holds back the responses to all refreshes until the gate is opened or dropped.
    ///
    /// The refreshes are processed before they are held: their refresh tokens are rotated.
    pub fn hold_refreshes(&self) -> Gate {
        self.hold(HeldResponses::Refreshes, None)
    }

    /// Holds back the responses to one user's refreshes: see [`hold_refreshes`](Self::hold_refreshes).
    pub fn hold_refreshes_of(&self, user: impl Into<String>) -> Gate {
        self.hold(HeldResponses::Refreshes, Some(user.into()))
    }

    /// Holds back the API's 401s until the gate is opened or dropped.
    pub fn hold_unauthorized(&self) -> Gate {
        self.hold(HeldResponses::Unauthorized, None)
    }

    /// Holds back the API's 401s until `count` of them are held.
    ///
    /// They are then released together, and later 401s aren't held. A test can thereby make an exact number of requests
    /// fail at the same moment.
    pub fn hold_unauthorized_until(&self, count: usize) {
        let hold = Hold { bar: Bar::opening_at(count), responses: HeldResponses::Unauthorized, user: None };
        self.state().holds.push(hold);
    }

    fn hold(&self, responses: HeldResponses, user: Option<String>) -> Gate {
        let bar = Bar::new();
        self.state().holds.push(Hold { bar: bar.clone(), responses, user });
        Gate::on(bar)
    }

    /// Returns the log, in the order in which the requests ended.
    ///
    /// The log keeps the newest [`Settings::log_capacity`] entries.
    #[must_use]
    pub fn log(&self) -> Vec<Entry> {
        self.state().journal.entries()
    }

    /// Subscribes to the log entries from now on, also if the log's capacity is 0.
    ///
    /// A subscriber that falls more than 4096 entries behind loses the oldest of them.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Entry> {
        self.state().journal.subscribe()
    }

    /// Returns the counters since the kit was created or [reset](Self::reset).
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.state().journal.counters.clone()
    }

    /// Returns the counters of one user, which are zero for an unknown user.
    #[must_use]
    pub fn user(&self, user: &str) -> UserCounters {
        self.state().journal.user(user)
    }

    /// Returns the uses of superseded refresh tokens, at most the first 1000.
    ///
    /// [`Counters::violations`] counts all of them.
    ///
    /// ```
    /// # let kit = tower_auth_refresh_testkit::TestKit::new();
    /// assert_eq!(kit.violations(), []);
    /// ```
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.state().journal.violations.clone()
    }

    /// Clears the log, the counters and the violations.
    ///
    /// Sign-ins, settings, faults and gates stay.
    pub fn reset(&self) {
        self.state().journal.reset();
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // No change panics half-way, so the state is consistent even if the lock is poisoned.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// Returns the time by which tokens expire, in microseconds since the kit was created.
    pub(crate) fn now(&self) -> u64 {
        micros(self.elapsed())
    }
}

impl State {
    pub(crate) fn next_fault(&mut self, route: Route, user: Option<&str>) -> Option<Fault> {
        let at = self.faults.iter().position(|(into, fault)| *into == route && fault.matches(user))?;
        let fault = &mut self.faults[at].1;
        let fault = if fault.use_up() { fault.clone() } else { self.faults.remove(at).1 };
        self.journal.counters.faults += 1;
        Some(fault)
    }

    pub(crate) fn bars(&mut self, responses: HeldResponses, user: Option<&str>) -> Vec<Bar> {
        self.holds.retain(|hold| !hold.bar.is_open());
        let matches =
            |hold: &&Hold| hold.responses == responses && (hold.user.is_none() || hold.user.as_deref() == user);
        self.holds.iter().filter(matches).map(|hold| hold.bar.clone()).collect()
    }

    pub(crate) fn keep_unread(&mut self, body: Box<dyn Any + Send>) {
        self.unread.push(body);
    }
}

impl Default for TestKit {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TestKit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestKit").field("counters", &self.counters()).finish_non_exhaustive()
    }
}
