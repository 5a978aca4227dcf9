//! [`Witness`]: stands between a process's sessions and their stores and refresh service, to log each call, lose some
//! answers, and stop or kill the process at the point that it was told.

use std::io::{Write, stdout};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use rustix::process::{Signal, getpid, kill_process};
use tower::Service;
use tower_auth_refresh::refresh::RefreshErrorKind;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, InsertOutcome, Presented, Record, RecordChanged,
    StoreFuture, TokenStore, Version,
};
use tower_auth_refresh::{RefreshError, RefreshRequest, Tokens};

use crate::log::{self, Call, Log, Outcome};

/// The time of a session's refresh.
pub(crate) const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);

/// The lease of a claim. A session asks for 10 s more than its refresh takes, which is longer than a test can wait.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// One answer of so many is lost on its way to the session: half of them before the store has acted, half after.
const LOST: u32 = 40;

/// What a process does at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    Stop,
    Kill,
}

/// The observer of a process.
pub(crate) struct Witness {
    log: Log,
    loses_answers: bool,
    armed: Mutex<Option<(Action, String)>>,
}

impl Witness {
    /// A witness of a process that nothing happens to.
    pub(crate) fn new(log: Log) -> Arc<Self> {
        Arc::new(Self { log, loses_answers: false, armed: Mutex::default() })
    }

    pub(crate) fn that_loses_answers(log: Log) -> Arc<Self> {
        Arc::new(Self { log, loses_answers: true, armed: Mutex::default() })
    }

    /// Sets the point at which the process is stopped or killed next.
    pub(crate) fn arm(&self, action: Action, point: &str) {
        *self.armed.lock().unwrap() = Some((action, point.to_owned()));
    }

    pub(crate) fn disarm(&self) {
        *self.armed.lock().unwrap() = None;
    }

    /// Returns the store of a user, observed.
    pub(crate) fn store(self: &Arc<Self>, user: &str, inner: Arc<dyn TokenStore>) -> Arc<dyn TokenStore> {
        Arc::new(WitnessedStore { witness: Arc::clone(self), user: user.to_owned(), inner })
    }

    /// Returns a refresh service, observed.
    pub(crate) fn service<S>(self: &Arc<Self>, inner: S) -> WitnessedService<S> {
        WitnessedService { witness: Arc::clone(self), inner }
    }

    /// Stops or kills the process, if this is the point to do so.
    fn reach(&self, side: &str, name: &str) {
        let is_due = |(_, point): &mut (Action, String)| *point == format!("{side} {name}");
        let Some((action, _)) = self.armed.lock().unwrap().take_if(is_due) else { return };
        println!("reached");
        stdout().flush().unwrap();
        let signal = if action == Action::Kill { Signal::KILL } else { Signal::STOP };
        kill_process(getpid(), signal).unwrap();
        // The signal may take a moment.
        std::thread::sleep(Duration::from_millis(20));
    }

    /// Returns `true` for the answers that are lost.
    fn loses(&self) -> bool {
        self.loses_answers && fastrand::u32(..2 * LOST) == 0
    }
}

impl FromStr for Action {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Stop, Self::Kill].into_iter().find(|action| format!("{action:?}") == text).ok_or(())
    }
}

struct WitnessedStore {
    witness: Arc<Witness>,
    user: String,
    inner: Arc<dyn TokenStore>,
}

impl WitnessedStore {
    fn observe<'a, T: Send + 'a>(
        &'a self,
        name: &'static str,
        call: Call,
        answer: StoreFuture<'a, T>,
        outcome: impl FnOnce(&T) -> Outcome + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let witness = &self.witness;
            let number = witness.log.begins(&self.user, call);
            witness.reach("before", name);
            let answer = if witness.loses() { Err("the request was lost".into()) } else { answer.await };
            let answer = if witness.loses() { Err("the answer was lost".into()) } else { answer };
            let seen = answer.as_ref().map_or_else(|error| Outcome::Failed(error.to_string()), outcome);
            witness.log.ends(number, &self.user, seen);
            witness.reach("after", name);
            answer
        })
    }
}

impl TokenStore for WitnessedStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.observe("load", Call::Load, self.inner.load(), |found| Outcome::Found(found.as_ref().map(Into::into)))
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.observe("insert", Call::Insert(entry.into()), self.inner.insert(entry), |outcome| match outcome {
            InsertOutcome::Inserted(version) => written(version),
            InsertOutcome::Exists(record) => Outcome::Found(Some(record.into())),
            other => panic!("{other:?}"),
        })
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.observe("replace", Call::Replace(entry.into()), self.inner.replace(entry), written)
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        let lease = lease.min(LEASE);
        let call = Call::Claim { lease: nanos(lease) };
        self.observe("claim", call, self.inner.claim(version, lease), |outcome| match outcome {
            ClaimOutcome::Claimed(claim) => Outcome::Claimed(claim.into()),
            ClaimOutcome::Busy { .. } => Outcome::Busy,
            ClaimOutcome::Changed(found) => Outcome::Found(found.as_ref().map(Into::into)),
            other => panic!("{other:?}"),
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        let lease = lease.min(LEASE);
        let call = Call::Renew { claim: claim.into(), lease: nanos(lease) };
        self.observe("renew", call, self.inner.renew(claim, lease), |held| Outcome::Held(*held))
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        let call = Call::Release { claim: claim.into(), in_doubt: presented == Presented::InDoubt };
        self.observe("release", call, self.inner.release(claim, presented), |()| Outcome::Done)
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        let call = Call::Commit { claim: claim.into(), entry: entry.into() };
        self.observe("commit", call, self.inner.commit(claim, entry), |outcome| match outcome {
            CommitOutcome::Stored(version) => written(version),
            CommitOutcome::Conflict(found) => Outcome::Found(found.as_ref().map(Into::into)),
            other => panic!("{other:?}"),
        })
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.observe("clear", Call::Clear, self.inner.clear(version), |outcome| match outcome {
            ClearOutcome::Cleared => Outcome::Done,
            ClearOutcome::Conflict(record) => Outcome::Found(Some(record.into())),
            other => panic!("{other:?}"),
        })
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.observe("extend", Call::Extend, self.inner.extend(version, expires_at), |held| Outcome::Held(*held))
    }

    fn watch(&self, changed: RecordChanged) {
        self.inner.watch(changed);
    }

    fn is_durable(&self) -> bool {
        self.inner.is_durable()
    }
}

fn written(version: &Version) -> Outcome {
    Outcome::Written(log::digits(version.as_bytes()))
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap()
}

/// A refresh service, whose calls are logged by their tokens alone.
#[derive(Clone)]
pub(crate) struct WitnessedService<S> {
    witness: Arc<Witness>,
    inner: S,
}

impl<S> Service<RefreshRequest> for WitnessedService<S>
where
    S: Service<RefreshRequest, Response = Tokens, Error = RefreshError, Future: Send> + Clone + Send + 'static,
{
    type Response = Tokens;
    type Error = RefreshError;
    type Future = Pin<Box<dyn Future<Output = Result<Tokens, RefreshError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RefreshError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: RefreshRequest) -> Self::Future {
        let (witness, mut inner) = (Arc::clone(&self.witness), self.inner.clone());
        std::mem::swap(&mut inner, &mut self.inner);
        Box::pin(async move {
            let call = Call::Present { token: log::hash(request.tokens()), in_doubt: request.is_in_doubt() };
            let number = witness.log.begins("", call);
            witness.reach("before", "the refresh call");
            let answer = inner.call(request).await;
            let outcome = match &answer {
                Ok(_) => Outcome::Received,
                Err(error) => match error.kind() {
                    RefreshErrorKind::Unavailable | RefreshErrorKind::Rejected => Outcome::Unused,
                    _ => Outcome::Doubtful,
                },
            };
            witness.log.ends(number, "", outcome);
            witness.reach("after", "the refresh call");
            answer
        })
    }
}
