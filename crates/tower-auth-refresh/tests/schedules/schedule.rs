//! [`Schedule`]: one scenario, run in one order, and its violations.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::Request;
use http_body_util::Full;
use tokio::time::{Instant, sleep};
use tower::{Service, ServiceExt};
use tower_auth_refresh::store::{Entry, Epoch};
use tower_auth_refresh::{
    AuthRefreshLayer, MemoryStore, Origin, RefreshReport, Session, SessionState, TokenStore, Tokens,
};
use tower_layer::Layer;

use crate::actors::Actor;
use crate::gates::{Gate, Gates, Outcome};
use crate::oracle::{Early, Oracle, Pair, Sent};
use crate::servers::{Api, Auth, Revoke};
use crate::store::GatedStore;

const REFRESH_TIMEOUT: Duration = Duration::from_secs(3);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// The token lifetimes in the schedules, one of four, in which tokens expire by themselves and are refreshed early.
const EARLY: Early = Early { lifetime: Duration::from_secs(4), window: Duration::from_secs(2) };
/// The clock advances by whole milliseconds, one whenever the tasks are to settle.
const TOLERANCE: Duration = Duration::from_millis(20);

const FAULT_SOURCES: [(bool, bool); 3] = [(true, false), (false, true), (true, true)];

/// One step of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Poll(usize),
    Open(Gate, Outcome),
    Cancel(usize),
    Expire,
    Advance(Duration),
}

/// The number of disturbances that may still happen, by kind.
#[derive(Clone, Copy, Debug, Default)]
struct Budget {
    faults: u32,
    /// The sources of the faults: the store, the authorization server, or both.
    store_faults: bool,
    auth_faults: bool,
    cancellations: u32,
    expiries: u32,
    pauses: u32,
}

pub(crate) struct Schedule {
    seed: u64,
    actors: Vec<&'static str>,
    budget: Budget,
    pub(crate) trace: Vec<Step>,
    pub(crate) violations: Vec<String>,
    pub(crate) early_refreshes: u32,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SEED={}: {:?}, {:?}", self.seed, self.actors, self.budget)?;
        self.trace.iter().try_for_each(|step| writeln!(f, "    {step:?}"))?;
        self.violations.iter().try_for_each(|violation| writeln!(f, "violated: {violation}"))
    }
}

/// The sign-in state that the app asked for last. The app acts in the order in which its tasks begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AppState {
    SignedIn(u32),
    SignedOut,
}

struct Runner {
    rng: Rng,
    gates: Gates,
    oracle: Oracle,
    store: Arc<MemoryStore>,
    sessions: Vec<Session>,
    actors: Vec<Actor>,
    names: Vec<&'static str>,
    budget: Budget,
    /// No faults, and only requests: all of them have to succeed.
    is_undisturbed: bool,
    is_early: bool,
    started_at: Instant,
    run_time: Duration,
    app_state: Rc<RefCell<AppState>>,
    /// The users that were signed in when the app signed out.
    signed_out: Rc<RefCell<Vec<u32>>>,
    statuses: Rc<RefCell<Vec<u16>>>,
    trace: Vec<Step>,
}

impl Schedule {
    /// Runs one schedule. `scenario` seeds the actors and the budget, `order` seeds everything else.
    pub(crate) fn run(scenario: u64, order: u64) -> Self {
        // Also seeds the session's jitter and epochs.
        fastrand::seed(order);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut runner = Runner::new(Rng::with_seed(scenario)).await;
            let budget = runner.budget;
            runner.rng = Rng::with_seed(order);
            runner.run().await;
            runner.settle().await;
            runner.check_final_state().await;
            let mut history = runner.oracle.history();
            let (violations, early_refreshes) = (std::mem::take(&mut history.violations), history.early_calls);
            drop(history);
            Self { seed: order, actors: runner.names, budget, trace: runner.trace, violations, early_refreshes }
        })
    }
}

impl Runner {
    async fn new(mut rng: Rng) -> Self {
        let (gates, oracle, store) = (Gates::default(), Oracle::default(), Arc::new(MemoryStore::new()));
        let is_fleet = rng.u8(..4) == 0;
        let is_undisturbed = rng.u8(..4) == 0;
        let early = (rng.u8(..4) == 0).then_some(EARLY);
        oracle.history().is_fleet = is_fleet;
        oracle.history().early = early;
        let first = oracle.issue(1);
        store.replace(&Entry::new(Epoch::from(1), 1, first)).await.unwrap();
        if early.is_none() {
            oracle.expire();
        }
        let mut runner = Self {
            budget: Budget { cancellations: rng.u32(..=2), ..Budget::default() },
            rng,
            gates,
            oracle,
            store,
            sessions: Vec::new(),
            actors: Vec::new(),
            names: Vec::new(),
            is_undisturbed,
            is_early: early.is_some(),
            started_at: Instant::now(),
            run_time: Duration::ZERO,
            app_state: Rc::new(RefCell::new(AppState::SignedIn(1))),
            signed_out: Rc::default(),
            statuses: Rc::default(),
            trace: Vec::new(),
        };
        for session in 0..=usize::from(is_fleet) {
            let session = runner.session(session).await;
            runner.sessions.push(session);
        }
        for caller in 0..runner.rng.usize(2..=5) {
            runner.add_caller(caller);
        }
        if !is_undisturbed {
            if runner.rng.bool() {
                runner.add_manual_refresh();
            }
            runner.budget.faults = runner.rng.u32(..=3);
            (runner.budget.store_faults, runner.budget.auth_faults) =
                *runner.rng.choice(&FAULT_SOURCES).expect("not empty");
            runner.budget.expiries = runner.rng.u32(..=1);
            runner.budget.pauses = runner.rng.u32(..=3);
            for user in 2..2 + runner.rng.u32(..=3) {
                if runner.rng.bool() {
                    runner.add_sign_in(user);
                } else {
                    runner.add_sign_out();
                }
            }
        }
        if early.is_some() {
            // At the start no token is due, so more time has to pass.
            runner.budget.pauses += 4;
        }
        runner
    }

    async fn session(&self, number: usize) -> Session {
        let (gates, oracle) = (self.gates.clone(), self.oracle.clone());
        let auth = Auth { session: number, gates: gates.clone(), oracle: oracle.clone(), ready: None };
        let store = GatedStore { inner: Arc::clone(&self.store), gates: gates.clone(), oracle: oracle.clone() };
        let builder = Session::builder(auth).revoke(Revoke { gates, oracle }).store(store);
        let builder = if self.is_early { builder.refresh_early(EARLY.window) } else { builder };
        let mut building = Box::pin(builder.refresh_timeout(REFRESH_TIMEOUT).build());
        loop {
            tokio::select! {
                biased;
                session = &mut building => return session.unwrap(),
                () = tokio::task::yield_now() => self.open_all(),
            }
        }
    }

    fn any_session(&mut self) -> Session {
        self.rng.choice(&self.sessions).expect("at least one session").clone()
    }

    fn add(&mut self, name: &'static str, actor: Actor) {
        self.names.push(name);
        self.actors.push(actor);
    }

    fn add_caller(&mut self, caller: usize) {
        let session = self.any_session();
        let origin = Origin::parse("https://api.example.com").unwrap();
        let api = Api { caller, gates: self.gates.clone(), oracle: self.oracle.clone(), ready: None };
        let mut client = AuthRefreshLayer::new(session.clone(), origin).layer(api);
        let (oracle, statuses, requests) = (self.oracle.clone(), Rc::clone(&self.statuses), self.rng.u32(1..=3));
        let calls = async move {
            for request in 0..requests {
                let client = client.ready().await.unwrap();
                let owner = Pair::of(&session.tokens()).map(|pair| pair.user);
                oracle.history().owners.insert(caller, owner);
                let sent = Sent { caller, request, owner };
                let get = Request::get("https://api.example.com/").extension(sent);
                let response = client.call(get.body(Full::<Bytes>::default()).unwrap());
                let response = response.await.unwrap();
                statuses.borrow_mut().push(response.status().as_u16());
                let mut history = oracle.history();
                let report = response.extensions().get::<RefreshReport>();
                let reported = response.status() == 200 || history.carried_first(sent).is_none() || report.is_some();
                history.check(reported, format_args!("4: {sent:?} was refused without a report"));
            }
        };
        self.add("caller", Actor::new(Some(caller), true, calls));
    }

    fn add_manual_refresh(&mut self) {
        let session = self.any_session();
        self.add("manual refresh", Actor::new(None, true, async move { _ = session.refresh().await }));
    }

    fn add_sign_in(&mut self, user: u32) {
        let (session, oracle, app_state) = (self.any_session(), self.oracle.clone(), Rc::clone(&self.app_state));
        let signs_in = async move {
            *app_state.borrow_mut() = AppState::SignedIn(user);
            let _ = session.sign_in(oracle.issue(user)).await;
        };
        self.add("sign-in", Actor::new(None, false, signs_in));
    }

    fn add_sign_out(&mut self) {
        let (session, app_state, signed_out) =
            (self.any_session(), Rc::clone(&self.app_state), Rc::clone(&self.signed_out));
        let signs_out = async move {
            if let AppState::SignedIn(user) = app_state.replace(AppState::SignedOut) {
                signed_out.borrow_mut().push(user);
            }
            let _ = session.sign_out().await;
        };
        self.add("sign-out", Actor::new(None, false, signs_out));
    }

    /// Runs until every actor has finished or was cancelled.
    async fn run(&mut self) {
        while self.actors.iter().any(Actor::is_running) {
            self.step().await;
            // Several steps may happen before a task observes the first.
            match self.rng.u8(..4) {
                0 => {}
                1 => tokio::task::yield_now().await,
                _ => sleep(Duration::from_millis(1)).await,
            }
            self.record_signed_out_users();
            self.check_waits();
        }
        self.run_time = self.started_at.elapsed();
    }

    async fn step(&mut self) {
        let actors = 0..self.actors.len();
        let woken: Vec<usize> = actors.clone().filter(|it| self.actors[*it].is_woken()).collect();
        let waiting = self.gates.waiting();
        let choices = woken.len() + waiting.len();
        if self.budget.cancellations > 0 && self.rng.u8(..24) == 0 {
            let has_started = |it: &usize| self.actors[*it].is_running() && self.actors[*it].has_started();
            if let Some(cancelled) = self.rng.choice(actors.filter(has_started).collect::<Vec<_>>()) {
                self.budget.cancellations -= 1;
                self.actors[cancelled].cancel();
                self.trace.push(Step::Cancel(cancelled));
                return;
            }
        }
        if self.budget.expiries > 0 && self.rng.u8(..24) == 0 {
            self.budget.expiries -= 1;
            self.oracle.expire();
            self.trace.push(Step::Expire);
        } else if choices == 0 {
            self.advance(Duration::from_millis(250)).await;
        } else if self.budget.pauses > 0 && self.rng.u8(..if self.is_early { 8 } else { 16 }) == 0 {
            self.budget.pauses -= 1;
            let seconds = self.rng.choice(if self.is_early { [1, 2, 2, 4] } else { [1, 4, 6, 70] });
            self.advance(Duration::from_secs(seconds.expect("not empty"))).await;
        } else {
            let choice = self.rng.usize(..choices);
            match woken.get(choice) {
                Some(actor) => self.poll(*actor),
                None => self.open(choice - woken.len(), waiting[choice - woken.len()]),
            }
        }
    }

    async fn advance(&mut self, time: Duration) {
        self.trace.push(Step::Advance(time));
        sleep(time).await;
    }

    fn poll(&mut self, index: usize) {
        self.trace.push(Step::Poll(index));
        let (actor, answered) = (&mut self.actors[index], self.statuses.borrow().len());
        actor.poll();
        if self.statuses.borrow().len() > answered {
            // The current wait belongs to the next request.
            actor.waiting_since = None;
        }
        let caller = actor.caller;
        let at_api = |gate: &Gate| match gate {
            Gate::ApiReady(of) | Gate::Api(of) | Gate::ApiAnswer(of) => Some(*of) == caller,
            _ => false,
        };
        let at_api = self.gates.waiting().iter().any(at_api);
        self.actors[index].record_wait(at_api);
        if self.actors[index].waiting_since == Some(Instant::now()) {
            let mut history = self.oracle.history();
            let owner = caller.and_then(|caller| history.owners.get(&caller).copied().flatten());
            // In a fleet, a session may wait because it doesn't know its peer's tokens yet.
            let may_wait = history.is_fleet || owner.is_none_or(|owner| history.may_wait(owner));
            history.check(may_wait, format_args!("12: actor {index} waits although its token works"));
        }
    }

    fn open(&mut self, index: usize, gate: Gate) {
        let outcome = self.choose_outcome(gate);
        self.trace.push(Step::Open(gate, outcome));
        self.gates.open(index, outcome);
    }

    fn choose_outcome(&mut self, gate: Gate) -> Outcome {
        let faulty = match gate {
            Gate::Store(_) | Gate::StoreAnswer(_) => self.budget.store_faults,
            _ => self.budget.auth_faults,
        };
        if !faulty || self.budget.faults == 0 || self.rng.u8(..4) != 0 {
            return Outcome::Proceed;
        }
        let choices: &[Outcome] = match gate {
            Gate::ApiReady(_) | Gate::Api(_) | Gate::ApiAnswer(_) | Gate::Revoke => return Outcome::Proceed,
            Gate::Store(_) | Gate::StoreAnswer(_) | Gate::RefreshAnswer => {
                &[Outcome::Fail, Outcome::Fail, Outcome::Panic]
            }
            Gate::RefreshReady => &[Outcome::Fail],
            Gate::Refresh => &[Outcome::Fail, Outcome::Reject, Outcome::Misconfigured, Outcome::Panic],
        };
        self.budget.faults -= 1;
        *self.rng.choice(choices).expect("not empty")
    }

    /// Notes the users that are no longer signed in. Not in a fleet, where a session may not know yet.
    fn record_signed_out_users(&self) {
        if let [session] = &*self.sessions {
            let now = Pair::of(&session.tokens()).map(|pair| pair.user);
            let mut history = self.oracle.history();
            let signed_out: Vec<u32> = history.families.keys().copied().filter(|user| Some(*user) != now).collect();
            // Except the user whose sign-in was requested last.
            for user in signed_out.into_iter().filter(|user| AppState::SignedIn(*user) != *self.app_state.borrow()) {
                history.signed_out.entry(user).or_insert_with(Instant::now);
            }
        }
    }

    fn check_waits(&self) {
        let now = Instant::now();
        let mut history = self.oracle.history();
        for (index, actor) in self.actors.iter().enumerate() {
            let Some(since) = actor.waiting_since.filter(|_| actor.is_running() && !actor.is_woken()) else { continue };
            let polled_now = now <= actor.polled_at + TOLERANCE;
            let in_time = polled_now || now <= since + LONGEST_WAIT + TOLERANCE;
            history.check(in_time, format_args!("4: actor {index} has been waiting for {:?}", now - since));
            let owner = actor.caller.and_then(|caller| history.owners.get(&caller).copied().flatten());
            let signed_out = owner.and_then(|owner| history.signed_out.get(&owner).copied());
            let released = polled_now || signed_out.is_none_or(|signed_out| now <= signed_out + TOLERANCE);
            history.check(
                released,
                format_args!("10: actor {index} waits for tokens of a user that is no longer signed in"),
            );
        }
    }

    fn open_all(&self) {
        for _ in self.gates.waiting() {
            self.gates.open(0, Outcome::Proceed);
        }
    }

    /// Opens all gates without faults until they have been idle for longer than any pause between retries.
    async fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 70 {
            sleep(Duration::from_secs(1)).await;
            quiet = if self.gates.waiting().is_empty() { quiet + 1 } else { 0 };
            while !self.gates.waiting().is_empty() {
                self.open_all();
                sleep(Duration::from_millis(1)).await;
            }
        }
    }

    async fn check_final_state(&mut self) {
        let record = self.store.load().await.unwrap();
        let app_state = *self.app_state.borrow();
        let mut history = self.oracle.history();
        let statuses = self.statuses.borrow();
        for session in &self.sessions {
            let state = session.state();
            history.check(state != SessionState::Refreshing, "6: the session is refreshing for ever");
            let ended = state.is_ended();
            let rejected = history.families.values().any(|family| family.is_revoked);
            history.check(!ended || rejected, "15: the session has ended without a rejection by the server");
        }
        if self.is_undisturbed {
            let (calls, all_good) = (history.calls, statuses.iter().all(|status| *status == 200));
            // A replay may be so late that its own token has expired.
            history.check(
                all_good || self.is_early,
                format_args!("1: no fault was injected, but the statuses are {statuses:?}"),
            );
            let expiries = if self.is_early { self.run_time.as_secs() / EARLY.window.as_secs() } else { 1 };
            let once = u64::from(calls) <= expiries || history.is_fleet;
            history.check(once, format_args!("1: {calls} refreshes where {expiries} tokens expired"));
        }
        if history.is_fleet {
            return;
        }
        let session = &self.sessions[0];
        let tokens = session.tokens();
        let stored = record.map(|record| record.tokens().clone());
        let same = stored.clone().unwrap_or_default() == tokens;
        history.check(same, format_args!("3: the store holds {:?}, the session {:?}", pair(stored), Pair::of(&tokens)));
        for user in self.signed_out.borrow().iter() {
            let newest = history.newest_delivered(*user).expect("the first pair was delivered");
            let is_revoked = history.families[user].is_revoked || history.revoked.contains(&newest);
            history.check(is_revoked, format_args!("14: {newest:?} is left after the sign-out"));
        }
        match app_state {
            AppState::SignedOut => {
                let is_out = session.state() == SessionState::SignedOut && tokens == Tokens::default();
                history.check(is_out, format_args!("14: signed out, but the session is {session:?}"));
            }
            AppState::SignedIn(user) if history.families[&user].is_revoked => {}
            AppState::SignedIn(user) => {
                let newest = history.newest_delivered(user);
                history.check(
                    Pair::of(&tokens) == newest,
                    format_args!("5, 15: {newest:?} was issued, but {:?} is in force", Pair::of(&tokens)),
                );
            }
        }
    }
}

fn pair(stored: Option<Tokens>) -> Option<Pair> {
    stored.and_then(|tokens| Pair::of(&tokens))
}
