//! The simulation of one seed: its hosts, the faults between them, the repair, and the checks of the final state.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use tower_auth_refresh::store::{Entry, Epoch};
use tower_auth_refresh::{Session, Tokens};
use turmoil::Sim;

use crate::oracle::{Oracle, Violation};
use crate::plan::{CrashPoint, Event, Link, Plan, millis};
use crate::servers::{self, Authority};
use crate::store::{Slot, access_token, family, refresh_token};
use crate::{net, process};

/// The resolution of the simulated time, and the least latency of a message.
const TICK: Duration = Duration::from_millis(20);

/// Within this time after the repair, every session has recovered: a cool-down lasts at most a minute, and the claim of
/// a process that crashed while the store failed lasts five.
const RECOVERY: Duration = Duration::from_secs(600);

/// The state that all hosts share and that survives their crashes.
pub struct Environment {
    pub plan: Plan,
    state: Mutex<State>,
}

pub struct State {
    /// The time at the last tick.
    pub clock: Duration,
    phase: Phase,
    pub rng: Rng,
    pub authority: Authority,
    /// The store, indexed by user.
    pub slots: Vec<Slot>,
    pub oracle: Oracle,
    /// The current incarnation of each process.
    pub incarnations: HashMap<String, usize>,
    armed: Vec<CrashPoint>,
    /// The hosts that are about to crash, and when.
    due_crashes: Vec<(Duration, String)>,
    /// The processes and users with a successful request in the recovery phase.
    pub done: BTreeSet<(String, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Chaos,
    /// All faults are repaired, and every access token has expired.
    Recovery,
}

/// The result of a simulation.
pub struct Verdict {
    pub violations: Vec<Violation>,
    pub trace: Vec<String>,
    pub counts: BTreeMap<&'static str, u64>,
    pub recovery: Duration,
}

thread_local! {
    /// The panics of this thread's simulation. `tokio` catches the panics of tasks.
    pub static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A change of the network or of a host.
enum Action {
    Begin(Event),
    Repair(Link),
    Release(Link),
    EndLoss,
    Restart { host: String, silent: bool },
}

impl Environment {
    fn new(seed: u64) -> Arc<Self> {
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::draw(&mut rng);
        let state = State {
            clock: Duration::ZERO,
            phase: Phase::Chaos,
            authority: Authority::new(&plan),
            slots: (0..plan.users).map(|_| Slot::default()).collect(),
            rng,
            oracle: Oracle::default(),
            incarnations: HashMap::new(),
            armed: Vec::new(),
            due_crashes: Vec::new(),
            done: BTreeSet::new(),
        };
        let env = Self { plan, state: Mutex::new(state) };
        for user in 0..env.plan.users {
            let state = &mut *env.state();
            let tokens = state.authority.sign_in(user, Duration::ZERO);
            state.oracle.stored(Duration::ZERO, "setup", &tokens);
            state.slots[user].write(Entry::new(Epoch::random(), 1, tokens));
        }
        Arc::new(env)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time on this host.
    pub fn now(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or_else(|| self.state().clock)
    }

    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    pub fn process_started(&self, process: &str) -> usize {
        let now = self.now();
        let state = &mut *self.state();
        let incarnation = state.oracle.process_started(now, process);
        state.incarnations.insert(process.to_owned(), incarnation);
        incarnation
    }

    /// Returns whether `host` crashes at this point. If so, the host must do nothing more.
    pub fn crashes_at(&self, point: CrashPoint, host: &str) -> bool {
        self.trigger_crash(point, host, Duration::ZERO)
    }

    /// Lets `host` crash shortly after this point, if the point is armed.
    pub fn crashes_soon_after(&self, point: CrashPoint, host: &str) {
        let delay = self.pause(1..300);
        self.trigger_crash(point, host, delay);
    }

    fn trigger_crash(&self, point: CrashPoint, host: &str, delay: Duration) -> bool {
        let now = self.now();
        let state = &mut *self.state();
        let Some(index) = state.armed.iter().position(|armed| *armed == point) else { return false };
        state.armed.swap_remove(index);
        state.due_crashes.push((now + delay, host.to_owned()));
        state.oracle.note(now, format_args!("{host}: {point:?}"));
        state.oracle.count(point.name());
        true
    }

    pub fn sign_in(&self, user: usize, process: &str) -> Tokens {
        let now = self.now();
        let state = &mut *self.state();
        let tokens = state.authority.sign_in(user, now);
        state.oracle.note(now, format_args!("{process}: user {user} signs in, sign-in {}", family(&tokens)));
        state.oracle.count("sign-ins");
        tokens
    }

    /// Returns whether the store holds another sign-in than the one that the user's session has held here.
    pub fn is_signed_in_elsewhere(&self, user: usize, held: Option<usize>) -> bool {
        let state = self.state();
        let stored = state.slots[user].family();
        stored.is_some_and(|stored| held != Some(stored) && !state.oracle.signed_out.contains(&stored))
    }

    /// Records that a user is about to sign out, and returns the sign-in that the session holds.
    pub fn sign_out(&self, user: usize, incarnation: usize, session: &Session) -> Option<usize> {
        let now = self.now();
        let state = &mut *self.state();
        let held = Some(session.tokens()).filter(|tokens| tokens.refresh_token().is_some());
        let stored = state.slots[user].family();
        let held = held.as_ref().map(family);
        state.oracle.sign_out_started(now, incarnation, held, stored);
        held
    }
}

impl State {
    /// Draws whether a fault of this rate happens.
    pub fn faulty(&mut self, rate: f64) -> bool {
        self.phase == Phase::Chaos && self.rng.f64() < rate
    }
}

/// Runs the simulation of a seed.
pub fn run(seed: u64) -> Verdict {
    // The seed of the middleware's own random numbers.
    fastrand::seed(seed);
    tower_auth_refresh::seed_random_numbers(seed);
    align_task_ids();
    PANICS.take();
    let env = Environment::new(seed);
    let recovery = catch_unwind(AssertUnwindSafe(|| simulate(&env, seed)));
    let state = &mut *env.state();
    let now = state.clock;
    let recovery = match recovery {
        Ok(Ok(recovery)) => recovery,
        Ok(Err(error)) => {
            state.oracle.violation(now, "no host fails", error.to_string());
            Duration::ZERO
        }
        Err(_) => Duration::ZERO,
    };
    for panic in PANICS.take() {
        state.oracle.violation(now, "nothing panics", panic);
    }
    let plan = &env.plan;
    for (what, is_so) in [("simulations over HTTP/2", plan.http2), ("simulations with OAuth", plan.oauth)] {
        if is_so {
            state.oracle.count(what);
        }
    }
    let oracle = std::mem::take(&mut state.oracle);
    Verdict { violations: oracle.violations, trace: oracle.trace, counts: oracle.counts, recovery }
}

/// Aligns `tokio`'s task ids, for reproducibility: the order in which the tasks of a crashed host are dropped depends
/// on the last digits of their ids, which are counted in the whole program. So simulations run one at a time.
fn align_task_ids() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    runtime.block_on(async {
        while tokio::spawn(async {}).id().to_string().parse::<u64>().expect("a task id is a number") % 1024 != 0 {}
    });
}

fn simulate(env: &Arc<Environment>, seed: u64) -> turmoil::Result<Duration> {
    let plan = &env.plan;
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .epoch(UNIX_EPOCH)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(24 * 60 * 60))
        .min_message_latency(plan.latency.0)
        .max_message_latency(plan.latency.1)
        .tcp_capacity(1024)
        .enable_random_order()
        .build();
    populate(&mut sim, env);
    let mut chaos = Chaos::new(plan);
    while sim.elapsed() < plan.chaos {
        chaos.step(&mut sim, env);
        tick(&mut sim, env)?;
    }
    chaos.repair_all(&mut sim, env);
    let repaired_at = sim.elapsed();
    // Stops after the first violation.
    while env.state().oracle.violations.is_empty() {
        let recovery = sim.elapsed().saturating_sub(repaired_at);
        let outstanding = env.outstanding();
        let Some(rule) = outstanding else { break };
        if recovery > RECOVERY {
            let state = &mut *env.state();
            state.oracle.violation(state.clock, rule, format!("within {RECOVERY:?}; done: {:?}", state.done));
            break;
        }
        tick(&mut sim, env)?;
    }
    let state = &mut *env.state();
    state.oracle.ends(state.clock);
    Ok(sim.elapsed().saturating_sub(repaired_at))
}

fn tick(sim: &mut Sim<'_>, env: &Environment) -> turmoil::Result {
    sim.step()?;
    env.state().clock = sim.elapsed();
    Ok(())
}

fn populate(sim: &mut Sim<'_>, env: &Arc<Environment>) {
    let host = Arc::clone(env);
    sim.host("auth", move || {
        let env = Arc::clone(&host);
        net::serve(env.plan.http2, move |request| servers::refresh(Arc::clone(&env), request))
    });
    for name in env.plan.server_names().skip(1) {
        let host = Arc::clone(env);
        sim.host(name, move || {
            let env = Arc::clone(&host);
            net::serve(env.plan.http2, move |request| servers::api(Arc::clone(&env), request))
        });
    }
    for name in env.plan.process_names() {
        let host = Arc::clone(env);
        sim.host(name.clone(), move || process::run(Arc::clone(&host), name.clone()));
    }
}

impl Environment {
    /// Returns a promise that isn't kept yet.
    fn outstanding(&self) -> Option<&'static str> {
        let state = self.state();
        if state.done.len() < self.plan.processes * self.plan.users {
            return Some("every session recovers");
        }
        let settled = state.slots.iter().all(|slot| match &slot.record {
            Some(record) => {
                let newest = state.authority.newest(family(record.tokens()));
                let pair = |tokens| (access_token(tokens), refresh_token(tokens));
                pair(record.tokens()) == pair(&newest) || state.oracle.may_differ(family(record.tokens()))
            }
            // Deleted by a sign-out that arrived late. A session that was built meanwhile sees this at its next refresh.
            None => slot.cleared.is_some_and(|cleared| state.oracle.signed_out.contains(&cleared)),
        });
        (!settled).then_some("the store ends with the newest tokens")
    }
}

/// The faults of a simulation, and their ends.
struct Chaos {
    agenda: Vec<(Duration, Action)>,
    down: HashSet<String>,
}

impl Chaos {
    fn new(plan: &Plan) -> Self {
        let agenda = plan.events.iter().map(|(at, event)| (*at, Action::Begin(event.clone())));
        Self { agenda: agenda.collect(), down: HashSet::new() }
    }

    fn step(&mut self, sim: &mut Sim<'_>, env: &Environment) {
        let now = sim.elapsed();
        self.crash_due_hosts(sim, env, now, now);
        let due = self.agenda.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>();
        for (_, action) in due {
            self.act(sim, env, now, action);
        }
    }

    /// Crashes the hosts that reached a crash point and are due by `until`.
    fn crash_due_hosts(&mut self, sim: &mut Sim<'_>, env: &Environment, now: Duration, until: Duration) {
        let due_crashes = std::mem::take(&mut env.state().due_crashes);
        let (due, later) = due_crashes.into_iter().partition::<Vec<_>, _>(|(at, _)| *at <= until);
        env.state().due_crashes.extend(later);
        for (_, host) in due {
            let (silent, down) = {
                let rng = &mut env.state().rng;
                (rng.bool(), millis(rng, 100..2_000))
            };
            self.act(sim, env, now, Action::Begin(Event::Crash { host, silent, down }));
        }
    }

    fn act(&mut self, sim: &mut Sim<'_>, env: &Environment, now: Duration, action: Action) {
        let then = match action {
            Action::Begin(event) => {
                env.state().oracle.note(now, format_args!("{event:?}"));
                env.state().oracle.count(event.name());
                self.begin(sim, env, now, event)
            }
            Action::Repair((from, to)) => {
                sim.repair(from, to);
                None
            }
            Action::Release((from, to)) => {
                sim.release(from, to);
                None
            }
            Action::EndLoss => {
                sim.set_fail_rate(0.0);
                None
            }
            Action::Restart { host, silent } => {
                if self.down.remove(&host) {
                    env.state().oracle.note(now, format_args!("{host} restarts"));
                    if silent {
                        for peer in peers(&env.plan, &host) {
                            sim.repair(host.as_str(), peer);
                        }
                    }
                    sim.bounce(host);
                }
                None
            }
        };
        self.agenda.extend(then);
    }

    /// Begins a fault and returns the action that ends it, with its time.
    fn begin(
        &mut self,
        sim: &mut Sim<'_>,
        env: &Environment,
        now: Duration,
        event: Event,
    ) -> Option<(Duration, Action)> {
        match event {
            Event::Partition(link, lasting) => {
                sim.partition(link.0.clone(), link.1.clone());
                Some((now + lasting, Action::Repair(link)))
            }
            Event::OneWay(link, lasting) => {
                sim.partition_oneway(link.0.clone(), link.1.clone());
                Some((now + lasting, Action::Repair(link)))
            }
            Event::Hold(link, lasting) => {
                sim.hold(link.0.clone(), link.1.clone());
                Some((now + lasting, Action::Release(link)))
            }
            Event::Loss(rate, lasting) => {
                sim.set_fail_rate(rate);
                Some((now + lasting, Action::EndLoss))
            }
            Event::Crash { host, silent, down } => {
                if !self.down.insert(host.clone()) {
                    return None;
                }
                if silent {
                    for peer in peers(&env.plan, &host) {
                        sim.partition(host.as_str(), peer);
                    }
                }
                sim.crash(host.clone());
                let state = &mut *env.state();
                if let Some(incarnation) = state.incarnations.get(&host) {
                    state.oracle.process_crashed(now, *incarnation);
                }
                Some((now + down, Action::Restart { host, silent }))
            }
            Event::CrashPoint(point) => {
                env.state().armed.push(point);
                None
            }
            Event::Revoke(user) => {
                env.state().authority.revoke(user);
                None
            }
            Event::Unreadable { user, lasting } => {
                env.state().slots[user].unreadable_until = now + lasting;
                None
            }
            Event::FailOver { user, lost } => {
                let state = &mut *env.state();
                if let Some(record) = state.slots[user].fail_over(lost) {
                    state.oracle.failed_over(now, record.tokens());
                }
                None
            }
        }
    }

    /// Repairs everything. No fault happens from here on.
    fn repair_all(&mut self, sim: &mut Sim<'_>, env: &Environment) {
        let now = sim.elapsed();
        env.state().armed.clear();
        // Crashes these hosts now: they have stopped and would never continue.
        self.crash_due_hosts(sim, env, now, Duration::MAX);
        for process in env.plan.process_names() {
            for server in env.plan.server_names() {
                sim.release(process.as_str(), server);
            }
        }
        sim.set_fail_rate(0.0);
        for host in env.plan.server_names().chain(env.plan.process_names()) {
            self.act(sim, env, now, Action::Restart { host, silent: false });
        }
        let state = &mut *env.state();
        state.slots.iter_mut().for_each(|slot| slot.unreadable_until = Duration::ZERO);
        state.oracle.note(now, format_args!("all faults are repaired, and every access token expires"));
        state.authority.expire_all(now);
        state.phase = Phase::Recovery;
    }
}

/// The hosts that a host is linked to.
fn peers(plan: &Plan, host: &str) -> Vec<String> {
    if host.starts_with("process") { plan.server_names().collect() } else { plan.process_names().collect() }
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Self::Partition(..) => "partitions",
            Self::OneWay(..) => "one-way partitions",
            Self::Hold(..) => "messages held",
            Self::Loss(..) => "periods of loss",
            Self::Crash { silent: false, .. } => "crashes",
            Self::Crash { silent: true, .. } => "silent crashes",
            Self::CrashPoint(_) => "crash points armed",
            Self::Revoke(_) => "sign-ins revoked",
            Self::FailOver { .. } => "failovers of the store",
            Self::Unreadable { .. } => "periods with an unreadable record",
        }
    }
}

impl CrashPoint {
    fn name(self) -> &'static str {
        match self {
            Self::AuthBeforeRotation => "crashes before the rotation",
            Self::AuthAfterRotation => "crashes between rotation and answer",
            Self::BeforePresenting => "crashes between claim and refresh call",
            Self::WhilePresenting => "crashes during a refresh call",
            Self::AfterAnswer => "crashes between answer and store",
            Self::AfterCommit => "crashes after the store took the tokens",
        }
    }
}

/// The plan of a seed.
pub fn plan(seed: u64) -> Plan {
    Plan::draw(&mut Rng::with_seed(seed))
}

impl Verdict {
    /// Checks that a second run of the same seed has the same trace.
    pub fn compare(&mut self, again: &Self) {
        if self.trace != again.trace {
            let differ = self.trace.iter().zip(&again.trace).find(|(one, other)| one != other);
            self.violations.push(Violation { rule: "a seed is reproducible", detail: format!("{differ:?}") });
        }
    }
}
