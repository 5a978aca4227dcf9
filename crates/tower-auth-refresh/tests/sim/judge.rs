//! Who watches: writes down what happens in a world, and says where a promise was broken.
//!
//! It sees both ends at once, and what the store holds; so it knows of every answer whether it was lost.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use http::Method;
use tokio::task;
use tower_auth_refresh::{RefreshErrorKind, Rotation, Tokens};

use crate::servers::Token;
use crate::store::{access_token, refresh_token};

/// The shortest cool-down after a failed refresh.
const SHORTEST_COOL_DOWN: Duration = Duration::from_millis(500);

/// What the wall clock, by which tokens expire, may go on by from when they are issued until they come into force.
const BY_THE_WALL: Duration = Duration::from_millis(250);

#[derive(Default)]
pub struct Judge {
    pub trace: Vec<String>,
    pub violations: Vec<Violation>,
    /// How often things happened, so that a run can show that it wasn't idle.
    pub counts: BTreeMap<&'static str, u64>,
    /// Of each life of a process: whether it still lasts.
    lives: Vec<bool>,
    presented: Vec<Presented>,
    asked: Vec<Asked>,
    /// The access tokens that an API has refused.
    refused: HashSet<Token>,
    /// The newest refresh token that the store has held, by sign-in.
    stored: HashMap<usize, usize>,
    /// The access tokens that the store has held.
    stored_access: HashSet<Token>,
    /// The access tokens that the store would not take.
    not_taken: HashSet<Token>,
    pub signed_out: HashSet<usize>,
    /// Which process has signed out of which sign-in.
    left: HashSet<(usize, usize)>,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: &'static str,
    pub detail: String,
}

/// The number of a refresh call.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(usize);

/// A refresh call, as its caller knows it.
pub struct Presented {
    pub life: usize,
    pub user: usize,
    pub token: Token,
    /// The access token that it is to replace.
    pub access: Token,
    pub marked: bool,
    pub manual: bool,
    /// When it was due, if it was made early.
    pub due: Option<Duration>,
    /// The task that it runs in: the flight.
    pub flight: Option<task::Id>,
    pub at: Duration,
    pub ended: Option<(Duration, Outcome)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Tokens(Token),
    Failed(RefreshErrorKind),
    /// Its caller died or gave up.
    Abandoned,
}

/// A request, as its caller knows it.
struct Asked {
    life: usize,
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

impl Judge {
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

    /// A process starts, or starts again.
    pub fn born(&mut self, now: Duration, process: &str) -> usize {
        self.lives.push(true);
        self.note(now, format_args!("{process}: starts, life {}", self.lives.len() - 1));
        self.lives.len() - 1
    }

    pub fn died(&mut self, now: Duration, life: usize) {
        self.lives[life] = false;
        for call in self.presented.iter_mut().filter(|call| call.life == life) {
            call.ended.get_or_insert((now, Outcome::Abandoned));
        }
    }

    // Refresh calls

    /// A refresh token is about to be presented.
    pub fn presents(&mut self, call: Presented, rotation: Rotation, superseded: bool) -> Ticket {
        let now = call.at;
        let ticket = Ticket(self.presented.len());
        let mark = if call.marked { ", in doubt" } else { "" };
        self.note(now, format_args!("life {}: presents {} as call {ticket}{mark}", call.life, call.token));
        self.count("refresh calls");
        let before = self.presented.iter().filter(|other| other.token == call.token).collect::<Vec<_>>();
        let mut broken = Vec::new();
        if before.iter().any(|other| other.ended.is_none()) {
            broken.push("a refresh token is presented by one at a time");
        }
        // What is known of the token: what became of it last, if it may have been used at all.
        let unused = |other: &&&Presented| {
            use RefreshErrorKind::{Rejected, Unavailable};
            matches!(other.ended, Some((_, Outcome::Failed(Unavailable | Rejected))))
        };
        let doubtful = match before.iter().rfind(|other| !unused(other)).and_then(|other| other.ended) {
            Some((_, Outcome::Tokens(_))) => rotation != Rotation::Reusable,
            Some(_) => true,
            None => false,
        };
        if (doubtful || superseded) && !call.marked {
            broken.push("what may have been used is presented as in doubt");
        }
        if self.stored.get(&call.token.family).is_some_and(|newest| *newest > call.token.number) {
            broken.push("a token isn't presented once its successor is stored");
        }
        let answered = before.iter().any(|other| match other.ended {
            Some((_, Outcome::Tokens(access))) => self.lives[other.life] && !self.not_taken.contains(&access),
            _ => false,
        });
        if answered && rotation != Rotation::Reusable {
            broken.push("a token isn't presented once its successor has arrived");
        }
        let flight = before.iter().filter(|other| other.life == call.life && other.flight == call.flight);
        let flight = flight.collect::<Vec<_>>();
        if flight.len() >= 3 {
            broken.push("a flight makes three attempts at most");
        }
        let lost = |other: &&Presented| {
            matches!(other.ended, Some((_, Outcome::Abandoned | Outcome::Failed(RefreshErrorKind::InDoubt))))
        };
        if flight.iter().any(|other| lost(other)) {
            let allowed = match rotation {
                Rotation::Reusable => true,
                Rotation::Grace(window) => now < flight[0].at + window,
                _ => false,
            };
            if !allowed {
                broken.push("within a flight the rotation policy decides what is presented again");
            }
        }
        let failed = before.iter().rfind(|other| other.life == call.life && other.flight != call.flight);
        if let Some((at, Outcome::Failed(_) | Outcome::Abandoned)) = failed.and_then(|other| other.ended)
            && !call.manual
            && now < at + SHORTEST_COOL_DOWN
        {
            broken.push("a failed flight is followed by a cool-down");
        }
        if let Some(due) = call.due {
            self.count("refreshed early");
            if now + BY_THE_WALL < due {
                broken.push("nothing is refreshed early before it is due");
            }
        } else if !call.manual && !self.refused.contains(&call.access) {
            broken.push("nothing is refreshed before an API has refused it");
        }
        for rule in broken {
            self.violation(now, rule, format!("{} as call {ticket}", call.token));
        }
        self.presented.push(call);
        ticket
    }

    /// Its caller has got an answer, or has given up.
    pub fn presented(&mut self, now: Duration, ticket: Ticket, outcome: Outcome) {
        let call = &mut self.presented[ticket.0];
        if call.ended.is_none() {
            call.ended = Some((now, outcome));
            self.note(now, format_args!("call {ticket} ends: {outcome}"));
            match outcome {
                Outcome::Tokens(_) => self.count("refreshed"),
                Outcome::Failed(RefreshErrorKind::Unavailable) => self.count("refresh calls that were not sent"),
                Outcome::Failed(RefreshErrorKind::Rejected) => self.count("rejections heard"),
                _ => self.count("refresh calls left in doubt"),
            }
        }
    }

    /// The authorization server has dealt with a refresh call.
    pub fn exchanged(&mut self, now: Duration, ticket: Ticket, token: Token, superseded: bool, refusal: Option<&str>) {
        self.note(now, format_args!("auth: {token} of call {ticket}: {}", refusal.unwrap_or("granted")));
        let call = &self.presented[ticket.0];
        if superseded {
            if !call.marked && call.ended.is_none() {
                self.violation(
                    now,
                    "what may have been used is presented as in doubt",
                    format!("call {ticket} arrives"),
                );
            }
            self.count(if refusal.is_some() { "sign-ins lost with an answer" } else { "repeated within the grace" });
        }
    }

    // The store

    pub fn store_failed(&mut self, now: Duration, process: &str, name: &str, when: &str) {
        self.note(now, format_args!("{process}: the store fails to {name}, {when}"));
        self.count("failures of the store");
    }

    /// The store won't take these, or nobody will know that it has.
    pub fn not_taken(&mut self, tokens: &Tokens) {
        self.not_taken.insert(access_token(tokens));
    }

    pub fn stored(&mut self, now: Duration, process: &str, tokens: &Tokens) {
        let (access, refresh) = (access_token(tokens), refresh_token(tokens));
        self.note(now, format_args!("{process}: stores {refresh}"));
        self.stored_access.insert(access);
        let newest = self.stored.entry(refresh.family).or_default();
        if refresh.number < *newest {
            let newest = *newest;
            self.violation(now, "the store never goes back", format!("{refresh} over number {newest}"));
        } else {
            *newest = refresh.number;
        }
    }

    pub fn cleared(&mut self, now: Duration, process: &str, family: usize, alive: bool) {
        self.note(now, format_args!("{process}: clears the record of sign-in {family}"));
        if alive && !self.signed_out.contains(&family) {
            self.violation(now, "only the server's word ends a session", format!("sign-in {family} is cleared"));
        }
    }

    // Sessions

    /// A user signs out of what his session holds, or of what it is about to find in the store.
    pub fn signs_out(&mut self, now: Duration, life: usize, held: Option<usize>, stored: Option<usize>) {
        self.note(now, format_args!("life {life}: signs out of {held:?}"));
        self.count("sign-outs");
        self.signed_out.extend(held.into_iter().chain(stored));
    }

    /// A session is seen to be signed out.
    pub fn left(&mut self, life: usize, held: Option<usize>) {
        self.left.extend(held.map(|family| (life, family)));
    }

    /// A session is seen to have ended.
    pub fn ended(&mut self, now: Duration, life: usize, user: usize) {
        self.note(now, format_args!("life {life}: the session of user {user} has ended"));
        self.count("sessions that ended");
        let rejected = |call: &Presented| {
            let outcome = call.ended.map(|(_, outcome)| outcome);
            call.life == life && call.user == user && outcome == Some(Outcome::Failed(RefreshErrorKind::Rejected))
        };
        if !self.presented.iter().any(rejected) {
            self.violation(now, "only the server's word ends a session", format!("that of user {user}, life {life}"));
        }
    }

    /// A session is seen to have found nothing in its store any more. `kept`: what it held before is still there.
    pub fn vanished(&mut self, now: Duration, life: usize, family: usize, kept: bool) {
        self.note(now, format_args!("life {life}: the session of sign-in {family} is signed out"));
        if kept && !self.signed_out.contains(&family) {
            self.violation(now, "only the server's word ends a session", format!("sign-in {family} is stored"));
        }
    }

    // Requests

    pub fn asks(
        &mut self,
        now: Duration,
        life: usize,
        family: Option<usize>,
        method: &Method,
        limit: Duration,
    ) -> usize {
        let id = self.asked.len();
        self.note(now, format_args!("life {life}: {method} {id} for sign-in {family:?}"));
        self.count("requests");
        if let Some(family) = family.filter(|family| self.left.contains(&(life, *family))) {
            self.violation(now, "a sign-out beats a late refresh", format!("request {id} for sign-in {family}"));
        }
        self.asked.push(Asked {
            life,
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

    pub fn family_of(&self, id: usize) -> Option<usize> {
        self.asked[id].family
    }

    /// A request is sent.
    pub fn attempts(&mut self, now: Duration, id: usize, token: Option<Token>) {
        let unknown = |token: &Token| !self.stored_access.contains(token) && !self.not_taken.contains(token);
        // Those of a sign-in are in force at once.
        if let Some(token) = token.filter(|token| token.number > 1).filter(unknown) {
            let detail = format!("request {id} with a.{}.{}", token.family, token.number);
            self.violation(now, "tokens are stored before they are used", detail);
        }
        self.asked[id].attempts += 1;
        match self.asked[id].attempts {
            1 => {}
            2 => self.count("replays"),
            _ => self.violation(now, "a request is sent twice at most", format!("request {id}")),
        }
    }

    /// A request has come to an API.
    pub fn arrived(&mut self, now: Duration, id: usize, token: Option<Token>, body: &[u8], verdict: Result<(), &str>) {
        let shown = token.map_or("no token".to_owned(), |token| format!("a.{}.{}", token.family, token.number));
        self.note(now, format_args!("api: {id} with {shown}: {}", verdict.err().unwrap_or("accepted")));
        let mut broken = Vec::new();
        let asked = &mut self.asked[id];
        asked.arrivals += 1;
        asked.accepted += u32::from(verdict.is_ok());
        if asked.arrivals > 2 {
            broken.push("a request is sent twice at most");
        }
        if asked.accepted > 1 && asked.method == Method::POST {
            broken.push("no POST is accepted twice");
        }
        if body != body_of(id, &asked.method).as_bytes() {
            broken.push("a replay is identical");
        }
        if let Some(token) = token {
            if asked.family != Some(token.family) {
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

    pub fn answered(&mut self, now: Duration, id: usize, what: fmt::Arguments<'_>) {
        self.note(now, format_args!("{id} ends: {what}"));
        let asked = &mut self.asked[id];
        asked.answered = true;
        if now > asked.at + asked.limit {
            self.violation(now, "every request is answered by its deadline", format!("request {id}"));
        }
    }

    /// The world ends: whoever still waits has waited in vain.
    pub fn ends(&mut self, now: Duration) {
        for id in 0..self.asked.len() {
            let asked = &self.asked[id];
            if !asked.answered && self.lives[asked.life] && now > asked.at + asked.limit {
                self.violation(now, "every request is answered by its deadline", format!("request {id}"));
            }
        }
    }
}

/// What a request carries, and a replay too.
pub fn body_of(id: usize, method: &Method) -> String {
    if *method == Method::POST { format!("order {id}, ").repeat(1 + id % 40) } else { String::new() }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r.{}.{}", self.family, self.number)
    }
}
