//! The reference model: two sessions on one store, one thing after another, in whole milliseconds.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::script::{Answer, Call, Fault, Kind, Line, Pair, Request, Seen, What, Who, Why, issued_to, signed_in_with};

const REFRESH_TIMEOUT: u64 = 30_000;
const SAVE_TIMEOUT: u64 = 5_000;
/// How long a claim outlasts the refresh that it is for.
const LEASE_MARGIN: u64 = 10_000;
/// A claim of tokens that can't be saved is renewed this far, at least once in the time that is taken off.
const RENEWED: (u64, u64) = (264_000, 330_000);
/// How long a claim holds once its refresh token was rejected.
const END_LEASE: u64 = 15_000;
/// By then, what could not be written is written once the store is well.
const WRITTEN_BY: u64 = 66_000;
const CLAIM_POLL: u64 = 201;
const PROBATION: u64 = 60_000;

/// A moment, known to lie between two: jitter is what is not known of it.
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
struct Mark {
    id: u32,
    /// `None`: it was given back in doubt.
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
    mark: Option<Mark>,
}

/// What a session has not been able to write.
#[derive(Clone, Default)]
enum Owed {
    #[default]
    Nothing,
    Tokens(Claim),
    /// A sign-in, over records of these epochs.
    SignIn(Vec<u32>),
    /// A sign-out from these epochs.
    SignOut(Vec<u32>),
}

#[derive(Default)]
struct Session {
    /// What one signed-in stretch knows; forgotten with it.
    active: bool,
    epoch: u32,
    tokens: Pair,
    version: Option<u32>,
    /// The stretch that the authorization server ended.
    ended: Option<u32>,
    rejected: bool,
    in_doubt: bool,
    failures: u32,
    strikes: u32,
    struck: u32,
    issued: Option<Moment>,
    cooling: Option<(Moment, Why)>,
    owed: Owed,
    /// What outlives it.
    generation: u32,
    proven: u32,
    refused: u32,
    written_over: Option<(u32, Option<u32>)>,
    bought: u32,
    next: VecDeque<Answer>,
    faults: BTreeMap<Call, Fault>,
}

struct Flight {
    who: Who,
    epoch: u32,
    generation: u32,
    /// What it is to replace, and what it presents: the same, unless a peer has stored better.
    base: Pair,
    tokens: Pair,
    version: Option<u32>,
    claim: Option<Claim>,
    /// Whether the base, or the claim, was in doubt; whether this flight is.
    doubted: bool,
    in_doubt: bool,
    attempts: u32,
    deadline: Moment,
    /// The line in which it began.
    line: usize,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Begun,
    SavingFirst(Moment),
    Queueing(Moment),
    ClaimHangs,
    Called,
    Pausing(Moment),
    Committing(Moment, Pair),
    Over,
}

/// Whether somebody may be before a write outside of a flight, and make it.
#[derive(Clone, Copy, PartialEq)]
enum Turn {
    First,
    Unknown,
}

/// A request, or a refresh by hand.
struct Caller {
    who: Who,
    what: Option<What>,
    epoch: u32,
    generation: u32,
    slow: bool,
    place: Place,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Unsent(usize),
    AtApi { attempt: Attempt, good: bool },
    Challenged(usize),
    Waiting(usize),
    Gone,
}

#[derive(Clone, Copy, PartialEq)]
enum Attempt {
    Bare,
    First,
    Replay,
}

enum Demand {
    Newer,
    Join(usize),
    Start,
    No(Why),
}

/// What comes next, in its order, while no time goes by.
enum Todo {
    ApiAnswers(usize),
    /// For the sake of others.
    Refresh(usize),
    Fly(usize),
    Answer(usize, Answer),
}

pub(crate) struct Model {
    rotates: bool,
    now: u64,
    /// When what happens now happens.
    at: Moment,
    /// Not before this may the next line be carried out.
    busy_until: u64,
    unsure: Cell<bool>,
    refuses_all: bool,
    expired: BTreeSet<u32>,
    last_epoch: u32,
    line: usize,
    store: Store,
    sessions: [Session; 2],
    flights: Vec<Flight>,
    callers: Vec<Caller>,
    todo: VecDeque<Todo>,
    seen: Seen,
}

impl Moment {
    const NEVER: Self = Self { lo: u64::MAX, hi: u64::MAX };

    fn of(at: u64) -> Self {
        Self { lo: at, hi: at }
    }

    fn plus(self, lo: u64, hi: u64) -> Self {
        let (lo, hi) = (self.lo + lo, self.hi + hi);
        // Timers go by whole milliseconds.
        Self { lo, hi: if lo == hi { hi } else { hi + 1 } }
    }

    fn max(self, other: (u64, u64)) -> Self {
        Self { lo: self.lo.max(other.0), hi: self.hi.max(other.1) }
    }
}

impl Model {
    /// Both sessions hold what the first was built with.
    pub(crate) fn new(rotates: bool) -> Self {
        let tokens = Pair { access: Some(1), refresh: Some(1) };
        let session =
            || Session { active: true, epoch: 1, generation: 1, tokens, version: Some(1), ..Session::default() };
        Self {
            rotates,
            now: 0,
            at: Moment::of(0),
            busy_until: 0,
            unsure: Cell::new(false),
            refuses_all: false,
            expired: BTreeSet::new(),
            last_epoch: 1,
            line: 0,
            store: Store { last: 1, record: Some(Record { version: 1, epoch: 1, tokens }), mark: None },
            sessions: [session(), session()],
            flights: Vec::new(),
            callers: Vec::new(),
            todo: VecDeque::new(),
            seen: Seen::default(),
        }
    }

    // A script's lines.

    pub(crate) fn line(&mut self, number: usize, line: &Line) {
        self.at = Moment::of(self.now);
        self.line = number;
        match *line {
            Line::Send { who, what, times, slow } => {
                for _ in 0..times {
                    let id = self.caller(who, Some(what), slow);
                    self.depart(id);
                }
            }
            Line::ApiAnswers => {
                let waiting = |id: &usize| matches!(self.callers[*id].place, Place::AtApi { .. });
                let waiting = (0..self.callers.len()).filter(waiting).map(Todo::ApiAnswers).collect::<Vec<_>>();
                self.todo.extend(waiting);
            }
            Line::CallerGoes => {
                if let Some(id) = self.callers.iter().position(|caller| caller.place != Place::Gone) {
                    self.end(id, "gone".to_owned());
                }
            }
            Line::Expire { who } => self.expired.extend(self.sessions[who].tokens.access),
            Line::ApiRefusesAll(all) => self.refuses_all = all,
            Line::Next { who, answer } => self.sessions[who].next.push_back(answer),
            Line::Answers { who, answer } => {
                let called = self.flights.iter().position(|it| it.who == who && it.stage == Stage::Called);
                self.todo.extend(called.filter(|_| answer != Answer::Nothing).map(|f| Todo::Answer(f, answer)));
            }
            Line::SignIn { who, with } => {
                let id = self.caller(who, None, false);
                let turn = self.wait_for_the_last_write(who);
                let over = self.leftovers(who);
                let epoch = self.new_epoch();
                self.begin(who, epoch, with.pair(signed_in_with(number)));
                self.owe(who, Owed::SignIn(over));
                let written = self.write_in_turn(who, turn);
                self.end(id, format!("signed in, written: {written}"));
            }
            Line::SignOut { who } => {
                let id = self.caller(who, None, false);
                let turn = self.wait_for_the_last_write(who);
                let (of, tokens) = (self.leftovers(who), self.sessions[who].tokens);
                self.over(who);
                self.owe(who, if of.is_empty() { Owed::Nothing } else { Owed::SignOut(of) });
                let written = self.write_in_turn(who, turn);
                self.revoke(tokens);
                self.end(id, format!("signed out, written: {written}"));
            }
            Line::RefreshByHand { who } => self.refresh_by_hand(who),
            Line::Wait(time) => self.run_until(self.now + time),
            Line::Break { who, call, fault } => {
                self.sessions[who].faults.entry(call).or_insert(fault);
                match call {
                    // One that only seems to fail renews.
                    Call::Renew if self.fault(who, Call::Renew) == Some(Fault::Fail) => self.no_longer_renewed(who),
                    Call::Claim => self.store_changed(),
                    _ => {}
                }
            }
            Line::Heal { who } => self.heal(who),
        }
        self.settle();
    }

    /// Carries on to `now`, and says until when to wait.
    pub(crate) fn wait_until(&mut self, now: u64) -> u64 {
        self.run_until(now.max(self.busy_until));
        loop {
            let timers = self.flights.iter().map(Flight::due);
            let pauses = self.sessions.iter().filter_map(|it| it.cooling.map(|(until, _)| until));
            let Some(open) = timers.chain(pauses).find(|it| it.lo <= self.now && self.now < it.hi) else {
                return self.now;
            };
            self.run_until(open.hi);
        }
    }

    /// Whether jitter has left open more than can be waited for.
    pub(crate) fn is_unsure(&self) -> bool {
        self.unsure.get()
    }

    pub(crate) fn seen(&mut self) -> &Seen {
        let describe = |who: Who| {
            let it = &self.sessions[who];
            let state = match (it.active, it.ended, self.up(who)) {
                (true, _, None) => "Active",
                (true, _, Some(_)) => "Refreshing",
                (false, Some(_), _) => "Ended",
                (false, None, _) => "SignedOut",
            };
            format!("{state}, {}: {:?}", it.generation, it.tokens)
        };
        self.seen.sessions = [0, 1].map(describe).into();
        self.seen.stored = self.store.record.map(|record| record.tokens);
        self.seen.revoked.sort();
        &self.seen
    }

    /// What is due by then happens, each when it is due.
    fn run_until(&mut self, then: u64) {
        loop {
            let next = (0..self.flights.len()).min_by_key(|f| self.flights[*f].due().hi);
            let Some(f) = next.filter(|f| self.flights[*f].due().hi <= then) else { break };
            self.at = self.flights[f].due();
            // Which of two sessions is first at the store is not to be known where jitter decides.
            let (at, who) = (self.at, self.flights[f].who);
            let clashes = |it: &Flight| it.who != who && it.due().lo <= at.hi && (at.lo < at.hi || it.due().lo < at.lo);
            self.unsure.set(self.is_unsure() || self.flights.iter().any(clashes));
            match self.flights[f].stage {
                Stage::Begun | Stage::Over => unreachable!("it waits for nothing"),
                Stage::Queueing(look) if look.hi < self.flights[f].deadline.lo => self.claim(f),
                Stage::SavingFirst(_) | Stage::Queueing(_) | Stage::ClaimHangs => self.fail(f, Kind::Unavailable, 0),
                Stage::Called => {
                    self.flights[f].in_doubt = true;
                    self.fail(f, Kind::InDoubt, 0);
                }
                Stage::Pausing(_) => self.call(f),
                Stage::Committing(_, bought) => self.publish(f, bought, None),
            }
            self.settle();
        }
        self.now = self.now.max(then);
        self.at = Moment::of(self.now);
    }

    /// The authorization server is the slowest.
    fn settle(&mut self) {
        loop {
            let quick = self.todo.iter().position(|todo| !matches!(todo, Todo::Answer(..)));
            let Some(next) = self.todo.remove(quick.unwrap_or(0)) else { return };
            match next {
                Todo::ApiAnswers(id) => self.api_answers(id),
                Todo::Refresh(id) => _ = self.challenged(id),
                Todo::Fly(f) => self.fly(f),
                Todo::Answer(f, answer) => self.answer(f, answer),
            }
        }
    }

    /// A write outside of a flight waits for the one that hangs: that of a flight, or of who retries. Where both are at
    /// it, the one that doesn't hang waits too, and is next.
    fn wait_for_the_last_write(&mut self, who: Who) -> Turn {
        if matches!(self.sessions[who].owed, Owed::Tokens(_)) && self.fault(who, Call::Commit) == Some(Fault::Hang) {
            self.at.hi = self.at.lo + SAVE_TIMEOUT;
            let waits = |it: &Flight| it.who == who && matches!(it.stage, Stage::SavingFirst(_));
            if self.flights.iter().any(waits) {
                return Turn::Unknown;
            }
        }
        Turn::First
    }

    /// Whoever comes to write, writes what is owed then.
    fn write_in_turn(&mut self, who: Who, turn: Turn) -> bool {
        let written = self.sync(who);
        if turn == Turn::Unknown && self.sync(who) != written {
            self.unsure.set(true);
        }
        written
    }

    // A request.

    fn caller(&mut self, who: Who, what: Option<What>, slow: bool) -> usize {
        let Session { epoch, generation, .. } = self.sessions[who];
        self.callers.push(Caller { who, what, epoch, generation, slow, place: Place::Gone });
        self.seen.requests.push(Request::default());
        self.callers.len() - 1
    }

    fn end(&mut self, id: usize, end: String) {
        self.callers[id].place = Place::Gone;
        self.seen.requests[id].end = Some(end);
    }

    /// It goes out, unless it is known that that is no use.
    fn depart(&mut self, id: usize) {
        let who = self.callers[id].who;
        let it = &self.sessions[who];
        let hopeless = it.tokens.access.is_none() || it.rejected && self.up(who).is_some();
        if it.active
            && hopeless
            && let Some(f) = self.board(id, false).1
        {
            self.callers[id].place = Place::Unsent(f);
            return;
        }
        self.send(id);
    }

    fn send(&mut self, id: usize) {
        let it = &self.sessions[self.callers[id].who];
        let ours = it.epoch == self.callers[id].epoch;
        let token = it.tokens.access.filter(|_| ours);
        if ours {
            self.callers[id].generation = it.generation;
        }
        self.reach(id, token, if token.is_some() { Attempt::First } else { Attempt::Bare });
    }

    fn replay(&mut self, id: usize) {
        let it = &self.sessions[self.callers[id].who];
        let token = it.tokens.access;
        self.callers[id].generation = it.generation;
        self.callers[id].slow = false;
        self.reach(id, token, Attempt::Replay);
    }

    fn reach(&mut self, id: usize, token: Option<u32>, attempt: Attempt) {
        let good = token.is_some_and(|token| !self.refuses_all && !self.expired.contains(&token));
        let token = token.map_or_else(|| "bare".to_owned(), |token| format!("a{token}"));
        self.seen.requests[id].attempts.push(format!("{token}: {}", if good { 200 } else { 401 }));
        self.callers[id].place = Place::AtApi { attempt, good };
        if !self.callers[id].slow {
            self.todo.push_back(Todo::ApiAnswers(id));
        }
    }

    fn api_answers(&mut self, id: usize) {
        let Caller { who, what, epoch, generation, place, .. } = self.callers[id];
        let Place::AtApi { attempt, good } = place else { return };
        let it = &mut self.sessions[who];
        match (attempt, good) {
            (Attempt::Bare, _) => {
                let generation = it.generation;
                let end = match self.demand(who, epoch, generation, false) {
                    Demand::No(why) => format!("401 {why:?}"),
                    _ => "401".to_owned(),
                };
                self.end(id, end);
            }
            (Attempt::First, true) => {
                if what == Some(What::Upload) && it.refused < generation {
                    it.proven = it.proven.max(generation);
                }
                self.end(id, "200".to_owned());
            }
            (Attempt::First, false) if what == Some(What::Upload) => {
                self.end(id, "401 NotReplayable".to_owned());
                self.todo.push_back(Todo::Refresh(id));
            }
            (Attempt::First, false) => match self.challenged(id) {
                (_, Some(f)) => self.callers[id].place = Place::Challenged(f),
                (Demand::No(why), _) => self.end(id, format!("401 {why:?}")),
                _ => self.replay(id),
            },
            (Attempt::Replay, true) => {
                it.proven = it.proven.max(generation);
                self.end(id, "200 Replayed".to_owned());
            }
            (Attempt::Replay, false) => {
                it.refused = it.refused.max(generation);
                self.end(id, "401 ReplayRefused".to_owned());
            }
        }
    }

    /// Its token was refused: newer ones are wanted.
    fn challenged(&mut self, id: usize) -> (Demand, Option<usize>) {
        let Caller { who, epoch, generation, .. } = self.callers[id];
        let it = &mut self.sessions[who];
        if it.epoch == epoch && it.generation == generation {
            if it.proven > it.struck {
                it.strikes = 0;
            }
            if let (false, Some(issued)) = (std::mem::replace(&mut it.rejected, true), it.issued) {
                let fresh = self.before(issued.plus(PROBATION, PROBATION));
                let it = &self.sessions[who];
                if it.proven < generation && (fresh || it.refused >= generation) {
                    self.strike(who);
                }
            }
        }
        self.board(id, false)
    }

    fn refresh_by_hand(&mut self, who: Who) {
        let id = self.caller(who, None, false);
        match self.board(id, true) {
            (_, Some(f)) => self.callers[id].place = Place::Waiting(f),
            (Demand::No(why), _) => self.end(id, format!("{why:?}")),
            _ => unreachable!("nothing is newer than what is in force"),
        }
    }

    /// A flight that it waited for has landed, or its stretch is over.
    fn wake(&mut self, id: usize, outcome: Result<(), Why>) {
        let Caller { who, epoch, place, .. } = self.callers[id];
        let it = &self.sessions[who];
        let outcome = match outcome {
            _ if it.epoch != epoch && it.ended == Some(epoch) => Err(Why::Ended),
            _ if it.epoch != epoch => Err(Why::SessionChanged),
            outcome => outcome,
        };
        match (place, outcome) {
            (Place::Unsent(_), _) => self.send(id),
            (Place::Challenged(_), Ok(())) => self.replay(id),
            (Place::Challenged(_), Err(why)) => self.end(id, format!("401 {why:?}")),
            (_, Ok(())) => self.end(id, "refreshed".to_owned()),
            (_, Err(why)) => self.end(id, format!("{why:?}")),
        }
    }

    // A session.

    fn up(&self, who: Who) -> Option<usize> {
        let epoch = self.sessions[who].epoch;
        self.flights.iter().position(|it| it.who == who && it.epoch == epoch && it.stage != Stage::Over)
    }

    /// What may be done for somebody who wants newer tokens than those of `generation`.
    fn demand(&self, who: Who, epoch: u32, generation: u32, by_hand: bool) -> Demand {
        let it = &self.sessions[who];
        match it.cooling {
            _ if it.ended.is_some_and(|of| epoch == of || epoch == it.epoch) => Demand::No(Why::Ended),
            _ if it.epoch != epoch => Demand::No(Why::SessionChanged),
            _ if !it.active => Demand::No(Why::SignedOut),
            _ if generation < it.generation && (!it.rejected || by_hand) => Demand::Newer,
            _ if self.up(who).is_some() => Demand::Join(self.up(who).unwrap()),
            _ if it.tokens.refresh.is_none() => Demand::No(Why::NoRefreshToken),
            Some((until, why)) if !by_hand && self.before(until) => Demand::No(why),
            _ => Demand::Start,
        }
    }

    /// What may be done, and the flight to wait for, which is started where there is none.
    fn board(&mut self, id: usize, by_hand: bool) -> (Demand, Option<usize>) {
        let Caller { who, epoch, generation, .. } = self.callers[id];
        let demand = self.demand(who, epoch, generation, by_hand);
        let flight = match demand {
            Demand::Join(f) => Some(f),
            Demand::Start => Some(self.start(who)),
            _ => None,
        };
        (demand, flight)
    }

    /// New tokens come into force, of the same stretch.
    fn take(&mut self, who: Who, tokens: Pair) {
        let it = &mut self.sessions[who];
        let same = tokens.access == it.tokens.access;
        (it.tokens, it.in_doubt, it.failures, it.cooling) = (tokens, false, 0, None);
        if !same {
            it.generation += 1;
            (it.rejected, it.issued) = (false, Some(self.at));
        } else if it.rejected {
            self.strike(who);
        }
    }

    fn strike(&mut self, who: Who) {
        let at = self.at;
        let it = &mut self.sessions[who];
        it.strikes += 1;
        it.struck = it.generation;
        if let Some((lo, hi)) = it.loop_pause() {
            it.cooling = Some((at.plus(lo, hi), Why::Looping));
        }
    }

    /// Another stretch, without tokens.
    fn over(&mut self, who: Who) {
        let epoch = self.new_epoch();
        self.reset(who, epoch);
        self.give_up(who);
    }

    /// Another stretch, with tokens.
    fn begin(&mut self, who: Who, epoch: u32, tokens: Pair) {
        self.reset(who, epoch);
        let it = &mut self.sessions[who];
        (it.active, it.tokens) = (true, tokens);
        it.generation += 1;
        self.give_up(who);
    }

    fn reset(&mut self, who: Who, epoch: u32) {
        self.no_longer_renewed(who);
        let old = std::mem::take(&mut self.sessions[who]);
        let Session { generation, proven, refused, written_over, bought, next, faults, .. } = old;
        self.sessions[who] =
            Session { epoch, generation, proven, refused, written_over, bought, next, faults, ..Session::default() };
    }

    /// Nobody is kept waiting for what another stretch began.
    fn give_up(&mut self, who: Who) {
        for id in 0..self.callers.len() {
            let waits = matches!(self.callers[id].place, Place::Unsent(_) | Place::Challenged(_) | Place::Waiting(_));
            if waits && self.callers[id].who == who {
                self.wake(id, Ok(()));
            }
        }
    }

    fn new_epoch(&mut self) -> u32 {
        self.last_epoch += 1;
        self.last_epoch
    }

    fn revoke(&mut self, tokens: Pair) {
        self.seen.revoked.extend(Some(tokens).filter(|it| *it != Pair::default()));
    }

    // A flight: claim, call, save, publish.

    fn start(&mut self, who: Who) -> usize {
        let deadline = self.at.plus(REFRESH_TIMEOUT, REFRESH_TIMEOUT);
        // Of two sessions that begin at one moment, either may be first at the store.
        let side_by_side = |it: &Flight| it.who != who && it.line == self.line && it.deadline == deadline;
        self.unsure.set(self.is_unsure() || self.flights.iter().any(side_by_side));
        let it = &mut self.sessions[who];
        it.cooling = None;
        self.flights.push(Flight {
            who,
            epoch: it.epoch,
            generation: it.generation,
            base: it.tokens,
            tokens: it.tokens,
            version: it.version,
            claim: None,
            doubted: it.in_doubt,
            in_doubt: false,
            attempts: 0,
            deadline,
            line: self.line,
            stage: Stage::Begun,
        });
        self.todo.push_back(Todo::Fly(self.flights.len() - 1));
        self.flights.len() - 1
    }

    /// What the store lacks comes first.
    fn fly(&mut self, f: usize) {
        let who = self.flights[f].who;
        match self.sessions[who].owed {
            Owed::Nothing => return self.claim(f),
            Owed::Tokens(_) if self.fault(who, Call::Commit) == Some(Fault::Hang) => {
                self.flights[f].stage = Stage::SavingFirst(self.at.plus(SAVE_TIMEOUT, 2 * SAVE_TIMEOUT));
                return;
            }
            _ => {}
        }
        if !self.sync(who) {
            return self.fail(f, Kind::Unavailable, 0);
        }
        let (it, flight) = (&self.sessions[who], &mut self.flights[f]);
        if (it.epoch, it.generation) != (flight.epoch, flight.generation) {
            return self.land(f, Ok(()));
        }
        (flight.base, flight.tokens, flight.version) = (it.tokens, it.tokens, it.version);
        self.claim(f);
    }

    fn claim(&mut self, f: usize) {
        let Flight { who, epoch, base, version, deadline, .. } = self.flights[f];
        let fault = self.fault(who, Call::Claim);
        match (fault, self.store.record) {
            (Some(Fault::Fail), _) => self.fail(f, Kind::Unavailable, 0),
            (Some(Fault::Hang), _) => self.flights[f].stage = Stage::ClaimHangs,
            (Some(Fault::FailLate), record) => {
                if record.is_some_and(|it| Some(it.version) == version) && !self.is_claimed() {
                    self.mark(deadline);
                }
                self.fail(f, Kind::Unavailable, 0);
            }
            // A peer has signed out.
            (None, None) => self.vanish(f),
            (None, Some(record)) if Some(record.version) != version => {
                if record.epoch != epoch || record.tokens.access != base.access {
                    self.adopt(f, record);
                } else {
                    (self.flights[f].version, self.flights[f].tokens) = (Some(record.version), record.tokens);
                    self.claim(f);
                }
            }
            (None, Some(_)) if self.is_claimed() => {
                let until = self.store.mark.and_then(|it| it.until).unwrap();
                let look = if until.lo >= deadline.hi { deadline } else { until.plus(0, 10) };
                self.unsure.set(self.is_unsure() || until.lo < deadline.hi && look.hi >= deadline.lo);
                let early = if look == deadline { CLAIM_POLL } else { 0 };
                self.flights[f].stage = Stage::Queueing(Moment { lo: look.lo - early, ..look });
            }
            (None, Some(record)) => {
                let mark = self.mark(deadline);
                let flight = &mut self.flights[f];
                flight.claim = Some(Claim { version: record.version, id: mark.id });
                flight.doubted = mark.in_doubt || flight.doubted && flight.tokens.refresh == base.refresh;
                self.call(f);
            }
        }
    }

    fn call(&mut self, f: usize) {
        let flight = &mut self.flights[f];
        let it = &mut self.sessions[flight.who];
        flight.attempts += 1;
        if it.epoch != flight.epoch {
            return self.again(f, Kind::Unavailable, 0);
        }
        let doubt = if flight.doubted || flight.in_doubt { " in doubt" } else { "" };
        self.seen.presented[flight.who].push(format!("{}: {:?}{doubt}", flight.generation, flight.tokens));
        flight.stage = Stage::Called;
        match it.next.pop_front().unwrap_or(Answer::Tokens) {
            Answer::Nothing => {}
            answer => self.todo.push_back(Todo::Answer(f, answer)),
        }
    }

    fn answer(&mut self, f: usize, answer: Answer) {
        match answer {
            Answer::Tokens | Answer::WithoutRefreshToken | Answer::SameAccessToken => {
                let Flight { who, tokens: old, .. } = self.flights[f];
                let it = &mut self.sessions[who];
                it.bought += 1;
                let new = Some(issued_to(who, it.bought));
                let access = if answer == Answer::SameAccessToken { old.access.or(new) } else { new };
                let refresh = if answer == Answer::WithoutRefreshToken { old.refresh } else { new };
                self.save(f, Pair { access, refresh });
            }
            Answer::Rejected => self.rejected(f),
            Answer::Misconfigured => self.fail(f, Kind::Misconfigured, 0),
            Answer::Unavailable => self.again(f, Kind::Unavailable, 0),
            Answer::UnavailableFor(seconds) => self.again(f, Kind::Unavailable, 1_000 * seconds.min(300)),
            Answer::InDoubt => {
                self.flights[f].in_doubt = true;
                self.again(f, Kind::InDoubt, 0);
            }
            Answer::Nothing => {}
        }
    }

    /// Another attempt, where that is allowed and there is time.
    fn again(&mut self, f: usize, kind: Kind, patience: u64) {
        let flight = &mut self.flights[f];
        let next = self.at.plus(patience, patience.max(200 << (flight.attempts - 1)));
        let allowed = flight.attempts < 3 && !(flight.in_doubt && self.rotates);
        if !allowed || next.lo >= flight.deadline.hi {
            self.fail(f, kind, patience);
        } else {
            self.unsure.set(self.unsure.get() || next.hi >= flight.deadline.lo);
            flight.stage = Stage::Pausing(next);
        }
    }

    /// The authorization server's own word, unless the store knows better, or nothing.
    fn rejected(&mut self, f: usize) {
        let Flight { who, epoch, claim, .. } = self.flights[f];
        let renews = self.fault(who, Call::Renew) != Some(Fault::Fail);
        let until = self.at.plus(END_LEASE, END_LEASE);
        let held = renews && self.renew(claim.unwrap(), until);
        if held {
            self.claim_ends(until);
        }
        if self.fault(who, Call::Renew).is_some() || self.fault(who, Call::Load).is_some() {
            return self.fail(f, Kind::Unavailable, 0);
        }
        match self.store.record {
            None => self.vanish(f),
            Some(record) if record.version != claim.unwrap().version => self.adopt(f, record),
            Some(_) if !held => self.fail(f, Kind::Unavailable, 0),
            Some(_) => {
                if self.sessions[who].epoch == epoch {
                    self.reset(who, epoch);
                    self.sessions[who].ended = Some(epoch);
                    self.sessions[who].epoch = self.new_epoch();
                    self.owe(who, Owed::SignOut(vec![epoch]));
                    self.sync(who);
                    self.give_up(who);
                }
                self.land(f, Err(Why::Ended));
            }
        }
    }

    fn save(&mut self, f: usize, bought: Pair) {
        let Flight { who, epoch, claim, .. } = self.flights[f];
        let current = self.store.record.filter(|it| it.version == claim.unwrap().version);
        match (self.fault(who, Call::Commit), current) {
            _ if self.sessions[who].epoch != epoch => self.publish(f, bought, None),
            (Some(Fault::Hang), _) => {
                self.flights[f].stage = Stage::Committing(self.at.plus(SAVE_TIMEOUT, SAVE_TIMEOUT), bought);
            }
            (Some(Fault::Fail), _) | (Some(Fault::FailLate), None) => self.publish(f, bought, None),
            (Some(Fault::FailLate), Some(_)) => {
                self.write(who, epoch, bought);
                self.publish(f, bought, None);
            }
            (None, Some(_)) => {
                let version = self.write(who, epoch, bought);
                self.publish(f, bought, Some(version));
            }
            (None, None) => {
                self.yield_to(who, epoch, bought);
                self.land(f, Ok(()));
            }
        }
    }

    /// In force, whether it is stored or not; unless nobody wants it any more.
    fn publish(&mut self, f: usize, bought: Pair, version: Option<u32>) {
        let Flight { who, epoch, claim, .. } = self.flights[f];
        if self.sessions[who].epoch == epoch {
            self.take(who, bought);
            self.sessions[who].version = version;
            self.owe(who, if version.is_some() { Owed::Nothing } else { Owed::Tokens(claim.unwrap()) });
            self.sync(who);
        } else {
            self.revoke(bought);
        }
        self.land(f, Ok(()));
    }

    fn fail(&mut self, f: usize, kind: Kind, patience: u64) {
        let Flight { who, epoch, claim, in_doubt, .. } = self.flights[f];
        let release = self.fault(who, Call::Release) != Some(Fault::Fail);
        if let Some(mark) = claim.filter(|_| release).and_then(|claim| self.held(claim)) {
            mark.until = None;
            mark.in_doubt |= in_doubt;
            if !mark.in_doubt {
                self.store.mark = None;
            }
            self.store_changed();
        }
        let at = self.at;
        let it = &mut self.sessions[who];
        if it.epoch == epoch {
            it.in_doubt |= in_doubt;
            it.failures += 1;
            let full = (1_000 << (it.failures - 1).min(10)).min(60_000_u64);
            let pause =
                Moment { lo: full / 2, hi: full }.max((patience, patience)).max(it.loop_pause().unwrap_or_default());
            it.cooling = Some((at.plus(pause.lo, pause.hi), Why::CoolingDown(kind)));
        }
        self.land(f, Err(Why::Failed(kind)));
    }

    /// The store holds a peer's tokens.
    fn adopt(&mut self, f: usize, record: Record) {
        let Flight { who, epoch, .. } = self.flights[f];
        self.flights[f].stage = Stage::Over;
        self.take_over(who, epoch, record);
        self.land(f, Ok(()));
    }

    /// The store holds nothing any more.
    fn vanish(&mut self, f: usize) {
        let Flight { who, epoch, .. } = self.flights[f];
        if self.sessions[who].epoch == epoch {
            self.over(who);
        }
        self.land(f, Err(Why::SignedOut));
    }

    fn land(&mut self, f: usize, outcome: Result<(), Why>) {
        self.flights[f].stage = Stage::Over;
        let Flight { who, generation, .. } = self.flights[f];
        let brought = self.sessions[who].generation > generation;
        let outcome = outcome.and_then(|()| brought.then_some(()).ok_or(Why::SameToken));
        for id in 0..self.callers.len() {
            match self.callers[id].place {
                Place::Unsent(of) | Place::Challenged(of) | Place::Waiting(of) if of == f => self.wake(id, outcome),
                _ => {}
            }
        }
    }

    // The store.

    fn fault(&self, who: Who, call: Call) -> Option<Fault> {
        self.sessions[who].faults.get(&call).copied()
    }

    fn write(&mut self, who: Who, epoch: u32, tokens: Pair) -> u32 {
        let over = self.store.record.map(|it| it.epoch);
        let peer = &self.sessions[1 - who];
        // A peer that can read, but not write, sees that when it tries again: at a time that nobody knows.
        let concerned = match &peer.owed {
            Owed::SignIn(_) => true,
            Owed::SignOut(of) => !of.contains(&epoch),
            Owed::Nothing | Owed::Tokens(_) => false,
        };
        let sees = concerned && self.fault(1 - who, Call::Load).is_none();
        self.unsure.set(self.is_unsure() || sees && over != Some(epoch));
        self.store.last += 1;
        let version = self.store.last;
        (self.store.record, self.store.mark) = (Some(Record { version, epoch, tokens }), None);
        self.store_changed();
        version
    }

    fn is_claimed(&self) -> bool {
        self.store.mark.is_some_and(|mark| mark.until.is_some_and(|until| self.before(until)))
    }

    fn mark(&mut self, deadline: Moment) -> Mark {
        self.store.last += 1;
        let until = Some(deadline.plus(LEASE_MARGIN, LEASE_MARGIN));
        let mark = Mark { id: self.store.last, until, in_doubt: self.store.mark.is_some() };
        *self.store.mark.insert(mark)
    }

    fn held(&mut self, claim: Claim) -> Option<&mut Mark> {
        let current = self.store.record.is_some_and(|it| it.version == claim.version);
        self.store.mark.as_mut().filter(|mark| current && mark.id == claim.id)
    }

    fn renew(&mut self, claim: Claim, until: Moment) -> bool {
        match self.held(claim) {
            Some(mark) if mark.until.is_some() => {
                mark.until = Some(until);
                true
            }
            _ => false,
        }
    }

    /// Who waits for a claim hears in time that it ends sooner.
    fn claim_ends(&mut self, until: Moment) {
        let then = until.plus(0, 10);
        for flight in &mut self.flights {
            if let Stage::Queueing(look) = flight.stage
                && then.hi < look.hi
            {
                self.unsure.set(self.unsure.get() || then.hi >= flight.deadline.lo);
                flight.stage = Stage::Queueing(then);
            }
        }
    }

    /// Who waits for a claim looks again and again.
    fn store_changed(&mut self) {
        let soon = self.at.plus(0, CLAIM_POLL);
        for flight in &mut self.flights {
            if let Stage::Queueing(look) = flight.stage {
                // It may have looked for the last time before.
                let before = self.at.lo < self.at.hi && look.lo <= self.at.hi;
                self.unsure.set(self.unsure.get() || before || soon.hi >= flight.deadline.lo);
                flight.stage = Stage::Queueing(if soon.hi < look.hi { soon } else { look });
            }
        }
    }

    fn owe(&mut self, who: Who, owed: Owed) {
        self.no_longer_renewed(who);
        self.sessions[who].owed = owed;
    }

    fn no_longer_renewed(&mut self, who: Who) {
        let until = self.at.plus(RENEWED.0, RENEWED.1);
        if let Owed::Tokens(claim) = self.sessions[who].owed
            && let Some(mark) = self.held(claim).filter(|mark| mark.until == Some(Moment::NEVER))
        {
            mark.until = Some(until);
        }
    }

    /// The stretches of which the store may hold something.
    fn leftovers(&self, who: Who) -> Vec<u32> {
        let it = &self.sessions[who];
        match &it.owed {
            Owed::Nothing => it.version.map(|_| it.epoch).into_iter().collect(),
            Owed::Tokens(_) => vec![it.epoch],
            Owed::SignIn(over) => over.iter().copied().chain([it.epoch]).collect(),
            Owed::SignOut(of) => of.clone(),
        }
    }

    /// Writes what is owed. `false` if that fails.
    fn sync(&mut self, who: Who) -> bool {
        let Session { epoch, tokens, .. } = self.sessions[who];
        match self.sessions[who].owed.clone() {
            Owed::Nothing => return true,
            Owed::Tokens(claim) => {
                let fault = self.fault(who, Call::Commit);
                let current = self.store.record.filter(|it| it.version == claim.version);
                match (fault, current) {
                    (Some(fault), _) => {
                        if fault == Fault::FailLate && current.is_some() {
                            self.write(who, epoch, tokens);
                        }
                        if !matches!(self.fault(who, Call::Renew), Some(Fault::Fail)) {
                            self.renew(claim, Moment::NEVER);
                        }
                        return false;
                    }
                    (None, Some(_)) => self.sessions[who].version = Some(self.write(who, epoch, tokens)),
                    (None, None) => return self.yield_to(who, epoch, tokens),
                }
            }
            Owed::SignIn(_) | Owed::SignOut(_) if self.fault(who, Call::Load).is_some() => return false,
            Owed::SignIn(_) => match self.store.record {
                Some(record) if record.epoch == epoch => return self.yield_to(who, epoch, tokens),
                Some(record)
                    if self.sessions[who]
                        .written_over
                        .is_some_and(|(of, over)| of == epoch && over != Some(record.epoch)) =>
                {
                    self.take_over(who, epoch, record);
                    return true;
                }
                found => {
                    self.sessions[who].written_over = Some((epoch, found.map(|it| it.epoch)));
                    let fault = self.fault(who, Call::Replace);
                    if fault == Some(Fault::Fail) {
                        return false;
                    }
                    self.sessions[who].version = Some(self.write(who, epoch, tokens));
                    self.owe(who, Owed::Nothing);
                    return fault.is_none();
                }
            },
            Owed::SignOut(of) => {
                let fault = self.fault(who, Call::Clear);
                if self.store.record.is_some_and(|it| of.contains(&it.epoch)) {
                    if fault == Some(Fault::Fail) {
                        return false;
                    }
                    (self.store.record, self.store.mark) = (None, None);
                    self.store_changed();
                    self.owe(who, Owed::Nothing);
                    return fault.is_none();
                }
            }
        }
        self.owe(who, Owed::Nothing);
        true
    }

    /// What is stored counts, not `ours`.
    fn yield_to(&mut self, who: Who, epoch: u32, ours: Pair) -> bool {
        let found = self.store.record;
        if found.is_none_or(|record| record.epoch != epoch) {
            self.revoke(ours);
        }
        if let Some(record) = found {
            self.take_over(who, epoch, record);
        } else if self.sessions[who].epoch == epoch {
            self.over(who);
        }
        true
    }

    fn take_over(&mut self, who: Who, epoch: u32, record: Record) {
        if self.sessions[who].epoch != epoch {
            return;
        }
        self.owe(who, Owed::Nothing);
        if record.epoch != epoch {
            self.begin(who, record.epoch, record.tokens);
        } else if record.tokens != self.sessions[who].tokens {
            self.take(who, record.tokens);
        }
        self.sessions[who].version = Some(record.version);
    }

    fn heal(&mut self, who: Who) {
        self.sessions[who].faults.clear();
        if !matches!(self.sessions[who].owed, Owed::Nothing) {
            self.busy_until = self.now + WRITTEN_BY;
            // Whether that is before or after what else is due is not to be known.
            let due = self.flights.iter().any(|it| it.due().lo <= self.busy_until);
            self.unsure.set(self.is_unsure() || due);
            self.at = Moment { lo: self.now, hi: self.busy_until };
            self.sync(who);
        }
    }

    /// Whether it is before `then`.
    fn before(&self, then: Moment) -> bool {
        self.unsure.set(self.is_unsure() || self.at.hi >= then.lo && self.at.lo < then.hi);
        self.at.hi < then.lo
    }
}

impl Session {
    /// From the sixth strike on.
    fn loop_pause(&self) -> Option<(u64, u64)> {
        let over = self.strikes.checked_sub(6)?;
        let pause = (1_000 << over.min(10)).min(60_000_u64);
        Some((pause, pause + pause / 4))
    }
}

impl Flight {
    fn due(&self) -> Moment {
        match self.stage {
            Stage::Begun | Stage::Over => Moment::NEVER,
            Stage::SavingFirst(then) | Stage::Queueing(then) | Stage::Pausing(then) | Stage::Committing(then, _) => {
                then
            }
            Stage::ClaimHangs | Stage::Called => self.deadline,
        }
    }
}
