//! [`TestKit`]: the servers' state, and the test's hands on it.

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
use crate::token::TokenPair;

/// An authorization server and an API in one, without a socket.
///
/// It is a `tower` service from `http::Request` to `http::Response`, for benches and for tests on paused time;
/// [`serve`](Self::serve) puts it on a socket. Clones are handles to the same servers.
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
    faults: Vec<(Route, Fault)>,
    holds: Vec<Hold>,
    /// Request bodies that nobody reads: see [`UnreadBody::Held`].
    unread: Vec<Box<dyn Any + Send>>,
}

/// Answers that wait at a gate.
struct Hold {
    bar: Bar,
    what: Held,
    user: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Refreshes,
    Unauthorized,
}

impl TestKit {
    /// Servers with the default [`Settings`], where nobody is signed in.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            settings: Settings::default(),
            families: Families::new(),
            journal: Journal::new(),
            faults: Vec::new(),
            holds: Vec::new(),
            unread: Vec::new(),
        };
        Self { shared: Arc::new(Shared { start: Instant::now(), state: Mutex::new(state) }) }
    }

    /// Changes the [`Settings`], at any time.
    pub fn configure(&self, change: impl FnOnce(&mut Settings)) {
        // On a copy, so that no code of the caller's runs under the lock.
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

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.state().settings.clone()
    }

    /// Signs a user in without a request: no password, no entry in the log.
    #[must_use]
    pub fn sign_in(&self, user: &str) -> TokenPair {
        let now = self.now();
        let state = &mut *self.state();
        state.families.sign_in(user, &state.settings, now)
    }

    /// From now on the API refuses every access token issued so far, as expired.
    pub fn expire_access_tokens(&self) {
        self.state().families.expire(None);
    }

    /// As [`expire_access_tokens`](Self::expire_access_tokens), for one user.
    pub fn expire_access_tokens_of(&self, user: &str) {
        self.state().families.expire(Some(user));
    }

    /// Ends one user's sign-ins: his access and refresh tokens are refused from now on.
    pub fn revoke(&self, user: &str) {
        self.state().families.revoke(Some(user));
    }

    /// Ends all sign-ins.
    pub fn revoke_all(&self) {
        self.state().families.revoke(None);
    }

    /// Excuses the next use of the refresh token that this user's last refresh superseded: for a test that loses the
    /// answer itself, in a proxy or a simulated network.
    pub fn excuse(&self, user: &str) {
        self.state().families.excuse_last_of(user);
    }

    /// From now on something goes wrong: see [`Fault`].
    pub fn inject(&self, route: Route, fault: Fault) {
        self.state().faults.push((route, fault));
    }

    /// From now on nothing goes wrong. What hangs already goes on hanging.
    pub fn clear_faults(&self) {
        let cleared = std::mem::take(&mut self.state().faults);
        drop(cleared);
    }

    /// Holds back the answers to all refreshes, until the gate is opened or dropped.
    pub fn hold_refreshes(&self) -> Gate {
        self.hold(Held::Refreshes, None)
    }

    /// As [`hold_refreshes`](Self::hold_refreshes), for one user.
    pub fn hold_refreshes_of(&self, user: impl Into<String>) -> Gate {
        self.hold(Held::Refreshes, Some(user.into()))
    }

    /// Holds back the API's 401s, until the gate is opened or dropped.
    pub fn hold_unauthorized(&self) -> Gate {
        self.hold(Held::Unauthorized, None)
    }

    /// Holds back the API's 401s until so many have come together, and then no more: a stampede that is exact and not
    /// luck.
    pub fn hold_unauthorized_until(&self, count: usize) {
        let hold = Hold { bar: Bar::opening_at(count), what: Held::Unauthorized, user: None };
        self.state().holds.push(hold);
    }

    fn hold(&self, what: Held, user: Option<String>) -> Gate {
        let bar = Bar::new();
        self.state().holds.push(Hold { bar: bar.clone(), what, user });
        Gate::on(bar)
    }

    /// The log: the newest entries, in the order in which they were answered.
    #[must_use]
    pub fn log(&self) -> Vec<Entry> {
        self.state().journal.entries()
    }

    /// The log as it is written, from now on. It works with a log of capacity 0 too.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Entry> {
        self.state().journal.subscribe()
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.state().journal.counters.clone()
    }

    /// What was counted for one user.
    #[must_use]
    pub fn user(&self, user: &str) -> UserCounters {
        self.state().journal.user(user)
    }

    /// The superseded refresh tokens that were presented, the first thousand of them.
    ///
    /// ```
    /// # let kit = tower_auth_refresh_testkit::TestKit::new();
    /// assert_eq!(kit.violations(), []);
    /// ```
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.state().journal.violations.clone()
    }

    /// Empties the log and sets all counters back; sign-ins, settings, faults and gates stay.
    pub fn reset(&self) {
        self.state().journal.reset();
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change, so a poisoned state is whole.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// The time that tokens go by.
    pub(crate) fn now(&self) -> u64 {
        micros(self.elapsed())
    }
}

impl State {
    pub(crate) fn next_fault(&mut self, route: Route, user: Option<&str>) -> Option<Fault> {
        let at = self.faults.iter().position(|(into, fault)| *into == route && fault.fits(user))?;
        let fault = &mut self.faults[at].1;
        let fault = if fault.use_up() { fault.clone() } else { self.faults.remove(at).1 };
        self.journal.counters.faults += 1;
        Some(fault)
    }

    pub(crate) fn bars(&mut self, what: Held, user: Option<&str>) -> Vec<Bar> {
        self.holds.retain(|hold| !hold.bar.is_open());
        let fits = |hold: &&Hold| hold.what == what && (hold.user.is_none() || hold.user.as_deref() == user);
        self.holds.iter().filter(fits).map(|hold| hold.bar.clone()).collect()
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
