//! One session's files, and the operations of a store on them.
//!
//! All but `load` run one at a time, under the lock of the session's `.lock` file. `load` needs none, since a record is
//! only ever replaced as a whole.

use std::fs::File;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::OwnedMutexGuard;
use tower_auth_refresh::store::{
    Claim, ClaimId, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, InsertOutcome, Presented, Record, Version,
};

use super::Settings;
use super::claim::{self, ClaimFile};
use super::directory::Directory;
use super::lock;
use super::steps::Step;
use crate::error::{Problem, StoreError, StoreErrorKind};
use crate::random;
use crate::record::{Codec, hex};

/// The space that a claim reserves for the next record, beyond the length of the current one.
const SPARE: usize = 4096;

/// The ending of a record's file.
pub(super) const RECORD: &str = ".record";

/// The time for which a look at a record that has ended waits for its lock.
const EXPIRED_LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// The files of one session, for one operation.
pub(super) struct SessionFiles {
    pub(super) settings: Arc<Settings>,
    codec: Codec,
    record: String,
    claim: String,
    lock: String,
}

/// The part of a store's state that this handle alone has. Small, since few sessions are being refreshed.
#[derive(Default)]
pub(super) struct Here {
    /// The claim that was made by this handle. The file's lock is held for as long as it is open.
    held: Option<Box<(ClaimId, File)>>,
    /// A claim that another handle holds, and when it was seen first.
    seen: Option<Box<(ClaimFile, Instant)>>,
}

/// The turn of one call on its handle, which makes one call at a time, in their order.
pub(super) struct Turn {
    pub(super) here: OwnedMutexGuard<Here>,
    /// The end of the time that the call waits for the lock.
    pub(super) deadline: Instant,
    /// Dropped with the call's future.
    pub(super) caller: Weak<()>,
}

/// The standing of a version's refresh token.
enum Standing {
    Free,
    InDoubt,
    Busy(Duration),
}

impl SessionFiles {
    pub(super) fn new(settings: Arc<Settings>, storage_key: [u8; 32]) -> Self {
        let codec = settings.codec(storage_key);
        let name = hex(&storage_key);
        let (record, claim, lock) = (format!("{name}{RECORD}"), format!("{name}.claim"), format!("{name}.lock"));
        Self { settings, codec, record, claim, lock }
    }

    pub(super) fn load(&self) -> Result<Option<Record>, StoreError> {
        self.load_from(&self.settings.open()?)
    }

    /// Loads the record from the directory, which may be open for several loads.
    pub(super) fn load_from(&self, directory: &Directory<'_>) -> Result<Option<Record>, StoreError> {
        Ok(self.read(directory)?.map(|(record, _)| record))
    }

    pub(super) fn insert(&self, turn: &mut Turn, entry: &Entry) -> Result<InsertOutcome, StoreError> {
        self.locked(turn, |directory, here| match self.read(directory)? {
            Some((record, _)) => durable(directory, InsertOutcome::Exists(record)),
            None => Ok(InsertOutcome::Inserted(self.write(directory, here, entry)?)),
        })
    }

    pub(super) fn replace(&self, turn: &mut Turn, entry: &Entry) -> Result<Version, StoreError> {
        self.locked(turn, |directory, here| self.write(directory, here, entry))
    }

    pub(super) fn claim(
        &self,
        turn: &mut Turn,
        version: &Version,
        lease: Duration,
    ) -> Result<ClaimOutcome, StoreError> {
        let caller = turn.caller.clone();
        self.locked(turn, |directory, here| {
            let (record, length) = match self.read(directory)? {
                Some((record, length)) if record.version() == version => (record, length),
                found => return durable(directory, ClaimOutcome::Changed(found.map(|(record, _)| record))),
            };
            let in_doubt = match self.standing(directory, here, &record)? {
                Standing::Free => false,
                Standing::InDoubt => true,
                Standing::Busy(retry_in) => return Ok(ClaimOutcome::Busy { retry_in }),
            };
            let id = random::identifier().map_err(directory.error_at(&self.claim))?;
            let claim = ClaimFile::new(number(&record), id, in_doubt, lease);
            let written = self.write_claim(directory, here, &claim, length + SPARE).and_then(|()| {
                let dropped = || Problem::new(StoreErrorKind::Unavailable, "the call was dropped");
                caller.upgrade().map(drop).ok_or_else(dropped).map_err(directory.error_at(&self.claim))
            });
            if written.is_err() {
                here.held = None;
                // The token will not be presented, so it is in no doubt, even if the claim was written.
                if !in_doubt {
                    let _ = directory.remove(&self.claim);
                }
            }
            written?;
            Ok(ClaimOutcome::Claimed(Claim::new(version.clone(), ClaimId::from(id), in_doubt)))
        })
    }

    pub(super) fn renew(&self, turn: &mut Turn, claim: &Claim, lease: Duration) -> Result<bool, StoreError> {
        self.locked(turn, |directory, here| {
            let Some((held, length)) = self.current_claim(directory, claim)? else {
                return Ok(false);
            };
            let renewed = ClaimFile::new(held.version, held.id, held.in_doubt, lease);
            self.write_claim(directory, here, &renewed, length + SPARE)?;
            Ok(true)
        })
    }

    pub(super) fn release(&self, turn: &mut Turn, claim: &Claim, presented: Presented) -> Result<(), StoreError> {
        self.locked(turn, |directory, here| {
            if let Some((held, _)) = self.current_claim(directory, claim)? {
                if presented == Presented::Unused && !held.in_doubt {
                    directory.remove(&self.claim)?;
                    directory.sync()?;
                } else {
                    self.write_claim(directory, here, &held.released(), 0)?;
                }
            }
            here.let_go(claim);
            Ok(())
        })
    }

    pub(super) fn commit(&self, turn: &mut Turn, claim: &Claim, entry: &Entry) -> Result<CommitOutcome, StoreError> {
        self.locked(turn, |directory, here| match self.read(directory)? {
            Some((record, _)) if record.version() == claim.version() => {
                if let Some((id, file)) = here.held.as_deref()
                    && id == claim.id()
                {
                    // Gives the reserved space to the record. Without it the disk may be full.
                    let _ = file.set_len(claim::LENGTH as u64);
                }
                Ok(CommitOutcome::Stored(self.write(directory, here, entry)?))
            }
            found => {
                here.let_go(claim);
                durable(directory, CommitOutcome::Conflict(found.map(|(record, _)| record)))
            }
        })
    }

    pub(super) fn clear(&self, turn: &mut Turn, version: &Version) -> Result<ClearOutcome, StoreError> {
        self.locked(turn, |directory, here| match self.read(directory)? {
            Some((record, _)) if record.version() != version => durable(directory, ClearOutcome::Conflict(record)),
            _ => self.delete(directory, here).map(|()| ClearOutcome::Cleared),
        })
    }

    /// Deletes the record if its end has passed and no process is refreshing it. Returns `true` if it was deleted.
    pub(super) fn delete_expired(&self) -> Result<bool, StoreError> {
        let has_ended = |record: &Record| record.entry().expires_at().is_some_and(|end| end <= SystemTime::now());
        // Without the lock first: few records have ended.
        if !self.load()?.is_some_and(|record| has_ended(&record)) {
            return Ok(false);
        }
        let deadline = Instant::now() + EXPIRED_LOCK_TIMEOUT;
        self.locked_by(&mut Here::default(), deadline, |directory, here| {
            let Some((record, _)) = self.read(directory)?.filter(|(record, _)| has_ended(record)) else {
                return Ok(false);
            };
            match self.standing(directory, here, &record)? {
                Standing::Busy(_) => Ok(false),
                Standing::Free | Standing::InDoubt => self.delete(directory, here).map(|()| true),
            }
        })
    }

    pub(super) fn extend(
        &self,
        turn: &mut Turn,
        version: &Version,
        expires_at: SystemTime,
    ) -> Result<bool, StoreError> {
        self.locked(turn, |directory, _| match self.read(directory)? {
            Some((record, _)) if record.version() == version => {
                let entry = record.entry().clone().with_expires_at(expires_at);
                if entry != *record.entry() {
                    self.publish(directory, number(&record), &entry)?;
                }
                durable(directory, true)
            }
            _ => durable(directory, false),
        })
    }

    /// Runs an operation while no other process or task runs one on this session's files.
    fn locked<T>(
        &self,
        turn: &mut Turn,
        operation: impl FnOnce(&Directory<'_>, &mut Here) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.locked_by(&mut turn.here, turn.deadline, operation)
    }

    fn locked_by<T>(
        &self,
        here: &mut Here,
        deadline: Instant,
        operation: impl FnOnce(&Directory<'_>, &mut Here) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let directory = self.settings.open()?;
        let lock = directory.lock_file(&self.lock)?;
        lock::acquire(&lock, deadline).map_err(directory.error_at(&self.lock))?;
        let outcome = operation(&directory, here)?;
        directory.reach(Step::Return).map_err(|error| Problem::io("return", error).at(&self.settings.directory))?;
        // Unlocks it.
        drop(lock);
        Ok(outcome)
    }

    /// Returns the record and the length of its file.
    fn read(&self, directory: &Directory<'_>) -> Result<Option<(Record, usize)>, StoreError> {
        let Some(file) = directory.file(&self.record)? else { return Ok(None) };
        let mut bytes = directory.read(&self.record, &file)?;
        let length = bytes.len();
        let record = self.codec.decode(&mut bytes).map_err(directory.error_at(&self.record))?;
        Ok(Some((record, length)))
    }

    /// Deletes the record and any claim.
    fn delete(&self, directory: &Directory<'_>, here: &mut Here) -> Result<(), StoreError> {
        // The record first: a claim without a record is none.
        directory.remove(&self.record)?;
        directory.sync()?;
        self.drop_claim(directory, here);
        Ok(())
    }

    /// Writes a record over any other, and ends any claim.
    fn write(&self, directory: &Directory<'_>, here: &mut Here, entry: &Entry) -> Result<Version, StoreError> {
        let version = random::identifier().map_err(directory.error_at(&self.record))?;
        self.publish(directory, version, entry)?;
        directory.sync()?;
        self.drop_claim(directory, here);
        Ok(Version::from(version))
    }

    fn publish(&self, directory: &Directory<'_>, version: u128, entry: &Entry) -> Result<(), StoreError> {
        let bytes = self.codec.encode(version, entry).map_err(directory.error_at(&self.record))?;
        let (draft, _) = directory.draft(&self.record, &bytes, 0)?;
        draft.publish(&self.record)
    }

    fn standing(&self, directory: &Directory<'_>, here: &mut Here, record: &Record) -> Result<Standing, StoreError> {
        let Some((file, claim)) = self.read_claim(directory)? else { return Ok(Standing::Free) };
        let Some(claim) = claim else { return Ok(Standing::InDoubt) };
        if claim.version != number(record) {
            return Ok(Standing::Free);
        }
        if claim.is_released {
            return Ok(Standing::InDoubt);
        }
        let proves_life = !self.settings.allows_network && claim.is_of_this_boot();
        if proves_life && !lock::is_held(&file).map_err(directory.error_at(&self.claim))? {
            return Ok(Standing::InDoubt);
        }
        let left = here.left(claim);
        Ok(if left.is_zero() { Standing::InDoubt } else { Standing::Busy(left) })
    }

    /// Returns the claim in its file; `None` for one that is damaged.
    fn read_claim(&self, directory: &Directory<'_>) -> Result<Option<(File, Option<ClaimFile>)>, StoreError> {
        let Some(file) = directory.file(&self.claim)? else { return Ok(None) };
        let bytes = directory.read(&self.claim, &file)?;
        let claim = ClaimFile::decode(&bytes).map_err(directory.error_at(&self.claim))?;
        Ok(Some((file, claim)))
    }

    /// Returns a claim that is still held, and the length of the claimed record's file.
    fn current_claim(
        &self,
        directory: &Directory<'_>,
        claim: &Claim,
    ) -> Result<Option<(ClaimFile, usize)>, StoreError> {
        let Some((record, length)) = self.read(directory)? else { return Ok(None) };
        let found = self.read_claim(directory)?.and_then(|(_, found)| found);
        let held = found.filter(|found| {
            !found.is_released
                && record.version() == claim.version()
                && found.version == number(&record)
                && ClaimId::from(found.id) == *claim.id()
        });
        Ok(held.map(|held| (held, length)))
    }

    /// Writes a claim, and keeps its file open and locked.
    fn write_claim(
        &self,
        directory: &Directory<'_>,
        here: &mut Here,
        claim: &ClaimFile,
        length: usize,
    ) -> Result<(), StoreError> {
        let (draft, file) = directory.draft(&self.claim, &claim.encode(), length)?;
        lock::hold(&file).map_err(directory.error_at(&self.claim))?;
        draft.publish(&self.claim)?;
        // Even if the next step fails, other processes see the file, and that it is locked.
        here.held = Some(Box::new((ClaimId::from(claim.id), file)));
        directory.sync()
    }

    /// Removes a claim on a version that is gone. If that fails, the claim is none all the same.
    fn drop_claim(&self, directory: &Directory<'_>, here: &mut Here) {
        let _ = directory.remove(&self.claim);
        here.held = None;
    }
}

impl Here {
    /// Gives up the lock of a claim's file.
    fn let_go(&mut self, claim: &Claim) {
        self.held = self.held.take().filter(|held| held.0 != *claim.id());
    }

    /// Returns the time until a claim's lease ends: by its clock, or as long after the claim was seen first as the lease
    /// lasts, if the clock was set back.
    fn left(&mut self, claim: ClaimFile) -> Duration {
        let lease = Duration::from_millis(claim.lease);
        let by_clock = claim.remaining();
        let seen = self.seen.take().filter(|seen| seen.0 == claim);
        let seen = self.seen.insert(seen.unwrap_or_else(|| Box::new((claim, Instant::now()))));
        let since = seen.1;
        by_clock.min(lease.saturating_sub(since.elapsed()))
    }
}

/// Returns what other processes have written, once it is durable: a write of theirs, or of ours that seemed to fail.
fn durable<T>(directory: &Directory<'_>, found: T) -> Result<T, StoreError> {
    directory.sync()?;
    Ok(found)
}

/// Returns the version as this store has made it. Each record that is read has one.
fn number(record: &Record) -> u128 {
    record.version().to_u128().unwrap_or_default()
}
