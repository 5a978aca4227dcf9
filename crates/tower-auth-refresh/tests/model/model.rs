//! The reference model: two sessions on one store, as a sequential simulation in whole milliseconds.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::script::{
    Answer, Call, FailureKind, Fault, Line, Observed, Pair, Reason, Request, RequestKind, SessionIndex, issued_to,
    signed_in_with,
};

const REFRESH_TIMEOUT: u64 = 30_000;
const SAVE_TIMEOUT: u64 = 5_000;
/// The lease of a claim, and the age at which a flight renews it while its call is under way.
const LEASE: u64 = 15_000;
const RENEW_AFTER: u64 = 5_000;
/// The lease that a claim has left when renewals stop, at least and at most, while tokens can't be saved.
const RENEWED: (u64, u64) = (264_000, 330_000);
/// Once a store works again, a pending write is done within this.
const WRITTEN_BY: u64 = 66_000;
const CLAIM_POLL: u64 = 201;
const PROBATION: u64 = 60_000;
/// A wasted refresh is remembered for this.
const MEMORY: u64 = 3_600_000;

/// A moment within an interval. The width of the interval is the jitter.
#[derive(Clone, Copy, PartialEq)]
struct Moment {
    lo: u64,
    hi: u64,
}

#[derive(Clone, Copy, PartialEq)]
struct Record {
    version: u32,
    epoch: u32,
    tokens: Pair,
}

#[derive(Clone, Copy)]
struct Lease {
    id: u32,
    /// `None`: released in doubt.
    until: Option<Moment>,
    in_doubt: bool,
}

#[derive(Clone, Copy)]
struct Claim {
    version: u32,
    id: u32,
}

#[derive(Default)]
struct Store {
    last: u32,
    record: Option<Record>,
    lease: Option<Lease>,
}

/// A write that a session still owes the store.
#[derive(Clone, Default)]
enum PendingWrite {
    #[default]
    Nothing,
    Tokens(Claim),
    /// A sign-in, to be written over records of these epochs.
    SignIn(Vec<u32>),
    /// A sign-out: records of these epochs are to be deleted.
    SignOut(Vec<u32>),
}

#[derive(Default)]
struct Session {
    // Reset with each epoch:
    active: bool,
    epoch: u32,
    tokens: Pair,
    version: Option<u32>,
    /// The epoch that the authorization server ended.
    ended: Option<u32>,
    rejected: bool,
    in_doubt: bool,
    failures: u32,
    /// The kind of the last of them.
    failure: Option<FailureKind>,
    starter: Option<Starter>,
    row: Option<Row>,
    issued: Option<Moment>,
    cooling: Option<(Moment, Reason)>,
    pending: PendingWrite,
    // Kept across epochs:
    generation: u32,
    /// The newest generations that the starters of flights have accepted, and have refused in a replay.
    accepted: u32,
    refused: u32,
    written_over: Option<(u32, Option<u32>)>,
    /// The tokens that the session has revoked last.
    revoked: VecDeque<Pair>,
    issued_count: u32,
    next: VecDeque<Answer>,
    faults: BTreeMap<Call, Fault>,
}

/// The cause of a demand for newer tokens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// A challenge by an endpoint.
    Get,
    Post,
    /// A request that waits for a token before it is sent.
    Unsent,
    App,
}

/// The start of a flight that is not settled yet, and the generation that the flight replaces.
#[derive(Clone, Copy)]
struct Starter {
    by: By,
    base: u32,
}

/// Wasted refreshes in a row.
#[derive(Default)]
struct Row {
    wasted: u32,
    until: Option<Moment>,
    accepted: u32,
    accounts: BTreeMap<By, Account>,
}

struct Account {
    weight: u32,
    refused: u32,
    at: Moment,
}

struct Flight {
    session: SessionIndex,
    epoch: u32,
    generation: u32,
    /// The tokens to replace, and those presented. They differ if a peer has stored newer ones.
    base: Pair,
    tokens: Pair,
    version: Option<u32>,
    claim: Option<Claim>,
    claimed_at: Moment,
    /// Renewals have failed, or may have: what that leads to depends on when they are repeated.
    renewals_fail: bool,
    /// `doubted`: the base or the claim was in doubt. `in_doubt`: this flight's own call is.
    doubted: bool,
    in_doubt: bool,
    attempts: u32,
    deadline: Moment,
    /// The script line that started the flight.
    line: usize,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Started,
    SavingFirst(Moment),
    Queueing(Moment),
    ClaimHangs,
    Called,
    Pausing(Moment),
    Committing(Moment, Pair),
    Over,
}

/// The position of a write outside a flight in the queue of writers.
#[derive(Clone, Copy, PartialEq)]
enum WriteOrder {
    First,
    Unknown,
}

/// A request, or a manual call on a session.
struct Caller {
    session: SessionIndex,
    kind: Option<RequestKind>,
    epoch: u32,
    generation: u32,
    slow: bool,
    /// The reason why the request was sent without a token.
    lack: Option<Reason>,
    progress: Progress,
}

#[derive(Clone, Copy, PartialEq)]
enum Progress {
    Unsent(usize),
    AtApi { attempt: Attempt, good: bool },
    Challenged(usize),
    Waiting(usize),
    Done,
}

#[derive(Clone, Copy, PartialEq)]
enum Attempt {
    Unauthenticated,
    First,
    Replay,
}

enum Decision {
    Newer,
    Join(usize),
    Start,
    No(Reason),
}

/// Work that is due at the current moment, in order.
enum Work {
    ApiAnswers(usize),
    /// Refreshes without a waiter, for later requests.
    Refresh(usize),
    Run(usize),
    Answer(usize, Answer),
}

pub(crate) struct Model {
    rotates: bool,
    now: u64,
    /// The moment of the current event.
    at: Moment,
    /// The next line is executed no earlier than this.
    busy_until: u64,
    undetermined: Cell<bool>,
    refuses_all: bool,
    expired: BTreeSet<u32>,
    last_epoch: u32,
    line: usize,
    store: Store,
    sessions: [Session; 2],
    flights: Vec<Flight>,
    callers: Vec<Caller>,
    work: VecDeque<Work>,
    observed: Observed,
}

impl Moment {
    const NEVER: Self = Self { lo: u64::MAX, hi: u64::MAX };

    fn of(at: u64) -> Self {
        Self { lo: at, hi: at }
    }

    fn plus(self, lo: u64, hi: u64) -> Self {
        let (lo, hi) = (self.lo + lo, self.hi + hi);
        // Timers have a resolution of one millisecond.
        Self { lo, hi: if lo == hi { hi } else { hi + 1 } }
    }

    fn max(self, other: (u64, u64)) -> Self {
        Self { lo: self.lo.max(other.0), hi: self.hi.max(other.1) }
    }
}

impl Model {
    /// Both sessions hold the tokens that the first was built with.
    pub(crate) fn new(rotates: bool) -> Self {
        let tokens = Pair { access: Some(1), refresh: Some(1) };
        let session =
            || Session { active: true, epoch: 1, generation: 1, tokens, version: Some(1), ..Session::default() };
        Self {
            rotates,
            now: 0,
            at: Moment::of(0),
            busy_until: 0,
            undetermined: Cell::new(false),
            refuses_all: false,
            expired: BTreeSet::new(),
            last_epoch: 1,
            line: 0,
            store: Store { last: 1, record: Some(Record { version: 1, epoch: 1, tokens }), lease: None },
            sessions: [session(), session()],
            flights: Vec::new(),
            callers: Vec::new(),
            work: VecDeque::new(),
            observed: Observed::default(),
        }
    }

    // Script lines.

    pub(crate) fn line(&mut self, number: usize, line: &Line) {
        self.at = Moment::of(self.now);
        self.line = number;
        match *line {
            Line::Send { session, kind, times, slow } => {
                for _ in 0..times {
                    let id = self.caller(session, Some(kind), slow);
                    self.dispatch(id);
                }
            }
            Line::ApiAnswers => {
                let waiting = |id: &usize| matches!(self.callers[*id].progress, Progress::AtApi { .. });
                let waiting = (0..self.callers.len()).filter(waiting).map(Work::ApiAnswers).collect::<Vec<_>>();
                self.work.extend(waiting);
            }
            Line::CancelCaller => {
                if let Some(id) = self.callers.iter().position(|caller| caller.progress != Progress::Done) {
                    self.end(id, "cancelled".to_owned());
                }
            }
            Line::Expire { session } => self.expired.extend(self.sessions[session].tokens.access),
            Line::ApiRefusesAll(all) => self.refuses_all = all,
            Line::NextAnswer { session, answer } => self.sessions[session].next.push_back(answer),
            Line::AuthAnswers { session, answer } => {
                let called = self.flights.iter().position(|it| it.session == session && it.stage == Stage::Called);
                self.work.extend(called.filter(|_| answer != Answer::Nothing).map(|f| Work::Answer(f, answer)));
            }
            Line::SignIn { session, held } => {
                let id = self.caller(session, None, false);
                let order = self.wait_for_current_write(session);
                let replaced = self.epochs_in_store(session);
                let epoch = self.new_epoch();
                self.sessions[session].revoked.clear();
                self.begin_epoch(session, epoch, held.pair(signed_in_with(number)));
                self.set_pending(session, PendingWrite::SignIn(replaced));
                let written = self.write_in_order(session, order);
                self.end(id, format!("signed in, written: {written}"));
            }
            Line::SignOut { session } => {
                let id = self.caller(session, None, false);
                let order = self.wait_for_current_write(session);
                let (of, tokens) = (self.epochs_in_store(session), self.sessions[session].tokens);
                self.mark_revoked(session, tokens);
                self.end_epoch(session);
                self.set_pending(
                    session,
                    if of.is_empty() { PendingWrite::Nothing } else { PendingWrite::SignOut(of) },
                );
                let written = self.write_in_order(session, order);
                self.revoke(tokens);
                self.end(id, format!("signed out, written: {written}"));
            }
            Line::Refresh { session } => self.manual_refresh(session),
            Line::Wait(time) => self.run_until(self.now + time),
            Line::Inject { session, call, fault } => {
                self.sessions[session].faults.entry(call).or_insert(fault);
                match call {
                    // A renewal that fails after its effect still renews.
                    Call::Renew if self.fault(session, Call::Renew) == Some(Fault::Fail) => self.stop_renewing(session),
                    Call::Claim => self.store_changed(),
                    _ => {}
                }
                if call == Call::Renew {
                    let of_session = |it: &&mut Flight| it.session == session && it.claim.is_some();
                    self.flights.iter_mut().filter(of_session).for_each(|it| it.renewals_fail = true);
                }
            }
            Line::ClearFaults { session } => self.clear_faults(session),
        }
        self.settle();
    }

    /// Advances to `now` and returns the moment until which the driver has to wait.
    pub(crate) fn wait_until(&mut self, now: u64) -> u64 {
        self.run_until(now.max(self.busy_until));
        loop {
            let timers = self.flights.iter().map(Flight::due);
            let pauses = self.sessions.iter().filter_map(|it| it.cooling.map(|(until, _)| until));
            let loops = self.sessions.iter().filter_map(|it| it.row.as_ref()?.until);
            let Some(open) = timers.chain(pauses).chain(loops).find(|it| it.lo <= self.now && self.now < it.hi) else {
                return self.now;
            };
            self.run_until(open.hi);
        }
    }

    /// Returns whether the outcome depends on jitter in a way that waiting doesn't resolve.
    pub(crate) fn is_undetermined(&self) -> bool {
        self.undetermined.get()
    }

    pub(crate) fn observed(&mut self) -> &Observed {
        let describe = |session: SessionIndex| {
            let it = &self.sessions[session];
            let state = match (it.active, it.ended, self.in_flight(session), it.failure) {
                (true, _, None, None) => "Active".to_owned(),
                (true, _, None, Some(kind)) => format!("Failing({kind:?}, {})", it.failures),
                (true, _, Some(_), _) => "Refreshing".to_owned(),
                (false, Some(_), _, _) => "Ended".to_owned(),
                (false, None, _, _) => "SignedOut".to_owned(),
            };
            format!("{state}, {}: {:?}", it.generation, it.tokens)
        };
        self.observed.sessions = [0, 1].map(describe).into();
        self.observed.stored = self.store.record.map(|record| record.tokens);
        self.observed.revoked.sort();
        &self.observed
    }

    /// Processes all timers up to `then`, each at its own moment.
    fn run_until(&mut self, then: u64) {
        loop {
            let next = (0..self.flights.len()).min_by_key(|f| self.flights[*f].due().hi);
            let Some(f) = next.filter(|f| self.flights[*f].due().hi <= then) else { break };
            self.at = self.flights[f].due();
            self.check_renewals();
            // Jitter decides which of two sessions reaches the store first.
            let (at, session) = (self.at, self.flights[f].session);
            let clashes =
                |it: &Flight| it.session != session && it.due().lo <= at.hi && (at.lo < at.hi || it.due().lo < at.lo);
            self.undetermined.set(self.is_undetermined() || self.flights.iter().any(clashes));
            match self.flights[f].stage {
                Stage::Started | Stage::Over => unreachable!("the flight has no timer"),
                Stage::Queueing(look) if look.hi < self.flights[f].deadline.lo => self.claim(f),
                Stage::SavingFirst(_) | Stage::Queueing(_) | Stage::ClaimHangs => {
                    self.fail(f, FailureKind::Unavailable, 0);
                }
                Stage::Called => {
                    self.flights[f].in_doubt = true;
                    self.fail(f, FailureKind::InDoubt, 0);
                }
                Stage::Pausing(_) => self.call(f),
                Stage::Committing(_, new_tokens) => self.publish(f, new_tokens, None),
            }
            self.settle();
        }
        self.now = self.now.max(then);
        self.at = Moment::of(self.now);
        self.check_renewals();
    }

    /// Processes all due work. The authorization server's answers come last.
    fn settle(&mut self) {
        loop {
            let quick = self.work.iter().position(|work| !matches!(work, Work::Answer(..)));
            let Some(next) = self.work.remove(quick.unwrap_or(0)) else { return };
            match next {
                Work::ApiAnswers(id) => self.api_answers(id),
                Work::Refresh(id) => _ = self.challenged(id),
                Work::Run(f) => self.run(f),
                Work::Answer(f, answer) => self.answer(f, answer),
            }
        }
    }

    /// A write outside a flight waits for the write that hangs: a flight's or a background retry's. If both exist, the
    /// one that doesn't hang waits too, and is next.
    fn wait_for_current_write(&mut self, session: SessionIndex) -> WriteOrder {
        if matches!(self.sessions[session].pending, PendingWrite::Tokens(_))
            && self.fault(session, Call::Commit) == Some(Fault::Hang)
        {
            self.at.hi = self.at.lo + SAVE_TIMEOUT;
            let waits = |it: &Flight| it.session == session && matches!(it.stage, Stage::SavingFirst(_));
            if self.flights.iter().any(waits) {
                return WriteOrder::Unknown;
            }
        }
        WriteOrder::First
    }

    /// Writes what is pending when the writer's turn comes.
    fn write_in_order(&mut self, session: SessionIndex, order: WriteOrder) -> bool {
        let written = self.sync(session);
        if order == WriteOrder::Unknown && self.sync(session) != written {
            self.undetermined.set(true);
        }
        written
    }

    // Requests.

    fn caller(&mut self, session: SessionIndex, kind: Option<RequestKind>, slow: bool) -> usize {
        let Session { epoch, generation, .. } = self.sessions[session];
        self.callers.push(Caller { session, kind, epoch, generation, slow, lack: None, progress: Progress::Done });
        self.observed.requests.push(Request::default());
        self.callers.len() - 1
    }

    fn end(&mut self, id: usize, end: String) {
        self.callers[id].progress = Progress::Done;
        self.observed.requests[id].end = Some(end);
    }

    /// Sends the request, unless its token is known to be useless.
    fn dispatch(&mut self, id: usize) {
        let session = self.callers[id].session;
        let it = &self.sessions[session];
        // An upload that exceeds the replay limit couldn't be replayed, so it waits where another request would be sent.
        let is_upload = self.callers[id].kind == Some(RequestKind::Upload);
        let useless = it.tokens.access.is_none() || it.rejected && (is_upload || self.in_flight(session).is_some());
        if it.active
            && useless
            && let Some(f) = self.join_or_start(id, By::Unsent).1
        {
            self.callers[id].progress = Progress::Unsent(f);
            return;
        }
        let Caller { session, epoch, generation, .. } = self.callers[id];
        if let Decision::No(reason) = self.decide(session, epoch, generation, By::Unsent) {
            self.callers[id].lack = Some(reason);
        }
        self.send(id);
    }

    fn send(&mut self, id: usize) {
        let it = &self.sessions[self.callers[id].session];
        let same_epoch = it.epoch == self.callers[id].epoch;
        let token = it.tokens.access.filter(|_| same_epoch);
        if same_epoch {
            self.callers[id].generation = it.generation;
        }
        self.send_attempt(id, token, if token.is_some() { Attempt::First } else { Attempt::Unauthenticated });
    }

    fn replay(&mut self, id: usize) {
        let it = &self.sessions[self.callers[id].session];
        let token = it.tokens.access;
        self.callers[id].generation = it.generation;
        self.callers[id].slow = false;
        self.send_attempt(id, token, Attempt::Replay);
    }

    fn send_attempt(&mut self, id: usize, token: Option<u32>, attempt: Attempt) {
        let good = token.is_some_and(|token| !self.refuses_all && !self.expired.contains(&token));
        let token = token.map_or_else(|| "no token".to_owned(), |token| format!("a{token}"));
        self.observed.requests[id].attempts.push(format!("{token}: {}", if good { 200 } else { 401 }));
        self.callers[id].progress = Progress::AtApi { attempt, good };
        if !self.callers[id].slow {
            self.work.push_back(Work::ApiAnswers(id));
        }
    }

    fn api_answers(&mut self, id: usize) {
        let Caller { session, kind, epoch, lack, progress, .. } = self.callers[id];
        let Progress::AtApi { attempt, good } = progress else { return };
        let it = &self.sessions[session];
        match (attempt, good) {
            (Attempt::Unauthenticated, _) => {
                let (generation, in_epoch) = (it.generation, it.epoch == epoch);
                let reason = match self.decide(session, epoch, generation, By::Unsent) {
                    Decision::No(reason) if !in_epoch => reason,
                    _ => lack.unwrap_or_else(|| unreachable!("a request without a token has a reason")),
                };
                self.end(id, format!("401 {reason:?}"));
            }
            (Attempt::First, true) => {
                if it.row.is_some() {
                    self.accepted(id);
                }
                self.end(id, "200".to_owned());
            }
            (Attempt::First, false) if kind == Some(RequestKind::Upload) => {
                self.end(id, "401 NotReplayable".to_owned());
                self.work.push_back(Work::Refresh(id));
            }
            (Attempt::First, false) => match self.challenged(id) {
                (_, Some(f)) => self.callers[id].progress = Progress::Challenged(f),
                (Decision::No(reason), _) => self.end(id, format!("401 {reason:?}")),
                _ => self.replay(id),
            },
            (Attempt::Replay, true) => {
                self.accepted(id);
                self.end(id, "200 Replayed".to_owned());
            }
            (Attempt::Replay, false) => {
                self.refused_again(id);
                self.end(id, "401 ReplayRefused".to_owned());
            }
        }
    }

    /// Requests newer tokens after a 401.
    fn challenged(&mut self, id: usize) -> (Decision, Option<usize>) {
        let Caller { session, epoch, generation, .. } = self.callers[id];
        let by = self.callers[id].endpoint();
        let it = &self.sessions[session];
        if it.epoch == epoch && it.generation == generation {
            if self.in_flight(session).is_none() {
                self.settle_flight(session, true);
            }
            let is_held = self.refusal(session, by).is_some();
            self.sessions[session].rejected |= !is_held;
        }
        self.join_or_start(id, by)
    }

    fn manual_refresh(&mut self, session: SessionIndex) {
        let id = self.caller(session, None, false);
        match self.join_or_start(id, By::App) {
            (_, Some(f)) => self.callers[id].progress = Progress::Waiting(f),
            (Decision::No(reason), _) => self.end(id, format!("{reason:?}")),
            _ => unreachable!("no tokens are newer than those in force"),
        }
    }

    /// Wakes a caller: its flight has finished, or its epoch is over.
    fn wake(&mut self, id: usize, outcome: Result<(), Reason>) {
        let Caller { session, epoch, progress, .. } = self.callers[id];
        let it = &self.sessions[session];
        let outcome = match outcome {
            _ if it.epoch != epoch && it.ended == Some(epoch) => Err(Reason::Ended),
            _ if it.epoch != epoch => Err(Reason::SessionChanged),
            outcome => outcome,
        };
        match (progress, outcome) {
            (Progress::Unsent(_), outcome) => {
                self.callers[id].lack = outcome.err();
                self.send(id);
            }
            (Progress::Challenged(_), Ok(())) => self.replay(id),
            (Progress::Challenged(_), Err(reason)) => self.end(id, format!("401 {reason:?}")),
            (_, Ok(())) => self.end(id, "refreshed".to_owned()),
            (_, Err(reason)) => self.end(id, format!("{reason:?}")),
        }
    }

    // Sessions.

    fn in_flight(&self, session: SessionIndex) -> Option<usize> {
        let epoch = self.sessions[session].epoch;
        self.flights.iter().position(|it| it.session == session && it.epoch == epoch && it.stage != Stage::Over)
    }

    /// Decides about a demand for tokens newer than `generation`.
    fn decide(&self, session: SessionIndex, epoch: u32, generation: u32, by: By) -> Decision {
        let manual = by == By::App;
        let it = &self.sessions[session];
        match it.cooling {
            _ if it.ended.is_some_and(|of| epoch == of || epoch == it.epoch) => Decision::No(Reason::Ended),
            _ if it.epoch != epoch => Decision::No(Reason::SessionChanged),
            _ if !it.active => Decision::No(Reason::SignedOut),
            _ if generation < it.generation && (!it.rejected || manual) => Decision::Newer,
            _ if self.in_flight(session).is_some() => Decision::Join(self.in_flight(session).unwrap()),
            _ if it.tokens.refresh.is_none() => Decision::No(Reason::NoRefreshToken),
            Some((until, reason)) if !manual && self.before(until) => Decision::No(reason),
            _ if !manual => self.refusal(session, by).map_or(Decision::Start, Decision::No),
            _ => Decision::Start,
        }
    }

    /// Returns the decision and the flight to wait for. Starts a flight if none is in progress.
    fn join_or_start(&mut self, id: usize, by: By) -> (Decision, Option<usize>) {
        let Caller { session, epoch, generation, .. } = self.callers[id];
        let decide = self.decide(session, epoch, generation, by);
        let flight = match decide {
            Decision::Join(f) => Some(f),
            Decision::Start => Some(self.start(session, by)),
            _ => None,
        };
        (decide, flight)
    }

    /// Puts new tokens of the same epoch into force.
    fn apply_tokens(&mut self, session: SessionIndex, tokens: Pair) {
        let it = &mut self.sessions[session];
        let same = tokens.access == it.tokens.access;
        (it.tokens, it.in_doubt, it.failures, it.failure, it.cooling) = (tokens, false, 0, None, None);
        if !same {
            it.generation += 1;
            (it.rejected, it.issued) = (false, Some(self.at));
        } else if it.rejected {
            let by = it.starter.take().map_or(By::Unsent, |starter| starter.by);
            let generation = it.generation;
            self.forget_wasted(session);
            self.waste(session, by, 2, generation);
        }
    }

    // The loop guard.

    /// Settles the last flight by the results of its starter. `challenged`: the token in force has just been refused.
    fn settle_flight(&mut self, session: SessionIndex, challenged: bool) {
        self.forget_wasted(session);
        let it = &mut self.sessions[session];
        let Some(Starter { by, base }) = it.starter.take() else { return };
        let (accepted, refused, issued) = (it.accepted, it.refused, it.issued);
        if refused > base && refused >= accepted {
            self.waste(session, by, 2, refused);
        } else if accepted > base {
            if let Some(row) = &mut it.row {
                row.accounts.remove(&by);
            }
            it.drop_empty_row();
        } else if let Some(issued) = issued.filter(|_| challenged || by != By::Unsent)
            && self.before(issued.plus(PROBATION, PROBATION))
        {
            self.waste(session, by, 1, base);
        }
    }

    fn forget_wasted(&mut self, session: SessionIndex) {
        let Some(mut row) = self.sessions[session].row.take() else { return };
        row.accounts.retain(|_, account| self.before(account.at.plus(MEMORY, MEMORY)));
        self.sessions[session].row = Some(row);
        self.sessions[session].drop_empty_row();
    }

    fn waste(&mut self, session: SessionIndex, by: By, weight: u32, refused: u32) {
        let at = self.at;
        let row = self.sessions[session].row.get_or_insert_default();
        row.wasted += 1;
        row.pause(at);
        let before = row.accounts.get(&by).map_or(0, |account| account.weight);
        row.accounts.insert(by, Account { weight: before + weight, refused, at });
    }

    /// Returns why no flight may be started now.
    fn refusal(&self, session: SessionIndex, by: By) -> Option<Reason> {
        let row = self.sessions[session].row.as_ref()?;
        let is_suspect = row.accounts.get(&by).is_some_and(|account| account.weight >= 2);
        let is_accepted = row.accounts.values().all(|account| account.refused <= row.accepted);
        let reason = if is_accepted { Reason::RequestRefused } else { Reason::Looping };
        (is_suspect && self.before(row.until?)).then_some(reason)
    }

    /// An endpoint has accepted a request.
    fn accepted(&mut self, id: usize) {
        let (by, Caller { session, generation, .. }) = (self.callers[id].endpoint(), &self.callers[id]);
        let it = &mut self.sessions[*session];
        let starter = it.starter.filter(|starter| [by, By::Unsent].contains(&starter.by));
        if starter.is_some() {
            it.accepted = it.accepted.max(*generation);
        }
        let its_own = starter.filter(|starter| starter.by == by && it.refused > starter.base);
        let refused_again = its_own.map_or(0, |_| it.refused);
        if let Some(row) = &mut it.row {
            row.accepted = row.accepted.max(*generation);
            let is_cleared = |of: By, refused: u32| [by, By::Unsent].contains(&of) && *generation > refused;
            row.accounts.retain(|of, account| *generation <= refused_again || !is_cleared(*of, account.refused));
        }
        it.drop_empty_row();
    }

    /// An endpoint has refused a replay.
    fn refused_again(&mut self, id: usize) {
        let (by, Caller { session, generation, .. }) = (self.callers[id].endpoint(), &self.callers[id]);
        let it = &mut self.sessions[*session];
        if it.starter.is_some_and(|starter| [by, By::Unsent].contains(&starter.by)) {
            it.refused = it.refused.max(*generation);
        }
    }

    /// Begins an epoch without tokens.
    fn end_epoch(&mut self, session: SessionIndex) {
        let epoch = self.new_epoch();
        self.reset(session, epoch);
        self.wake_waiters(session);
    }

    /// Begins an epoch with tokens.
    fn begin_epoch(&mut self, session: SessionIndex, epoch: u32, tokens: Pair) {
        self.reset(session, epoch);
        let it = &mut self.sessions[session];
        (it.active, it.tokens) = (true, tokens);
        it.generation += 1;
        self.wake_waiters(session);
    }

    fn reset(&mut self, session: SessionIndex, epoch: u32) {
        self.stop_renewing(session);
        let old = std::mem::take(&mut self.sessions[session]);
        let Session { generation, accepted, refused, written_over, revoked, issued_count, next, faults, .. } = old;
        self.sessions[session] = Session {
            epoch,
            generation,
            accepted,
            refused,
            written_over,
            revoked,
            issued_count,
            next,
            faults,
            ..Session::default()
        };
    }

    /// Wakes the callers that wait for a flight of the previous epoch.
    fn wake_waiters(&mut self, session: SessionIndex) {
        for id in 0..self.callers.len() {
            let waits = matches!(
                self.callers[id].progress,
                Progress::Unsent(_) | Progress::Challenged(_) | Progress::Waiting(_)
            );
            if waits && self.callers[id].session == session {
                self.wake(id, Ok(()));
            }
        }
    }

    fn new_epoch(&mut self) -> u32 {
        self.last_epoch += 1;
        self.last_epoch
    }

    fn revoke(&mut self, tokens: Pair) {
        self.observed.revoked.extend(Some(tokens).filter(|it| *it != Pair::default()));
    }

    /// Returns whether the session has not revoked these tokens before.
    fn mark_revoked(&mut self, session: SessionIndex, tokens: Pair) -> bool {
        let revoked = &mut self.sessions[session].revoked;
        let is_new = tokens != Pair::default() && !revoked.contains(&tokens);
        if is_new {
            revoked.push_back(tokens);
            if revoked.len() > 4 {
                revoked.pop_front();
            }
        }
        is_new
    }

    fn revoke_once(&mut self, session: SessionIndex, tokens: Pair) {
        if self.mark_revoked(session, tokens) {
            self.revoke(tokens);
        }
    }

    // Flights: claim, call, save, publish.

    fn start(&mut self, session: SessionIndex, by: By) -> usize {
        self.settle_flight(session, false);
        let deadline = self.at.plus(REFRESH_TIMEOUT, REFRESH_TIMEOUT);
        // If two sessions start at one moment, either may reach the store first.
        let side_by_side = |it: &Flight| it.session != session && it.line == self.line && it.deadline == deadline;
        self.undetermined.set(self.is_undetermined() || self.flights.iter().any(side_by_side));
        let it = &mut self.sessions[session];
        it.cooling = None;
        it.starter = (by != By::App).then_some(Starter { by, base: it.generation });
        self.flights.push(Flight {
            session,
            epoch: it.epoch,
            generation: it.generation,
            base: it.tokens,
            tokens: it.tokens,
            version: it.version,
            claim: None,
            claimed_at: Moment::NEVER,
            renewals_fail: false,
            doubted: it.in_doubt,
            in_doubt: false,
            attempts: 0,
            deadline,
            line: self.line,
            stage: Stage::Started,
        });
        self.work.push_back(Work::Run(self.flights.len() - 1));
        self.flights.len() - 1
    }

    /// Writes what is pending before it claims.
    fn run(&mut self, f: usize) {
        let session = self.flights[f].session;
        match self.sessions[session].pending {
            PendingWrite::Nothing => return self.claim(f),
            PendingWrite::Tokens(_) if self.fault(session, Call::Commit) == Some(Fault::Hang) => {
                self.flights[f].stage = Stage::SavingFirst(self.at.plus(SAVE_TIMEOUT, 2 * SAVE_TIMEOUT));
                return;
            }
            _ => {}
        }
        if !self.sync(session) {
            return self.fail(f, FailureKind::Unavailable, 0);
        }
        let (it, flight) = (&self.sessions[session], &mut self.flights[f]);
        if (it.epoch, it.generation) != (flight.epoch, flight.generation) {
            return self.finish(f, Ok(()));
        }
        (flight.base, flight.tokens, flight.version) = (it.tokens, it.tokens, it.version);
        self.claim(f);
    }

    fn claim(&mut self, f: usize) {
        let Flight { session, epoch, base, version, deadline, .. } = self.flights[f];
        let fault = self.fault(session, Call::Claim);
        match (fault, self.store.record) {
            (Some(Fault::Fail), _) => self.fail(f, FailureKind::Unavailable, 0),
            (Some(Fault::Hang), _) => self.flights[f].stage = Stage::ClaimHangs,
            (Some(Fault::FailLate), record) => {
                if record.is_some_and(|it| Some(it.version) == version) && !self.is_claimed() {
                    self.lease(self.at.plus(LEASE, LEASE));
                }
                self.fail(f, FailureKind::Unavailable, 0);
            }
            // A peer signed out.
            (None, None) => self.record_deleted(f),
            (None, Some(record)) if Some(record.version) != version => {
                if record.epoch != epoch || record.tokens.access != base.access {
                    self.adopt(f, record);
                } else {
                    (self.flights[f].version, self.flights[f].tokens) = (Some(record.version), record.tokens);
                    self.claim(f);
                }
            }
            (None, Some(_)) if self.is_claimed() => {
                let until = self.store.lease.and_then(|it| it.until).unwrap();
                let look = if until.lo >= deadline.hi { deadline } else { until.plus(0, 10) };
                self.undetermined.set(self.is_undetermined() || until.lo < deadline.hi && look.hi >= deadline.lo);
                let early = if look == deadline { CLAIM_POLL } else { 0 };
                self.flights[f].stage = Stage::Queueing(Moment { lo: look.lo - early, ..look });
            }
            (None, Some(record)) => {
                // For as long as the call takes.
                let lease = self.lease(Moment::NEVER);
                let (claimed_at, renewals_fail) = (self.at, self.fault(session, Call::Renew).is_some());
                let flight = &mut self.flights[f];
                (flight.claimed_at, flight.renewals_fail) = (claimed_at, renewals_fail);
                flight.claim = Some(Claim { version: record.version, id: lease.id });
                flight.doubted = lease.in_doubt || flight.doubted && flight.tokens.refresh == base.refresh;
                self.call(f);
            }
        }
    }

    fn call(&mut self, f: usize) {
        let flight = &mut self.flights[f];
        let it = &mut self.sessions[flight.session];
        flight.attempts += 1;
        if it.epoch != flight.epoch {
            return self.retry(f, FailureKind::Unavailable, 0);
        }
        let doubt = if flight.doubted || flight.in_doubt { " in doubt" } else { "" };
        self.observed.presented[flight.session].push(format!("{}: {:?}{doubt}", flight.generation, flight.tokens));
        flight.stage = Stage::Called;
        match it.next.pop_front().unwrap_or(Answer::Tokens) {
            Answer::Nothing => {}
            answer => self.work.push_back(Work::Answer(f, answer)),
        }
    }

    fn answer(&mut self, f: usize, answer: Answer) {
        match answer {
            Answer::Tokens | Answer::WithoutRefreshToken | Answer::SameAccessToken => {
                let Flight { session, tokens: old, .. } = self.flights[f];
                let it = &mut self.sessions[session];
                it.issued_count += 1;
                let new = Some(issued_to(session, it.issued_count));
                let access = if answer == Answer::SameAccessToken { old.access.or(new) } else { new };
                let refresh = if answer == Answer::WithoutRefreshToken { old.refresh } else { new };
                self.save(f, Pair { access, refresh });
            }
            Answer::Rejected => self.rejected(f),
            Answer::Misconfigured => self.fail(f, FailureKind::Misconfigured, 0),
            Answer::Unavailable => self.retry(f, FailureKind::Unavailable, 0),
            Answer::UnavailableFor(seconds) => self.retry(f, FailureKind::Unavailable, 1_000 * seconds.min(300)),
            Answer::InDoubt => {
                self.flights[f].in_doubt = true;
                self.retry(f, FailureKind::InDoubt, 0);
            }
            Answer::Nothing => {}
        }
    }

    /// Makes another attempt if that is allowed and there is time; otherwise fails.
    fn retry(&mut self, f: usize, kind: FailureKind, retry_after: u64) {
        let flight = &mut self.flights[f];
        let next = self.at.plus(retry_after, retry_after.max(200 << (flight.attempts - 1)));
        let allowed = flight.attempts < 3 && !(flight.in_doubt && self.rotates);
        if !allowed || next.lo >= flight.deadline.hi {
            self.fail(f, kind, retry_after);
        } else {
            self.undetermined.set(self.undetermined.get() || next.hi >= flight.deadline.lo);
            flight.stage = Stage::Pausing(next);
        }
    }

    /// Ends the session after `invalid_grant`, unless the store holds newer tokens or can't be read.
    fn rejected(&mut self, f: usize) {
        let Flight { session, epoch, claim, .. } = self.flights[f];
        let renews = self.fault(session, Call::Renew) != Some(Fault::Fail);
        let until = self.at.plus(LEASE, LEASE);
        let held = renews && self.renew(claim.unwrap(), until);
        if held {
            self.lease_shortened(until);
        } else {
            self.stop_holding(f);
        }
        if self.fault(session, Call::Renew).is_some() || self.fault(session, Call::Load).is_some() {
            return self.fail(f, FailureKind::Unavailable, 0);
        }
        match self.store.record {
            None => self.record_deleted(f),
            Some(record) if record.version != claim.unwrap().version => self.adopt(f, record),
            Some(_) if !held => self.fail(f, FailureKind::Unavailable, 0),
            Some(_) => {
                if self.sessions[session].epoch == epoch {
                    self.reset(session, epoch);
                    self.sessions[session].ended = Some(epoch);
                    self.sessions[session].epoch = self.new_epoch();
                    self.set_pending(session, PendingWrite::SignOut(vec![epoch]));
                    self.sync(session);
                    self.wake_waiters(session);
                }
                self.finish(f, Err(Reason::Ended));
            }
        }
    }

    fn save(&mut self, f: usize, new_tokens: Pair) {
        let Flight { session, epoch, claim, .. } = self.flights[f];
        let current = self.store.record.filter(|it| it.version == claim.unwrap().version);
        if self.fault(session, Call::Commit).is_some() || self.sessions[session].epoch != epoch {
            self.stop_holding(f);
        }
        match (self.fault(session, Call::Commit), current) {
            _ if self.sessions[session].epoch != epoch => self.publish(f, new_tokens, None),
            (Some(Fault::Hang), _) => {
                self.flights[f].stage = Stage::Committing(self.at.plus(SAVE_TIMEOUT, SAVE_TIMEOUT), new_tokens);
            }
            (Some(Fault::Fail), _) | (Some(Fault::FailLate), None) => self.publish(f, new_tokens, None),
            (Some(Fault::FailLate), Some(_)) => {
                self.write(session, epoch, new_tokens);
                self.publish(f, new_tokens, None);
            }
            (None, Some(_)) => {
                let version = self.write(session, epoch, new_tokens);
                self.publish(f, new_tokens, Some(version));
            }
            (None, None) => {
                self.adopt_conflicting_write(session, epoch, new_tokens);
                self.finish(f, Ok(()));
            }
        }
    }

    /// Puts tokens into force, stored or not, or revokes them if their epoch is over.
    fn publish(&mut self, f: usize, new_tokens: Pair, version: Option<u32>) {
        let Flight { session, epoch, claim, .. } = self.flights[f];
        if self.sessions[session].epoch == epoch {
            self.apply_tokens(session, new_tokens);
            self.sessions[session].version = version;
            self.set_pending(
                session,
                if version.is_some() { PendingWrite::Nothing } else { PendingWrite::Tokens(claim.unwrap()) },
            );
            self.sync(session);
        } else {
            self.revoke_once(session, new_tokens);
        }
        self.finish(f, Ok(()));
    }

    fn fail(&mut self, f: usize, kind: FailureKind, retry_after: u64) {
        let Flight { session, epoch, claim, in_doubt, .. } = self.flights[f];
        let release = self.fault(session, Call::Release) != Some(Fault::Fail);
        if !release {
            self.stop_holding(f);
        }
        if let Some(lease) = claim.filter(|_| release).and_then(|claim| self.held(claim)) {
            lease.until = None;
            lease.in_doubt |= in_doubt;
            if !lease.in_doubt {
                self.store.lease = None;
            }
            self.store_changed();
        }
        let at = self.at;
        let it = &mut self.sessions[session];
        if it.epoch == epoch {
            it.in_doubt |= in_doubt;
            it.failures += 1;
            it.failure = Some(kind);
            let full = (1_000 << (it.failures - 1).min(10)).min(60_000_u64);
            let pause = Moment { lo: full / 2, hi: full }.max((retry_after, retry_after));
            it.starter = None;
            if let Some(row) = &mut it.row {
                row.pause(at);
            }
            it.cooling = Some((at.plus(pause.lo, pause.hi), Reason::CoolingDown(kind)));
        }
        self.finish(f, Err(Reason::Failed(kind)));
    }

    /// Handles a record that a peer has written.
    fn adopt(&mut self, f: usize, record: Record) {
        let Flight { session, epoch, .. } = self.flights[f];
        self.flights[f].stage = Stage::Over;
        self.adopt_record(session, epoch, record);
        self.finish(f, Ok(()));
    }

    /// Handles an empty store.
    fn record_deleted(&mut self, f: usize) {
        let Flight { session, epoch, .. } = self.flights[f];
        if self.sessions[session].epoch == epoch {
            self.end_epoch(session);
        }
        self.finish(f, Err(Reason::SignedOut));
    }

    fn finish(&mut self, f: usize, outcome: Result<(), Reason>) {
        self.flights[f].stage = Stage::Over;
        let Flight { session, generation, .. } = self.flights[f];
        let brought = self.sessions[session].generation > generation;
        let outcome = outcome.and_then(|()| brought.then_some(()).ok_or(Reason::SameToken));
        for id in 0..self.callers.len() {
            match self.callers[id].progress {
                Progress::Unsent(of) | Progress::Challenged(of) | Progress::Waiting(of) if of == f => {
                    self.wake(id, outcome);
                }
                _ => {}
            }
        }
    }

    // The store.

    fn fault(&self, session: SessionIndex, call: Call) -> Option<Fault> {
        self.sessions[session].faults.get(&call).copied()
    }

    fn write(&mut self, session: SessionIndex, epoch: u32, tokens: Pair) -> u32 {
        let replaced = self.store.record.map(|it| it.epoch);
        let peer = &self.sessions[1 - session];
        // A peer that can read but not write sees this write at its next retry, at a time that isn't known.
        let concerned = match &peer.pending {
            PendingWrite::SignIn(_) => true,
            PendingWrite::SignOut(of) => !of.contains(&epoch),
            PendingWrite::Nothing | PendingWrite::Tokens(_) => false,
        };
        // A sign-out revokes the tokens of a record before it deletes the record.
        let revokes = matches!(&peer.pending, PendingWrite::SignOut(of) if of.contains(&epoch)) && peer.ended.is_none();
        let sees = concerned && replaced != Some(epoch) || revokes;
        let reads = self.fault(1 - session, Call::Load).is_none();
        self.undetermined.set(self.is_undetermined() || sees && reads);
        self.store.last += 1;
        let version = self.store.last;
        (self.store.record, self.store.lease) = (Some(Record { version, epoch, tokens }), None);
        self.store_changed();
        version
    }

    fn is_claimed(&self) -> bool {
        self.store.lease.is_some_and(|lease| lease.until.is_some_and(|until| self.before(until)))
    }

    fn lease(&mut self, until: Moment) -> Lease {
        self.store.last += 1;
        let lease = Lease { id: self.store.last, until: Some(until), in_doubt: self.store.lease.is_some() };
        *self.store.lease.insert(lease)
    }

    /// The call of a flight has ended: its lease is renewed no more.
    fn stop_holding(&mut self, f: usize) {
        let Flight { claim: Some(claim), claimed_at, .. } = self.flights[f] else { return };
        let renewals = |lo: u64, hi: u64| hi.saturating_sub(lo) / RENEW_AFTER;
        let sure = renewals(claimed_at.hi, self.at.lo);
        let left = LEASE + sure * RENEW_AFTER;
        let until = claimed_at.plus(left, left + 10);
        let is_renewed = |lease: &&mut Lease| lease.until == Some(Moment::NEVER);
        let Some(lease) = self.held(claim).filter(is_renewed) else { return };
        lease.until = Some(until);
        self.undetermined.set(self.is_undetermined() || sure != renewals(claimed_at.lo, self.at.hi));
        self.lease_shortened(until);
    }

    /// Gives up a script in which a renewal is due that may fail.
    fn check_renewals(&self) {
        let fails = |it: &Flight| {
            let is_called = matches!(it.stage, Stage::Called | Stage::Pausing(_));
            is_called && it.renewals_fail && self.at.hi >= it.claimed_at.lo + RENEW_AFTER
        };
        self.undetermined.set(self.is_undetermined() || self.flights.iter().any(fails));
    }

    fn held(&mut self, claim: Claim) -> Option<&mut Lease> {
        let current = self.store.record.is_some_and(|it| it.version == claim.version);
        self.store.lease.as_mut().filter(|lease| current && lease.id == claim.id)
    }

    fn renew(&mut self, claim: Claim, until: Moment) -> bool {
        match self.held(claim) {
            Some(lease) if lease.until.is_some() => {
                lease.until = Some(until);
                true
            }
            _ => false,
        }
    }

    /// Moves the next look of each flight that waits for the claim, whose lease was shortened.
    fn lease_shortened(&mut self, until: Moment) {
        let then = until.plus(0, 10);
        for flight in &mut self.flights {
            if let Stage::Queueing(look) = flight.stage
                && then.hi < look.hi
            {
                self.undetermined.set(self.undetermined.get() || then.hi >= flight.deadline.lo);
                flight.stage = Stage::Queueing(then);
            }
        }
    }

    /// Schedules the next poll of each flight that waits for a claim.
    fn store_changed(&mut self) {
        let soon = self.at.plus(0, CLAIM_POLL);
        for flight in &mut self.flights {
            if let Stage::Queueing(look) = flight.stage {
                // Its last poll may already have happened.
                let before = self.at.lo < self.at.hi && look.lo <= self.at.hi;
                self.undetermined.set(self.undetermined.get() || before || soon.hi >= flight.deadline.lo);
                flight.stage = Stage::Queueing(if soon.hi < look.hi { soon } else { look });
            }
        }
    }

    fn set_pending(&mut self, session: SessionIndex, pending: PendingWrite) {
        self.stop_renewing(session);
        self.sessions[session].pending = pending;
    }

    fn stop_renewing(&mut self, session: SessionIndex) {
        let until = self.at.plus(RENEWED.0, RENEWED.1);
        if let PendingWrite::Tokens(claim) = self.sessions[session].pending
            && let Some(lease) = self.held(claim).filter(|lease| lease.until == Some(Moment::NEVER))
        {
            lease.until = Some(until);
        }
    }

    /// The epochs of which the store may hold a record.
    fn epochs_in_store(&self, session: SessionIndex) -> Vec<u32> {
        let it = &self.sessions[session];
        match &it.pending {
            PendingWrite::Nothing => it.version.map(|_| it.epoch).into_iter().collect(),
            PendingWrite::Tokens(_) => vec![it.epoch],
            PendingWrite::SignIn(replaced) => replaced.iter().copied().chain([it.epoch]).collect(),
            PendingWrite::SignOut(of) => of.clone(),
        }
    }

    /// Does the pending write. Returns `false` if it fails.
    fn sync(&mut self, session: SessionIndex) -> bool {
        let Session { epoch, tokens, .. } = self.sessions[session];
        match self.sessions[session].pending.clone() {
            PendingWrite::Nothing => return true,
            PendingWrite::Tokens(claim) => {
                let fault = self.fault(session, Call::Commit);
                let current = self.store.record.filter(|it| it.version == claim.version);
                match (fault, current) {
                    (Some(fault), _) => {
                        if fault == Fault::FailLate && current.is_some() {
                            self.write(session, epoch, tokens);
                        }
                        if !matches!(self.fault(session, Call::Renew), Some(Fault::Fail)) {
                            self.renew(claim, Moment::NEVER);
                        }
                        return false;
                    }
                    (None, Some(_)) => self.sessions[session].version = Some(self.write(session, epoch, tokens)),
                    (None, None) => return self.adopt_conflicting_write(session, epoch, tokens),
                }
            }
            PendingWrite::SignIn(_) | PendingWrite::SignOut(_) if self.fault(session, Call::Load).is_some() => {
                return false;
            }
            PendingWrite::SignIn(_) => match self.store.record {
                Some(record) if record.epoch == epoch => return self.adopt_conflicting_write(session, epoch, tokens),
                Some(record)
                    if self.sessions[session]
                        .written_over
                        .is_some_and(|(of, replaced)| of == epoch && replaced != Some(record.epoch)) =>
                {
                    self.adopt_record(session, epoch, record);
                    return true;
                }
                found => {
                    self.sessions[session].written_over = Some((epoch, found.map(|it| it.epoch)));
                    let fault = self.fault(session, Call::Replace);
                    if fault == Some(Fault::Fail) {
                        return false;
                    }
                    self.sessions[session].version = Some(self.write(session, epoch, tokens));
                    self.set_pending(session, PendingWrite::Nothing);
                    return fault.is_none();
                }
            },
            PendingWrite::SignOut(of) => {
                let fault = self.fault(session, Call::Clear);
                if let Some(record) = self.store.record.filter(|it| of.contains(&it.epoch)) {
                    // A sign-out revokes what it deletes; the end of a session doesn't.
                    if self.sessions[session].ended.is_none() {
                        self.revoke_once(session, record.tokens);
                    }
                    if fault == Some(Fault::Fail) {
                        return false;
                    }
                    (self.store.record, self.store.lease) = (None, None);
                    self.store_changed();
                    self.set_pending(session, PendingWrite::Nothing);
                    return fault.is_none();
                }
            }
        }
        self.set_pending(session, PendingWrite::Nothing);
        true
    }

    /// Resolves a conflict in favour of the stored record, and revokes `ours` if it is of another epoch.
    fn adopt_conflicting_write(&mut self, session: SessionIndex, epoch: u32, same_epoch: Pair) -> bool {
        let found = self.store.record;
        if found.is_none_or(|record| record.epoch != epoch) {
            self.revoke_once(session, same_epoch);
        }
        if let Some(record) = found {
            self.adopt_record(session, epoch, record);
        } else if self.sessions[session].epoch == epoch {
            self.end_epoch(session);
        }
        true
    }

    fn adopt_record(&mut self, session: SessionIndex, epoch: u32, record: Record) {
        if self.sessions[session].epoch != epoch {
            return;
        }
        self.set_pending(session, PendingWrite::Nothing);
        if record.epoch != epoch {
            self.begin_epoch(session, record.epoch, record.tokens);
        } else if record.tokens != self.sessions[session].tokens {
            self.apply_tokens(session, record.tokens);
        }
        self.sessions[session].version = Some(record.version);
    }

    fn clear_faults(&mut self, session: SessionIndex) {
        self.sessions[session].faults.clear();
        if !matches!(self.sessions[session].pending, PendingWrite::Nothing) {
            self.busy_until = self.now + WRITTEN_BY;
            // The order of this write and the other timers isn't known.
            let due = self.flights.iter().any(|it| it.due().lo <= self.busy_until);
            self.undetermined.set(self.is_undetermined() || due);
            self.at = Moment { lo: self.now, hi: self.busy_until };
            self.sync(session);
        }
    }

    /// Returns whether the current moment is before `then`.
    fn before(&self, then: Moment) -> bool {
        self.undetermined.set(self.is_undetermined() || self.at.hi >= then.lo && self.at.lo < then.hi);
        self.at.hi < then.lo
    }
}

impl Session {
    fn drop_empty_row(&mut self) {
        self.row.take_if(|row| row.accounts.is_empty());
    }
}

impl Row {
    /// Starts the pause, from the sixth wasted refresh on.
    fn pause(&mut self, at: Moment) {
        let pause = self.wasted.checked_sub(6).map(|excess| (1_000 << excess.min(10)).min(60_000_u64));
        self.until = pause.map(|pause| at.plus(pause, pause + pause / 4));
    }
}

impl Caller {
    /// All paths are the same.
    fn endpoint(&self) -> By {
        match self.kind {
            Some(RequestKind::Get) => By::Get,
            Some(_) => By::Post,
            None => By::Unsent,
        }
    }
}

impl Flight {
    fn due(&self) -> Moment {
        match self.stage {
            Stage::Started | Stage::Over => Moment::NEVER,
            Stage::SavingFirst(then) | Stage::Queueing(then) | Stage::Pausing(then) | Stage::Committing(then, _) => {
                then
            }
            Stage::ClaimHangs | Stage::Called => self.deadline,
        }
    }
}
