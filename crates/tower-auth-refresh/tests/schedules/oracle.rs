//! [`Oracle`]: records what the servers see, and checks it.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use tower_auth_refresh::refresh::Trigger;
use tower_auth_refresh::{AccessToken, RefreshRequest, RefreshToken, Tokens};

/// The first pause after a failure: one second, of which jitter takes up to a half.
const SHORTEST_COOL_DOWN: Duration = Duration::from_millis(500);

/// The wall-clock time that a schedule may take. Only expiries are read from the wall clock; all other time is paused.
const WALL_CLOCK_TOLERANCE: Duration = Duration::from_millis(250);

/// Tokens that were issued together: the `number`th of a user. A user signs in once, so each user is one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub(crate) user: u32,
    pub(crate) number: u32,
}

impl Pair {
    fn tokens(self) -> Tokens {
        let Self { user, number } = self;
        let access = AccessToken::new(format!("a{user}-{number}")).unwrap();
        Tokens::new(access, RefreshToken::new(format!("r{user}-{number}")).unwrap())
    }

    pub(crate) fn of(tokens: &Tokens) -> Option<Self> {
        tokens.refresh_token().and_then(|token| Self::parse(token.expose_secret().strip_prefix('r')?))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (user, number) = text.split_once('-')?;
        Some(Self { user: user.parse().ok()?, number: number.parse().ok()? })
    }
}

/// A caller's request, and the user that it was made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) caller: usize,
    pub(crate) request: u32,
    pub(crate) owner: Option<u32>,
}

#[derive(Clone, Default)]
pub(crate) struct Oracle(Arc<Mutex<History>>);

#[derive(Default)]
pub(crate) struct History {
    pub(crate) violations: Vec<String>,
    pub(crate) families: HashMap<u32, Family>,
    /// The pairs that were delivered to a session.
    delivered: HashSet<Pair>,
    /// The pairs that were presented without an answer, with the time at which the call ended.
    lost: HashMap<Pair, Instant>,
    /// The pairs whose access token the API has refused.
    refused: HashSet<Pair>,
    pub(crate) revoked: HashSet<Pair>,
    /// The pairs that are stored, or whose commit failed.
    saved: HashSet<Pair>,
    /// The users that are no longer signed in, with the time since when.
    pub(crate) signed_out: HashMap<u32, Instant>,
    /// The token of each attempt of each request.
    carried: HashMap<(usize, u32), Vec<Option<Pair>>>,
    /// The user of each caller's current request.
    pub(crate) owners: HashMap<usize, Option<u32>>,
    /// The replaced generations: session, user, generation.
    replaced: HashSet<(usize, u32, u64)>,
    pub(crate) calls: u32,
    /// The calls with [`Trigger::Early`].
    pub(crate) early_calls: u32,
    /// Set if tokens expire by themselves and are refreshed before.
    pub(crate) early: Option<Early>,
    /// The time of issue of each pair.
    issued: HashMap<Pair, Instant>,
    /// Several sessions share the store.
    pub(crate) is_fleet: bool,
}

/// The lifetime of access tokens, and the window before expiry in which they are refreshed early.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Early {
    pub(crate) lifetime: Duration,
    pub(crate) window: Duration,
}

/// The tokens that descend from one sign-in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) newest: u32,
    /// The API accepts the newest access token.
    is_accepted: bool,
    /// The server has rejected a token of the family.
    pub(crate) is_revoked: bool,
    calls_in_flight: u32,
}

/// A refresh call in progress.
pub(crate) struct Call {
    oracle: Oracle,
    session: usize,
    presented: Pair,
    generation: u64,
    successor: Option<Pair>,
}

impl Oracle {
    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap()
    }

    /// Issues the first tokens of a user who signs in.
    pub(crate) fn issue(&self, user: u32) -> Tokens {
        let pair = Pair { user, number: 1 };
        let family = Family { newest: 1, is_accepted: true, is_revoked: false, calls_in_flight: 0 };
        let mut history = self.history();
        history.families.insert(user, family);
        history.delivered.insert(pair);
        history.issue(pair)
    }

    /// Makes the API refuse all current access tokens.
    pub(crate) fn expire(&self) {
        self.history().families.values_mut().for_each(|family| family.is_accepted = false);
    }

    pub(crate) fn called(&self, session: usize, presented: Pair, request: &RefreshRequest) -> Call {
        let generation = request.generation().get();
        let mut history = self.history();
        history.calls += 1;
        let family = history.families.get_mut(&presented.user).unwrap();
        family.calls_in_flight += 1;
        let in_flight = family.calls_in_flight;
        history.check(in_flight == 1, format_args!("1: {in_flight} calls at once with {presented:?}"));
        let repeated = history.replaced.contains(&(session, presented.user, generation));
        history.check(!repeated, format_args!("1: generation {generation} is refreshed again"));
        let justified =
            request.trigger() != Trigger::Challenge || history.refused.contains(&presented) || history.is_fleet;
        history.check(justified, format_args!("9: {presented:?} was never refused"));
        if request.trigger() == Trigger::Early {
            history.early_calls += 1;
            let is_due = history.early.is_some_and(|early| history.age(presented) + early.window >= early.lifetime);
            history.check(is_due, format_args!("9: {presented:?} isn't due yet"));
        }
        let signed_out = history.signed_out.contains_key(&presented.user);
        history.check(!signed_out, format_args!("14: {presented:?} is presented after its user has signed out"));
        let lost = history.lost.get(&presented).is_some_and(|lost| lost.elapsed() < SHORTEST_COOL_DOWN);
        let spaced = !lost || request.trigger() == Trigger::Manual || history.is_fleet;
        history.check(spaced, format_args!("2: {presented:?} is presented again at once, in doubt"));
        Call { oracle: self.clone(), session, presented, generation, successor: None }
    }

    pub(crate) fn revoke_family(&self, user: u32) {
        self.history().families.get_mut(&user).unwrap().is_revoked = true;
    }

    pub(crate) fn revoked(&self, pair: Pair) {
        self.history().revoked.insert(pair);
    }

    pub(crate) fn saved(&self, tokens: &Tokens) {
        self.history().saved.extend(Pair::of(tokens));
    }

    pub(crate) fn sent(&self, sent: Sent, token: Option<Pair>) {
        let mut history = self.history();
        let carried = history.carried.entry((sent.caller, sent.request)).or_default();
        carried.push(token);
        let (times, first) = (carried.len(), carried[0]);
        history.check(times <= 2, format_args!("7: {sent:?} is sent {times} times"));
        if let Some(token) = token {
            let saved = token.number == 1 || history.saved.contains(&token);
            history.check(saved, format_args!("5: {token:?} is used before it is saved"));
            history.check(Some(token.user) == sent.owner, format_args!("10: {token:?} on {sent:?}"));
            let newer = times == 1 || first.is_some_and(|first| first.number < token.number);
            history.check(newer, format_args!("9: {sent:?} is sent again with {token:?} after {first:?}"));
        }
    }

    /// Decides whether the API accepts a request.
    pub(crate) fn accepts(&self, _: Sent, token: Option<Pair>) -> bool {
        let mut history = self.history();
        let accepted = token.is_some_and(|token| {
            let family = history.families[&token.user];
            family.is_accepted && !family.is_revoked && family.newest == token.number && !history.has_expired(token)
        });
        if let Some(token) = token.filter(|_| !accepted) {
            history.refused.insert(token);
        }
        accepted
    }
}

impl History {
    /// Issues a pair.
    fn issue(&mut self, pair: Pair) -> Tokens {
        self.issued.entry(pair).or_insert_with(Instant::now);
        match self.early {
            Some(Early { lifetime, .. }) => pair.tokens().with_expires_in(lifetime),
            None => pair.tokens(),
        }
    }

    /// The age of a pair, plus the wall-clock tolerance.
    fn age(&self, pair: Pair) -> Duration {
        self.issued[&pair].elapsed() + WALL_CLOCK_TOLERANCE
    }

    fn has_expired(&self, pair: Pair) -> bool {
        self.early.is_some_and(|early| self.issued[&pair].elapsed() >= early.lifetime)
    }

    /// Returns whether a request of this user may have to wait for newer tokens: those in force, or those before them,
    /// were refused or have expired.
    pub(crate) fn may_wait(&self, user: u32) -> bool {
        let Some(early) = self.early else { return true };
        let newest = self.newest_delivered(user).expect("the first pair was delivered");
        let last = Pair { number: newest.number.max(2) - 1, ..newest };
        [newest, last].iter().any(|pair| self.refused.contains(pair) || self.age(*pair) >= early.lifetime)
    }

    pub(crate) fn check(&mut self, holds: bool, otherwise: impl Display) {
        if !holds {
            self.violations.push(otherwise.to_string());
        }
    }

    /// The newest pair of a user that was delivered to a session.
    pub(crate) fn newest_delivered(&self, user: u32) -> Option<Pair> {
        self.delivered.iter().filter(|pair| pair.user == user).max().copied()
    }

    /// The token of a request's first attempt.
    pub(crate) fn carried_first(&self, sent: Sent) -> Option<Pair> {
        *self.carried.get(&(sent.caller, sent.request))?.first()?
    }
}

impl Call {
    /// Exchanges the pair for its successor if it is the newest; otherwise revokes the family as reused.
    pub(crate) fn rotate(&mut self, request: &RefreshRequest) -> Option<Pair> {
        let (presented, mut history) = (self.presented, self.oracle.history());
        let family = history.families.get_mut(&presented.user).unwrap();
        if family.is_revoked {
            return None;
        }
        if presented.number == family.newest {
            family.newest += 1;
            family.is_accepted = true;
            let successor = Pair { number: family.newest, ..presented };
            history.issued.insert(successor, Instant::now());
            self.successor = Some(successor);
            return self.successor;
        }
        family.is_revoked = true;
        let successor = Pair { number: presented.number + 1, ..presented };
        let (lost, marked) = (!history.delivered.contains(&successor), request.is_in_doubt());
        // In a fleet, a session may take over a claim whose holder was cut off from the store.
        let allowed = marked && (lost || history.is_fleet);
        history.check(allowed, format_args!("2: {presented:?} is presented again; lost: {lost}, marked: {marked}"));
        None
    }

    pub(crate) fn deliver(&self, successor: Pair) -> Tokens {
        let mut history = self.oracle.history();
        history.delivered.insert(successor);
        history.replaced.insert((self.session, self.presented.user, self.generation));
        history.issue(successor)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut history = self.oracle.history();
        history.families.get_mut(&self.presented.user).unwrap().calls_in_flight -= 1;
        if self.successor.is_some_and(|successor| !history.delivered.contains(&successor)) {
            history.lost.insert(self.presented, Instant::now());
        }
    }
}
