//! The explorer: depth first over all choices, each run from its beginning, cut off at a state that was seen before.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{advance, sleep};
use tower::service_fn;
use tower_auth_refresh::{Session, SessionState};

use crate::store::{Answer, Call, Handle, World, number};

/// Longer than any timer of a session that waits for nothing else.
const LONGEST_TIMER: Duration = Duration::from_secs(1_000);

/// Longer than a lease.
const STOP: Duration = Duration::from_secs(60);

/// The processes of a run, their work, and the number of times that each kind of trouble may happen.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Bounds {
    pub(crate) processes: usize,
    /// The refreshes that each process makes, one after the other.
    pub(crate) refreshes: u32,
    /// Calls that fail: not made, made with the answer lost, or made later than they fail.
    pub(crate) failures: u32,
    pub(crate) crashes: u32,
    /// Leases that expire while their holder lives.
    pub(crate) expiries: u32,
    /// Times that the store loses a claim, or a commit.
    pub(crate) losses: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// The waiting call takes effect, and is answered.
    Answer(usize),
    /// It takes effect, and the answer is lost.
    LoseAnswer(usize),
    /// It fails without effect.
    Fail(usize),
    /// It fails, and takes effect later, or never.
    Delay(usize),
    /// A call takes effect that has failed before.
    Arrive(usize),
    /// A process without a waiting call goes on to its next timer.
    Tick(usize),
    /// A process dies. Its waiting calls take effect later, or never.
    Crash(usize),
    Restart(usize),
    Expire,
    LoseClaim,
    LoseCommit,
    End,
}

/// The call that a choice is about, and its process.
type About = (Call, Option<usize>);

/// One process: a runtime with a clock of its own.
struct Process {
    handle: Handle,
    running: Option<(Runtime, Session)>,
    is_done: Arc<Mutex<u32>>,
    /// The hash of all that it has seen: its state depends on nothing else.
    seen: u64,
    /// It may have something to do at its next timer.
    may_act: bool,
    /// It is stopped for longer than its lease.
    is_stopped: bool,
    /// The change of the store since which it waits for a claim.
    busy_at: Option<u64>,
}

/// One run, from its beginning.
struct Run {
    bounds: Bounds,
    left: Bounds,
    world: Arc<Mutex<World>>,
    processes: Vec<Process>,
    /// The choices, and the calls that they were about.
    trace: Vec<(Choice, Option<About>)>,
}

/// The extent of an exploration.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Different states: of the store, the server, the calls under way, and what each process has seen.
    pub(crate) states: usize,
    pub(crate) steps: u64,
    pub(crate) runs: u64,
    /// Runs that ended, rather than came to a state seen before.
    pub(crate) ends: u64,
    pub(crate) is_complete: bool,
}

/// Explores all runs within the bounds, or as many as lead to this many states.
pub(crate) fn explore(bounds: Bounds, most_states: usize) -> Findings {
    let mut findings = Findings::default();
    let mut seen = HashSet::new();
    // The choices of the current run that are still to be made, the current one last.
    let mut path: Vec<Vec<Choice>> = Vec::new();
    loop {
        findings.runs += 1;
        let mut run = Run::new(bounds);
        let mut depth = 0;
        loop {
            if depth == path.len() {
                if !seen.insert(run.hash()) {
                    break;
                }
                path.push(run.choices());
            }
            let Some(choice) = path[depth].last().copied() else { unreachable!("emptied levels are removed") };
            depth += 1;
            findings.steps += 1;
            run.make(choice);
            assert!(run.world().violations.is_empty(), "{run}");
            if choice == Choice::End {
                findings.ends += 1;
                run.check_end();
                break;
            }
        }
        while let Some(choices) = path.last_mut() {
            choices.pop();
            if !choices.is_empty() {
                break;
            }
            path.pop();
        }
        findings.states = seen.len();
        findings.is_complete = path.is_empty();
        if findings.is_complete || findings.states >= most_states {
            return findings;
        }
    }
}

impl Run {
    fn new(bounds: Bounds) -> Self {
        tower_auth_refresh::seed_random_numbers(1);
        let world = Arc::new(Mutex::new(World::new(bounds.processes)));
        let mut run = Self { bounds, left: bounds, world, processes: Vec::new(), trace: Vec::new() };
        for process in 0..bounds.processes {
            let handle = Handle { process, world: Arc::clone(&run.world), called: Arc::default() };
            let is_done = Arc::new(Mutex::new(0));
            run.processes.push(Process {
                handle,
                running: None,
                is_done,
                seen: 0,
                may_act: false,
                is_stopped: false,
                busy_at: None,
            });
            run.start(process);
        }
        run
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Starts a process: its session, and its refreshes.
    fn start(&mut self, at: usize) {
        let (refreshes, process) = (self.bounds.refreshes, &mut self.processes[at]);
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let handle = process.handle.clone();
        let session = runtime.block_on(async {
            let service = handle.clone();
            let refresh = service_fn(move |request| service.clone().refresh(request));
            let mut building = Box::pin(Session::builder(refresh).store(handle.clone()).build());
            loop {
                tokio::select! {
                    biased;
                    session = &mut building => return session.unwrap(),
                    () = yield_now() => {
                        let mut world = handle.world();
                        if let Some(load) = world.waiting.iter().position(|waiting| waiting.process == at) {
                            let found = world.record;
                            world.answer(load, Answer::Found(found));
                        }
                    }
                }
            }
        });
        let (done, called, refreshing) = (Arc::clone(&process.is_done), Arc::clone(&handle.called), session.clone());
        runtime.spawn(async move {
            while *done.lock().unwrap() < refreshes {
                let _ = refreshing.refresh().await;
                *done.lock().unwrap() += 1;
                called.notify_one();
            }
        });
        process.running = Some((runtime, session));
        (process.may_act, process.is_stopped, process.busy_at) = (false, false, None);
        let found = self.world().record;
        self.saw(at, &("start", found));
        self.settle(at);
    }

    /// Lets a process run until all its tasks wait, without advancing its clock.
    fn settle(&mut self, at: usize) {
        let is_stopped = std::mem::take(&mut self.processes[at].is_stopped);
        let Some((runtime, session)) = &self.processes[at].running else { return };
        runtime.block_on(async {
            // It finds the answers to its calls, and its time-outs.
            if is_stopped {
                advance(STOP).await;
            }
            for _ in 0..32 {
                yield_now().await;
            }
        });
        let (token, state) = (number(&session.tokens()), session.state());
        let mut world = self.world();
        let held = world.held[at];
        if token < held && !world.is_excused {
            world.violations.push(format!("process {at} holds token {token} after token {held}: {state:?}"));
        }
        world.held[at] = held.max(token);
        if !matches!(state, SessionState::Active | SessionState::Refreshing | SessionState::Failing(_))
            && !world.is_excused
        {
            world.violations.push(format!("process {at} has lost its session: {state:?}"));
        }
    }

    fn saw(&mut self, at: usize, seen: &impl Hash) {
        let mut hasher = DefaultHasher::new();
        (self.processes[at].seen, seen).hash(&mut hasher);
        self.processes[at].seen = hasher.finish();
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.world().hash(&mut hasher);
        let Bounds { failures, crashes, expiries, losses, .. } = self.left;
        (failures, crashes, expiries, losses).hash(&mut hasher);
        for process in &self.processes {
            (process.seen, process.running.is_some(), process.may_act, process.is_stopped).hash(&mut hasher);
        }
        hasher.finish()
    }

    fn choices(&self) -> Vec<Choice> {
        let world = self.world();
        let mut choices = Vec::new();
        for (at, waiting) in world.waiting.iter().enumerate() {
            choices.push(Choice::Answer(at));
            if self.left.failures > 0 {
                choices.push(Choice::Fail(at));
                if waiting.call != Call::Load {
                    choices.extend([Choice::LoseAnswer(at), Choice::Delay(at)]);
                }
            }
        }
        choices.extend((0..world.late.len()).map(Choice::Arrive));
        let mut is_over = true;
        for (at, process) in self.processes.iter().enumerate() {
            if process.running.is_none() {
                choices.push(Choice::Restart(at));
                continue;
            }
            let is_done = *process.is_done.lock().unwrap() == self.bounds.refreshes;
            let is_waiting = world.waiting.iter().any(|waiting| waiting.process == at);
            is_over &= is_done && !is_waiting && !process.may_act;
            let is_blocked = process.busy_at.is_some_and(|change| change == world.changes);
            if !is_waiting && !is_blocked && (!is_done || process.may_act) {
                choices.push(Choice::Tick(at));
            }
            if self.left.crashes > 0 && !(is_done && !is_waiting && !process.may_act) {
                choices.push(Choice::Crash(at));
            }
        }
        let is_held = world.lease.is_some_and(|lease| lease.is_held);
        if is_held && self.left.expiries > 0 {
            choices.push(Choice::Expire);
        }
        if self.left.losses > 0 {
            choices.extend(world.lease.map(|_| Choice::LoseClaim));
            choices.extend(world.before.map(|_| Choice::LoseCommit));
        }
        let is_crashed = self.processes.iter().any(|process| process.running.is_none());
        if is_over && !is_crashed {
            choices.push(Choice::End);
        } else if choices.iter().all(|choice| matches!(choice, Choice::Arrive(_) | Choice::Crash(_))) {
            // All wait for a claim whose holder is gone.
            assert!(is_held, "nothing happens any more\n{self}");
            choices.push(Choice::Expire);
        }
        choices
    }

    fn make(&mut self, choice: Choice) {
        let about = match choice {
            Choice::Answer(at) | Choice::LoseAnswer(at) | Choice::Fail(at) | Choice::Delay(at) => {
                let waiting = &self.world().waiting[at];
                Some((waiting.call, Some(waiting.process)))
            }
            Choice::Arrive(at) => Some((self.world().late[at], None)),
            _ => None,
        };
        self.trace.push((choice, about));
        match choice {
            Choice::Answer(at) => {
                let answer = self.act(at);
                self.answer(at, answer);
            }
            Choice::LoseAnswer(at) => {
                self.left.failures -= 1;
                self.act(at);
                self.answer(at, Answer::Failed { is_unsent: false });
            }
            Choice::Fail(at) => {
                self.left.failures -= 1;
                self.answer(at, Answer::Failed { is_unsent: true });
            }
            Choice::Delay(at) => {
                self.left.failures -= 1;
                {
                    let mut world = self.world();
                    let call = world.waiting[at].call;
                    world.late.push(call);
                }
                self.answer(at, Answer::Failed { is_unsent: false });
            }
            Choice::Arrive(at) => {
                let mut world = self.world();
                let call = world.late.remove(at);
                world.act(call, None);
            }
            Choice::Tick(at) => self.tick(at),
            Choice::Crash(at) => {
                self.left.crashes -= 1;
                // With its runtime, all its tasks.
                let running = self.processes[at].running.take();
                let mut world = self.world();
                let calls: Vec<_> = world.waiting.extract_if(.., |waiting| waiting.process == at).collect();
                world.late.extend(calls.iter().map(|waiting| waiting.call).filter(|call| *call != Call::Load));
                drop(world);
                drop((running, calls));
                self.saw(at, &"crash");
            }
            Choice::Restart(at) => {
                {
                    let mut world = self.world();
                    world.incarnations[at] += 1;
                    world.held[at] = 0;
                }
                self.start(at);
            }
            Choice::Expire => {
                self.left.expiries = self.left.expiries.saturating_sub(1);
                let holder = self.world().lease.and_then(|lease| lease.holder);
                // The lease lasts longer than the refresh may: its holder was stopped meanwhile.
                if let Some(process) = holder.map(|holder| &mut self.processes[holder]) {
                    process.is_stopped = true;
                }
                self.world().expire();
            }
            Choice::LoseClaim | Choice::LoseCommit => {
                self.left.losses -= 1;
                self.world().go_back(choice == Choice::LoseCommit);
            }
            Choice::End => {}
        }
    }

    fn act(&self, waiting: usize) -> Answer {
        let mut world = self.world();
        let (process, call) = (world.waiting[waiting].process, world.waiting[waiting].call);
        world.act(call, Some(process))
    }

    fn waiting_of(&self, process: usize) -> Option<usize> {
        self.world().waiting.iter().position(|waiting| waiting.process == process)
    }

    fn answer(&mut self, waiting: usize, answer: Answer) {
        let (at, call) = {
            let world = self.world();
            (world.waiting[waiting].process, world.waiting[waiting].call)
        };
        self.saw(at, &(call, answer, self.processes[at].is_stopped));
        let changes = self.world().changes;
        let process = &mut self.processes[at];
        process.busy_at = (answer == Answer::Busy).then_some(changes);
        process.may_act |= matches!(answer, Answer::Busy | Answer::Failed { .. });
        self.world().answer(waiting, answer);
        self.settle(at);
    }

    /// Advances a process's clock until it makes a call, or ends a refresh, or has nothing left to do.
    fn tick(&mut self, at: usize) {
        self.saw(at, &("tick", self.processes[at].is_stopped));
        self.settle(at);
        if self.waiting_of(at).is_some() {
            self.processes[at].may_act = true;
            return;
        }
        let process = &mut self.processes[at];
        process.busy_at = None;
        let Some((runtime, _)) = &process.running else { return };
        let done = *process.is_done.lock().unwrap();
        let called: Arc<Notify> = Arc::clone(&process.handle.called);
        // One that is left from before.
        let _ = called.notified().now_or_never();
        runtime.block_on(async {
            tokio::select! { () = called.notified() => {}, () = sleep(LONGEST_TIMER) => {} }
        });
        let has_called = self.world().waiting.iter().any(|waiting| waiting.process == at);
        let process = &mut self.processes[at];
        process.may_act = has_called || *process.is_done.lock().unwrap() != done;
        self.settle(at);
    }

    /// Checks that nothing was lost: without further trouble, every process refreshes once more.
    fn check_end(&mut self) {
        if self.world().is_excused {
            return;
        }
        self.left = Bounds { failures: 0, crashes: 0, expiries: 0, losses: 0, ..self.left };
        // The one that knows the newest tokens first: another one can't know that the store has lost them.
        let mut order: Vec<_> = (0..self.bounds.processes).collect();
        order.sort_by_key(|at| std::cmp::Reverse(self.world().held[*at]));
        for at in order {
            let before = self.world().newest;
            // A record that another process has claimed is written over once the claim has expired.
            let is_refreshed = (0..5).any(|_| self.refresh_once_more(at));
            assert!(is_refreshed, "{self}");
            let Some((_, session)) = &self.processes[at].running else { continue };
            let (token, world) = (number(&session.tokens()), self.world());
            assert!(world.violations.is_empty(), "{:?}", world.violations);
            assert!(token == world.newest && world.newest >= before, "holds {token}, not {}", world.newest);
            assert_eq!(world.record.map(|record| record.token), Some(token), "not in the store");
        }
    }
}

impl Run {
    /// Refreshes without further trouble. Returns `false` if that fails.
    fn refresh_once_more(&mut self, at: usize) -> bool {
        let Some((runtime, session)) = &self.processes[at].running else { return false };
        let session = session.clone();
        let refreshed = runtime.spawn(async move { session.refresh().await.is_ok() });
        self.settle(at);
        for _ in 0..1_000 {
            while let Some(waiting) = self.waiting_of(at) {
                self.make(Choice::Answer(waiting));
            }
            if self.processes[at].busy_at.is_some() {
                self.world().expire();
            }
            if refreshed.is_finished() {
                break;
            }
            self.make(Choice::Tick(at));
        }
        self.processes[at].running.as_ref().is_some_and(|(runtime, _)| runtime.block_on(refreshed).unwrap())
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.bounds)?;
        self.trace.iter().try_for_each(|step| writeln!(f, "    {step:?}"))?;
        if let Ok(world) = self.world.try_lock() {
            writeln!(f, "violated: {:?}; stored: {:?}, newest: {}", world.violations, world.record, world.newest)?;
        }
        Ok(())
    }
}
