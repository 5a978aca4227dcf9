//! The conformance suite over stores that break the rules: it must catch every one.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use futures_util::FutureExt;
use tokio::time::Instant;
use tower_auth_refresh::Tokens;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Epoch, Presented, Record, StoreFuture, TokenStore, Version,
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
    VersionsStartAgainAfterClear
    VersionsAreMadeOfTheTokens
    ClaimsExcludeNobody
    ClaimsShareAnId
    LeaseIsTwiceAsLong
    LeaseNeverEnds
    ExpiryLeavesNoDoubt
    DoubtIsForgottenAtARelease
    ReleaseIsAlwaysInDoubt
    ReleaseIsNeverInDoubt
    ReleaseDoesNothing
    RenewDoesNothing
    RenewRevives
    CommitIgnoresTheVersion
    CommitNeedsItsLease
    CommitKeepsTheVersion
    CommitKeepsTheClaim
    CommitStartsAnEpoch
    ConflictShowsNothing
    ReplaceKeepsTheClaim
    ReplaceNeedsAnEmptyStore
    ClearIgnoresTheVersion
    ClearNeedsTheClaim
    ExtraMembersAreLost
    ExpiryIsCutToSeconds
    EpochIsAFloat
}

use Defect as D;

/// Runs the suite, and says whether it found a broken rule.
async fn is_caught(defect: Defect) -> bool {
    let open = async || -> Handles {
        let first: Arc<dyn TokenStore> = Arc::new(Broken::new(defect));
        let second = if defect == D::HandlesDontShare { Arc::new(Broken::new(defect)) } else { first.clone() };
        [first, second]
    };
    AssertUnwindSafe(conformance::stores(Duration::from_secs(10), open)).catch_unwind().await.is_err()
}

#[tokio::test(start_paused = true)]
async fn every_broken_store_is_caught() {
    let mut missed = Vec::new();
    for defect in DEFECTS {
        if !is_caught(*defect).await {
            missed.push(defect);
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_without_a_defect_passes() {
    assert!(!is_caught(D::None).await);
}

struct Broken {
    defect: Defect,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    last: u64,
    record: Option<Record>,
    mark: Option<Mark>,
}

struct Mark {
    id: u64,
    /// `None`: released in doubt.
    until: Option<Instant>,
    in_doubt: bool,
}

impl Broken {
    fn new(defect: Defect) -> Self {
        Self { defect, slot: Mutex::default() }
    }

    fn answer<T: Send + 'static>(&self, change: impl FnOnce(&mut Slot, Defect) -> T) -> StoreFuture<'_, T> {
        let mut slot = self.slot.lock().expect("no change panics");
        Box::pin(std::future::ready(Ok(change(&mut slot, self.defect))))
    }
}

impl Slot {
    fn write(&mut self, epoch: Epoch, tokens: &Tokens, defect: Defect) -> Version {
        self.last += 1;
        let mut tokens = tokens.clone();
        let mut epoch = epoch;
        let mut version = Version(self.last);
        match defect {
            D::VersionsAreMadeOfTheTokens => {
                let refresh = tokens.refresh_token().map_or("", |token| token.expose_secret());
                version = Version(refresh.bytes().fold(7, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte)));
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
            D::EpochIsAFloat => epoch = Epoch(epoch.0 as f64 as u64),
            _ => {}
        }
        self.record = Some(Record { version, epoch, tokens });
        version
    }

    fn found(&self, defect: Defect) -> Option<Record> {
        self.record.clone().filter(|_| defect != D::ConflictShowsNothing)
    }

    fn held(&mut self, claim: &Claim, defect: Defect) -> Option<&mut Mark> {
        let stands = self.record.as_ref().is_some_and(|record| record.version == claim.version);
        self.mark.as_mut().filter(|mark| stands && (mark.id == claim.id || defect == D::ClaimsShareAnId))
    }
}

impl TokenStore for Broken {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.answer(|slot, _| slot.record.clone())
    }

    fn replace<'a>(&'a self, epoch: Epoch, tokens: &'a Tokens) -> StoreFuture<'a, Version> {
        self.answer(|slot, defect| {
            if let (D::ReplaceNeedsAnEmptyStore, Some(record)) = (defect, &slot.record) {
                return record.version;
            }
            if defect != D::ReplaceKeepsTheClaim {
                slot.mark = None;
            }
            slot.write(epoch, tokens, defect)
        })
    }

    fn claim(&self, version: Version, lease: Duration) -> StoreFuture<'_, ClaimOutcome> {
        self.answer(|slot, defect| {
            if slot.record.as_ref().is_none_or(|record| record.version != version) {
                return ClaimOutcome::Changed(slot.found(defect));
            }
            let now = Instant::now();
            let in_doubt = match &slot.mark {
                None => false,
                Some(Mark { until: Some(until), .. })
                    if defect != D::ClaimsExcludeNobody && (now < *until || defect == D::LeaseNeverEnds) =>
                {
                    return ClaimOutcome::Busy { until: *until };
                }
                Some(Mark { until: Some(_), in_doubt, .. }) => *in_doubt || defect != D::ExpiryLeavesNoDoubt,
                Some(Mark { until: None, .. }) => true,
            };
            slot.last += 1;
            let id = slot.last;
            let lease = if defect == D::LeaseIsTwiceAsLong { lease * 2 } else { lease };
            slot.mark = Some(Mark { id, until: Some(now + lease), in_doubt });
            ClaimOutcome::Claimed(Claim { version, id, in_doubt })
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.answer(|slot, defect| {
            let held = slot.held(claim, defect).filter(|mark| mark.until.is_some() || defect == D::RenewRevives);
            match held {
                Some(_) if defect == D::RenewDoesNothing => true,
                Some(mark) => {
                    mark.until = Some(Instant::now() + lease);
                    true
                }
                None => false,
            }
        })
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.answer(|slot, defect| {
            let Some(mark) = slot.held(claim, defect).filter(|_| defect != D::ReleaseDoesNothing) else { return };
            let forgets = defect == D::DoubtIsForgottenAtARelease;
            let in_doubt = match presented {
                Presented::Unused => (mark.in_doubt && !forgets) || defect == D::ReleaseIsAlwaysInDoubt,
                Presented::InDoubt => defect != D::ReleaseIsNeverInDoubt,
            };
            mark.until = None;
            if !in_doubt {
                slot.mark = None;
            }
        })
    }

    fn commit<'a>(&'a self, claim: &'a Claim, tokens: &'a Tokens) -> StoreFuture<'a, CommitOutcome> {
        self.answer(|slot, defect| {
            let Some(record) = slot.record.clone() else { return CommitOutcome::Conflict(None) };
            let lost =
                slot.held(claim, defect).is_none_or(|mark| mark.until.is_none_or(|until| until <= Instant::now()));
            let stands = record.version == claim.version || defect == D::CommitIgnoresTheVersion;
            if !stands || (lost && defect == D::CommitNeedsItsLease) {
                return CommitOutcome::Conflict(slot.found(defect));
            }
            if defect != D::CommitKeepsTheClaim {
                slot.mark = None;
            }
            let epoch = if defect == D::CommitStartsAnEpoch { Epoch::random() } else { record.epoch };
            let mut version = slot.write(epoch, tokens, defect);
            if let (D::CommitKeepsTheVersion, Some(written)) = (defect, &mut slot.record) {
                version = record.version;
                written.version = version;
            }
            CommitOutcome::Stored(version)
        })
    }

    fn clear(&self, version: Version) -> StoreFuture<'_, ClearOutcome> {
        self.answer(|slot, defect| {
            if let Some(record) = &slot.record {
                let claimed = slot.mark.is_some() && defect == D::ClearNeedsTheClaim;
                if claimed || (record.version != version && defect != D::ClearIgnoresTheVersion) {
                    return ClearOutcome::Conflict(record.clone());
                }
            }
            slot.record = None;
            slot.mark = None;
            if defect == D::VersionsStartAgainAfterClear {
                slot.last = 0;
            }
            ClearOutcome::Cleared
        })
    }
}
