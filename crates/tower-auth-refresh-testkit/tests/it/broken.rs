//! The conformance suite catches every store that breaks a rule.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use tokio::time::Instant;
use tower_auth_refresh::store::{
    Claim, ClaimId, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, Epoch, InsertOutcome, Presented, Record,
    StoreFuture, TokenStore, Version,
};
use tower_auth_refresh_testkit::conformance::{self, Handles};

macro_rules! defects {
    ($($name:ident)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Defect { None, $($name),* }

        const DEFECTS: &[Defect] = &[$(Defect::$name),*];
    };
}

defects! {
    HandlesDontShare
    VersionsRestartAfterClear
    VersionsAreDerivedFromTheTokens
    ClaimsAreNotExclusive
    ClaimsShareAnId
    LeaseIsTwiceAsLong
    LeaseNeverEnds
    ExpiryLeavesNoDoubt
    ReleaseClearsTheDoubt
    ReleaseIsAlwaysInDoubt
    ReleaseIsNeverInDoubt
    ReleaseDoesNothing
    ReleaseIsRepeated
    RenewDoesNothing
    RenewRevivesAReleasedClaim
    CommitIgnoresTheVersion
    CommitNeedsItsLease
    CommitKeepsTheVersion
    CommitKeepsTheClaim
    CommitStartsAnEpoch
    ConflictHasNoRecord
    InsertReplaces
    ReplaceKeepsTheClaim
    ReplaceNeedsAnEmptyStore
    ClearIgnoresTheVersion
    ClearNeedsTheClaim
    ExtraMembersAreLost
    ExpiryIsCutToSeconds
    EpochIsAFloat
    GenerationIsAFloat
    GenerationIs32Bits
    GenerationIsSigned
    CommitCountsTheGeneration
    CommitKeepsTheLargestGeneration
    ConflictHasNoGeneration
    RetryInIsTheWholeLease
    RetryInIsZero
    RetryInIgnoresARenewal
    VersionsAreCutToEightBytes
    ClaimIdsAreCutToEightBytes
    EndIsLost
    EndIsCutToSeconds
    LatestEndIsLost
    ConflictHasNoEnd
    ExtendDoesNothing
    ExtendIgnoresTheVersion
    ExtendReportsNoConflict
    ExtendMakesAVersion
    ExtendEndsTheClaim
    ExtendOnlyLengthens
    ExtendMovesTheLatestEnd
    TheFirstEndCounts
    ReplaceKeepsAnExpiredRecord
    ClearKeepsAnExpiredRecord
}

use Defect as D;

/// The kind of versions and identifiers of claims that a store makes.
#[derive(Clone, Copy, Debug)]
enum Ids {
    /// A `bigint`.
    Number,
    Uuid,
    /// Long, and equal in its first bytes.
    Text,
}

impl Ids {
    fn version(self, number: u64) -> Version {
        match self {
            Self::Number => number.into(),
            Self::Uuid => (u128::MAX - u128::from(number)).into(),
            Self::Text => Version::from(&*text(number)),
        }
    }

    fn claim_id(self, number: u64) -> ClaimId {
        match self {
            Self::Number => number.into(),
            Self::Uuid => (u128::MAX - u128::from(number)).into(),
            Self::Text => ClaimId::from(&*text(number)),
        }
    }
}

fn text(number: u64) -> String {
    format!("W/\"a long identifier, the start of which is always the same: {}{number}\"", "=".repeat(200))
}

/// Runs the suite. Returns `true` if a case failed.
async fn is_caught(defect: Defect, ids: Ids) -> bool {
    let open = async || -> Handles {
        let first: Arc<dyn TokenStore> = Arc::new(Broken::new(defect, ids));
        let second = if defect == D::HandlesDontShare { Arc::new(Broken::new(defect, ids)) } else { first.clone() };
        [first, second]
    };
    AssertUnwindSafe(conformance::stores(Duration::from_secs(10), open)).catch_unwind().await.is_err()
}

#[tokio::test(start_paused = true)]
async fn every_broken_store_is_caught() {
    let mut missed = Vec::new();
    for defect in DEFECTS {
        // Those of the other kinds are cut to nothing that differs.
        let cut = matches!(defect, D::VersionsAreCutToEightBytes | D::ClaimIdsAreCutToEightBytes);
        if !is_caught(*defect, if cut { Ids::Text } else { Ids::Number }).await {
            missed.push(defect);
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_without_a_defect_passes_whatever_its_identifiers_are_made_from() {
    for ids in [Ids::Number, Ids::Uuid, Ids::Text] {
        assert!(!is_caught(D::None, ids).await, "{ids:?}");
    }
}

struct Broken {
    defect: Defect,
    ids: Ids,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    last: u64,
    record: Option<Record>,
    lease: Option<Lease>,
    /// The end of the record as it was written.
    first_end: Option<Instant>,
}

struct Lease {
    id: ClaimId,
    /// `None` if the claim was released in doubt.
    until: Option<Instant>,
    /// The lease as the claim was made.
    asked: Duration,
    made: Instant,
    in_doubt: bool,
}

impl Broken {
    fn new(defect: Defect, ids: Ids) -> Self {
        Self { defect, ids, slot: Mutex::default() }
    }

    fn call<T: Send + 'static>(&self, change: impl FnOnce(&mut Slot, Defect) -> T) -> StoreFuture<'_, T> {
        let mut slot = self.slot.lock().expect("no change panics");
        if self.defect == D::TheFirstEndCounts && slot.first_end.is_some_and(|end| end <= Instant::now()) {
            slot.record = None;
        }
        Box::pin(std::future::ready(Ok(change(&mut slot, self.defect))))
    }

    fn is_same(&self, a: &Version, b: &Version) -> bool {
        let cut = self.defect == D::VersionsAreCutToEightBytes;
        a == b || cut && a.as_bytes()[..8] == b.as_bytes()[..8]
    }

    fn cut_id(&self, id: ClaimId) -> ClaimId {
        if self.defect == D::ClaimIdsAreCutToEightBytes { id.as_bytes()[..8].into() } else { id }
    }
}

impl Slot {
    fn write(&mut self, entry: &Entry, defect: Defect, ids: Ids) -> Version {
        self.last += 1;
        let (mut epoch, mut generation, mut tokens) = (entry.epoch(), entry.generation(), entry.tokens().clone());
        let mut version = ids.version(self.last);
        match defect {
            D::VersionsAreDerivedFromTheTokens => {
                let refresh = tokens.refresh_token().map_or("", |token| token.expose_secret());
                version = refresh.bytes().fold(7, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte)).into();
            }
            D::ExtraMembersAreLost => tokens = tokens.with_extra(serde_json::Map::new()),
            D::ExpiryIsCutToSeconds => {
                if let Some(since) = tokens.expires_at().and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
                    tokens = tokens.with_expires_at(UNIX_EPOCH + Duration::from_secs(since.as_secs()));
                }
            }
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the defect"
            )]
            D::EpochIsAFloat => epoch = Epoch::from(epoch.to_u64() as f64 as u64),
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the defect"
            )]
            D::GenerationIsAFloat => generation = generation as f64 as u64,
            D::GenerationIs32Bits => generation &= u64::from(u32::MAX),
            D::GenerationIsSigned => generation = generation.min(i64::MAX.cast_unsigned()),
            _ => {}
        }
        let mut written = Entry::new(epoch, generation, tokens);
        if let Some(end) = entry.expires_at().filter(|_| defect != D::EndIsLost) {
            let since = end.duration_since(UNIX_EPOCH).expect("after 1970");
            let cut = defect == D::EndIsCutToSeconds;
            let since = if cut { Duration::from_secs(since.as_secs()) } else { since };
            written = written.with_expires_at(UNIX_EPOCH + since);
        }
        if let Some(end) = entry.ends_at().filter(|_| defect != D::LatestEndIsLost) {
            written = written.with_ends_at(end);
        }
        let left = entry.expires_at().and_then(|end| end.duration_since(SystemTime::now()).ok());
        self.first_end = left.map(|left| Instant::now() + left);
        self.record = Some(Record::new(version.clone(), written));
        version
    }

    fn is_past_its_end(&self) -> bool {
        self.record.as_ref().and_then(|record| record.entry().expires_at()).is_some_and(|end| end <= SystemTime::now())
    }

    fn found(&self, defect: Defect) -> Option<Record> {
        let found = self.record.clone().filter(|_| defect != D::ConflictHasNoRecord)?;
        let generation = if defect == D::ConflictHasNoGeneration { 1 } else { found.generation() };
        let ends = if defect == D::ConflictHasNoEnd { (None, None) } else { ends(found.entry()) };
        let entry = with_ends(Entry::new(found.epoch(), generation, found.tokens().clone()), ends);
        Some(Record::new(found.version().clone(), entry))
    }

    fn held(&mut self, claim: &Claim, defect: Defect) -> Option<&mut Lease> {
        let is_current = self.record.as_ref().is_some_and(|record| record.version() == claim.version());
        self.lease.as_mut().filter(|held| is_current && (held.id == *claim.id() || defect == D::ClaimsShareAnId))
    }
}

type Ends = (Option<SystemTime>, Option<SystemTime>);

fn ends(entry: &Entry) -> Ends {
    (entry.expires_at(), entry.ends_at())
}

fn with_ends(mut entry: Entry, (expires_at, ends_at): Ends) -> Entry {
    if let Some(end) = expires_at {
        entry = entry.with_expires_at(end);
    }
    if let Some(end) = ends_at {
        entry = entry.with_ends_at(end);
    }
    entry
}

impl TokenStore for Broken {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.call(|slot, _| slot.record.clone())
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.call(|slot, defect| match slot.found(defect) {
            Some(record) if defect != D::InsertReplaces => InsertOutcome::Exists(record),
            _ => InsertOutcome::Inserted(slot.write(entry, defect, self.ids)),
        })
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.call(|slot, defect| {
            if let (D::ReplaceNeedsAnEmptyStore, Some(record)) = (defect, &slot.record) {
                return record.version().clone();
            }
            if defect == D::ReplaceKeepsAnExpiredRecord && slot.is_past_its_end() {
                return self.ids.version(slot.last);
            }
            if defect != D::ReplaceKeepsTheClaim {
                slot.lease = None;
            }
            slot.write(entry, defect, self.ids)
        })
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.call(|slot, defect| {
            if slot.record.as_ref().is_none_or(|record| !self.is_same(record.version(), version)) {
                return ClaimOutcome::Changed(slot.found(defect));
            }
            let now = Instant::now();
            let in_doubt = match &slot.lease {
                None => false,
                Some(Lease { until: Some(until), asked, made, .. })
                    if defect != D::ClaimsAreNotExclusive && (now < *until || defect == D::LeaseNeverEnds) =>
                {
                    let retry_in = match defect {
                        D::RetryInIsTheWholeLease => *asked,
                        D::RetryInIsZero => Duration::ZERO,
                        D::RetryInIgnoresARenewal => (*made + *asked).saturating_duration_since(now),
                        _ => until.saturating_duration_since(now),
                    };
                    return ClaimOutcome::Busy { retry_in };
                }
                Some(Lease { until: Some(_), in_doubt, .. }) => *in_doubt || defect != D::ExpiryLeavesNoDoubt,
                Some(Lease { until: None, .. }) => true,
            };
            slot.last += 1;
            let id = self.cut_id(self.ids.claim_id(slot.last));
            let asked = if defect == D::LeaseIsTwiceAsLong { lease * 2 } else { lease };
            slot.lease = Some(Lease { id: id.clone(), until: Some(now + asked), asked, made: now, in_doubt });
            ClaimOutcome::Claimed(Claim::new(version.clone(), id, in_doubt))
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.call(|slot, defect| {
            let held =
                slot.held(claim, defect).filter(|held| held.until.is_some() || defect == D::RenewRevivesAReleasedClaim);
            match held {
                Some(_) if defect == D::RenewDoesNothing => true,
                Some(held) => {
                    held.until = Some(Instant::now() + lease);
                    true
                }
                None => false,
            }
        })
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.call(|slot, defect| {
            let held = slot.held(claim, defect).filter(|_| defect != D::ReleaseDoesNothing);
            let held = held.filter(|held| held.until.is_some() || defect == D::ReleaseIsRepeated);
            let Some(held) = held else { return };
            let clears_doubt = defect == D::ReleaseClearsTheDoubt;
            let in_doubt = match presented {
                Presented::Unused => (held.in_doubt && !clears_doubt) || defect == D::ReleaseIsAlwaysInDoubt,
                Presented::InDoubt => defect != D::ReleaseIsNeverInDoubt,
            };
            held.until = None;
            if !in_doubt {
                slot.lease = None;
            }
        })
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        self.call(|slot, defect| {
            let Some(record) = slot.record.clone() else { return CommitOutcome::Conflict(None) };
            let lost =
                slot.held(claim, defect).is_none_or(|held| held.until.is_none_or(|until| until <= Instant::now()));
            let is_current = self.is_same(record.version(), claim.version()) || defect == D::CommitIgnoresTheVersion;
            if !is_current || (lost && defect == D::CommitNeedsItsLease) {
                return CommitOutcome::Conflict(slot.found(defect));
            }
            if defect != D::CommitKeepsTheClaim {
                slot.lease = None;
            }
            let epoch = if defect == D::CommitStartsAnEpoch { Epoch::random() } else { entry.epoch() };
            let generation = match defect {
                D::CommitCountsTheGeneration => record.generation().wrapping_add(1),
                D::CommitKeepsTheLargestGeneration => record.generation().max(entry.generation()),
                _ => entry.generation(),
            };
            let entry = with_ends(Entry::new(epoch, generation, entry.tokens().clone()), ends(entry));
            let version = slot.write(&entry, defect, self.ids);
            if defect == D::CommitKeepsTheVersion {
                slot.record = Some(Record::new(record.version().clone(), entry));
                return CommitOutcome::Stored(record.version().clone());
            }
            CommitOutcome::Stored(version)
        })
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.call(|slot, defect| {
            if let Some(record) = &slot.record {
                let claimed = slot.lease.is_some() && defect == D::ClearNeedsTheClaim;
                let kept = slot.is_past_its_end() && defect == D::ClearKeepsAnExpiredRecord;
                if claimed || kept || (!self.is_same(record.version(), version) && defect != D::ClearIgnoresTheVersion)
                {
                    return ClearOutcome::Conflict(record.clone());
                }
            }
            slot.record = None;
            slot.lease = None;
            if defect == D::VersionsRestartAfterClear {
                slot.last = 0;
            }
            ClearOutcome::Cleared
        })
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.call(|slot, defect| {
            let Some(record) = &slot.record else { return false };
            if !self.is_same(record.version(), version) && defect != D::ExtendIgnoresTheVersion {
                return defect == D::ExtendReportsNoConflict;
            }
            let entry = record.entry().clone();
            let shortens = entry.expires_at().is_some_and(|before| expires_at < before);
            if defect == D::ExtendDoesNothing || shortens && defect == D::ExtendOnlyLengthens {
                return true;
            }
            let entry = entry.with_expires_at(expires_at);
            let entry = if defect == D::ExtendMovesTheLatestEnd { entry.with_ends_at(expires_at) } else { entry };
            let version = record.version().clone();
            if defect == D::ExtendMakesAVersion {
                slot.write(&entry, defect, self.ids);
            } else {
                slot.record = Some(Record::new(version, entry));
            }
            if defect == D::ExtendEndsTheClaim {
                slot.lease = None;
            }
            true
        })
    }

    fn is_durable(&self) -> bool {
        true
    }
}
