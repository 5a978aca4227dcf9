//! The store that the processes share. It survives crashes, uses the simulated time, and fails at a given rate.
//!
//! This is not the `FaultyStore` of the testkit: leases run on the simulated time, processes crash inside of calls, and
//! the oracle sees each write.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use tower::BoxError;
use tower_auth_refresh::Tokens;
use tower_auth_refresh::store::{
    Claim, ClaimId, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, InsertOutcome, Presented, Record, StoreFuture,
    TokenStore, Version,
};

use crate::net::forever;
use crate::plan::{CrashPoint, millis};
use crate::servers::Token;
use crate::simulation::{Environment, State};

/// One user's entry on disk.
#[derive(Default)]
pub struct Slot {
    last: u64,
    pub record: Option<Record>,
    /// The records that were written over.
    earlier: Vec<Record>,
    /// The sign-in whose record was deleted last.
    pub cleared: Option<usize>,
    claim: Option<Lease>,
    /// Until then, the record can't be read.
    pub unreadable_until: Duration,
}

struct Lease {
    id: u64,
    /// `None`: released in doubt.
    until: Option<Duration>,
    in_doubt: bool,
}

/// One process's client of the store.
pub struct SharedStore {
    pub env: Arc<Environment>,
    pub process: String,
    pub user: usize,
}

/// The fault of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    BeforeEffect,
    AfterEffect,
}

impl Slot {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The sign-in whose tokens are stored.
    pub fn family(&self) -> Option<usize> {
        self.record.as_ref().map(|record| family(record.tokens()))
    }

    fn is(&self, version: &Version) -> bool {
        self.record.as_ref().is_some_and(|record| record.version() == version)
    }

    pub fn write(&mut self, entry: Entry) -> Version {
        let version = Version::from(self.next());
        self.earlier.extend(self.record.take());
        self.record = Some(Record::new(version.clone(), entry));
        self.claim = None;
        version
    }

    /// Loses the claim and the last writes, this many at most, as far as they are of one sign-in. Returns the record that
    /// is left.
    pub fn fail_over(&mut self, lost: usize) -> Option<&Record> {
        let epoch = self.record.as_ref()?.epoch();
        for _ in 0..lost {
            if self.earlier.last().is_some_and(|earlier| earlier.epoch() == epoch) {
                self.record = self.earlier.pop();
            }
        }
        self.claim = None;
        self.record.as_ref()
    }

    fn held(&mut self, claim: &Claim) -> Option<&mut Lease> {
        let current = self.is(claim.version());
        self.claim.as_mut().filter(|lease| current && ClaimId::from(lease.id) == *claim.id())
    }

    fn claim(&mut self, version: &Version, lease: Duration, now: Duration) -> ClaimOutcome {
        if !self.is(version) {
            return ClaimOutcome::Changed(self.record.clone());
        }
        let in_doubt = match self.claim {
            None => false,
            Some(Lease { until: Some(until), .. }) if now < until => {
                return ClaimOutcome::Busy { retry_in: until.saturating_sub(now) };
            }
            Some(_) => true,
        };
        let id = self.next();
        self.claim = Some(Lease { id, until: Some(now + lease), in_doubt });
        ClaimOutcome::Claimed(Claim::new(version.clone(), id.into(), in_doubt))
    }
}

impl SharedStore {
    fn call<'a, T: Send + 'a>(
        &'a self,
        name: &'static str,
        new_tokens: Option<&'a Tokens>,
        effect: impl FnOnce(&mut State, usize, Duration) -> T + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let env = &self.env;
        Box::pin(async move {
            let (before, after, fault) = {
                let mut state = env.state();
                let [before, after] = [(); 2].map(|()| millis(&mut state.rng, 0..50));
                // Longer than any caller waits for a store.
                let hangs = state.faulty(env.plan.store_faults / 5.0);
                let before = if hangs { before + Duration::from_secs(6) } else { before };
                let fault = match state.faulty(env.plan.store_faults) {
                    false => Fault::None,
                    true if state.rng.bool() => Fault::BeforeEffect,
                    true => Fault::AfterEffect,
                };
                if (hangs || fault != Fault::None)
                    && let Some(tokens) = new_tokens
                {
                    state.oracle.not_saved(tokens);
                }
                (before, after, fault)
            };
            sleep(before).await;
            if fault == Fault::BeforeEffect {
                return Err(self.fail(name, "before its effect"));
            }
            if env.state().slots[self.user].unreadable_until > env.now() && name != "replace" {
                let mut state = env.state();
                state.oracle.count("calls on a record that can't be read");
                if let Some(tokens) = new_tokens {
                    state.oracle.not_saved(tokens);
                }
                drop(state);
                return Err(self.fail(name, "since the record can't be read"));
            }
            let done = effect(&mut env.state(), self.user, env.now());
            let crashes = name == "commit" && env.crashes_at(CrashPoint::AfterCommit, &self.process);
            if crashes {
                return forever().await;
            }
            sleep(after).await;
            if fault == Fault::AfterEffect {
                return Err(self.fail(name, "after its effect"));
            }
            Ok(done)
        })
    }

    fn fail(&self, name: &'static str, when: &str) -> BoxError {
        let now = self.env.now();
        self.env.state().oracle.store_failed(now, &self.process, name, when);
        "the store fails".into()
    }
}

impl TokenStore for SharedStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.call("load", None, |state, user, _| state.slots[user].record.clone())
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.call("insert", None, move |state, user, now| {
            if let Some(record) = &state.slots[user].record {
                return InsertOutcome::Exists(record.clone());
            }
            state.oracle.stored(now, &self.process, entry.tokens());
            InsertOutcome::Inserted(state.slots[user].write(entry.clone()))
        })
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.call("replace", None, move |state, user, now| {
            state.oracle.stored(now, &self.process, entry.tokens());
            state.slots[user].unreadable_until = Duration::ZERO;
            state.slots[user].write(entry.clone())
        })
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.call("claim", None, move |state, user, now| {
            let found = state.slots[user].claim(version, lease, now);
            if let ClaimOutcome::Claimed(_) = found {
                state.oracle.claimed(now, state.incarnations[&self.process], user);
            }
            let what = match &found {
                ClaimOutcome::Claimed(claim) if claim.is_in_doubt() => "claimed, in doubt",
                ClaimOutcome::Claimed(_) => "claimed",
                ClaimOutcome::Busy { .. } => "busy",
                _ => "changed",
            };
            state.oracle.note(now, format_args!("{}: claim on {version:?}: {what}", self.process));
            found
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.call("renew", None, move |state, user, now| {
            let current = state.slots[user].held(claim).filter(|current| current.until.is_some());
            let held = current.is_some();
            if let Some(current) = current {
                current.until = Some(now + lease);
            }
            held
        })
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.call("release", None, move |state, user, now| {
            state.oracle.note(now, format_args!("{}: released, presented: {presented:?}", self.process));
            let slot = &mut state.slots[user];
            let Some(lease) = slot.held(claim).filter(|lease| lease.until.is_some()) else { return };
            lease.until = None;
            if presented == Presented::Unused && !lease.in_doubt {
                slot.claim = None;
            }
        })
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        self.call("commit", Some(entry.tokens()), move |state, user, now| match &state.slots[user].record {
            Some(record) if record.version() == claim.version() => {
                state.oracle.stored(now, &self.process, entry.tokens());
                CommitOutcome::Stored(state.slots[user].write(entry.clone()))
            }
            other => {
                let is_older =
                    |record: &Record| record.epoch() == entry.epoch() && record.generation() < entry.generation();
                // After a failover the tokens are used from memory, and written over the older ones.
                if other.as_ref().is_some_and(is_older) {
                    state.oracle.not_saved(entry.tokens());
                }
                CommitOutcome::Conflict(other.clone())
            }
        })
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.call("clear", None, move |state, user, now| match &state.slots[user].record {
            Some(record) if record.version() != version => ClearOutcome::Conflict(record.clone()),
            found => {
                if let Some(record) = found {
                    let family = family(record.tokens());
                    let alive = state.authority.family(family).ended.is_none();
                    state.oracle.cleared(now, &self.process, family, alive);
                    state.slots[user].cleared = Some(family);
                }
                let slot = &mut state.slots[user];
                slot.record = None;
                slot.earlier.clear();
                slot.claim = None;
                ClearOutcome::Cleared
            }
        })
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.call("extend", None, move |state, user, _| match &mut state.slots[user].record {
            Some(record) if record.version() == version => {
                *record = Record::new(version.clone(), record.entry().clone().with_expires_at(expires_at));
                true
            }
            _ => false,
        })
    }

    fn is_durable(&self) -> bool {
        true
    }
}

/// The sign-in that the tokens descend from.
pub fn family(tokens: &Tokens) -> usize {
    refresh_token(tokens).family
}

pub fn refresh_token(tokens: &Tokens) -> Token {
    Token::read(tokens.refresh_token().unwrap().expose_secret()).unwrap()
}

pub fn access_token(tokens: &Tokens) -> Token {
    Token::read(tokens.access_token().unwrap().expose_secret()).unwrap()
}
