//! What is written, what is read, and who wrote first.

use std::collections::HashSet;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;
use tower_auth_refresh::store::{ClearOutcome, CommitOutcome, Epoch, Presented, Record, Version};
use tower_auth_refresh::{AccessToken, Tokens};

use super::{Bench, cleared, conflicting, refresh_token, stored, tokens};

pub(super) async fn an_empty_store_holds_nothing(bench: Bench) {
    assert_eq!(bench.load().await, None);
    assert_eq!(bench.changed(&bench.a, Version(1)).await, None);
    cleared(&bench.a, Version(1)).await;
    assert_eq!(bench.load().await, None);
}

pub(super) async fn what_one_handle_writes_the_other_reads(bench: Bench) {
    let version = bench.sign_in("1").await;
    let record = Record { version, epoch: Epoch(7), tokens: tokens("1") };
    assert_eq!(bench.load().await, Some(record));

    let claim = bench.claimed(&bench.b, version).await;
    let version = stored(&bench.b, &claim, "2").await;
    let record = Record { version, epoch: Epoch(7), tokens: tokens("2") };
    assert_eq!(bench.load().await, Some(record));

    cleared(&bench.b, version).await;
    assert_eq!(bench.load().await, None);
}

pub(super) async fn every_record_comes_back_as_it_came(bench: Bench) {
    let members = json!({
        "scope": "read write", "id_token": "ey\u{e9}\u{1f511}\"\\\n", "nothing": null, "empty": "", "": "no name",
        "nested": { "list": [1, -1, 1.5, u64::MAX, i64::MIN, true, {}] },
        // A store's own names must not clash with them.
        "version": 1, "epoch": 2, "tokens": 3, "access_token": 4, "refresh_token": 5, "access": 6, "refresh": 7,
        "expires_at": 8, "expires_in": 9, "extra": 10, "claim": 11, "lease": 12, "in_doubt": 13,
    });
    let members = members.as_object().cloned().unwrap_or_default();
    let access = || AccessToken::new("a.b-c_d~e+f/g==").expect("it is visible ASCII");
    let long = AccessToken::new("x".repeat(4096)).expect("it is visible ASCII");
    let at = UNIX_EPOCH + Duration::new(2_000_000_000, 123_456_700);
    let kinds = [
        tokens("1").with_expires_at(at).with_extra(members.clone()),
        Tokens::from_access_token(access()).with_expires_at(at),
        Tokens::from_refresh_token(refresh_token("with \"quotes\", \\ and spaces")),
        Tokens::from_access_token(long).with_extra(members),
        Tokens::default(),
    ];
    for (tokens, epoch) in
        kinds.into_iter().zip([Epoch(0), Epoch(1), Epoch(1 << 53 | 1), Epoch(1 << 63), Epoch(u64::MAX)])
    {
        let version = bench.a.replace(epoch, &tokens).await.expect("replace");
        assert_eq!(bench.load().await, Some(Record { version, epoch, tokens: tokens.clone() }), "replaced");
        let claim = bench.claimed(&bench.b, version).await;
        let CommitOutcome::Stored(version) = bench.b.commit(&claim, &tokens).await.expect("commit") else {
            panic!("nobody else has written");
        };
        let record = Record { version, epoch, tokens };
        assert_eq!(bench.load().await, Some(record.clone()), "committed");
        assert_eq!(conflicting(&bench.a, &claim, "late").await, Some(record.clone()), "in a conflict");
        assert_eq!(bench.changed(&bench.a, claim.version).await, Some(record), "found by a claim");
    }
}

pub(super) async fn a_commit_stores_a_new_version_and_ends_the_claim(bench: Bench) {
    let old = bench.sign_in("1").await;
    let claim = bench.claimed(&bench.a, old).await;
    let new = stored(&bench.a, &claim, "2").await;
    assert_ne!(old, new, "a version was used again");
    let record = Record { version: new, epoch: Epoch(7), tokens: tokens("2") };
    assert_eq!(bench.changed(&bench.b, old).await, Some(record));
    assert!(!bench.claimed(&bench.b, new).await.in_doubt, "nobody has presented the new token");
}

pub(super) async fn of_two_commits_the_second_conflicts(bench: Bench) {
    let version = bench.sign_in("1").await;
    let claim = bench.claimed(&bench.a, version).await;
    let version = stored(&bench.a, &claim, "2").await;
    let record = Record { version, epoch: Epoch(7), tokens: tokens("2") };
    assert_eq!(conflicting(&bench.a, &claim, "3").await, Some(record.clone()));
    assert_eq!(conflicting(&bench.b, &claim, "2").await, Some(record.clone()));
    assert_eq!(bench.load().await, Some(record));
}

pub(super) async fn a_late_commit_is_stored_while_the_version_stands(bench: Bench) {
    // The lease is over, and nobody came.
    let version = bench.sign_in("1").await;
    let late = bench.claimed(&bench.a, version).await;
    bench.expire().await;
    let version = stored(&bench.a, &late, "2").await;

    // Somebody came, and has nothing yet.
    let late = bench.claimed(&bench.a, version).await;
    bench.expire().await;
    let other = bench.claimed(&bench.b, version).await;
    let version = stored(&bench.a, &late, "3").await;
    let record = Record { version, epoch: Epoch(7), tokens: tokens("3") };
    assert_eq!(conflicting(&bench.b, &other, "4").await, Some(record.clone()));
    bench.b.release(&other, Presented::InDoubt).await.expect("release");
    assert!(!bench.b.renew(&other, bench.lease).await.expect("renew"), "the version is gone");
    assert_eq!(bench.load().await, Some(record));
    let claim = bench.claimed(&bench.b, version).await;
    assert!(!claim.in_doubt, "nobody has presented the new token");

    // The claim was given back in doubt, and the answer came after all.
    bench.b.release(&claim, Presented::InDoubt).await.expect("release");
    let version = stored(&bench.b, &claim, "5").await;
    assert!(!bench.claimed(&bench.a, version).await.in_doubt, "nobody has presented the new token");
}

pub(super) async fn a_cleared_store_takes_no_late_commit(bench: Bench) {
    let version = bench.sign_in("1").await;
    let claim = bench.claimed(&bench.a, version).await;
    cleared(&bench.b, version).await;
    assert_eq!(conflicting(&bench.a, &claim, "2").await, None);
    assert_eq!(bench.load().await, None);
    assert_eq!(bench.changed(&bench.a, version).await, None);
    cleared(&bench.a, version).await;

    // The same user, the same tokens, even: it is another sign-in.
    let version = bench.sign_in("1").await;
    let record = Some(Record { version, epoch: Epoch(7), tokens: tokens("1") });
    assert_eq!(conflicting(&bench.a, &claim, "2").await, record);
    bench.a.release(&claim, Presented::InDoubt).await.expect("release");
    assert!(!bench.a.renew(&claim, bench.lease).await.expect("renew"), "the claim was cleared");
    assert_eq!(bench.load().await, record);
    assert!(!bench.claimed(&bench.b, version).await.in_doubt, "the claim outlived its record");
}

pub(super) async fn a_clear_of_another_version_deletes_nothing(bench: Bench) {
    let old = bench.sign_in("1").await;
    let claim = bench.claimed(&bench.a, old).await;
    let new = stored(&bench.a, &claim, "2").await;
    let record = Record { version: new, epoch: Epoch(7), tokens: tokens("2") };
    match bench.b.clear(old).await.expect("clear") {
        ClearOutcome::Conflict(found) => assert_eq!(found, record),
        ClearOutcome::Cleared => panic!("a record of another version was deleted"),
    }
    assert_eq!(bench.load().await, Some(record));

    // Nor does it touch a claim.
    bench.claimed(&bench.a, new).await;
    assert!(matches!(bench.b.clear(old).await.expect("clear"), ClearOutcome::Conflict(_)));
    bench.busy(&bench.b, new).await;
}

pub(super) async fn a_replaced_record_takes_no_late_commit(bench: Bench) {
    let version = bench.sign_in("1").await;
    let claim = bench.claimed(&bench.a, version).await;
    let version = bench.b.replace(Epoch(8), &tokens("other")).await.expect("replace");
    let record = Some(Record { version, epoch: Epoch(8), tokens: tokens("other") });
    assert_eq!(conflicting(&bench.a, &claim, "2").await, record);
    bench.a.release(&claim, Presented::InDoubt).await.expect("release");
    assert_eq!(bench.load().await, record);
    assert!(!bench.claimed(&bench.a, version).await.in_doubt, "the claim outlived its record");

    // Nor does a doubt outlive it.
    bench.expire().await;
    let version = bench.sign_in("1").await;
    assert!(!bench.claimed(&bench.a, version).await.in_doubt, "the doubt outlived its record");
}

pub(super) async fn a_version_is_never_used_again(bench: Bench) {
    let mut seen = HashSet::new();
    let mut claims = Vec::new();
    for round in 0..20 {
        // The same record each time: versions made of its content would show.
        let version = bench.sign_in("1").await;
        assert!(seen.insert(version), "{version:?} was used again");
        let claim = bench.claimed(&bench.a, version).await;
        let version = if round % 3 == 0 {
            claims.push(claim);
            version
        } else {
            let version = stored(&bench.a, &claim, "1").await;
            assert!(seen.insert(version), "{version:?} was used again");
            claims.push(claim);
            version
        };
        if round % 2 == 0 {
            cleared(&bench.b, version).await;
        }
    }
    let last = bench.load().await;
    assert!(last.is_some());
    for claim in &claims {
        assert_eq!(conflicting(&bench.b, claim, "late").await, last);
    }
    assert_eq!(bench.load().await, last);
}
