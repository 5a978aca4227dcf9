//! The conformance suite catches every store that breaks a rule.

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
    RenewDoesNothing
    RenewRevivesAReleasedClaim
    CommitIgnoresTheVersion
    CommitNeedsItsLease
    CommitKeepsTheVersion
    CommitKeepsTheClaim
    CommitStartsAnEpoch
    ConflictHasNoRecord
    ReplaceKeepsTheClaim
    ReplaceNeedsAnEmptyStore
    ClearIgnoresTheVersion
    ClearNeedsTheClaim
    ExtraMembersAreLost
    ExpiryIsCutToSeconds
    EpochIsAFloat
}

use Defect as D;

/// Runs the suite. Returns `true` if a case failed.
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
    lease: Option<Lease>,
}

struct Lease {
    id: u64,
    /// `None` if the claim was released in doubt.
    until: Option<Instant>,
    in_doubt: bool,
}

impl Broken {
    fn new(defect: Defect) -> Self {
        Self { defect, slot: Mutex::default() }
    }

    fn call<T: Send + 'static>(&self, change: impl FnOnce(&mut Slot, Defect) -> T) -> StoreFuture<'_, T> {
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
            D::VersionsAreDerivedFromTheTokens => {
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
        self.record.clone().filter(|_| defect != D::ConflictHasNoRecord)
    }

    fn held(&mut self, claim: &Claim, defect: Defect) -> Option<&mut Lease> {
        let is_current = self.record.as_ref().is_some_and(|record| record.version == claim.version);
        self.lease.as_mut().filter(|held| is_current && (held.id == claim.id || defect == D::ClaimsShareAnId))
    }
}

impl TokenStore for Broken {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.call(|slot, _| slot.record.clone())
    }

    fn replace<'a>(&'a self, epoch: Epoch, tokens: &'a Tokens) -> StoreFuture<'a, Version> {
        self.call(|slot, defect| {
            if let (D::ReplaceNeedsAnEmptyStore, Some(record)) = (defect, &slot.record) {
                return record.version;
            }
            if defect != D::ReplaceKeepsTheClaim {
                slot.lease = None;
            }
            slot.write(epoch, tokens, defect)
        })
    }

    fn claim(&self, version: Version, lease: Duration) -> StoreFuture<'_, ClaimOutcome> {
        self.call(|slot, defect| {
            if slot.record.as_ref().is_none_or(|record| record.version != version) {
                return ClaimOutcome::Changed(slot.found(defect));
            }
            let now = Instant::now();
            let in_doubt = match &slot.lease {
                None => false,
                Some(Lease { until: Some(until), .. })
                    if defect != D::ClaimsAreNotExclusive && (now < *until || defect == D::LeaseNeverEnds) =>
                {
                    return ClaimOutcome::Busy { until: *until };
                }
                Some(Lease { until: Some(_), in_doubt, .. }) => *in_doubt || defect != D::ExpiryLeavesNoDoubt,
                Some(Lease { until: None, .. }) => true,
            };
            slot.last += 1;
            let id = slot.last;
            let lease = if defect == D::LeaseIsTwiceAsLong { lease * 2 } else { lease };
            slot.lease = Some(Lease { id, until: Some(now + lease), in_doubt });
            ClaimOutcome::Claimed(Claim { version, id, in_doubt })
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
            let Some(held) = slot.held(claim, defect).filter(|_| defect != D::ReleaseDoesNothing) else { return };
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

    fn commit<'a>(&'a self, claim: &'a Claim, tokens: &'a Tokens) -> StoreFuture<'a, CommitOutcome> {
        self.call(|slot, defect| {
            let Some(record) = slot.record.clone() else { return CommitOutcome::Conflict(None) };
            let lost =
                slot.held(claim, defect).is_none_or(|held| held.until.is_none_or(|until| until <= Instant::now()));
            let is_current = record.version == claim.version || defect == D::CommitIgnoresTheVersion;
            if !is_current || (lost && defect == D::CommitNeedsItsLease) {
                return CommitOutcome::Conflict(slot.found(defect));
            }
            if defect != D::CommitKeepsTheClaim {
                slot.lease = None;
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
        self.call(|slot, defect| {
            if let Some(record) = &slot.record {
                let claimed = slot.lease.is_some() && defect == D::ClearNeedsTheClaim;
                if claimed || (record.version != version && defect != D::ClearIgnoresTheVersion) {
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
}
