//! Claims that were made on another host or before the last boot, whose leases end by the wall clock.

use std::fs;

use super::super::claim::ClaimFile;
use super::*;

const SHORT: Duration = Duration::from_millis(300);
const HOUR: u64 = 3_600_000;

/// Returns what a claim on a version finds that another host has claimed `change` later than now.
async fn claim_after(change: impl Fn(u64) -> u64, lease: Duration, wait: Duration) -> (ClaimOutcome, ClaimOutcome) {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    loop {
        let version = store.replace(&entry(1)).await.unwrap();
        let number = version.to_u128().unwrap();
        claimed(&*store, &version).await;
        let begun = Instant::now();
        let claim = ClaimFile::new(number, 7, false, lease);
        let claim = ClaimFile { begins: change(claim.begins), host: [9; 16], ..claim };
        fs::write(directory.file(".claim"), claim.encode()).unwrap();
        let first = store.claim(&version, LEASE).await.unwrap();
        // On a slow machine, the lease may have ended before it was looked at.
        if begun.elapsed() < lease {
            tokio::time::sleep(wait).await;
            return (first, store.claim(&version, LEASE).await.unwrap());
        }
    }
}

fn in_doubt(outcome: &ClaimOutcome) -> bool {
    matches!(outcome, ClaimOutcome::Claimed(claim) if claim.is_in_doubt())
}

#[tokio::test]
async fn the_lease_of_another_host_is_waited_for_although_its_lock_is_free() {
    let (first, second) = claim_after(|begins| begins, SHORT, SHORT).await;
    assert!(matches!(first, ClaimOutcome::Busy { retry_in } if retry_in <= SHORT), "{first:?}");
    assert!(in_doubt(&second), "{second:?}");
}

#[tokio::test]
async fn a_lease_that_has_ended_by_the_wall_clock_leaves_the_token_in_doubt() {
    let (first, second) = claim_after(|begins| begins - HOUR, LEASE, Duration::ZERO).await;
    assert!(in_doubt(&first), "{first:?}");
    assert!(matches!(second, ClaimOutcome::Busy { .. }), "{second:?}");
}

#[tokio::test]
async fn a_lease_lasts_no_longer_than_its_length_if_the_clock_is_set_back() {
    let (first, second) = claim_after(|begins| begins + HOUR, SHORT, SHORT).await;
    assert!(matches!(first, ClaimOutcome::Busy { retry_in } if retry_in <= SHORT), "{first:?}");
    assert!(in_doubt(&second), "{second:?}");
    let (first, _) = claim_after(|_| u64::MAX, LEASE, Duration::ZERO).await;
    assert!(matches!(first, ClaimOutcome::Busy { retry_in } if retry_in <= LEASE), "{first:?}");
}

#[tokio::test]
async fn a_free_lock_proves_nothing_on_a_network_file_system() {
    let directory = TestDirectory::new();
    let open = || FileStore::builder(directory.path()).allow_network().open().unwrap().store("ada");
    let (store, peer) = (open(), open());
    let version = store.replace(&entry(1)).await.unwrap();
    claimed(&*store, &version).await;
    drop(store);
    let outcome = peer.claim(&version, LEASE).await.unwrap();
    assert!(matches!(outcome, ClaimOutcome::Busy { .. }), "{outcome:?}");
}

#[test]
fn a_claim_is_read_as_it_was_written() {
    for flags in 0..4 {
        let claim = ClaimFile::new(u128::MAX - 1, 1 << 64, flags & 1 != 0, Duration::MAX);
        let claim = ClaimFile { is_released: flags & 2 != 0, ..claim };
        assert!(claim.is_of_this_boot() && claim.lease == u64::MAX);
        assert_eq!(ClaimFile::decode(&claim.encode()).unwrap(), Some(claim));
    }
}
