//! The store that the processes share: it survives them all, keeps the world's own time, and fails now and then.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tower_auth_refresh::Tokens;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Epoch, Presented, Record, StoreError, StoreFuture, TokenStore,
    Version,
};

use crate::net::forever;
use crate::plan::{Trap, millis};
use crate::servers::Token;
use crate::world::{State, World};

/// What is on the disk, for one user.
#[derive(Default)]
pub struct Slot {
    last: u64,
    pub record: Option<Record>,
    /// The sign-in whose record was deleted last.
    pub cleared: Option<usize>,
    claim: Option<Mark>,
}

struct Mark {
    id: u64,
    /// `None`: ended in doubt.
    until: Option<Duration>,
    in_doubt: bool,
}

/// One process's way to it.
pub struct SharedStore {
    pub world: Arc<World>,
    pub process: String,
    pub user: usize,
}

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    FailsBefore,
    FailsAfter,
}

impl Slot {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The sign-in whose tokens it holds.
    pub fn family(&self) -> Option<usize> {
        self.record.as_ref().map(|record| family(&record.tokens))
    }

    fn is(&self, version: Version) -> bool {
        self.record.as_ref().is_some_and(|record| record.version == version)
    }

    pub fn write(&mut self, epoch: Epoch, tokens: Tokens) -> Version {
        let version = Version(self.next());
        self.record = Some(Record { version, epoch, tokens });
        self.claim = None;
        version
    }

    fn held(&mut self, claim: &Claim) -> Option<&mut Mark> {
        let current = self.is(claim.version);
        self.claim.as_mut().filter(|mark| current && mark.id == claim.id)
    }

    fn claim(&mut self, version: Version, lease: Duration, now: Duration) -> ClaimOutcome {
        if !self.is(version) {
            return ClaimOutcome::Changed(self.record.clone());
        }
        let in_doubt = match self.claim {
            None => false,
            Some(Mark { until: Some(until), .. }) if now < until => {
                return ClaimOutcome::Busy { until: Instant::now() + until.saturating_sub(now) };
            }
            Some(_) => true,
        };
        let id = self.next();
        self.claim = Some(Mark { id, until: Some(now + lease), in_doubt });
        ClaimOutcome::Claimed(Claim { version, id, in_doubt })
    }
}

impl SharedStore {
    fn call<'a, T: Send + 'a>(
        &'a self,
        name: &'static str,
        bought: Option<&'a Tokens>,
        effect: impl FnOnce(&mut State, usize, Duration) -> T + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let world = &self.world;
        Box::pin(async move {
            let (before, after, fate) = {
                let mut state = world.state();
                let [before, after] = [(); 2].map(|()| millis(&mut state.rng, 0..50));
                // Longer than anybody waits for a store.
                let hangs = state.faulty(world.plan.store_faults / 5.0);
                let before = if hangs { before + Duration::from_secs(6) } else { before };
                let fate = match state.faulty(world.plan.store_faults) {
                    false => Fate::Done,
                    true if state.rng.bool() => Fate::FailsBefore,
                    true => Fate::FailsAfter,
                };
                if (hangs || fate != Fate::Done)
                    && let Some(tokens) = bought
                {
                    state.judge.not_taken(tokens);
                }
                (before, after, fate)
            };
            sleep(before).await;
            if fate == Fate::FailsBefore {
                return Err(self.fail(name, "before its effect"));
            }
            let done = effect(&mut world.state(), self.user, world.now());
            let dies = name == "commit" && world.springs(Trap::AfterCommit, &self.process);
            if dies {
                return forever().await;
            }
            sleep(after).await;
            if fate == Fate::FailsAfter {
                return Err(self.fail(name, "after its effect"));
            }
            Ok(done)
        })
    }

    fn fail(&self, name: &'static str, when: &str) -> StoreError {
        let now = self.world.now();
        self.world.state().judge.store_failed(now, &self.process, name, when);
        StoreError::new("the disk is full")
    }
}

impl TokenStore for SharedStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.call("load", None, |state, user, _| state.slots[user].record.clone())
    }

    fn replace<'a>(&'a self, epoch: Epoch, tokens: &'a Tokens) -> StoreFuture<'a, Version> {
        self.call("replace", None, move |state, user, now| {
            state.judge.stored(now, &self.process, tokens);
            state.slots[user].write(epoch, tokens.clone())
        })
    }

    fn claim(&self, version: Version, lease: Duration) -> StoreFuture<'_, ClaimOutcome> {
        self.call("claim", None, move |state, user, now| {
            let found = state.slots[user].claim(version, lease, now);
            let what = match &found {
                ClaimOutcome::Claimed(claim) if claim.in_doubt => "claimed, in doubt",
                ClaimOutcome::Claimed(_) => "claimed",
                ClaimOutcome::Busy { .. } => "busy",
                ClaimOutcome::Changed(_) => "changed",
            };
            state.judge.note(now, format_args!("{}: claim on version {}: {what}", self.process, version.0));
            found
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.call("renew", None, move |state, user, now| {
            let mark = state.slots[user].held(claim).filter(|mark| mark.until.is_some());
            let held = mark.is_some();
            if let Some(mark) = mark {
                mark.until = Some(now + lease);
            }
            held
        })
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.call("release", None, move |state, user, now| {
            state.judge.note(now, format_args!("{}: released, presented: {presented:?}", self.process));
            let slot = &mut state.slots[user];
            let Some(mark) = slot.held(claim) else { return };
            mark.until = None;
            if presented == Presented::Unused && !mark.in_doubt {
                slot.claim = None;
            }
        })
    }

    fn commit<'a>(&'a self, claim: &'a Claim, tokens: &'a Tokens) -> StoreFuture<'a, CommitOutcome> {
        self.call("commit", Some(tokens), move |state, user, now| match &state.slots[user].record {
            Some(record) if record.version == claim.version => {
                let epoch = record.epoch;
                state.judge.stored(now, &self.process, tokens);
                CommitOutcome::Stored(state.slots[user].write(epoch, tokens.clone()))
            }
            other => CommitOutcome::Conflict(other.clone()),
        })
    }

    fn clear(&self, version: Version) -> StoreFuture<'_, ClearOutcome> {
        self.call("clear", None, move |state, user, now| match &state.slots[user].record {
            Some(record) if record.version != version => ClearOutcome::Conflict(record.clone()),
            found => {
                if let Some(record) = found {
                    let family = family(&record.tokens);
                    let alive = state.authority.family(family).ended.is_none();
                    state.judge.cleared(now, &self.process, family, alive);
                    state.slots[user].cleared = Some(family);
                }
                let slot = &mut state.slots[user];
                slot.record = None;
                slot.claim = None;
                ClearOutcome::Cleared
            }
        })
    }
}

/// The sign-in that tokens came of.
pub fn family(tokens: &Tokens) -> usize {
    refresh_token(tokens).family
}

pub fn refresh_token(tokens: &Tokens) -> Token {
    Token::read(tokens.refresh_token().unwrap().expose_secret()).unwrap()
}

pub fn access_token(tokens: &Tokens) -> Token {
    Token::read(tokens.access_token().unwrap().expose_secret()).unwrap()
}
