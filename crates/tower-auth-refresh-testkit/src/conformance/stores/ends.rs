//! Ends of records, and their extension.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tower_auth_refresh::store::{ClaimOutcome, ClearOutcome, Entry, Epoch, InsertOutcome, Record, Version};

use super::records::expect_read_back;
use super::{Fixture, entry, expect_cleared, expect_stored};

const HOUR: Duration = Duration::from_secs(60 * 60);

pub(super) async fn the_ends_of_a_record_are_read_back_to_the_millisecond(fixture: Fixture) {
    let (end, latest) = (in_2100(123), in_2100(86_400_456));
    let ended = [
        entry("1").with_expires_at(end),
        entry("1").with_ends_at(latest),
        entry("1").with_expires_at(end + Duration::from_nanos(999_999)).with_ends_at(latest),
        entry("1").with_expires_at(latest).with_ends_at(latest),
    ];
    for entry in ended {
        expect_read_back(&fixture, &entry).await;
        let loaded = fixture.load().await.expect("the entry was written");
        expect_cleared(&fixture.b, loaded.version()).await;
        let InsertOutcome::Inserted(version) = fixture.a.insert(&entry).await.expect("insert") else {
            panic!("the store was cleared");
        };
        assert_eq!(fixture.load().await, Some(Record::new(version, entry)), "inserted");
    }
}

pub(super) async fn an_extension_moves_the_end_and_nothing_else(fixture: Fixture) {
    let latest = in_2100(86_400_456);
    for before in [entry("1"), entry("1").with_expires_at(in_2100(1)).with_ends_at(latest)] {
        let version = fixture.a.replace(&before).await.expect("replace");
        let claim = fixture.expect_claimed(&fixture.a, &version).await;
        // Later, earlier, and to the same.
        for end in [in_2100(5_000_123), in_2100(4_000_001), in_2100(4_000_001)] {
            assert!(extend(&fixture, &version, end).await, "the record has this version");
            let extended = before.clone().with_expires_at(end);
            assert_eq!(fixture.load().await, Some(Record::new(version.clone(), extended)));
        }
        fixture.expect_busy(&fixture.b, &version).await;
        fixture.expect_renewed(&fixture.b, &claim, fixture.lease).await;
        expect_stored(&fixture.a, &claim, "2").await;
    }
}

pub(super) async fn an_extension_of_another_version_does_nothing(fixture: Fixture) {
    let end = in_2100(0);
    assert!(!extend(&fixture, &fixture.foreign, end).await, "the store is empty");
    assert_eq!(fixture.load().await, None);
    let old = fixture.sign_in("1").await;
    let claim = fixture.expect_claimed(&fixture.a, &old).await;
    let new = expect_stored(&fixture.a, &claim, "2").await;
    let expected = fixture.load().await;
    for version in [&old, &fixture.foreign] {
        assert!(!extend(&fixture, version, end).await, "the record has another version");
        assert_eq!(fixture.load().await, expected);
    }
    expect_cleared(&fixture.a, &new).await;
    assert!(!extend(&fixture, &new, end).await, "the store was cleared");
    assert_eq!(fixture.load().await, None);
}

pub(super) async fn an_extended_record_outlives_its_first_end(fixture: Fixture) {
    let mut lifetime = fixture.lease;
    loop {
        let end = SystemTime::now() + lifetime;
        let version = fixture.a.replace(&entry("1").with_expires_at(end)).await.expect("replace");
        let extended = extend(&fixture, &version, in_2100(0)).await;
        if !extended && SystemTime::now() >= end {
            // The store is slow, or the machine is.
            lifetime *= 2;
            continue;
        }
        assert!(extended, "the record has this version");
        tokio::time::sleep(lifetime * 5 / 4).await;
        let expected = Record::new(version, entry("1").with_expires_at(in_2100(0)));
        assert_eq!(fixture.load().await, Some(expected));
        return;
    }
}

pub(super) async fn a_record_past_its_end_is_in_the_way_of_nothing(fixture: Fixture) {
    let past = entry("1").with_expires_at(SystemTime::now() - HOUR);
    let next = Entry::new(Epoch::from(8), 1, entry("2").tokens().clone());
    for first in ["insert", "replace", "claim"] {
        let version = fixture.a.replace(&past).await.expect("replace");
        let expected = Record::new(version.clone(), past.clone());
        for loaded in [fixture.a.load().await.expect("load"), fixture.b.load().await.expect("load")] {
            assert!(loaded.is_none_or(|found| found == expected), "it is read as it was written, or gone");
        }
        if first == "claim" {
            match fixture.b.claim(&version, fixture.lease).await.expect("claim") {
                ClaimOutcome::Claimed(_) | ClaimOutcome::Changed(None) => {}
                other => panic!("the record is unchanged or gone, but the store returned {other:?}"),
            }
        }
        if first != "insert" {
            let version = fixture.b.replace(&next).await.expect("replace");
            assert_eq!(fixture.load().await, Some(Record::new(version, next.clone())));
            continue;
        }
        let inserted = match fixture.b.insert(&next).await.expect("insert") {
            InsertOutcome::Exists(found) => {
                assert_eq!(found, expected);
                let clear = fixture.b.clear(&version).await.expect("clear");
                assert!(matches!(clear, ClearOutcome::Cleared), "the store returned {clear:?}");
                fixture.b.insert(&next).await.expect("insert")
            }
            inserted => inserted,
        };
        let InsertOutcome::Inserted(version) = inserted else {
            panic!("the store holds no record, or one past its end")
        };
        assert_eq!(fixture.load().await, Some(Record::new(version, next.clone())));
    }
}

async fn extend(fixture: &Fixture, version: &Version, end: SystemTime) -> bool {
    fixture.b.extend(version, end).await.expect("extend")
}

/// A time in the year 2100, in milliseconds after its beginning.
fn in_2100(millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(4_102_444_800_000 + millis)
}
