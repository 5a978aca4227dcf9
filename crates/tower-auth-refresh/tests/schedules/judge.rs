//! [`Judge`]: what the servers see, and what is wrong with it.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use tower_auth_refresh::{AccessToken, RefreshRequest, RefreshToken, Tokens, Trigger};

/// The first pause after a failure is a second, or half of it by chance.
const SHORTEST_COOL_DOWN: Duration = Duration::from_millis(500);

/// What the wall clock goes on by while a schedule is taken, in which time stands still: only expiries are by the wall clock.
const BY_THE_WALL: Duration = Duration::from_millis(250);

/// Tokens that were issued together: the `number`th of a user. A user signs in once, so he is an epoch.
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
pub(crate) struct Judge(Arc<Mutex<Case>>);

#[derive(Default)]
pub(crate) struct Case {
    pub(crate) violations: Vec<String>,
    pub(crate) families: HashMap<u32, Family>,
    /// The pairs that reached a session.
    delivered: HashSet<Pair>,
    /// The pairs that were presented and not answered, and since when.
    lost: HashMap<Pair, Instant>,
    /// The pairs whose access token the API has refused.
    refused: HashSet<Pair>,
    pub(crate) revoked: HashSet<Pair>,
    /// The pairs that are stored, or that the store would not take.
    saved: HashSet<Pair>,
    /// The users that are signed in no more, and since when.
    pub(crate) over: HashMap<u32, Instant>,
    /// What each request carried, each time that it was sent.
    carried: HashMap<(usize, u32), Vec<Option<Pair>>>,
    /// Whose the request is that a caller has under way.
    pub(crate) owners: HashMap<usize, Option<u32>>,
    /// Which generation of which session has been replaced.
    replaced: HashSet<(usize, u32, u64)>,
    pub(crate) calls: u32,
    /// Those that nobody was refused for.
    pub(crate) early_calls: u32,
    /// Tokens expire by themselves, and are refreshed before.
    pub(crate) early: Option<Early>,
    /// When each pair was issued.
    issued: HashMap<Pair, Instant>,
    /// Several sessions share the store.
    pub(crate) is_fleet: bool,
}

/// How long access tokens live, and in which part of that time they are refreshed early.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Early {
    pub(crate) lifetime: Duration,
    pub(crate) window: Duration,
}

/// What descends from one sign-in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) newest: u32,
    /// The API accepts the newest access token.
    is_good: bool,
    /// The server has said that it is over.
    pub(crate) is_over: bool,
    calls_up: u32,
}

/// A refresh call, while somebody waits for its answer.
pub(crate) struct Call {
    judge: Judge,
    session: usize,
    presented: Pair,
    generation: u64,
    bought: Option<Pair>,
}

impl Judge {
    pub(crate) fn case(&self) -> MutexGuard<'_, Case> {
        self.0.lock().unwrap()
    }

    /// A user signs in: here are his first tokens.
    pub(crate) fn issue(&self, user: u32) -> Tokens {
        let pair = Pair { user, number: 1 };
        let family = Family { newest: 1, is_good: true, is_over: false, calls_up: 0 };
        let mut case = self.case();
        case.families.insert(user, family);
        case.delivered.insert(pair);
        case.issue(pair)
    }

    /// The API accepts nobody's access token any more.
    pub(crate) fn expire(&self) {
        self.case().families.values_mut().for_each(|family| family.is_good = false);
    }

    pub(crate) fn called(&self, session: usize, presented: Pair, request: &RefreshRequest) -> Call {
        let generation = request.generation().get();
        let mut case = self.case();
        case.calls += 1;
        let family = case.families.get_mut(&presented.user).unwrap();
        family.calls_up += 1;
        let up = family.calls_up;
        case.must(up == 1, format_args!("1: {up} calls at once with {presented:?}"));
        let again = case.replaced.contains(&(session, presented.user, generation));
        case.must(!again, format_args!("1: generation {generation} is refreshed again"));
        let wanted = request.trigger() != Trigger::Challenge || case.refused.contains(&presented) || case.is_fleet;
        case.must(wanted, format_args!("9: {presented:?} was never refused"));
        if request.trigger() == Trigger::Early {
            case.early_calls += 1;
            let is_due = case.early.is_some_and(|early| case.age(presented) + early.window >= early.lifetime);
            case.must(is_due, format_args!("9: {presented:?} isn't due yet"));
        }
        let is_over = case.over.contains_key(&presented.user);
        case.must(!is_over, format_args!("14: {presented:?} is presented though its user is gone"));
        let lost = case.lost.get(&presented).is_some_and(|lost| lost.elapsed() < SHORTEST_COOL_DOWN);
        let patient = !lost || request.trigger() == Trigger::Manual || case.is_fleet;
        case.must(patient, format_args!("2: {presented:?} is presented again at once, in doubt"));
        Call { judge: self.clone(), session, presented, generation, bought: None }
    }

    pub(crate) fn revoke_family(&self, user: u32) {
        self.case().families.get_mut(&user).unwrap().is_over = true;
    }

    pub(crate) fn revoked(&self, pair: Pair) {
        self.case().revoked.insert(pair);
    }

    pub(crate) fn saved(&self, tokens: &Tokens) {
        self.case().saved.extend(Pair::of(tokens));
    }

    pub(crate) fn sent(&self, sent: Sent, token: Option<Pair>) {
        let mut case = self.case();
        let carried = case.carried.entry((sent.caller, sent.request)).or_default();
        carried.push(token);
        let (times, first) = (carried.len(), carried[0]);
        case.must(times <= 2, format_args!("7: {sent:?} is sent {times} times"));
        if let Some(token) = token {
            let saved = token.number == 1 || case.saved.contains(&token);
            case.must(saved, format_args!("5: {token:?} is used before it is saved"));
            case.must(Some(token.user) == sent.owner, format_args!("10: {token:?} on {sent:?}"));
            let newer = times == 1 || first.is_some_and(|first| first.number < token.number);
            case.must(newer, format_args!("9: {sent:?} is sent again with {token:?} after {first:?}"));
        }
    }

    /// What the API makes of a request.
    pub(crate) fn accepts(&self, _: Sent, token: Option<Pair>) -> bool {
        let mut case = self.case();
        let accepted = token.is_some_and(|token| {
            let family = case.families[&token.user];
            family.is_good && !family.is_over && family.newest == token.number && !case.has_expired(token)
        });
        if let Some(token) = token.filter(|_| !accepted) {
            case.refused.insert(token);
        }
        accepted
    }
}

impl Case {
    /// A pair leaves the server.
    fn issue(&mut self, pair: Pair) -> Tokens {
        self.issued.entry(pair).or_insert_with(Instant::now);
        match self.early {
            Some(Early { lifetime, .. }) => pair.tokens().with_expires_in(lifetime),
            None => pair.tokens(),
        }
    }

    /// How old a pair is, or a little more.
    fn age(&self, pair: Pair) -> Duration {
        self.issued[&pair].elapsed() + BY_THE_WALL
    }

    fn has_expired(&self, pair: Pair) -> bool {
        self.early.is_some_and(|early| self.issued[&pair].elapsed() >= early.lifetime)
    }

    /// Whether a request of this user may have to wait for newer tokens: those in force, or the last before them, were
    /// refused or have expired.
    pub(crate) fn may_wait(&self, user: u32) -> bool {
        let Some(early) = self.early else { return true };
        let newest = self.newest_delivered(user).expect("his first at least");
        let last = Pair { number: newest.number.max(2) - 1, ..newest };
        [newest, last].iter().any(|pair| self.refused.contains(pair) || self.age(*pair) >= early.lifetime)
    }

    pub(crate) fn must(&mut self, holds: bool, otherwise: impl Display) {
        if !holds {
            self.violations.push(otherwise.to_string());
        }
    }

    /// The newest pair of a user that reached a session.
    pub(crate) fn newest_delivered(&self, user: u32) -> Option<Pair> {
        self.delivered.iter().filter(|pair| pair.user == user).max().copied()
    }

    /// What a request carried the first time.
    pub(crate) fn carried_first(&self, sent: Sent) -> Option<Pair> {
        *self.carried.get(&(sent.caller, sent.request))?.first()?
    }
}

impl Call {
    /// The server trades the pair for its successor, if it is the newest.
    pub(crate) fn rotate(&mut self, request: &RefreshRequest) -> Option<Pair> {
        let (presented, mut case) = (self.presented, self.judge.case());
        let family = case.families.get_mut(&presented.user).unwrap();
        if family.is_over {
            return None;
        }
        if presented.number == family.newest {
            family.newest += 1;
            family.is_good = true;
            let bought = Pair { number: family.newest, ..presented };
            case.issued.insert(bought, Instant::now());
            self.bought = Some(bought);
            return self.bought;
        }
        family.is_over = true;
        let successor = Pair { number: presented.number + 1, ..presented };
        let (lost, marked) = (!case.delivered.contains(&successor), request.is_in_doubt());
        // Among several, one may come back to a claim whose holder was cut off from the store.
        let allowed = marked && (lost || case.is_fleet);
        case.must(allowed, format_args!("2: {presented:?} is presented again; lost: {lost}, marked: {marked}"));
        None
    }

    pub(crate) fn deliver(&self, bought: Pair) -> Tokens {
        let mut case = self.judge.case();
        case.delivered.insert(bought);
        case.replaced.insert((self.session, self.presented.user, self.generation));
        case.issue(bought)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut case = self.judge.case();
        case.families.get_mut(&self.presented.user).unwrap().calls_up -= 1;
        if self.bought.is_some_and(|bought| !case.delivered.contains(&bought)) {
            case.lost.insert(self.presented, Instant::now());
        }
    }
}
