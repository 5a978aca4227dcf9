//! Files that are damaged: cut off at each byte, and with each bit flipped.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tower_auth_refresh::store::{ClaimOutcome, ClearOutcome, CommitOutcome, InsertOutcome, TokenStore};
use tower_auth_refresh_store::{FileStore, StoreErrorKind};

use crate::kind;
use crate::support::{LEASE, TestDirectory, claimed, entry};

/// The length of a claim without the zeros behind it.
const CLAIM: usize = 110;

/// Every prefix of these bytes, and every change of one bit.
fn damaged(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let prefixes = (0..bytes.len()).map(|length| bytes[..length].to_vec());
    let flips = (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    });
    prefixes.chain(flips)
}

async fn expect_each_damage_to_be_an_error(store: Arc<dyn TokenStore>, directory: &TestDirectory) {
    use StoreErrorKind::{Corrupt, Misconfigured, NewerFormat, UnknownKey};
    let version = store.replace(&entry(1)).await.unwrap();
    let claim = claimed(&*store, &version).await;
    let path = directory.file(".record");
    let whole = fs::read(&path).unwrap();
    for bytes in damaged(&whole) {
        fs::write(&path, &bytes).unwrap();
        let kind = kind(store.load().await, &path);
        assert!([Corrupt, Misconfigured, NewerFormat, UnknownKey].contains(&kind), "{kind:?}: {bytes:?}");
    }
    // A longer file isn't a record either.
    fs::write(&path, [&*whole, &[0]].concat()).unwrap();
    assert_eq!(kind(store.load().await, &path), Corrupt);
    fs::write(&path, vec![b'x'; 8 * 1024 * 1024]).unwrap();
    assert_eq!(kind(store.load().await, &path), Corrupt);

    // No operation but a new sign-in takes a damaged record for an absent one.
    fs::write(&path, b"").unwrap();
    assert_eq!(kind(store.insert(&entry(2)).await, &path), Corrupt);
    assert_eq!(kind(store.claim(&version, LEASE).await, &path), Corrupt);
    assert_eq!(kind(store.renew(&claim, LEASE).await, &path), Corrupt);
    assert_eq!(kind(store.commit(&claim, &entry(2)).await, &path), Corrupt);
    assert_eq!(kind(store.clear(&version).await, &path), Corrupt);
    assert_eq!(kind(store.extend(&version, SystemTime::now()).await, &path), Corrupt);
    assert_eq!(fs::read(&path).unwrap(), b"");
    store.replace(&entry(2)).await.unwrap();
    assert_eq!(store.load().await.unwrap().unwrap().generation(), 2);
}

#[tokio::test]
async fn a_record_that_is_damaged_anywhere_is_an_error_and_never_absent() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    expect_each_damage_to_be_an_error(store, &directory).await;
}

#[cfg(feature = "encryption")]
#[tokio::test]
async fn an_encrypted_record_that_is_damaged_anywhere_is_an_error_and_never_absent() {
    let directory = TestDirectory::new();
    let keys = tower_auth_refresh_store::Keys::new("1", &[7; 32]).unwrap();
    let store = FileStore::builder(directory.path()).keys(keys).open().unwrap().store("ada");
    expect_each_damage_to_be_an_error(store, &directory).await;
}

#[tokio::test]
async fn a_claim_that_is_damaged_anywhere_leaves_the_token_in_doubt() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    let version = store.replace(&entry(1)).await.unwrap();
    let mut claim = claimed(&*store, &version).await;
    let path = directory.file(".claim");
    let whole = fs::read(&path).unwrap();
    assert!(whole[CLAIM..].iter().all(|byte| *byte == 0));
    for bytes in damaged(&whole[..CLAIM]) {
        fs::write(&path, &bytes).unwrap();
        match store.claim(&version, LEASE).await {
            Ok(ClaimOutcome::Claimed(next)) => {
                assert!(next.is_in_doubt(), "{bytes:?}");
                claim = next;
            }
            Ok(other) => panic!("{other:?}: {bytes:?}"),
            Err(error) => assert_eq!(kind::<()>(Err(error), &path), StoreErrorKind::NewerFormat, "{bytes:?}"),
        }
    }
    // The tokens are saved whatever has become of the claim.
    fs::write(&path, b"torn").unwrap();
    assert!(!store.renew(&claim, LEASE).await.unwrap());
    let committed = store.commit(&claim, &entry(2)).await.unwrap();
    let CommitOutcome::Stored(version) = committed else { panic!("{committed:?}") };
    assert!(!claimed(&*store, &version).await.is_in_doubt());
}

#[tokio::test]
async fn files_of_a_later_format_are_errors_until_they_are_replaced() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    let version = store.replace(&entry(1)).await.unwrap();
    claimed(&*store, &version).await;
    let later = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[4] += 1;
        fs::write(path, bytes).unwrap();
    };
    let (record, claim) = (directory.file(".record"), directory.file(".claim"));
    later(&claim);
    assert_eq!(kind(store.claim(&version, LEASE).await, &claim), StoreErrorKind::NewerFormat);
    later(&record);
    assert_eq!(kind(store.load().await, &record), StoreErrorKind::NewerFormat);
    assert!(kind(store.clear(&version).await, &record) == StoreErrorKind::NewerFormat && record.exists());

    let version = store.replace(&entry(2)).await.unwrap();
    assert!(!claimed(&*store, &version).await.is_in_doubt());
    assert!(matches!(store.clear(&version).await.unwrap(), ClearOutcome::Cleared));
    assert!(matches!(store.insert(&entry(3)).await.unwrap(), InsertOutcome::Inserted(_)));
}
