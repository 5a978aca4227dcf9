//! One seed's world: its hosts, what goes wrong between them, how it heals, and what has to be so in the end.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use tower_auth_refresh::store::Epoch;
use tower_auth_refresh::{Session, Tokens};
use turmoil::Sim;

use crate::judge::{Judge, Violation};
use crate::plan::{Event, Link, Plan, Trap, millis};
use crate::servers::{self, Authority};
use crate::store::{Slot, access_token, family, refresh_token};
use crate::{net, process};

/// How finely time passes. Messages take at least as long.
const TICK: Duration = Duration::from_millis(20);

/// After this long in good health every session has recovered: a cool-down is a minute at most, the claim of a process
/// that died over a store that failed lasts for five.
const RECOVERY: Duration = Duration::from_secs(600);

/// What all hosts share, and what outlives them.
pub struct World {
    pub plan: Plan,
    state: Mutex<State>,
}

pub struct State {
    /// The time at the last tick.
    pub clock: Duration,
    phase: Phase,
    pub rng: Rng,
    pub authority: Authority,
    /// The store, by user.
    pub slots: Vec<Slot>,
    pub judge: Judge,
    /// The current life of each process.
    lives: HashMap<String, usize>,
    traps: Vec<Trap>,
    /// Who dies, and when.
    deaths: Vec<(Duration, String)>,
    /// Whose last request has succeeded.
    pub done: BTreeSet<(String, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Chaos,
    /// All is healed, and every access token has expired.
    Finale,
}

/// What came of a world.
pub struct Verdict {
    pub violations: Vec<Violation>,
    pub trace: Vec<String>,
    pub counts: BTreeMap<&'static str, u64>,
    pub recovery: Duration,
}

thread_local! {
    /// What panicked in this thread's world. `tokio` swallows the panics of tasks.
    pub static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Something that happens to the network or a host at its time.
enum Action {
    Begin(Event),
    Repair(Link),
    Release(Link),
    EndLoss,
    Restart { host: String, silent: bool },
}

impl World {
    fn new(seed: u64) -> Arc<Self> {
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::draw(&mut rng);
        let state = State {
            clock: Duration::ZERO,
            phase: Phase::Chaos,
            authority: Authority::new(&plan),
            slots: (0..plan.users).map(|_| Slot::default()).collect(),
            rng,
            judge: Judge::default(),
            lives: HashMap::new(),
            traps: Vec::new(),
            deaths: Vec::new(),
            done: BTreeSet::new(),
        };
        let world = Self { plan, state: Mutex::new(state) };
        for user in 0..world.plan.users {
            let state = &mut *world.state();
            let tokens = state.authority.sign_in(user, Duration::ZERO);
            state.judge.stored(Duration::ZERO, "setup", &tokens);
            state.slots[user].write(Epoch::random(), tokens);
        }
        Arc::new(world)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time on this host.
    pub fn now(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or_else(|| self.state().clock)
    }

    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    pub fn born(&self, process: &str) -> usize {
        let now = self.now();
        let state = &mut *self.state();
        let life = state.judge.born(now, process);
        state.lives.insert(process.to_owned(), life);
        life
    }

    /// Whether this is where `host` dies: then it must do nothing more.
    pub fn springs(&self, trap: Trap, host: &str) -> bool {
        self.spring(trap, host, Duration::ZERO)
    }

    /// The same, for a death a little later.
    pub fn springs_later(&self, trap: Trap, host: &str) {
        let delay = self.pause(1..300);
        self.spring(trap, host, delay);
    }

    fn spring(&self, trap: Trap, host: &str, delay: Duration) -> bool {
        let now = self.now();
        let state = &mut *self.state();
        let Some(armed) = state.traps.iter().position(|armed| *armed == trap) else { return false };
        state.traps.swap_remove(armed);
        state.deaths.push((now + delay, host.to_owned()));
        state.judge.note(now, format_args!("{host}: {trap:?}"));
        state.judge.count(trap.name());
        true
    }

    pub fn sign_in(&self, user: usize, process: &str) -> Tokens {
        let now = self.now();
        let state = &mut *self.state();
        let tokens = state.authority.sign_in(user, now);
        state.judge.note(now, format_args!("{process}: user {user} signs in, sign-in {}", family(&tokens)));
        state.judge.count("sign-ins");
        tokens
    }

    /// Whether the store holds another sign-in than the one that a user's session here has held.
    pub fn is_signed_in_elsewhere(&self, user: usize, held: Option<usize>) -> bool {
        let state = self.state();
        let stored = state.slots[user].family();
        stored.is_some_and(|stored| held != Some(stored) && !state.judge.signed_out.contains(&stored))
    }

    /// A user is about to sign out of the sign-in that is returned.
    pub fn sign_out(&self, user: usize, life: usize, session: &Session) -> Option<usize> {
        let now = self.now();
        let state = &mut *self.state();
        let held = Some(session.tokens()).filter(|tokens| tokens.refresh_token().is_some());
        let stored = state.slots[user].family();
        let held = held.as_ref().map(family);
        state.judge.signs_out(now, life, held, stored);
        held
    }
}

impl State {
    /// Whether something goes wrong that does so at this rate.
    pub fn faulty(&mut self, rate: f64) -> bool {
        self.phase == Phase::Chaos && self.rng.f64() < rate
    }
}

/// Lives through a seed's world.
pub fn run(seed: u64) -> Verdict {
    // What the middleware itself draws.
    fastrand::seed(seed);
    align_task_ids();
    PANICS.take();
    let world = World::new(seed);
    let recovery = catch_unwind(AssertUnwindSafe(|| live(&world, seed)));
    let state = &mut *world.state();
    let now = state.clock;
    let recovery = match recovery {
        Ok(Ok(recovery)) => recovery,
        Ok(Err(error)) => {
            state.judge.violation(now, "every host goes on", error.to_string());
            Duration::ZERO
        }
        Err(_) => Duration::ZERO,
    };
    for panic in PANICS.take() {
        state.judge.violation(now, "nothing panics", panic);
    }
    let plan = &world.plan;
    for (what, is_so) in [("worlds over HTTP/2", plan.http2), ("worlds of OAuth", plan.oauth)] {
        if is_so {
            state.judge.count(what);
        }
    }
    let judge = std::mem::take(&mut state.judge);
    Verdict { violations: judge.violations, trace: judge.trace, counts: judge.counts, recovery }
}

/// The order in which `tokio` drops the tasks of a host that dies depends on the last digits of their ids, which are
/// counted in the whole program: so every world begins with the same ones, and has the program for itself.
fn align_task_ids() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("it needs nothing");
    runtime.block_on(async {
        while tokio::spawn(async {}).id().to_string().parse::<u64>().expect("it is a number") % 1024 != 0 {}
    });
}

fn live(world: &Arc<World>, seed: u64) -> turmoil::Result<Duration> {
    let plan = &world.plan;
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
    populate(&mut sim, world);
    let mut chaos = Chaos::new(plan);
    while sim.elapsed() < plan.chaos {
        chaos.step(&mut sim, world);
        tick(&mut sim, world)?;
    }
    chaos.heal(&mut sim, world);
    let healed = sim.elapsed();
    // A world in which a promise was broken needs not go on.
    while world.state().judge.violations.is_empty() {
        let recovery = sim.elapsed().saturating_sub(healed);
        let outstanding = world.outstanding();
        let Some(rule) = outstanding else { break };
        if recovery > RECOVERY {
            let state = &mut *world.state();
            state.judge.violation(state.clock, rule, format!("within {RECOVERY:?}; done: {:?}", state.done));
            break;
        }
        tick(&mut sim, world)?;
    }
    let state = &mut *world.state();
    state.judge.ends(state.clock);
    Ok(sim.elapsed().saturating_sub(healed))
}

fn tick(sim: &mut Sim<'_>, world: &World) -> turmoil::Result {
    sim.step()?;
    world.state().clock = sim.elapsed();
    Ok(())
}

fn populate(sim: &mut Sim<'_>, world: &Arc<World>) {
    let host = Arc::clone(world);
    sim.host("auth", move || {
        let world = Arc::clone(&host);
        net::serve(world.plan.http2, move |request| servers::refresh(Arc::clone(&world), request))
    });
    for name in world.plan.server_names().skip(1) {
        let host = Arc::clone(world);
        sim.host(name, move || {
            let world = Arc::clone(&host);
            net::serve(world.plan.http2, move |request| servers::api(Arc::clone(&world), request))
        });
    }
    for name in world.plan.process_names() {
        let host = Arc::clone(world);
        sim.host(name.clone(), move || process::run(Arc::clone(&host), name.clone()));
    }
}

impl World {
    /// The promise that isn't kept yet.
    fn outstanding(&self) -> Option<&'static str> {
        let state = self.state();
        if state.done.len() < self.plan.processes * self.plan.users {
            return Some("every session recovers");
        }
        let settled = state.slots.iter().all(|slot| match &slot.record {
            Some(record) => {
                let newest = state.authority.newest(family(&record.tokens));
                let pair = |tokens| (access_token(tokens), refresh_token(tokens));
                pair(&record.tokens) == pair(&newest)
            }
            // A late word of a sign-out: whoever has built a session in between finds out when he refreshes it.
            None => slot.cleared.is_some_and(|cleared| state.judge.signed_out.contains(&cleared)),
        });
        (!settled).then_some("the store ends with the newest tokens")
    }
}

/// What goes wrong, and when it is over.
struct Chaos {
    agenda: Vec<(Duration, Action)>,
    down: HashSet<String>,
}

impl Chaos {
    fn new(plan: &Plan) -> Self {
        let agenda = plan.events.iter().map(|(at, event)| (*at, Action::Begin(event.clone())));
        Self { agenda: agenda.collect(), down: HashSet::new() }
    }

    fn step(&mut self, sim: &mut Sim<'_>, world: &World) {
        let now = sim.elapsed();
        self.bury(sim, world, now, now);
        let due = self.agenda.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>();
        for (_, action) in due {
            self.act(sim, world, now, action);
        }
    }

    /// Those who walked into a trap and die by `until`.
    fn bury(&mut self, sim: &mut Sim<'_>, world: &World, now: Duration, until: Duration) {
        let deaths = std::mem::take(&mut world.state().deaths);
        let (due, later) = deaths.into_iter().partition::<Vec<_>, _>(|(at, _)| *at <= until);
        world.state().deaths.extend(later);
        for (_, host) in due {
            let (silent, down) = {
                let rng = &mut world.state().rng;
                (rng.bool(), millis(rng, 100..2_000))
            };
            self.act(sim, world, now, Action::Begin(Event::Crash { host, silent, down }));
        }
    }

    fn act(&mut self, sim: &mut Sim<'_>, world: &World, now: Duration, action: Action) {
        let then = match action {
            Action::Begin(event) => {
                world.state().judge.note(now, format_args!("{event:?}"));
                world.state().judge.count(event.name());
                self.begin(sim, world, now, event)
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
                    world.state().judge.note(now, format_args!("{host} is back"));
                    if silent {
                        for peer in peers(&world.plan, &host) {
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

    /// Begins something, and says what ends it and when.
    fn begin(&mut self, sim: &mut Sim<'_>, world: &World, now: Duration, event: Event) -> Option<(Duration, Action)> {
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
                    for peer in peers(&world.plan, &host) {
                        sim.partition(host.as_str(), peer);
                    }
                }
                sim.crash(host.clone());
                let state = &mut *world.state();
                if let Some(life) = state.lives.get(&host) {
                    state.judge.died(now, *life);
                }
                Some((now + down, Action::Restart { host, silent }))
            }
            Event::Trap(trap) => {
                world.state().traps.push(trap);
                None
            }
            Event::Revoke(user) => {
                world.state().authority.revoke(user);
                None
            }
        }
    }

    /// From here on nothing goes wrong any more.
    fn heal(&mut self, sim: &mut Sim<'_>, world: &World) {
        let now = sim.elapsed();
        world.state().traps.clear();
        // Who waits for his death would wait for ever.
        self.bury(sim, world, now, Duration::MAX);
        for process in world.plan.process_names() {
            for server in world.plan.server_names() {
                sim.release(process.as_str(), server);
            }
        }
        sim.set_fail_rate(0.0);
        for host in world.plan.server_names().chain(world.plan.process_names()) {
            self.act(sim, world, now, Action::Restart { host, silent: false });
        }
        let state = &mut *world.state();
        state.judge.note(now, format_args!("all is healed, and every access token expires"));
        state.authority.expire_all(now);
        state.phase = Phase::Finale;
    }
}

/// Whom a host has links to.
fn peers(plan: &Plan, host: &str) -> Vec<String> {
    if host.starts_with("process") { plan.server_names().collect() } else { plan.process_names().collect() }
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Self::Partition(..) => "partitions",
            Self::OneWay(..) => "one-way partitions",
            Self::Hold(..) => "messages held",
            Self::Loss(..) => "times of loss",
            Self::Crash { silent: false, .. } => "crashes",
            Self::Crash { silent: true, .. } => "silent crashes",
            Self::Trap(_) => "traps",
            Self::Revoke(_) => "sign-ins revoked",
        }
    }
}

impl Trap {
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

/// What a seed decides beforehand.
pub fn plan(seed: u64) -> Plan {
    Plan::draw(&mut Rng::with_seed(seed))
}

impl Verdict {
    /// The same seed again has to give the same world.
    pub fn compare(&mut self, again: &Self) {
        if self.trace != again.trace {
            let differ = self.trace.iter().zip(&again.trace).find(|(one, other)| one != other);
            self.violations.push(Violation { rule: "a seed is always the same world", detail: format!("{differ:?}") });
        }
    }
}
