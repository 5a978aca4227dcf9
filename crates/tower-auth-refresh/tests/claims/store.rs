//! The store and the authorization server of the model: calls wait in a list until the explorer lets them take effect.

use std::hash::{DefaultHasher, Hash};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, oneshot};
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, Epoch, InsertOutcome, Presented, Record, StoreFuture,
    TokenStore, Version,
};
use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Tokens};

/// The pause that a claim which is held by another process asks for.
const RETRY_IN: Duration = Duration::from_millis(200);

/// A call of a process, by the numbers of what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Call {
    Load,
    Claim {
        version: u64,
    },
    Renew {
        version: u64,
        claim: u64,
    },
    Release {
        version: u64,
        claim: u64,
        in_doubt: bool,
    },
    Commit {
        version: u64,
        claim: u64,
        token: u64,
        generation: u64,
    },
    Clear {
        version: u64,
    },
    /// The refresh call.
    Present {
        token: u64,
        is_marked: bool,
    },
}

/// The answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Found(Option<Stored>),
    Claimed {
        version: u64,
        claim: u64,
        in_doubt: bool,
    },
    Busy,
    Held(bool),
    Done,
    Written(u64),
    Issued(u64),
    Rejected,
    /// The call failed: it was not made, or its answer was lost.
    Failed {
        is_unsent: bool,
    },
}

/// A record: its version, and the number of its tokens, which is also their generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stored {
    pub(crate) version: u64,
    pub(crate) token: u64,
    pub(crate) generation: u64,
}

/// A claim on the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lease {
    pub(crate) id: u64,
    pub(crate) is_held: bool,
    /// The process that has made it, unless it has died.
    pub(crate) holder: Option<usize>,
    in_doubt: bool,
}

/// A call that waits for the explorer.
pub(crate) struct Waiting {
    number: u64,
    pub(crate) process: usize,
    pub(crate) call: Call,
    answer: oneshot::Sender<Answer>,
}

/// One presentation of a refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Presentation {
    token: u64,
    /// The incarnation of a process.
    by: (usize, u32),
    number: u64,
}

/// The store, the server, and what is judged.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) record: Option<Stored>,
    pub(crate) before: Option<Stored>,
    pub(crate) lease: Option<Lease>,
    /// Counts the changes that end a wait for a claim.
    pub(crate) changes: u64,
    last: u64,
    /// The number of the last tokens that the server has issued.
    pub(crate) newest: u64,
    presented: Vec<Presentation>,
    pub(crate) waiting: Vec<Waiting>,
    /// Calls that have failed for their process, and may still take effect.
    pub(crate) late: Vec<Call>,
    pub(crate) incarnations: Vec<u32>,
    /// The newest tokens that each incarnation has held.
    pub(crate) held: Vec<u64>,
    pub(crate) has_gone_back: bool,
    /// A process that could not know better presented a token that was too old.
    pub(crate) is_excused: bool,
    pub(crate) violations: Vec<String>,
    calls: u64,
}

#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) process: usize,
    pub(crate) world: Arc<Mutex<World>>,
    /// Notified of each call of this process.
    pub(crate) called: Arc<Notify>,
}

impl World {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// A user is signed in.
    pub(crate) fn new(processes: usize) -> Self {
        let mut world =
            Self { newest: 1, incarnations: vec![0; processes], held: vec![0; processes], ..Self::default() };
        let version = world.next();
        world.record = Some(Stored { version, token: 1, generation: 1 });
        world
    }

    /// Lets a call take effect. `holder`: the process that waits for it.
    pub(crate) fn act(&mut self, call: Call, holder: Option<usize>) -> Answer {
        match call {
            Call::Load => Answer::Found(self.record),
            Call::Claim { version } => self.claim(version, holder),
            Call::Renew { version, claim } => Answer::Held(self.held(version, claim).is_some()),
            Call::Release { version, claim, in_doubt } => {
                if let Some(lease) = self.held(version, claim) {
                    lease.is_held = false;
                    if !in_doubt && !lease.in_doubt {
                        self.lease = None;
                    }
                    self.changes += 1;
                }
                Answer::Done
            }
            Call::Commit { version, token, generation, .. } => {
                if self.record.is_none_or(|record| record.version != version) {
                    return Answer::Found(self.record);
                }
                let written = self.next();
                self.before = self.record;
                self.record = Some(Stored { version: written, token, generation });
                self.lease = None;
                self.changes += 1;
                Answer::Written(written)
            }
            Call::Clear { version } => {
                if self.record.is_some_and(|record| record.version != version) {
                    return Answer::Found(self.record);
                }
                (self.record, self.lease) = (None, None);
                self.changes += 1;
                Answer::Done
            }
            Call::Present { token, .. } => self.exchange(token, holder),
        }
    }

    fn claim(&mut self, version: u64, holder: Option<usize>) -> Answer {
        if self.record.is_none_or(|record| record.version != version) {
            return Answer::Found(self.record);
        }
        let in_doubt = match self.lease {
            None => false,
            Some(lease) if lease.is_held => return Answer::Busy,
            Some(_) => true,
        };
        let id = self.next();
        self.lease = Some(Lease { id, is_held: true, holder, in_doubt });
        Answer::Claimed { version, claim: id, in_doubt }
    }

    fn held(&mut self, version: u64, claim: u64) -> Option<&mut Lease> {
        let is_current = self.record.is_some_and(|record| record.version == version);
        self.lease.as_mut().filter(|lease| is_current && lease.is_held && lease.id == claim)
    }

    /// Ends the lease of the claim.
    pub(crate) fn expire(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.is_held = false;
        }
        self.changes += 1;
    }

    /// Loses the claim, or the last commit with everything that was claimed since.
    pub(crate) fn go_back(&mut self, loses_commit: bool) {
        if loses_commit && let Some(before) = self.before.take() {
            self.record = Some(before);
        }
        self.lease = None;
        self.has_gone_back = true;
        self.changes += 1;
    }

    /// A server that rotates refresh tokens, and answers a repeated call with the same successor.
    fn exchange(&mut self, token: u64, process: Option<usize>) -> Answer {
        if token == self.newest {
            self.newest += 1;
        } else if token + 1 != self.newest {
            // It may have been the last one when the call began.
            self.is_excused |= process.is_some_and(|process| self.has_gone_back && self.held[process] <= token);
            return Answer::Rejected;
        }
        Answer::Issued(self.newest)
    }

    /// Judges a presentation when it begins, whenever the server reads it.
    fn judge(&mut self, process: usize, token: u64, is_marked: bool, number: u64) {
        let is_repeated = self.presented.iter().any(|earlier| earlier.token == token);
        let may_not_know = self.may_not_know(process, token);
        if is_repeated && !is_marked && !may_not_know {
            self.violations.push(format!("process {process} presents token {token} again, unmarked"));
        }
        if self.held[process] > token {
            self.violations.push(format!("process {process} presents token {token} after {}", self.held[process]));
        }
        self.is_excused |= token + 1 < self.newest && self.has_gone_back;
        self.presented.push(Presentation { token, by: (process, self.incarnations[process]), number });
    }

    /// Returns `true` if a process can't know that a token was presented: the store has lost a claim or a commit, and the
    /// process has neither held a newer token nor presented this one.
    fn may_not_know(&self, process: usize, token: u64) -> bool {
        let by = (process, self.incarnations[process]);
        let has_presented = self.presented.iter().any(|earlier| earlier.token == token && earlier.by == by);
        self.has_gone_back && self.held[process] <= token && !has_presented
    }

    /// Answers a waiting call.
    pub(crate) fn answer(&mut self, at: usize, answer: Answer) {
        let waiting = self.waiting.remove(at);
        // Neither has used the token up.
        let is_unused = matches!(answer, Answer::Rejected | Answer::Failed { is_unsent: true });
        if is_unused && matches!(waiting.call, Call::Present { .. }) {
            self.presented.retain(|presentation| presentation.number != waiting.number);
        }
        // The call may have been dropped.
        let _ = waiting.answer.send(answer);
    }

    /// Returns what the rest of the run depends on, but for the processes.
    pub(crate) fn hash(&self, state: &mut DefaultHasher) {
        let Self { record, before, lease, newest, .. } = self;
        (record, before, lease, newest, self.has_gone_back, self.is_excused, &self.incarnations, &self.held)
            .hash(state);
        let mut waiting: Vec<_> = self.waiting.iter().map(|waiting| (waiting.process, waiting.call)).collect();
        waiting.sort_unstable();
        let mut late = self.late.clone();
        late.sort_unstable();
        let mut presented: Vec<_> = self.presented.iter().map(|earlier| (earlier.token, earlier.by)).collect();
        presented.sort_unstable();
        presented.dedup();
        (waiting, late, presented).hash(state);
    }
}

pub(crate) fn pair(number: u64) -> Tokens {
    let [access, refresh] = [format!("a{number}"), format!("r{number}")];
    Tokens::new(AccessToken::new(access).unwrap(), RefreshToken::new(refresh).unwrap())
}

pub(crate) fn number(tokens: &Tokens) -> u64 {
    tokens.refresh_token().map_or(0, |token| token.expose_secret()[1..].parse().unwrap())
}

fn record(stored: Option<Stored>) -> Option<Record> {
    let Stored { version, token, generation } = stored?;
    Some(Record::new(version.into(), Entry::new(Epoch::from(1), generation, pair(token))))
}

fn version(version: &Version) -> u64 {
    version.to_u64().unwrap()
}

impl Handle {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    async fn call(&self, call: Call) -> Result<Answer, tower::BoxError> {
        let (answer, answered) = oneshot::channel();
        let number = {
            let mut world = self.world();
            world.calls += 1;
            let number = world.calls;
            if let Call::Present { token, is_marked } = call {
                world.judge(self.process, token, is_marked, number);
            }
            world.waiting.push(Waiting { number, process: self.process, call, answer });
            number
        };
        let _waiting = Guard { handle: self, number };
        self.called.notify_one();
        match answered.await {
            Ok(Answer::Failed { is_unsent: true }) => Err(RefreshError::unavailable("not sent").into()),
            Ok(Answer::Failed { is_unsent: false }) | Err(_) => Err(RefreshError::in_doubt("no answer").into()),
            Ok(Answer::Rejected) => Err(RefreshError::rejected("invalid_grant").into()),
            Ok(answer) => Ok(answer),
        }
    }

    pub(crate) async fn refresh(self, request: RefreshRequest) -> Result<Tokens, RefreshError> {
        let call = Call::Present { token: number(request.tokens()), is_marked: request.is_in_doubt() };
        match self.call(call).await {
            Ok(Answer::Issued(token)) => Ok(pair(token)),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(*error.downcast().unwrap()),
        }
    }
}

/// Removes a call that is dropped.
struct Guard<'a> {
    handle: &'a Handle,
    number: u64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // The lock is held by an explorer that drops the process.
        if let Ok(mut world) = self.handle.world.try_lock() {
            world.waiting.retain(|waiting| waiting.number != self.number);
        }
    }
}

impl TokenStore for Handle {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        Box::pin(async {
            match self.call(Call::Load).await? {
                Answer::Found(found) => Ok(record(found)),
                other => panic!("{other:?}"),
            }
        })
    }

    fn insert<'a>(&'a self, _: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        unreachable!("no process has tokens of its own")
    }

    fn replace<'a>(&'a self, _: &'a Entry) -> StoreFuture<'a, Version> {
        unreachable!("no user signs in")
    }

    fn claim<'a>(&'a self, claimed: &'a Version, _: Duration) -> StoreFuture<'a, ClaimOutcome> {
        Box::pin(async {
            Ok(match self.call(Call::Claim { version: version(claimed) }).await? {
                Answer::Claimed { version, claim, in_doubt } => {
                    ClaimOutcome::Claimed(Claim::new(version.into(), claim.into(), in_doubt))
                }
                Answer::Busy => ClaimOutcome::Busy { retry_in: RETRY_IN },
                Answer::Found(found) => ClaimOutcome::Changed(record(found)),
                other => panic!("{other:?}"),
            })
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, _: Duration) -> StoreFuture<'a, bool> {
        Box::pin(async {
            let call = Call::Renew { version: version(claim.version()), claim: claim.id().to_u64().unwrap() };
            Ok(self.call(call).await? == Answer::Held(true))
        })
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let (version, claim) = (version(claim.version()), claim.id().to_u64().unwrap());
            self.call(Call::Release { version, claim, in_doubt: presented == Presented::InDoubt }).await.map(drop)
        })
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        Box::pin(async {
            let (version, claim) = (version(claim.version()), claim.id().to_u64().unwrap());
            let (token, generation) = (number(entry.tokens()), entry.generation());
            Ok(match self.call(Call::Commit { version, claim, token, generation }).await? {
                Answer::Written(version) => CommitOutcome::Stored(version.into()),
                Answer::Found(found) => CommitOutcome::Conflict(record(found)),
                other => panic!("{other:?}"),
            })
        })
    }

    fn clear<'a>(&'a self, cleared: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        Box::pin(async {
            Ok(match self.call(Call::Clear { version: version(cleared) }).await? {
                Answer::Found(found) => ClearOutcome::Conflict(record(found).unwrap()),
                _ => ClearOutcome::Cleared,
            })
        })
    }

    fn extend<'a>(&'a self, _: &'a Version, _: SystemTime) -> StoreFuture<'a, bool> {
        unreachable!("no session is idle")
    }

    fn is_durable(&self) -> bool {
        true
    }
}
