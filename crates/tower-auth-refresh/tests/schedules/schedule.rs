//! [`Schedule`]: one scenario, one order of everything in it, and what was wrong in the end.

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
use tower_auth_refresh::{
    AuthRefreshLayer, MemoryStore, Origin, RefreshReport, Session, SessionState, TokenStore, Tokens,
};
use tower_layer::Layer;

use crate::gates::{Gate, Gates, Pass};
use crate::judge::{Early, Judge, Pair, Sent};
use crate::people::Person;
use crate::servers::{Api, Auth, Revoke};
use crate::store::GatedStore;

const REFRESH_TIMEOUT: Duration = Duration::from_secs(3);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// In one schedule of four, tokens expire by themselves and are refreshed early.
const EARLY: Early = Early { lifetime: Duration::from_secs(4), window: Duration::from_secs(2) };
/// Time passes in whole milliseconds, one of them whenever everything is to come to rest.
const A_MOMENT: Duration = Duration::from_millis(20);

const TROUBLE: [(bool, bool); 3] = [(true, false), (false, true), (true, true)];

/// One thing that the schedule did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Poll(usize),
    Open(Gate, Pass),
    GoesAway(usize),
    Expire,
    Passes(Duration),
}

/// What may happen in it, and how often.
#[derive(Clone, Copy, Debug, Default)]
struct Budget {
    faults: u32,
    /// Whose faults: the store's, or the authorization server's.
    of_store: bool,
    of_auth: bool,
    going_away: u32,
    expiries: u32,
    pauses: u32,
}

pub(crate) struct Schedule {
    seed: u64,
    people: Vec<&'static str>,
    budget: Budget,
    pub(crate) trace: Vec<Step>,
    pub(crate) violations: Vec<String>,
    pub(crate) early_refreshes: u32,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SEED={}: {:?}, {:?}", self.seed, self.people, self.budget)?;
        self.trace.iter().try_for_each(|step| writeln!(f, "    {step:?}"))?;
        self.violations.iter().try_for_each(|violation| writeln!(f, "violated: {violation}"))
    }
}

/// Who is signed in, as far as the app has said: it acts in the order in which its tasks begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    In(u32),
    Out,
}

struct Stage {
    rng: Rng,
    gates: Gates,
    judge: Judge,
    store: Arc<MemoryStore>,
    sessions: Vec<Session>,
    people: Vec<Person>,
    names: Vec<&'static str>,
    budget: Budget,
    /// Nothing fails, and nobody does anything but send requests: they all get what they want.
    is_calm: bool,
    is_early: bool,
    begun: Instant,
    played: Duration,
    last: Rc<RefCell<Last>>,
    /// Who was signed in when the app signed out.
    signed_out: Rc<RefCell<Vec<u32>>>,
    statuses: Rc<RefCell<Vec<u16>>>,
    trace: Vec<Step>,
}

impl Schedule {
    /// `scenario` says who comes and what may happen, `order` all the rest.
    pub(crate) fn run(scenario: u64, order: u64) -> Self {
        // The session's own jitter and epochs, too.
        fastrand::seed(order);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut stage = Stage::set(Rng::with_seed(scenario)).await;
            let budget = stage.budget;
            stage.rng = Rng::with_seed(order);
            stage.play().await;
            stage.come_to_rest().await;
            stage.judge_the_end().await;
            let mut case = stage.judge.case();
            let (violations, early_refreshes) = (std::mem::take(&mut case.violations), case.early_calls);
            drop(case);
            Self { seed: order, people: stage.names, budget, trace: stage.trace, violations, early_refreshes }
        })
    }
}

impl Stage {
    async fn set(mut rng: Rng) -> Self {
        let (gates, judge, store) = (Gates::default(), Judge::default(), Arc::new(MemoryStore::new()));
        let is_fleet = rng.u8(..4) == 0;
        let is_calm = rng.u8(..4) == 0;
        let early = (rng.u8(..4) == 0).then_some(EARLY);
        judge.case().is_fleet = is_fleet;
        judge.case().early = early;
        let first = judge.issue(1);
        store.replace(tower_auth_refresh::store::Epoch(1), &first).await.unwrap();
        if early.is_none() {
            judge.expire();
        }
        let mut stage = Self {
            budget: Budget { going_away: rng.u32(..=2), ..Budget::default() },
            rng,
            gates,
            judge,
            store,
            sessions: Vec::new(),
            people: Vec::new(),
            names: Vec::new(),
            is_calm,
            is_early: early.is_some(),
            begun: Instant::now(),
            played: Duration::ZERO,
            last: Rc::new(RefCell::new(Last::In(1))),
            signed_out: Rc::default(),
            statuses: Rc::default(),
            trace: Vec::new(),
        };
        for session in 0..=usize::from(is_fleet) {
            let session = stage.session(session).await;
            stage.sessions.push(session);
        }
        for caller in 0..stage.rng.usize(2..=5) {
            stage.add_caller(caller);
        }
        if !is_calm {
            if stage.rng.bool() {
                stage.add_refresh_by_hand();
            }
            stage.budget.faults = stage.rng.u32(..=3);
            (stage.budget.of_store, stage.budget.of_auth) = *stage.rng.choice(&TROUBLE).expect("it isn't empty");
            stage.budget.expiries = stage.rng.u32(..=1);
            stage.budget.pauses = stage.rng.u32(..=3);
            for user in 2..2 + stage.rng.u32(..=3) {
                if stage.rng.bool() {
                    stage.add_sign_in(user);
                } else {
                    stage.add_sign_out();
                }
            }
        }
        if early.is_some() {
            // Nothing is due at the start.
            stage.budget.pauses += 4;
        }
        stage
    }

    async fn session(&self, number: usize) -> Session {
        let (gates, judge) = (self.gates.clone(), self.judge.clone());
        let auth = Auth { session: number, gates: gates.clone(), judge: judge.clone(), ready: None };
        let store = GatedStore { inner: Arc::clone(&self.store), gates: gates.clone(), judge: judge.clone() };
        let builder = Session::builder(auth).revoke(Revoke { gates, judge }).store(store);
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
        self.rng.choice(&self.sessions).expect("one at least").clone()
    }

    fn add(&mut self, name: &'static str, person: Person) {
        self.names.push(name);
        self.people.push(person);
    }

    fn add_caller(&mut self, caller: usize) {
        let session = self.any_session();
        let origin = Origin::parse("https://api.example.com").unwrap();
        let api = Api { caller, gates: self.gates.clone(), judge: self.judge.clone(), ready: None };
        let mut client = AuthRefreshLayer::new(session.clone(), origin).layer(api);
        let (judge, statuses, requests) = (self.judge.clone(), Rc::clone(&self.statuses), self.rng.u32(1..=3));
        let calls = async move {
            for request in 0..requests {
                let client = client.ready().await.unwrap();
                let owner = Pair::of(&session.tokens()).map(|pair| pair.user);
                judge.case().owners.insert(caller, owner);
                let sent = Sent { caller, request, owner };
                let get = Request::get("https://api.example.com/").extension(sent);
                let response = client.call(get.body(Full::<Bytes>::default()).unwrap());
                let response = response.await.unwrap();
                statuses.borrow_mut().push(response.status().as_u16());
                let mut case = judge.case();
                let report = response.extensions().get::<RefreshReport>();
                let told = response.status() == 200 || case.carried_first(sent).is_none() || report.is_some();
                case.must(told, format_args!("4: {sent:?} was refused without a report"));
            }
        };
        self.add("caller", Person::new(Some(caller), true, calls));
    }

    fn add_refresh_by_hand(&mut self) {
        let session = self.any_session();
        self.add("refreshes by hand", Person::new(None, true, async move { _ = session.refresh().await }));
    }

    fn add_sign_in(&mut self, user: u32) {
        let (session, judge, last) = (self.any_session(), self.judge.clone(), Rc::clone(&self.last));
        let signs_in = async move {
            *last.borrow_mut() = Last::In(user);
            let _ = session.sign_in(judge.issue(user)).await;
        };
        self.add("signs in", Person::new(None, false, signs_in));
    }

    fn add_sign_out(&mut self) {
        let (session, last, over) = (self.any_session(), Rc::clone(&self.last), Rc::clone(&self.signed_out));
        let signs_out = async move {
            if let Last::In(user) = last.replace(Last::Out) {
                over.borrow_mut().push(user);
            }
            let _ = session.sign_out().await;
        };
        self.add("signs out", Person::new(None, false, signs_out));
    }

    /// Until everybody has what he came for, or is gone.
    async fn play(&mut self) {
        while self.people.iter().any(Person::is_here) {
            self.step().await;
            // Several things may happen before anybody notices the first.
            match self.rng.u8(..4) {
                0 => {}
                1 => tokio::task::yield_now().await,
                _ => sleep(Duration::from_millis(1)).await,
            }
            self.note_who_is_gone();
            self.check_waits();
        }
        self.played = self.begun.elapsed();
    }

    async fn step(&mut self) {
        let people = 0..self.people.len();
        let woken: Vec<usize> = people.clone().filter(|it| self.people[*it].is_woken()).collect();
        let closed = self.gates.closed();
        let choices = woken.len() + closed.len();
        if self.budget.going_away > 0 && self.rng.u8(..24) == 0 {
            let begun = |it: &usize| self.people[*it].is_here() && self.people[*it].has_begun();
            if let Some(gone) = self.rng.choice(people.filter(begun).collect::<Vec<_>>()) {
                self.budget.going_away -= 1;
                self.people[gone].go_away();
                self.trace.push(Step::GoesAway(gone));
                return;
            }
        }
        if self.budget.expiries > 0 && self.rng.u8(..24) == 0 {
            self.budget.expiries -= 1;
            self.judge.expire();
            self.trace.push(Step::Expire);
        } else if choices == 0 {
            self.pass(Duration::from_millis(250)).await;
        } else if self.budget.pauses > 0 && self.rng.u8(..if self.is_early { 8 } else { 16 }) == 0 {
            self.budget.pauses -= 1;
            let seconds = self.rng.choice(if self.is_early { [1, 2, 2, 4] } else { [1, 4, 6, 70] });
            self.pass(Duration::from_secs(seconds.expect("it isn't empty"))).await;
        } else {
            let choice = self.rng.usize(..choices);
            match woken.get(choice) {
                Some(person) => self.poll(*person),
                None => self.open(choice - woken.len(), closed[choice - woken.len()]),
            }
        }
    }

    async fn pass(&mut self, time: Duration) {
        self.trace.push(Step::Passes(time));
        sleep(time).await;
    }

    fn poll(&mut self, index: usize) {
        self.trace.push(Step::Poll(index));
        let (person, answered) = (&mut self.people[index], self.statuses.borrow().len());
        person.poll();
        if self.statuses.borrow().len() > answered {
            // What it waits for now is for another request.
            person.waits_since = None;
        }
        let caller = person.caller;
        let at_api = |gate: &Gate| matches!(gate, Gate::ApiReady(of) | Gate::Api(of) | Gate::ApiAnswer(of) if Some(*of) == caller);
        let at_api = self.gates.closed().iter().any(at_api);
        self.people[index].note_wait(at_api);
        if self.people[index].waits_since == Some(Instant::now()) {
            let mut case = self.judge.case();
            let owner = caller.and_then(|caller| case.owners.get(&caller).copied().flatten());
            // One that doesn't know of its peer's tokens yet may wait for worse reasons.
            let may_wait = case.is_fleet || owner.is_none_or(|owner| case.may_wait(owner));
            case.must(may_wait, format_args!("12: {index} waits though its token works"));
        }
    }

    fn open(&mut self, index: usize, gate: Gate) {
        let pass = self.choose_pass(gate);
        self.trace.push(Step::Open(gate, pass));
        self.gates.open(index, pass);
    }

    fn choose_pass(&mut self, gate: Gate) -> Pass {
        let theirs = match gate {
            Gate::Store(_) | Gate::StoreAnswer(_) => self.budget.of_store,
            _ => self.budget.of_auth,
        };
        if !theirs || self.budget.faults == 0 || self.rng.u8(..4) != 0 {
            return Pass::Go;
        }
        let choices: &[Pass] = match gate {
            Gate::ApiReady(_) | Gate::Api(_) | Gate::ApiAnswer(_) | Gate::Revoke => return Pass::Go,
            Gate::Store(_) | Gate::StoreAnswer(_) | Gate::RefreshAnswer => &[Pass::Fail, Pass::Fail, Pass::Panic],
            Gate::RefreshReady => &[Pass::Fail],
            Gate::Refresh => &[Pass::Fail, Pass::Reject, Pass::Misconfigured, Pass::Panic],
        };
        self.budget.faults -= 1;
        *self.rng.choice(choices).expect("it isn't empty")
    }

    /// Among several sessions one may not know yet.
    fn note_who_is_gone(&self) {
        if let [session] = &*self.sessions {
            let now = Pair::of(&session.tokens()).map(|pair| pair.user);
            let mut case = self.judge.case();
            let gone: Vec<u32> = case.families.keys().copied().filter(|user| Some(*user) != now).collect();
            // Who has asked to be signed in is not gone yet.
            for user in gone.into_iter().filter(|user| Last::In(*user) != *self.last.borrow()) {
                case.over.entry(user).or_insert_with(Instant::now);
            }
        }
    }

    fn check_waits(&self) {
        let now = Instant::now();
        let mut case = self.judge.case();
        for (index, person) in self.people.iter().enumerate() {
            let Some(since) = person.waits_since.filter(|_| person.is_here() && !person.is_woken()) else { continue };
            let polled_now = now <= person.polled_at + A_MOMENT;
            let in_time = polled_now || now <= since + LONGEST_WAIT + A_MOMENT;
            case.must(in_time, format_args!("4: {index} waits since {:?}", now - since));
            let owner = person.caller.and_then(|caller| case.owners.get(&caller).copied().flatten());
            let over = owner.and_then(|owner| case.over.get(&owner).copied());
            let let_go = polled_now || over.is_none_or(|over| now <= over + A_MOMENT);
            case.must(let_go, format_args!("10: {index} waits for tokens of a user who is gone"));
        }
    }

    fn open_all(&self) {
        for _ in self.gates.closed() {
            self.gates.open(0, Pass::Go);
        }
    }

    /// Everything goes well from here on, for longer than any pause between retries after nothing is left to do.
    async fn come_to_rest(&mut self) {
        let mut quiet = 0;
        while quiet < 70 {
            sleep(Duration::from_secs(1)).await;
            quiet = if self.gates.closed().is_empty() { quiet + 1 } else { 0 };
            while !self.gates.closed().is_empty() {
                self.open_all();
                sleep(Duration::from_millis(1)).await;
            }
        }
    }

    async fn judge_the_end(&mut self) {
        let record = self.store.load().await.unwrap();
        let last = *self.last.borrow();
        let mut case = self.judge.case();
        let statuses = self.statuses.borrow();
        for session in &self.sessions {
            let state = session.state();
            case.must(state != SessionState::Refreshing, "6: it is refreshing for ever");
            let ended = state == SessionState::Ended;
            let rejected = case.families.values().any(|family| family.is_over);
            case.must(!ended || rejected, "15: it has ended, and the server never said so");
        }
        if self.is_calm {
            let (calls, all_good) = (case.calls, statuses.iter().all(|status| *status == 200));
            // A replay may be late enough for its own token to have expired.
            case.must(all_good || self.is_early, format_args!("1: all is well, and yet {statuses:?}"));
            let expiries = if self.is_early { self.played.as_secs() / EARLY.window.as_secs() } else { 1 };
            let once = u64::from(calls) <= expiries || case.is_fleet;
            case.must(once, format_args!("1: {calls} refreshes where {expiries} tokens expired"));
        }
        if case.is_fleet {
            return;
        }
        let session = &self.sessions[0];
        let tokens = session.tokens();
        let stored = record.map(|record| record.tokens);
        let same = stored.clone().unwrap_or_default() == tokens;
        case.must(same, format_args!("3: the store holds {:?}, the session {:?}", pair(stored), Pair::of(&tokens)));
        for user in self.signed_out.borrow().iter() {
            let newest = case.newest_delivered(*user).expect("his first at least");
            let is_revoked = case.families[user].is_over || case.revoked.contains(&newest);
            case.must(is_revoked, format_args!("14: {newest:?} is left after the sign-out"));
        }
        match last {
            Last::Out => {
                let is_out = session.state() == SessionState::SignedOut && tokens == Tokens::default();
                case.must(is_out, format_args!("14: signed out, and yet {session:?}"));
            }
            Last::In(user) if case.families[&user].is_over => {}
            Last::In(user) => {
                let newest = case.newest_delivered(user);
                case.must(
                    Pair::of(&tokens) == newest,
                    format_args!("5, 15: {newest:?} was bought, {:?} is in force", Pair::of(&tokens)),
                );
            }
        }
    }
}

fn pair(stored: Option<Tokens>) -> Option<Pair> {
    stored.and_then(|tokens| Pair::of(&tokens))
}
