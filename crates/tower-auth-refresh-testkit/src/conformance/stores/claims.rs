//! Who may present a refresh token, and for how long.

use tokio::time::{Instant, sleep};
use tower_auth_refresh::store::{Claim, Presented};

use super::{Bench, cleared, stored};

pub(super) async fn a_claim_excludes_every_other(bench: Bench) {
    let version = bench.sign_in("1").await;
    let before = Instant::now();
    let claim = bench.claimed(&bench.a, version).await;
    assert!(!claim.in_doubt, "nobody has presented the token before");
    for store in [&bench.b, &bench.a] {
        let until = bench.busy(store, version).await;
        let spare = bench.lease / 4;
        let expected = before + bench.lease - spare..=Instant::now() + bench.lease + spare;
        assert!(expected.contains(&until), "the lease ends at {until:?}, not within {expected:?}");
    }
}

pub(super) async fn a_claim_that_expires_is_in_doubt_ever_after(bench: Bench) {
    let version = bench.sign_in("1").await;
    let first = bench.claimed(&bench.a, version).await;
    bench.expire().await;
    let second = bench.claimed(&bench.b, version).await;
    assert!(second.in_doubt, "an expired claim was handed on as unclaimed");
    assert_ne!(first.id, second.id, "two claims can't be told apart");
    bench.busy(&bench.a, version).await;

    // It isn't the second one's to say that the first hadn't presented it.
    bench.b.release(&second, Presented::Unused).await.expect("release");
    let third = bench.claimed(&bench.a, version).await;
    assert!(third.in_doubt, "the doubt was forgotten at a release");
    bench.expire().await;
    let fourth = bench.claimed(&bench.b, version).await;
    assert!(fourth.in_doubt, "the doubt was forgotten when another claim expired");

    // New tokens leave it behind.
    let version = stored(&bench.b, &fourth, "2").await;
    assert!(!bench.claimed(&bench.a, version).await.in_doubt, "the doubt outlived the token");
}

pub(super) async fn a_renewed_claim_lasts_longer(bench: Bench) {
    let version = bench.sign_in("1").await;
    let claim = bench.claimed(&bench.a, version).await;
    for _ in 0..3 {
        sleep(bench.lease / 2).await;
        assert!(bench.a.renew(&claim, bench.lease).await.expect("renew"), "the claim is held");
        bench.busy(&bench.b, version).await;
    }
    bench.expire().await;
    assert!(bench.claimed(&bench.b, version).await.in_doubt);
}

pub(super) async fn a_claim_that_is_lost_is_not_renewed(bench: Bench) {
    let renewed = async |claim: &Claim| bench.a.renew(claim, bench.lease).await.expect("renew");

    let version = bench.sign_in("1").await;
    let expired = bench.claimed(&bench.a, version).await;
    bench.expire().await;
    let second = bench.claimed(&bench.b, version).await;
    assert!(!renewed(&expired).await, "somebody else holds the claim");

    let version = stored(&bench.b, &second, "2").await;
    assert!(!renewed(&second).await, "the claim was committed");

    for presented in [Presented::InDoubt, Presented::Unused] {
        let released = bench.claimed(&bench.a, version).await;
        bench.a.release(&released, presented).await.expect("release");
        assert!(!renewed(&released).await, "the claim was released");
    }

    let replaced = bench.claimed(&bench.a, version).await;
    let version = bench.sign_in("3").await;
    assert!(!renewed(&replaced).await, "the record was replaced");

    let claim = bench.claimed(&bench.a, version).await;
    cleared(&bench.b, version).await;
    assert!(!renewed(&claim).await, "the record was cleared");
    assert_eq!(bench.load().await, None);
}

pub(super) async fn a_token_that_was_not_presented_is_free_again(bench: Bench) {
    let version = bench.sign_in("1").await;
    let claim = bench.claimed(&bench.a, version).await;
    bench.a.release(&claim, Presented::Unused).await.expect("release");
    let next = bench.claimed(&bench.b, version).await;
    assert!(!next.in_doubt, "nobody has presented the token");
    assert_ne!(claim.id, next.id, "two claims can't be told apart");
}

pub(super) async fn a_token_released_in_doubt_is_claimed_in_doubt(bench: Bench) {
    let version = bench.sign_in("1").await;
    let claim = bench.claimed(&bench.a, version).await;
    bench.a.release(&claim, Presented::InDoubt).await.expect("release");
    assert_eq!(bench.load().await.map(|record| record.version), Some(version));
    assert!(bench.claimed(&bench.b, version).await.in_doubt, "the token may have been presented");
}

pub(super) async fn a_release_that_comes_too_late_frees_nobody_elses_claim(bench: Bench) {
    let version = bench.sign_in("1").await;
    let late = bench.claimed(&bench.a, version).await;
    bench.expire().await;
    let claim = bench.claimed(&bench.b, version).await;
    for presented in [Presented::Unused, Presented::InDoubt] {
        bench.a.release(&late, presented).await.expect("release");
        bench.busy(&bench.a, version).await;
    }
    let version = stored(&bench.b, &claim, "2").await;
    let claim = bench.claimed(&bench.b, version).await;
    bench.a.release(&late, Presented::Unused).await.expect("release");
    bench.busy(&bench.a, version).await;
    assert!(bench.b.renew(&claim, bench.lease).await.expect("renew"), "the claim is held");
}
