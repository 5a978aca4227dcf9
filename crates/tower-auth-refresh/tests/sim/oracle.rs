//! The oracle: records the events of a simulation and reports violations.
//!
//! It sees client, server and store at once, so it knows which answers were lost.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use http::Method;
use tokio::task;
use tower_auth_refresh::{RefreshErrorKind, Rotation, SessionState, Tokens};

use crate::servers::Token;
use crate::store::{access_token, refresh_token};

/// The shortest cool-down after a failed refresh.
const SHORTEST_COOL_DOWN: Duration = Duration::from_millis(500);

/// The wall-clock time between the issue of tokens and their coming into force, at most.
const WALL_CLOCK_TOLERANCE: Duration = Duration::from_millis(250);

#[derive(Default)]
pub struct Oracle {
    pub trace: Vec<String>,
    pub violations: Vec<Violation>,
    /// Event counters, by which a run shows that it covered something.
    pub counts: BTreeMap<&'static str, u64>,
    /// For each incarnation of a process: `true` while it is running.
    incarnations: Vec<bool>,
    calls: Vec<CallRecord>,
    requests: Vec<RequestRecord>,
    /// The access tokens that an API has refused.
    refused: HashSet<Token>,
    /// The newest refresh token that was stored, by sign-in.
    stored: HashMap<usize, usize>,
    /// When it was stored.
    stored_at: HashMap<usize, Duration>,
    /// The access tokens that were stored.
    stored_access: HashSet<Token>,
    /// The access tokens whose commit fails or hangs.
    not_saved: HashSet<Token>,
    /// The last failover of the store, by sign-in.
    failed_over: HashMap<usize, Duration>,
    /// The sign-ins whose generations no longer have the order of the server's tokens: after a failover, a process has
    /// presented a token that another one had presented before.
    forked: HashSet<usize>,
    /// The last claim, by incarnation and user.
    claimed: HashMap<(usize, usize), Duration>,
    /// The newest refresh token that a process has received, by incarnation and sign-in.
    received: HashMap<(usize, usize), usize>,
    /// The newest access token that a process has sent, by incarnation and sign-in.
    sent: HashMap<(usize, usize), usize>,
    pub signed_out: HashSet<usize>,
    /// The sign-outs that were observed: incarnation and sign-in.
    observed_sign_outs: HashSet<(usize, usize)>,
    /// The records that were deleted by a sign-out: the number of each deletion, by sign-in. By their order, since the
    /// clocks of two hosts may differ by a step of the simulation.
    deleted: HashMap<usize, usize>,
    deletions: usize,
    /// The sign-outs of other processes that a look must have seen: incarnation and sign-in.
    seen_sign_outs: HashSet<(usize, usize)>,
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: &'static str,
    pub detail: String,
}

/// The number of a refresh call.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(usize);

/// A refresh call, as seen by its caller.
#[derive(Clone, Copy)]
pub struct CallRecord {
    pub incarnation: usize,
    pub user: usize,
    pub token: Token,
    /// The access token to replace.
    pub access: Token,
    pub marked: bool,
    /// The token has been presented before, which the store has forgotten.
    pub is_forgotten: bool,
    /// When the token was claimed.
    pub claimed_at: Duration,
    pub manual: bool,
    /// When the token was due, for an early refresh.
    pub due: Option<Duration>,
    /// The task of the flight.
    pub flight: Option<task::Id>,
    pub at: Duration,
    pub ended: Option<(Duration, Outcome)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Tokens(Token),
    Failed(RefreshErrorKind),
    /// The caller crashed or gave up.
    Abandoned,
}

/// A request, as seen by its caller.
struct RequestRecord {
    incarnation: usize,
    family: Option<usize>,
    method: Method,
    at: Duration,
    limit: Duration,
    attempts: u32,
    arrivals: u32,
    accepted: u32,
    answered: bool,
}

impl Ticket {
    pub fn read(text: &str) -> Self {
        Self(text.parse().unwrap())
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokens(access) => write!(f, "a.{}.{}", access.family, access.number),
            Self::Failed(kind) => write!(f, "{kind:?}"),
            Self::Abandoned => f.write_str("abandoned"),
        }
    }
}

impl Oracle {
    pub fn note(&mut self, now: Duration, what: fmt::Arguments<'_>) {
        self.trace.push(format!("{:>9.3} s  {what}", now.as_secs_f64()));
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn violation(&mut self, now: Duration, rule: &'static str, detail: impl Into<String>) {
        let detail = detail.into();
        self.note(now, format_args!("VIOLATION: {rule}: {detail}"));
        self.violations.push(Violation { rule, detail });
    }

    /// Records the start or restart of a process.
    pub fn process_started(&mut self, now: Duration, process: &str) -> usize {
        self.incarnations.push(true);
        self.note(now, format_args!("{process}: starts, incarnation {}", self.incarnations.len() - 1));
        self.incarnations.len() - 1
    }

    pub fn process_crashed(&mut self, now: Duration, incarnation: usize) {
        self.incarnations[incarnation] = false;
        for call in self.calls.iter_mut().filter(|call| call.incarnation == incarnation) {
            call.ended.get_or_insert((now, Outcome::Abandoned));
        }
    }

    // Refresh calls

    /// Records that a refresh token is about to be presented.
    pub fn call_started(&mut self, call: CallRecord, rotation: Rotation, superseded: bool) -> Ticket {
        let now = call.at;
        let ticket = Ticket(self.calls.len());
        let mark = if call.marked { ", in doubt" } else { "" };
        self.note(
            now,
            format_args!("incarnation {}: presents {} as call {ticket}{mark}", call.incarnation, call.token),
        );
        self.count("refresh calls");
        // What other processes did before a failover is lost with the store's last writes and claims.
        let failed_over = self.failed_over.get(&call.token.family).copied();
        let claimed_at = self.claimed.get(&(call.incarnation, call.user)).copied().unwrap_or_default();
        let sent = self.sent.get(&(call.incarnation, call.token.family)).copied().unwrap_or_default();
        let is_known = |other: &&CallRecord| {
            let holds = |failed_over| other.claimed_at.min(claimed_at) >= failed_over;
            let adopted = matches!(other.ended, Some((_, Outcome::Tokens(access))) if access.number <= sent);
            other.incarnation == call.incarnation || adopted || failed_over.is_none_or(holds)
        };
        let presented = self.calls.iter().filter(|other| other.token == call.token).collect::<Vec<_>>();
        let before = presented.iter().copied().filter(is_known).collect::<Vec<_>>();
        let is_presented_elsewhere = presented.iter().any(|other| !is_known(other) && other.ended.is_none());
        let mut broken = Vec::new();
        if self.received.get(&(call.incarnation, call.token.family)).is_some_and(|newest| *newest > call.token.number) {
            broken.push("no older refresh token is presented where a newer one is known");
        }
        if before.iter().any(|other| other.ended.is_none()) {
            broken.push("a refresh token is presented by one caller at a time");
        }
        // The outcome of the last call that may have used the token decides.
        let unused = |other: &&&CallRecord| {
            use RefreshErrorKind::{Rejected, Unavailable};
            matches!(other.ended, Some((_, Outcome::Failed(Unavailable | Rejected))))
        };
        let is_forgotten = before.len() < presented.len() && before.iter().all(|other| unused(&other));
        let doubtful = match before.iter().rfind(|other| !unused(other)).and_then(|other| other.ended) {
            Some((_, Outcome::Tokens(_))) => rotation != Rotation::Reusable,
            // A server that doesn't rotate leaves one token in all records, so the doubt can be lost with a record.
            Some(_) => rotation != Rotation::Reusable || failed_over.is_none(),
            None => false,
        };
        if (doubtful || superseded && !is_forgotten) && !call.marked {
            broken.push("a token that may have been used is presented as in doubt");
        }
        // After a failover, a process may commit without a claim, while another one holds the claim.
        let is_stored = failed_over.is_none() || self.stored_at[&call.token.family] < claimed_at;
        if is_stored && self.stored.get(&call.token.family).is_some_and(|newest| *newest > call.token.number) {
            broken.push("a token isn't presented after its successor was stored");
        }
        let answered = before.iter().any(|other| match other.ended {
            Some((_, Outcome::Tokens(access))) => {
                self.incarnations[other.incarnation] && !self.not_saved.contains(&access)
            }
            _ => false,
        });
        if answered && rotation != Rotation::Reusable {
            broken.push("a token isn't presented after its successor was received");
        }
        let flight = before.iter().filter(|other| other.incarnation == call.incarnation && other.flight == call.flight);
        let flight = flight.collect::<Vec<_>>();
        if flight.len() >= 3 {
            broken.push("a flight makes at most three attempts");
        }
        let lost = |other: &&CallRecord| {
            matches!(other.ended, Some((_, Outcome::Abandoned | Outcome::Failed(RefreshErrorKind::InDoubt))))
        };
        if flight.iter().any(|other| lost(other)) {
            let allowed = match rotation {
                Rotation::Reusable => true,
                Rotation::Grace(window) => now < flight[0].at + window,
                _ => false,
            };
            if !allowed {
                broken.push("within a flight the rotation policy decides whether a token is presented again");
            }
        }
        let failed = before.iter().rfind(|other| other.incarnation == call.incarnation && other.flight != call.flight);
        if let Some((at, Outcome::Failed(_) | Outcome::Abandoned)) = failed.and_then(|other| other.ended)
            && !call.manual
            && now < at + SHORTEST_COOL_DOWN
        {
            broken.push("a failed flight is followed by a cool-down");
        }
        if let Some(due) = call.due {
            self.count("refreshed early");
            if now + WALL_CLOCK_TOLERANCE < due {
                broken.push("no token is refreshed early before it is due");
            }
        } else if !call.manual && !self.refused.contains(&call.access) {
            broken.push("no token is refreshed before an API has refused it");
        }
        for rule in broken {
            self.violation(now, rule, format!("{} as call {ticket}", call.token));
        }
        if superseded && is_forgotten {
            self.count("older tokens presented by a process that knows none newer");
        }
        if is_forgotten || is_presented_elsewhere {
            self.forked.insert(call.token.family);
        }
        self.calls.push(CallRecord { is_forgotten, claimed_at, ..call });
        ticket
    }

    /// Records that the caller has an answer or has given up.
    pub fn call_ended(&mut self, now: Duration, ticket: Ticket, outcome: Outcome) {
        let call = &mut self.calls[ticket.0];
        if call.ended.is_none() {
            call.ended = Some((now, outcome));
            self.note(now, format_args!("call {ticket} ends: {outcome}"));
            match outcome {
                Outcome::Tokens(_) => self.count("refreshed"),
                Outcome::Failed(RefreshErrorKind::Unavailable) => self.count("refresh calls that were not sent"),
                Outcome::Failed(RefreshErrorKind::Rejected) => self.count("rejections received"),
                _ => self.count("refresh calls left in doubt"),
            }
        }
    }

    /// Records that the authorization server has processed a refresh call.
    pub fn call_processed(
        &mut self,
        now: Duration,
        ticket: Ticket,
        token: Token,
        superseded: bool,
        refusal: Option<&str>,
    ) {
        self.note(now, format_args!("auth: {token} of call {ticket}: {}", refusal.unwrap_or("granted")));
        let call = &self.calls[ticket.0];
        if superseded {
            // A claim that a failover has lost did not keep others from presenting the token meanwhile.
            let claim_lost = self.failed_over.get(&token.family).is_some_and(|at| call.claimed_at < *at);
            if !call.marked && !call.is_forgotten && !claim_lost && call.ended.is_none() {
                self.violation(
                    now,
                    "a token that may have been used is presented as in doubt",
                    format!("call {ticket} arrives"),
                );
            }
            self.count(if refusal.is_some() {
                "sign-ins lost with a response"
            } else {
                "repeated within the grace period"
            });
        }
    }

    // The store

    pub fn store_failed(&mut self, now: Duration, process: &str, name: &str, when: &str) {
        self.note(now, format_args!("{process}: the store fails to {name}, {when}"));
        self.count("failures of the store");
    }

    /// Records that the store won't commit these tokens, or won't confirm the commit.
    pub fn not_saved(&mut self, tokens: &Tokens) {
        self.not_saved.insert(access_token(tokens));
    }

    pub fn claimed(&mut self, now: Duration, incarnation: usize, user: usize) {
        self.claimed.insert((incarnation, user), now);
    }

    /// Records tokens that a process has received.
    pub fn tokens_received(&mut self, incarnation: usize, tokens: &Tokens) {
        let Token { family, number } = refresh_token(tokens);
        let newest = self.received.entry((incarnation, family)).or_default();
        *newest = number.max(*newest);
    }

    /// Records that the store has lost its last writes. `tokens`: those that are left.
    pub fn failed_over(&mut self, now: Duration, tokens: &Tokens) {
        let Token { family, number } = refresh_token(tokens);
        self.note(now, format_args!("the store holds {}", refresh_token(tokens)));
        self.failed_over.insert(family, now);
        self.stored.insert(family, number);
    }

    pub fn stored(&mut self, now: Duration, process: &str, tokens: &Tokens) {
        let (access, refresh) = (access_token(tokens), refresh_token(tokens));
        self.note(now, format_args!("{process}: stores {refresh}"));
        self.stored_access.insert(access);
        self.stored_at.insert(refresh.family, now);
        let newest = self.stored.entry(refresh.family).or_default();
        let skips = self.failed_over.contains_key(&refresh.family) && refresh.number > *newest + 1;
        if refresh.number < *newest {
            let newest = *newest;
            self.violation(now, "the store never returns to an older token", format!("{refresh} over number {newest}"));
        } else {
            *newest = refresh.number;
        }
        if skips {
            self.count("older records written over");
        }
    }

    pub fn cleared(&mut self, now: Duration, process: &str, family: usize, alive: bool) {
        self.note(now, format_args!("{process}: clears the record of sign-in {family}"));
        if alive && !self.signed_out.contains(&family) {
            self.violation(now, "only the server's rejection ends a session", format!("sign-in {family} is cleared"));
        }
        self.deleted.insert(family, self.deletions);
        self.deletions += 1;
    }

    /// Returns whether these tokens were stored, and no write of them has failed.
    pub fn is_saved(&self, tokens: &Tokens) -> bool {
        let access = access_token(tokens);
        self.stored_access.contains(&access) && !self.not_saved.contains(&access)
    }

    /// Returns the number of records that were deleted by a sign-out.
    pub fn deletions(&self) -> usize {
        self.deletions
    }

    /// Records a look at the store, by a session that held tokens of this sign-in when it began. `deletions`: their number
    /// then.
    pub fn looked(&mut self, now: Duration, incarnation: usize, deletions: usize, family: usize, state: &SessionState) {
        self.note(now, format_args!("incarnation {incarnation}: has looked at the record of sign-in {family}"));
        self.count("looks at the store");
        // After a failover, a session may be about to write its newer tokens, and compares the record then.
        let is_deleted = self.deleted.get(&family).is_some_and(|number| *number < deletions);
        if is_deleted && !self.failed_over.contains_key(&family) {
            self.seen_sign_outs.insert((incarnation, family));
            if !state.is_signed_in() {
                self.count("sign-outs elsewhere that a look has found");
            }
        }
    }

    // Sessions

    /// Records a sign-out: of the sign-in that the session holds, and of the one that it is about to find in the store.
    pub fn sign_out_started(&mut self, now: Duration, incarnation: usize, held: Option<usize>, stored: Option<usize>) {
        self.note(now, format_args!("incarnation {incarnation}: signs out of {held:?}"));
        self.count("sign-outs");
        self.signed_out.extend(held.into_iter().chain(stored));
    }

    /// Records that a session was observed to be signed out.
    pub fn sign_out_observed(&mut self, incarnation: usize, held: Option<usize>) {
        self.observed_sign_outs.extend(held.map(|family| (incarnation, family)));
    }

    /// Records that a session was observed to have ended.
    pub fn session_ended(&mut self, now: Duration, incarnation: usize, user: usize) {
        self.note(now, format_args!("incarnation {incarnation}: the session of user {user} has ended"));
        self.count("sessions that ended");
        let rejected = |call: &CallRecord| {
            let outcome = call.ended.map(|(_, outcome)| outcome);
            call.incarnation == incarnation
                && call.user == user
                && outcome == Some(Outcome::Failed(RefreshErrorKind::Rejected))
        };
        if !self.calls.iter().any(rejected) {
            self.violation(
                now,
                "only the server's rejection ends a session",
                format!("user {user}, incarnation {incarnation}"),
            );
        }
    }

    /// Records that a session found its record deleted. `kept`: the record is still in the store.
    pub fn record_deleted(&mut self, now: Duration, incarnation: usize, family: usize, kept: bool) {
        self.note(now, format_args!("incarnation {incarnation}: the session of sign-in {family} is signed out"));
        if kept && !self.signed_out.contains(&family) {
            self.violation(now, "only the server's rejection ends a session", format!("sign-in {family} is stored"));
        }
    }

    // Requests

    pub fn request_started(
        &mut self,
        now: Duration,
        incarnation: usize,
        family: Option<usize>,
        method: &Method,
        limit: Duration,
    ) -> usize {
        let id = self.requests.len();
        self.note(now, format_args!("incarnation {incarnation}: {method} {id} for sign-in {family:?}"));
        self.count("requests");
        if let Some(family) = family.filter(|family| self.observed_sign_outs.contains(&(incarnation, *family))) {
            self.violation(now, "a sign-out beats a late refresh", format!("request {id} for sign-in {family}"));
        }
        if let Some(family) = family.filter(|family| self.seen_sign_outs.contains(&(incarnation, *family))) {
            let detail = format!("request {id} for sign-in {family}");
            self.violation(now, "a sign-out elsewhere is in force after a look at the store", detail);
        }
        self.requests.push(RequestRecord {
            incarnation,
            family,
            method: method.clone(),
            at: now,
            limit,
            attempts: 0,
            arrivals: 0,
            accepted: 0,
            answered: false,
        });
        id
    }

    /// Returns whether the store may hold other tokens of this sign-in than the server's newest: after a failover, two
    /// processes have presented the same token, and the server has answered both.
    pub fn may_differ(&self, family: usize) -> bool {
        self.failed_over.contains_key(&family) && self.was_granted_twice(family)
    }

    fn was_granted_twice(&self, family: usize) -> bool {
        let granted = |call: &&CallRecord| {
            call.token.family == family && matches!(call.ended, Some((_, Outcome::Tokens(_) | Outcome::Abandoned)))
        };
        let granted = self.calls.iter().filter(granted).collect::<Vec<_>>();
        granted.iter().enumerate().any(|(n, call)| granted[..n].iter().any(|other| other.token == call.token))
    }

    pub fn family_of(&self, id: usize) -> Option<usize> {
        self.requests[id].family
    }

    /// Records one attempt of a request.
    pub fn attempt_sent(&mut self, now: Duration, id: usize, token: Option<Token>) {
        let incarnation = self.requests[id].incarnation;
        if let Some(Token { family, number }) = token {
            let newest = self.sent.entry((incarnation, family)).or_default();
            let is_older = number < *newest;
            *newest = number.max(*newest);
            if is_older && !self.forked.contains(&family) {
                let detail = format!("request {id} with a.{family}.{number}");
                self.violation(now, "no older token is adopted where a newer one is known", detail);
            }
        }
        let unknown = |token: &Token| !self.stored_access.contains(token) && !self.not_saved.contains(token);
        // The first tokens of a sign-in are in force at once.
        if let Some(token) = token.filter(|token| token.number > 1).filter(unknown) {
            let detail = format!("request {id} with a.{}.{}", token.family, token.number);
            self.violation(now, "tokens are stored before they are used", detail);
        }
        self.requests[id].attempts += 1;
        match self.requests[id].attempts {
            1 => {}
            2 => self.count("replays"),
            _ => self.violation(now, "a request is sent at most twice", format!("request {id}")),
        }
    }

    /// Records the arrival of a request at an API.
    pub fn request_arrived(
        &mut self,
        now: Duration,
        id: usize,
        token: Option<Token>,
        body: &[u8],
        verdict: Result<(), &str>,
    ) {
        let shown = token.map_or("no token".to_owned(), |token| format!("a.{}.{}", token.family, token.number));
        self.note(now, format_args!("api: {id} with {shown}: {}", verdict.err().unwrap_or("accepted")));
        let mut broken = Vec::new();
        let request = &mut self.requests[id];
        request.arrivals += 1;
        request.accepted += u32::from(verdict.is_ok());
        if request.arrivals > 2 {
            broken.push("a request is sent at most twice");
        }
        if request.accepted > 1 && request.method == Method::POST {
            broken.push("no POST is accepted twice");
        }
        if body != body_of(id, &request.method).as_bytes() {
            broken.push("a replay is identical");
        }
        if let Some(token) = token {
            if request.family != Some(token.family) {
                broken.push("a request carries the token of its own sign-in");
            }
            if verdict.is_err() {
                self.refused.insert(token);
                self.count("access tokens refused");
            }
        }
        for rule in broken {
            self.violation(now, rule, format!("request {id} with {shown}"));
        }
    }

    pub fn request_ended(&mut self, now: Duration, id: usize, what: fmt::Arguments<'_>) {
        self.note(now, format_args!("{id} ends: {what}"));
        let request = &mut self.requests[id];
        request.answered = true;
        if now > request.at + request.limit {
            self.violation(now, "every request is answered by its deadline", format!("request {id}"));
        }
    }

    /// Checks, at the end of the simulation, that no request is past its deadline without an answer.
    pub fn ends(&mut self, now: Duration) {
        for id in 0..self.requests.len() {
            let request = &self.requests[id];
            if !request.answered && self.incarnations[request.incarnation] && now > request.at + request.limit {
                self.violation(now, "every request is answered by its deadline", format!("request {id}"));
            }
        }
    }
}

/// The body of a request and of its replay.
pub fn body_of(id: usize, method: &Method) -> String {
    if *method == Method::POST { format!("order {id}, ").repeat(1 + id % 40) } else { String::new() }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r.{}.{}", self.family, self.number)
    }
}
