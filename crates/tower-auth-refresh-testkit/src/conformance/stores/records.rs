//! Records: writes, reads, versions and conflicts.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;
use tower_auth_refresh::store::{
    ClearOutcome, CommitOutcome, Entry, Epoch, InsertOutcome, Presented, Record, TokenStore,
};
use tower_auth_refresh::{AccessToken, Tokens};

use super::{Fixture, expect_cleared, expect_conflict, expect_stored, record, refresh_token, tokens};

pub(super) async fn an_empty_store_holds_nothing(fixture: Fixture) {
    assert_eq!(fixture.load().await, None);
    assert_eq!(fixture.expect_changed(&fixture.a, &fixture.foreign).await, None);
    expect_cleared(&fixture.a, &fixture.foreign).await;
    assert_eq!(fixture.load().await, None);
}

pub(super) async fn a_record_written_by_one_handle_is_read_by_the_other(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let expected = record(&version, "1");
    assert_eq!(fixture.load().await, Some(expected));

    let claim = fixture.expect_claimed(&fixture.b, &version).await;
    let version = expect_stored(&fixture.b, &claim, "2").await;
    let expected = record(&version, "2");
    assert_eq!(fixture.load().await, Some(expected));

    expect_cleared(&fixture.b, &version).await;
    assert_eq!(fixture.load().await, None);
}

pub(super) async fn the_second_of_two_inserts_finds_the_first(fixture: Fixture) {
    let insert = async |store: &Arc<dyn TokenStore>, name: &str| {
        store.insert(&Entry::new(Epoch::from(7), 1, tokens(name))).await.expect("insert")
    };
    let InsertOutcome::Inserted(version) = insert(&fixture.a, "1").await else { panic!("the store was empty") };
    let claim = fixture.expect_claimed(&fixture.a, &version).await;
    for store in [&fixture.b, &fixture.a] {
        match insert(store, "2").await {
            InsertOutcome::Exists(found) => assert_eq!(Some(found), fixture.load().await),
            other => panic!("the store holds a record, but it returned {other:?}"),
        }
    }
    fixture.expect_renewed(&fixture.a, &claim, fixture.lease).await;
    expect_cleared(&fixture.a, &version).await;
    assert!(matches!(insert(&fixture.b, "3").await, InsertOutcome::Inserted(_)), "the store was cleared");
}

pub(super) async fn every_record_is_read_back_unchanged(fixture: Fixture) {
    let members = json!({
        "scope": "read write", "id_token": "ey\u{e9}\u{1f511}\"\\\n", "nothing": null, "empty": "", "": "no name",
        "nested": { "list": [1, -1, 1.5, u64::MAX, i64::MIN, true, {}] },
        // Names that a store may use itself must not clash with the members.
        "version": 1, "epoch": 2, "tokens": 3, "access_token": 4, "refresh_token": 5, "access": 6, "refresh": 7,
        "expires_at": 8, "expires_in": 9, "extra": 10, "claim": 11, "lease": 12, "in_doubt": 13,
    });
    let members = members.as_object().cloned().unwrap_or_default();
    let access = || AccessToken::new("a.b-c_d~e+f/g==").expect("the token is visible ASCII");
    let long = AccessToken::new("x".repeat(4096)).expect("the token is visible ASCII");
    let at = UNIX_EPOCH + Duration::new(2_000_000_000, 123_456_700);
    let kinds = [
        tokens("1").with_expires_at(at).with_refresh_at(at - Duration::from_secs(1_800)).with_extra(members.clone()),
        Tokens::from_access_token(access()).with_expires_at(at),
        Tokens::from_refresh_token(refresh_token("with \"quotes\", \\ and spaces")),
        Tokens::from_access_token(long).with_extra(members),
        Tokens::default(),
    ];
    for (tokens, epoch) in kinds.into_iter().zip([0, 1, 1 << 53 | 1, 1 << 63, u64::MAX]) {
        expect_read_back(&fixture, &Entry::new(Epoch::from(epoch), 1, tokens)).await;
    }
}

pub(super) async fn every_generation_is_read_back_unchanged(fixture: Fixture) {
    for generation in [0, 1, 1 << 31, 1 << 32 | 1, 1 << 53 | 1, i64::MAX.cast_unsigned(), 1 << 63, u64::MAX] {
        expect_read_back(&fixture, &Entry::new(Epoch::from(7), generation, tokens("1"))).await;
    }
    // The session counts, not the store: a commit may repeat a generation, or write a smaller one.
    let version = fixture.a.replace(&Entry::new(Epoch::from(7), 9, tokens("9"))).await.expect("replace");
    let mut claim = fixture.expect_claimed(&fixture.a, &version).await;
    for generation in [9, 3] {
        let entry = Entry::new(Epoch::from(7), generation, tokens("9"));
        let CommitOutcome::Stored(version) = fixture.a.commit(&claim, &entry).await.expect("commit") else {
            panic!("no other call has written");
        };
        assert_eq!(fixture.load().await, Some(Record::new(version.clone(), entry)));
        claim = fixture.expect_claimed(&fixture.b, &version).await;
    }
}

/// Asserts that an entry is returned as it was written, by every call that returns a record.
pub(super) async fn expect_read_back(fixture: &Fixture, entry: &Entry) {
    let before = fixture.sign_in("before").await;
    let version = fixture.a.replace(entry).await.expect("replace");
    let replaced = Record::new(version.clone(), entry.clone());
    assert_eq!(fixture.load().await, Some(replaced.clone()), "replaced");
    let claim = fixture.expect_claimed(&fixture.b, &version).await;
    match fixture.a.clear(&before).await.expect("clear") {
        ClearOutcome::Conflict(found) => assert_eq!(found, replaced, "found by a clear"),
        other => panic!("the record has another version, but the store returned {other:?}"),
    }
    let CommitOutcome::Stored(version) = fixture.b.commit(&claim, entry).await.expect("commit") else {
        panic!("no other call has written");
    };
    let committed = Record::new(version, entry.clone());
    assert_eq!(fixture.load().await, Some(committed.clone()), "committed");
    assert_eq!(expect_conflict(&fixture.a, &claim, "late").await, Some(committed.clone()), "in a conflict");
    assert_eq!(fixture.expect_changed(&fixture.a, claim.version()).await, Some(committed), "found by a claim");
}

pub(super) async fn a_commit_stores_a_new_version_and_ends_the_claim(fixture: Fixture) {
    let old = fixture.sign_in("1").await;
    let claim = fixture.expect_claimed(&fixture.a, &old).await;
    let new = expect_stored(&fixture.a, &claim, "2").await;
    assert_ne!(old, new, "the version was reused");
    let expected = record(&new, "2");
    assert_eq!(fixture.expect_changed(&fixture.b, &old).await, Some(expected));
    assert!(!fixture.expect_claimed(&fixture.b, &new).await.is_in_doubt(), "the new token has not been presented");
}

pub(super) async fn the_second_of_two_commits_conflicts(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let claim = fixture.expect_claimed(&fixture.a, &version).await;
    let version = expect_stored(&fixture.a, &claim, "2").await;
    let expected = record(&version, "2");
    assert_eq!(expect_conflict(&fixture.a, &claim, "3").await, Some(expected.clone()));
    assert_eq!(expect_conflict(&fixture.b, &claim, "2").await, Some(expected.clone()));
    assert_eq!(fixture.load().await, Some(expected));
}

pub(super) async fn a_late_commit_is_stored_if_the_version_is_unchanged(fixture: Fixture) {
    // The lease has expired, and there is no other claim.
    let version = fixture.sign_in("1").await;
    let late = fixture.expect_claimed(&fixture.a, &version).await;
    fixture.expire().await;
    let version = expect_stored(&fixture.a, &late, "2").await;

    // The lease has expired, and another handle holds a claim without having committed.
    let late = fixture.expect_claimed(&fixture.a, &version).await;
    fixture.expire().await;
    let other = fixture.expect_claimed(&fixture.b, &version).await;
    let version = expect_stored(&fixture.a, &late, "3").await;
    let expected = record(&version, "3");
    assert_eq!(expect_conflict(&fixture.b, &other, "4").await, Some(expected.clone()));
    fixture.b.release(&other, Presented::InDoubt).await.expect("release");
    assert!(!fixture.b.renew(&other, fixture.lease).await.expect("renew"), "the version was replaced");
    assert_eq!(fixture.load().await, Some(expected));
    let claim = fixture.expect_claimed(&fixture.b, &version).await;
    assert!(!claim.is_in_doubt(), "the new token has not been presented");

    // The claim was released in doubt, and the token response arrived afterwards.
    fixture.b.release(&claim, Presented::InDoubt).await.expect("release");
    let version = expect_stored(&fixture.b, &claim, "5").await;
    assert!(!fixture.expect_claimed(&fixture.a, &version).await.is_in_doubt(), "the new token has not been presented");
}

pub(super) async fn a_late_commit_after_a_clear_conflicts(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let claim = fixture.expect_claimed(&fixture.a, &version).await;
    expect_cleared(&fixture.b, &version).await;
    assert_eq!(expect_conflict(&fixture.a, &claim, "2").await, None);
    assert_eq!(fixture.load().await, None);
    assert_eq!(fixture.expect_changed(&fixture.a, &version).await, None);
    expect_cleared(&fixture.a, &version).await;

    // Another sign-in, even with the same user and tokens.
    let version = fixture.sign_in("1").await;
    let expected = Some(record(&version, "1"));
    assert_eq!(expect_conflict(&fixture.a, &claim, "2").await, expected);
    fixture.a.release(&claim, Presented::InDoubt).await.expect("release");
    assert!(!fixture.a.renew(&claim, fixture.lease).await.expect("renew"), "the claim was cleared");
    assert_eq!(fixture.load().await, expected);
    assert!(!fixture.expect_claimed(&fixture.b, &version).await.is_in_doubt(), "the claim outlived its record");
}

pub(super) async fn a_clear_of_another_version_deletes_nothing(fixture: Fixture) {
    let old = fixture.sign_in("1").await;
    let claim = fixture.expect_claimed(&fixture.a, &old).await;
    let new = expect_stored(&fixture.a, &claim, "2").await;
    let expected = record(&new, "2");
    match fixture.b.clear(&old).await.expect("clear") {
        ClearOutcome::Conflict(found) => assert_eq!(found, expected),
        other => panic!("the record has another version, but the store returned {other:?}"),
    }
    assert_eq!(fixture.load().await, Some(expected));

    // A claim isn't affected either.
    fixture.expect_claimed(&fixture.a, &new).await;
    assert!(matches!(fixture.b.clear(&old).await.expect("clear"), ClearOutcome::Conflict(_)));
    fixture.expect_busy(&fixture.b, &new).await;
}

pub(super) async fn a_late_commit_after_a_replace_conflicts(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let claim = fixture.expect_claimed(&fixture.a, &version).await;
    let other = Entry::new(Epoch::from(8), 1, tokens("other"));
    let version = fixture.b.replace(&other).await.expect("replace");
    let expected = Some(Record::new(version.clone(), other));
    assert_eq!(expect_conflict(&fixture.a, &claim, "2").await, expected);
    fixture.a.release(&claim, Presented::InDoubt).await.expect("release");
    assert_eq!(fixture.load().await, expected);
    assert!(!fixture.expect_claimed(&fixture.a, &version).await.is_in_doubt(), "the claim outlived its record");

    // A doubt doesn't outlive the record either.
    fixture.expire().await;
    let version = fixture.sign_in("1").await;
    assert!(!fixture.expect_claimed(&fixture.a, &version).await.is_in_doubt(), "the doubt outlived its record");
}

pub(super) async fn versions_are_never_reused(fixture: Fixture) {
    let mut seen = HashSet::new();
    let mut claims = Vec::new();
    for round in 0..20 {
        // The record is the same each time, which exposes versions derived from the content.
        let version = fixture.sign_in("1").await;
        assert!(seen.insert(version.clone()), "{version:?} was reused");
        let claim = fixture.expect_claimed(&fixture.a, &version).await;
        let version = if round % 3 == 0 {
            claims.push(claim);
            version
        } else {
            let version = expect_stored(&fixture.a, &claim, "1").await;
            assert!(seen.insert(version.clone()), "{version:?} was reused");
            claims.push(claim);
            version
        };
        if round % 2 == 0 {
            expect_cleared(&fixture.b, &version).await;
        }
    }
    let last = fixture.load().await;
    assert!(last.is_some());
    for claim in &claims {
        assert_eq!(expect_conflict(&fixture.b, claim, "late").await, last);
    }
    assert_eq!(fixture.load().await, last);
}
