//! Processes whose clocks differ by an hour, and processes that are stopped for longer than their lease.

use std::env;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tower_auth_refresh::store::{Claim, ClaimOutcome, CommitOutcome, Presented, TokenStore, Version};
use tower_auth_refresh_store::FileStore;

use crate::peer::{Peer, file_url};
use crate::support::{LEASE, TestDirectory, claimed, entry};

const SHORT: Duration = Duration::from_millis(300);

/// Starts a process whose wall clock is an hour ahead (`+1h`) or behind. Returns `None` if that can't be done here.
pub(crate) async fn peer_with_clock(offset: &str, url: &str) -> Option<Peer> {
    let has_faketime = Command::new("faketime").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !has_faketime {
        assert!(env::var("CI").is_err(), "faketime isn't installed");
        eprintln!("skipped: faketime isn't installed");
        return None;
    }
    let mut command = Command::new("faketime");
    command.args(["-f", offset]).arg(env::current_exe().unwrap());
    Some(Peer::start_by(command, url).await)
}

async fn claim_for(store: &dyn TokenStore, version: &Version, lease: Duration) -> Claim {
    match store.claim(version, lease).await.unwrap() {
        ClaimOutcome::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    }
}

async fn assert_busy(store: &dyn TokenStore, version: &Version, lease: Duration) {
    let found = store.claim(version, lease).await.unwrap();
    assert!(matches!(found, ClaimOutcome::Busy { retry_in } if retry_in <= lease), "{found:?}");
}

/// Waits for the end of a claim of `SHORT`, which was made after `begun`, and claims the version.
async fn claimed_after(store: &dyn TokenStore, version: &Version, begun: Instant) -> Claim {
    loop {
        match store.claim(version, LEASE).await.unwrap() {
            ClaimOutcome::Busy { retry_in } => {
                assert!(retry_in <= SHORT, "{retry_in:?}");
                tokio::time::sleep(retry_in).await;
            }
            ClaimOutcome::Claimed(claim) => {
                // Leases are counted in milliseconds.
                assert!(begun.elapsed() + Duration::from_millis(1) >= SHORT, "{:?}", begun.elapsed());
                return claim;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_neither_shorter_nor_longer_for_a_process_whose_clock_is_an_hour_off() {
    for offset in ["+1h", "-1h"] {
        let directory = TestDirectory::new();
        let store = FileStore::open_single(directory.path()).unwrap();
        let Some(peer) = peer_with_clock(offset, &file_url(&directory)).await else { return };
        for (holder, other) in [(&*store, &peer as &dyn TokenStore), (&peer, &*store)] {
            let version = store.replace(&entry(1)).await.unwrap();
            let claim = claimed(holder, &version).await;
            assert!(!claim.is_in_doubt());
            assert_busy(other, &version, LEASE).await;
            holder.release(&claim, Presented::Unused).await.unwrap();

            let begun = Instant::now();
            let claim = claim_for(holder, &version, SHORT).await;
            let next = claimed_after(other, &version, begun).await;
            assert!(next.is_in_doubt() && next.id() != claim.id());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_stopped_for_longer_than_its_lease_neither_holds_up_others_nor_overwrites_their_tokens() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    let peer = Peer::start(&file_url(&directory)).await;
    let version = store.replace(&entry(1)).await.unwrap();
    let begun = Instant::now();
    let late = claim_for(&peer, &version, SHORT).await;
    peer.signal(Signal::STOP);
    let claim = claimed_after(&*store, &version, begun).await;
    assert!(claim.is_in_doubt(), "its process may go on and present the token");
    store.commit(&claim, &entry(2)).await.unwrap();
    peer.signal(Signal::CONT);
    assert!(!peer.renew(&late, LEASE).await.unwrap());
    let found = peer.commit(&late, &entry(9)).await.unwrap();
    assert!(matches!(&found, CommitOutcome::Conflict(Some(record)) if *record.entry() == entry(2)), "{found:?}");
    peer.release(&late, Presented::InDoubt).await.unwrap();
    let version = store.load().await.unwrap().unwrap().version().clone();
    assert!(!claimed(&*store, &version).await.is_in_doubt(), "the late release is of another claim");
}
