//! One session's record, and the operations of a store on it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use redis::{Cmd, Pipeline, Value};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use tower_auth_refresh::Tokens;
use tower_auth_refresh::store::{
    Claim, ClaimId, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, Epoch, InsertOutcome, Presented, Record,
    RecordChanged, StoreFuture, TokenStore, Version,
};

use super::Shared;
use super::connect::Connection;
use super::failure::Failure;
use super::line::{ATTEMPT_TIMEOUT, CALL_TIMEOUT, Call, alone, refusal, unavailable};
use super::push::{MESSAGE, Push};
use super::script::{self, Script};
use crate::error::{Problem, StoreErrorKind};
use crate::random;
use crate::record::{Codec, write_hex};
use crate::wiped::Wiped;

/// The lifetime of the record of a check.
const CHECK_LIFETIME: Duration = Duration::from_secs(60);

/// The name of a session's value: this, and the digits of its storage key.
const PREFIX: &[u8] = b"tar:";
const NAME: usize = PREFIX.len() + 2 * 32;

/// The command that reads a value. A write in name only: a replica, which may lag behind, refuses it.
const READ: &str = "GETEX";

/// The attempts to give a claim back whose call wasn't answered.
const RELEASES: usize = 3;

/// A handle on one session.
#[derive(Clone)]
pub(super) struct SessionStore {
    pub(super) shared: Arc<Shared>,
    pub(super) storage_key: [u8; 32],
}

impl Drop for SessionStore {
    fn drop(&mut self) {
        self.shared.push.unwatch(&self.storage_key, self.id());
    }
}

/// The answer of a script, read.
enum Outcome {
    Done { in_doubt: bool },
    Absent,
    Found(Record),
    Busy(Duration),
}

impl SessionStore {
    fn codec(&self) -> Codec {
        let codec = Codec::new(self.storage_key);
        #[cfg(feature = "encryption")]
        let codec = codec.with_keys(self.shared.keys.clone());
        codec
    }

    /// Returns a number that no other handle of this process has.
    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// The message that this handle has changed the record.
    fn message(&self) -> [u8; MESSAGE] {
        self.shared.push.message(&self.storage_key, self.id())
    }

    /// Runs a script. Returns its outcome, and whether enough replicas have its write.
    async fn run(&self, run: Run<'_>) -> Result<(Outcome, bool), Failure> {
        let Run { script, arguments, deadline, kind } = run;
        let name = name(&self.storage_key);
        let commands = |connection: &Connection, named| {
            // By the server's clock, which need not agree with that of this host.
            let left = ATTEMPT_TIMEOUT.min(deadline.saturating_duration_since(Instant::now()));
            let end = connection.server_time(left).to_string();
            let ends = matches!(kind, Kind::Begins { .. }).then_some(end.as_bytes());
            let arguments: Vec<_> = arguments.iter().copied().chain(ends).collect();
            alone(script.call(named, &name, &arguments))
        };
        let repeats = kind != (Kind::Begins { repeats: false });
        let waits = kind != Kind::Holds;
        let answer = self.shared.line.call(Call { commands, deadline, repeats, waits }).await?;
        let is_replicated = answer.is_replicated;
        Ok((self.read(answer.value()).map_err(Failure::Refused)?, is_replicated))
    }

    fn read(&self, value: Value) -> Result<Outcome, Problem> {
        let Value::Array(parts) = value else { return Err(misunderstood()) };
        let mut parts = parts.into_iter();
        let Some(Value::BulkString(word)) = parts.next() else { return Err(misunderstood()) };
        Ok(match (&*word, parts.next()) {
            (b"done", None) => Outcome::Done { in_doubt: false },
            (b"done", Some(Value::Int(in_doubt))) => Outcome::Done { in_doubt: in_doubt != 0 },
            (b"absent", None) => Outcome::Absent,
            (b"busy", Some(Value::Int(left))) => {
                Outcome::Busy(Duration::from_millis(u64::try_from(left).unwrap_or_default()))
            }
            (b"found" | b"unreadable", Some(Value::BulkString(value))) => {
                Outcome::Found(script::decode(&self.codec(), &mut Wiped::from(value))?)
            }
            _ => return Err(misunderstood()),
        })
    }

    async fn load(&self, deadline: Instant) -> Result<Option<Record>, Failure> {
        let mut values = read(&self.shared, &[self.storage_key], deadline).await?;
        self.found(values.pop().unwrap_or_default())
    }

    /// Loads the record together with those of other sessions that are loaded at this moment.
    async fn load_gathered(&self) -> Result<Option<Record>, Failure> {
        let shared = &self.shared;
        let value = shared.reads.read(self.storage_key, || {
            in_runtime()?;
            let shared = Arc::clone(shared);
            Ok(move |storage_keys: Vec<_>| {
                let shared = Arc::clone(&shared);
                async move { read(&shared, &storage_keys, Instant::now() + CALL_TIMEOUT).await }
            })
        });
        self.found(value.await?)
    }

    fn found(&self, value: Value) -> Result<Option<Record>, Failure> {
        match value {
            Value::Nil => Ok(None),
            Value::BulkString(value) => {
                script::decode(&self.codec(), &mut Wiped::from(value)).map(Some).map_err(Failure::Refused)
            }
            value => Err(refusal(&value).unwrap_or_else(|| Failure::Refused(misunderstood()))),
        }
    }

    /// Writes a new record. Returns the version, or the record that is in the way.
    async fn write(&self, script: &Script, entry: &Entry) -> Result<Result<Version, Record>, Failure> {
        let deadline = Instant::now() + CALL_TIMEOUT;
        let (number, value, lifetime) = self.encode(entry).map_err(Failure::Refused)?;
        let version = Version::from(number);
        let (channel, message) = (self.shared.channel.as_bytes(), self.message());
        let arguments = [&*value, lifetime.as_bytes(), channel, &message];
        // Made again, it could write over what has been made of this record in the meantime, or bring back what
        // another process has deleted.
        let kind = Kind::Begins { repeats: false };
        match self.run(Run { script, arguments: &arguments, deadline, kind }).await {
            Ok((Outcome::Done { .. }, _)) => Ok(Ok(version)),
            Ok((Outcome::Found(record), _)) => Ok(Err(record)),
            Ok(_) => Err(Failure::Refused(misunderstood())),
            Err(Failure::Lost(problem)) => match self.load(deadline).await {
                Ok(Some(record)) if *record.version() == version => Ok(Ok(version)),
                Ok(Some(record)) => Ok(Err(record)),
                _ => Err(Failure::Lost(problem)),
            },
            Err(failure) => Err(failure),
        }
    }

    /// Returns a new version, and the value and the lifetime of a record that has it.
    fn encode(&self, entry: &Entry) -> Result<(u128, Wiped, String), Problem> {
        let version = random::identifier()?;
        let lifetime = entry.expires_at().map_or_else(String::new, script::lifetime);
        Ok((version, script::encode(&self.codec(), version, entry)?, lifetime))
    }

    async fn claim(&self, version: &Version, lease: Duration) -> Result<ClaimOutcome, Failure> {
        let deadline = Instant::now() + CALL_TIMEOUT;
        let id = ClaimId::from(random::identifier().map_err(Failure::Refused)?);
        let mut unused = Unused { store: self, claim: Some(Claim::new(version.clone(), id.clone(), false)) };
        let lease = script::lease(lease);
        let arguments = [version.as_bytes(), id.as_bytes(), lease.as_bytes()];
        let (script, kind) = (&self.shared.scripts.claim, Kind::Begins { repeats: true });
        let run = self.run(Run { script, arguments: &arguments, deadline, kind }).await;
        let is_known = !matches!(run, Err(Failure::Lost(_)));
        let claim = unused.claim.take_if(|_| is_known);
        match (run?, claim) {
            ((Outcome::Done { in_doubt }, true), _) => {
                Ok(ClaimOutcome::Claimed(Claim::new(version.clone(), id, in_doubt)))
            }
            ((Outcome::Done { .. }, false), claim) => {
                if let Some(claim) = claim {
                    self.release(&claim, Presented::Unused, deadline).await?;
                }
                Err(Failure::Refused(unavailable("too few replicas have acknowledged the claim; it was given back")))
            }
            ((Outcome::Busy(retry_in), _), _) => Ok(ClaimOutcome::Busy { retry_in }),
            ((Outcome::Absent, _), _) => Ok(ClaimOutcome::Changed(None)),
            ((Outcome::Found(record), _), _) => Ok(ClaimOutcome::Changed(Some(record))),
        }
    }

    async fn renew(&self, claim: &Claim, lease: Duration) -> Result<bool, Failure> {
        let lease = script::lease(lease);
        let arguments = [claim.version().as_bytes(), claim.id().as_bytes(), lease.as_bytes()];
        let (script, deadline) = (&self.shared.scripts.renew, Instant::now() + CALL_TIMEOUT);
        let (outcome, _) = self.run(Run { script, arguments: &arguments, deadline, kind: Kind::Holds }).await?;
        Ok(matches!(outcome, Outcome::Done { .. }))
    }

    /// Ends a claim. Returns `false` if there is none.
    async fn release(&self, claim: &Claim, presented: Presented, deadline: Instant) -> Result<bool, Failure> {
        let in_doubt: &[u8] = if presented == Presented::Unused { b"0" } else { b"1" };
        let arguments = [claim.version().as_bytes(), claim.id().as_bytes(), in_doubt];
        let script = &self.shared.scripts.release;
        let (outcome, _) = self.run(Run { script, arguments: &arguments, deadline, kind: Kind::Holds }).await?;
        Ok(matches!(outcome, Outcome::Done { .. }))
    }

    async fn commit(&self, claim: &Claim, entry: &Entry) -> Result<CommitOutcome, Failure> {
        let (number, value, lifetime) = self.encode(entry).map_err(Failure::Refused)?;
        let arguments = [&*value, lifetime.as_bytes(), claim.version().as_bytes()];
        let (script, deadline) = (&self.shared.scripts.commit, Instant::now() + CALL_TIMEOUT);
        let run = self.run(Run { script, arguments: &arguments, deadline, kind: Kind::Ends }).await?;
        match run {
            // Stored, even if too few replicas have it: the refresh token is used up.
            (Outcome::Done { .. }, _) => Ok(CommitOutcome::Stored(Version::from(number))),
            (Outcome::Found(record), _) => Ok(CommitOutcome::Conflict(Some(record))),
            (Outcome::Absent, _) => Ok(CommitOutcome::Conflict(None)),
            (Outcome::Busy(_), _) => Err(Failure::Refused(misunderstood())),
        }
    }

    async fn clear(&self, version: &Version) -> Result<ClearOutcome, Failure> {
        let (channel, message) = (self.shared.channel.as_bytes(), self.message());
        let arguments = [version.as_bytes(), channel, &message];
        let (script, deadline) = (&self.shared.scripts.clear, Instant::now() + CALL_TIMEOUT);
        loop {
            match self.run(Run { script, arguments: &arguments, deadline, kind: Kind::Ends }).await? {
                (Outcome::Done { .. }, true) => return Ok(ClearOutcome::Cleared),
                // While there is time for another attempt.
                (Outcome::Done { .. }, false) if Instant::now() + ATTEMPT_TIMEOUT < deadline => {}
                (Outcome::Done { .. }, false) => {
                    let reason = "the record is deleted, but too few replicas have acknowledged it";
                    return Err(Failure::Refused(unavailable(reason)));
                }
                (Outcome::Found(record), _) => return Ok(ClearOutcome::Conflict(record)),
                _ => return Err(Failure::Refused(misunderstood())),
            }
        }
    }

    async fn extend(&self, version: &Version, expires_at: SystemTime) -> Result<bool, Failure> {
        let (end, lifetime) = (script::end(expires_at), script::lifetime(expires_at));
        let arguments = [version.as_bytes(), end.as_bytes(), lifetime.as_bytes()];
        let (script, deadline) = (&self.shared.scripts.extend, Instant::now() + CALL_TIMEOUT);
        let (outcome, _) = self.run(Run { script, arguments: &arguments, deadline, kind: Kind::Holds }).await?;
        Ok(matches!(outcome, Outcome::Done { .. }))
    }

    /// Runs each operation. A record that is left is deleted by the server.
    pub(super) async fn check(&self) -> Result<(), Failure> {
        let (scripts, tokens) = (&self.shared.scripts, Tokens::default());
        let end = SystemTime::now() + CHECK_LIFETIME;
        let entry = Entry::new(Epoch::random(), 1, tokens).with_expires_at(end);
        let deadline = || Instant::now() + CALL_TIMEOUT;
        let refused = || Failure::Refused(unavailable("another process has written the record of the check"));
        let expect = |holds: bool| if holds { Ok(()) } else { Err(refused()) };

        let Ok(version) = self.write(&scripts.insert, &entry).await? else { return Err(refused()) };
        expect(self.extend(&version, end).await?)?;
        let ClaimOutcome::Claimed(claim) = self.claim(&version, CHECK_LIFETIME).await? else { return Err(refused()) };
        expect(self.renew(&claim, CHECK_LIFETIME).await?)?;
        self.release(&claim, Presented::Unused, deadline()).await?;
        let ClaimOutcome::Claimed(claim) = self.claim(&version, CHECK_LIFETIME).await? else { return Err(refused()) };
        let CommitOutcome::Stored(_) = self.commit(&claim, &entry).await? else { return Err(refused()) };
        let Ok(version) = self.write(&scripts.replace, &entry).await? else { return Err(refused()) };
        expect(self.load(deadline()).await?.is_some())?;
        self.clear(&version).await?;
        Ok(())
    }

    /// Makes a call of the session.
    fn bounded<'a, T>(&'a self, call: impl Future<Output = Result<T, Failure>> + Send + 'a) -> StoreFuture<'a, T> {
        self.unchecked(async move {
            in_runtime()?;
            call.await
        })
    }

    /// As `bounded`, for a call that needs no runtime, or checks by itself that there is one.
    fn unchecked<'a, T>(&'a self, call: impl Future<Output = Result<T, Failure>> + Send + 'a) -> StoreFuture<'a, T> {
        Box::pin(async move {
            Push::start(&self.shared);
            Ok(call.await.map_err(|failure| failure.problem().of(&self.shared.resource))?)
        })
    }
}

impl TokenStore for SessionStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.unchecked(self.load_gathered())
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.bounded(async {
            let written = self.write(&self.shared.scripts.insert, entry).await?;
            Ok(written.map_or_else(InsertOutcome::Exists, InsertOutcome::Inserted))
        })
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.bounded(async {
            let written = self.write(&self.shared.scripts.replace, entry).await?;
            written.map_err(|_| {
                Failure::Lost(unavailable("the answer was lost, and the record is another: written since, or before"))
            })
        })
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.bounded(self.claim(version, lease))
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.bounded(self.renew(claim, lease))
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.bounded(async move { self.release(claim, presented, Instant::now() + CALL_TIMEOUT).await.map(drop) })
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        self.bounded(self.commit(claim, entry))
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.bounded(self.clear(version))
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.bounded(self.extend(version, expires_at))
    }

    fn watch(&self, changed: RecordChanged) {
        self.shared.push.watch(&self.storage_key, self.id(), changed);
        Push::start(&self.shared);
    }

    fn is_durable(&self) -> bool {
        true
    }
}

/// A run of a script.
struct Run<'a> {
    script: &'a Script,
    arguments: &'a [&'a [u8]],
    deadline: Instant,
    kind: Kind,
}

/// The part of an operation in the session's life.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Refused after the attempt or the call has ended: it would change what a later call relies on. Waits for replicas.
    Begins {
        /// The script recognizes what an earlier attempt of the call has done.
        repeats: bool,
    },
    /// Changes a version or a claim that never comes again. Does not wait for replicas.
    Holds,
    /// As `Holds`. Waits for replicas.
    Ends,
}

/// A claim that will not be used, unless its call is answered. Given back when it is dropped.
struct Unused<'a> {
    store: &'a SessionStore,
    claim: Option<Claim>,
}

impl Drop for Unused<'_> {
    fn drop(&mut self) {
        let (Some(claim), Ok(runtime)) = (self.claim.take(), Handle::try_current()) else { return };
        let store = self.store.clone();
        runtime.spawn(async move {
            // If it fails each time, the lease ends.
            for _ in 0..RELEASES {
                let deadline = Instant::now() + CALL_TIMEOUT;
                if matches!(store.release(&claim, Presented::Unused, deadline).await, Ok(true)) {
                    break;
                }
                // The claim may still be on its way, on another connection, until it would be refused.
                sleep(ATTEMPT_TIMEOUT).await;
            }
        });
    }
}

fn in_runtime() -> Result<(), Failure> {
    let reason = "the store was called outside of a tokio runtime";
    let outside = |_| Failure::Refused(Problem::new(StoreErrorKind::Misconfigured, reason));
    Handle::try_current().map(drop).map_err(outside)
}

/// Returns the name of a session's value.
fn name(storage_key: &[u8; 32]) -> [u8; NAME] {
    let mut name = [0; NAME];
    let (prefix, digits) = name.split_at_mut(PREFIX.len());
    prefix.copy_from_slice(PREFIX);
    write_hex(storage_key, digits);
    name
}

/// Reads the values of sessions, in the order of their storage keys.
async fn read(shared: &Shared, storage_keys: &[[u8; 32]], deadline: Instant) -> Result<Vec<Value>, Failure> {
    let commands = |_: &_, _| {
        let mut reads = Pipeline::with_capacity(storage_keys.len());
        for storage_key in storage_keys {
            let mut read = Cmd::with_capacity(2, READ.len() + NAME);
            read.arg(READ).arg(&name(storage_key)[..]);
            reads.add_command(read);
        }
        reads
    };
    let answer = shared.line.call(Call { commands, deadline, repeats: true, waits: false }).await?;
    if answer.values.len() == storage_keys.len() { Ok(answer.values) } else { Err(Failure::Refused(misunderstood())) }
}

fn misunderstood() -> Problem {
    Problem::new(StoreErrorKind::Misconfigured, "the server's answer isn't understood")
}
