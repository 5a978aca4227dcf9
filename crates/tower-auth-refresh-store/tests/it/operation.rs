//! Each operation of a store, made while its connection breaks: the outcome, and what it has left.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{sleep, timeout};
use tower::BoxError;
use tower_auth_refresh::store::{
    ClaimOutcome, ClearOutcome, CommitOutcome, InsertOutcome, Presented, TokenStore, Version,
};
use tower_auth_refresh_store::{StoreError, StoreErrorKind};

use crate::proxy::{Fault, Proxy};
use crate::support::{LEASE, claimed, entry};

/// The time for a call. A session waits for 5 s.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_millis(4500);

pub(crate) const FAULTS: [Fault; 6] = [
    Fault::CutBefore,
    Fault::CutAfter,
    Fault::HoleBefore,
    Fault::HoleAfter,
    Fault::Trickle(Duration::from_millis(1)),
    // The answer takes longer than an attempt.
    Fault::Trickle(Duration::from_millis(500)),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Load,
    Insert,
    Replace,
    Claim,
    Renew,
    ReleaseUnused,
    ReleaseInDoubt,
    Commit,
    Clear,
    Extend,
}

impl Operation {
    pub(crate) const ALL: [Self; 10] = [
        Self::Load,
        Self::Insert,
        Self::Replace,
        Self::Claim,
        Self::Renew,
        Self::ReleaseUnused,
        Self::ReleaseInDoubt,
        Self::Commit,
        Self::Clear,
        Self::Extend,
    ];
}

/// A store behind a proxy, and a witness with a connection of its own.
pub(crate) struct Case {
    pub(crate) proxy: Proxy,
    pub(crate) subject: Arc<dyn TokenStore>,
    pub(crate) witness: Arc<dyn TokenStore>,
}

impl Case {
    /// `open`: opens a store on a port.
    pub(crate) async fn new(port: u16, open: impl AsyncFn(u16) -> Arc<dyn TokenStore>) -> Self {
        let proxy = Proxy::start(port).await;
        Self { subject: open(proxy.port()).await, witness: open(port).await, proxy }
    }

    pub(crate) async fn generation(&self) -> Option<u64> {
        self.witness.load().await.unwrap().map(|record| record.generation())
    }

    /// Returns whether the record's next claim is in doubt; `None` if a claim holds.
    pub(crate) async fn is_in_doubt(&self, version: &Version) -> Option<bool> {
        match self.witness.claim(version, LEASE).await.unwrap() {
            ClaimOutcome::Claimed(claim) => Some(claim.is_in_doubt()),
            ClaimOutcome::Busy { .. } => None,
            other => panic!("{other:?}"),
        }
    }

    /// Writes a new record whose answer is lost, and of which another process makes something meanwhile: it signs the user
    /// out, or refreshes. The record isn't written again over that.
    pub(crate) async fn check_new_record(&self, is_insert: bool) {
        self.proxy.inject(Fault::HoleAfter);
        let written = async {
            if is_insert {
                self.subject.insert(&entry(1)).await.map(drop)
            } else {
                self.subject.replace(&entry(1)).await.map(drop)
            }
        };
        let meanwhile = async {
            let version = loop {
                if let Some(record) = self.witness.load().await.unwrap() {
                    break record.version().clone();
                }
                sleep(Duration::from_millis(1)).await;
            };
            if is_insert {
                self.witness.clear(&version).await.unwrap();
            } else {
                let claim = claimed(&*self.witness, &version).await;
                self.witness.commit(&claim, &entry(2)).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(written, meanwhile);
        assert!(is_unavailable(&written), "insert: {is_insert}, {written:?}");
        assert_eq!(self.generation().await, if is_insert { None } else { Some(2) }, "insert: {is_insert}");
    }

    /// Drops the call of a claim that the server has granted: the claim is given back, and its token is in no doubt.
    pub(crate) async fn check_dropped_claim(&self) {
        let version = self.witness.replace(&entry(1)).await.unwrap();
        self.proxy.inject(Fault::HoleAfter);
        let call = self.subject.claim(&version, LEASE);
        assert!(timeout(Duration::from_millis(300), call).await.is_err(), "the answer is lost");
        self.expect_given_back(&version).await;
    }

    /// Loses the answer to a claim that the server has granted, and every connection after it: the claim is given back as
    /// soon as the server is there again, and its token is in no doubt.
    pub(crate) async fn check_lost_claim(&self) {
        let version = self.witness.replace(&entry(1)).await.unwrap();
        self.proxy.inject(Fault::CutAfter);
        self.proxy.refuse(true);
        let outcome = self.subject.claim(&version, LEASE).await;
        assert!(is_unavailable(&outcome), "{outcome:?}");
        assert_eq!(self.is_in_doubt(&version).await, None, "the server has granted it");
        self.proxy.refuse(false);
        self.expect_given_back(&version).await;
    }

    async fn expect_given_back(&self, version: &Version) {
        let given_back = timeout(CALL_TIMEOUT, async {
            loop {
                match self.is_in_doubt(version).await {
                    Some(in_doubt) => break in_doubt,
                    None => sleep(Duration::from_millis(5)).await,
                }
            }
        });
        assert!(!given_back.await.expect("the claim holds"), "no token was presented");
    }

    /// Makes a call while a fault strikes, and checks the outcome and what it has left.
    pub(crate) async fn check(&self, operation: Operation, fault: Fault) {
        let case = format!("{operation:?}, {fault:?}");
        // The server's answer is lost, or nothing is.
        let has_acted = !matches!(fault, Fault::CutBefore | Fault::HoleBefore);
        let (store, witness) = (&self.subject, &self.witness);
        let version = match operation {
            Operation::Insert => Version::from(0_u128),
            _ => witness.replace(&entry(1)).await.unwrap(),
        };
        let is_of_claim = matches!(
            operation,
            Operation::Renew | Operation::ReleaseUnused | Operation::ReleaseInDoubt | Operation::Commit
        );
        let claim = if is_of_claim { Some(claimed(&**store, &version).await) } else { None };
        let claim = || claim.as_ref().unwrap();
        self.proxy.inject(fault);
        match operation {
            Operation::Load => assert_eq!(store.load().await.unwrap().unwrap().version(), &version, "{case}"),
            Operation::Insert => {
                let outcome = store.insert(&entry(2)).await;
                expect_lost_unless(has_acted, &outcome, &case);
                assert!(!has_acted || matches!(outcome, Ok(InsertOutcome::Inserted(_))), "{case}: {outcome:?}");
                assert_eq!(self.generation().await, has_acted.then_some(2), "{case}");
            }
            Operation::Replace => {
                expect_lost_unless(has_acted, &store.replace(&entry(2)).await, &case);
                assert_eq!(self.generation().await, Some(if has_acted { 2 } else { 1 }), "{case}");
            }
            Operation::Claim => {
                assert!(!claimed(&**store, &version).await.is_in_doubt(), "{case}");
                assert_eq!(self.is_in_doubt(&version).await, None, "{case}");
            }
            Operation::Renew => {
                assert!(store.renew(claim(), LEASE).await.unwrap(), "{case}");
                assert_eq!(self.is_in_doubt(&version).await, None, "{case}");
            }
            Operation::ReleaseUnused => {
                store.release(claim(), Presented::Unused).await.unwrap();
                assert_eq!(self.is_in_doubt(&version).await, Some(false), "{case}");
            }
            Operation::ReleaseInDoubt => {
                store.release(claim(), Presented::InDoubt).await.unwrap();
                assert_eq!(self.is_in_doubt(&version).await, Some(true), "{case}");
            }
            Operation::Commit => {
                let committed = store.commit(claim(), &entry(2)).await.unwrap();
                let CommitOutcome::Stored(version) = committed else { panic!("{case}: {committed:?}") };
                assert_eq!(*witness.load().await.unwrap().unwrap().version(), version, "{case}");
            }
            Operation::Clear => {
                assert!(matches!(store.clear(&version).await.unwrap(), ClearOutcome::Cleared), "{case}");
                assert_eq!(self.generation().await, None, "{case}");
            }
            Operation::Extend => {
                let end = SystemTime::UNIX_EPOCH + Duration::from_millis(4_000_000_000_123);
                assert!(store.extend(&version, end).await.unwrap(), "{case}");
                let record = witness.load().await.unwrap().unwrap();
                assert_eq!((record.version(), record.entry().expires_at()), (&version, Some(end)), "{case}");
            }
        }
        assert!(self.proxy.has_struck(), "{case}");
    }
}

/// Checks all operations with all faults, at the same time. `new`: makes a case with a record of its own.
pub(crate) async fn check_all(new: impl AsyncFn(String) -> Case) {
    let cases = Operation::ALL.iter().flat_map(|operation| FAULTS.map(|fault| (*operation, fault)));
    let checks = cases.map(async |(operation, fault)| {
        let case = new(format!("{operation:?} {fault:?}")).await;
        let checked = timeout(CALL_TIMEOUT, case.check(operation, fault)).await;
        checked.unwrap_or_else(|_| panic!("{operation:?} takes too long, if {fault:?}"));
    });
    futures_util::future::join_all(checks).await;
}

fn expect_lost_unless<T: fmt::Debug>(has_acted: bool, outcome: &Result<T, BoxError>, case: &str) {
    assert_eq!(outcome.is_ok(), has_acted, "{case}: {outcome:?}");
    assert!(has_acted || is_unavailable(outcome), "{case}: {outcome:?}");
}

pub(crate) fn is_unavailable<T>(outcome: &Result<T, BoxError>) -> bool {
    let error = outcome.as_ref().err().and_then(|error| error.downcast_ref::<StoreError>());
    error.is_some_and(|error| error.kind() == StoreErrorKind::Unavailable)
}
