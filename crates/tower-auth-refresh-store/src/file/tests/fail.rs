//! The operating system fails at each step of each operation.

use std::error::Error;
use std::io;
use std::time::SystemTime;

use super::super::steps::Step;
use super::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// An operation on a store with a record of generation 1, which the same handle has claimed if `is_claimed`.
struct Operation {
    name: &'static str,
    is_claimed: bool,
    /// The generation that is stored afterwards, if the operation succeeds.
    leaves: Option<u64>,
}

const OPERATIONS: [Operation; 9] = [
    Operation { name: "insert", is_claimed: false, leaves: Some(1) },
    Operation { name: "replace", is_claimed: false, leaves: Some(2) },
    Operation { name: "claim", is_claimed: false, leaves: Some(1) },
    Operation { name: "renew", is_claimed: true, leaves: Some(1) },
    Operation { name: "release unused", is_claimed: true, leaves: Some(1) },
    Operation { name: "release in doubt", is_claimed: true, leaves: Some(1) },
    Operation { name: "commit", is_claimed: true, leaves: Some(2) },
    Operation { name: "clear", is_claimed: true, leaves: None },
    Operation { name: "extend", is_claimed: true, leaves: Some(1) },
];

impl Operation {
    async fn run(&self, store: &dyn TokenStore, version: &Version, claim: Option<&Claim>) -> Result<(), StoreError> {
        let claim = || claim.unwrap();
        let outcome = match self.name {
            "insert" => store.insert(&entry(2)).await.map(drop),
            "replace" => store.replace(&entry(2)).await.map(drop),
            "claim" => store.claim(version, LEASE).await.map(drop),
            "renew" => store.renew(claim(), LEASE).await.map(drop),
            "release unused" => store.release(claim(), Presented::Unused).await,
            "release in doubt" => store.release(claim(), Presented::InDoubt).await,
            "commit" => store.commit(claim(), &entry(2)).await.map(drop),
            "clear" => store.clear(version).await.map(drop),
            "extend" => store.extend(version, SystemTime::UNIX_EPOCH + LEASE).await.map(|extended| assert!(extended)),
            other => panic!("{other}"),
        };
        outcome.map_err(|error| *error.downcast::<StoreError>().unwrap())
    }
}

#[tokio::test]
async fn an_operation_that_fails_at_any_step_leaves_the_old_record_or_the_new_one_and_can_be_repeated() {
    for operation in &OPERATIONS {
        let mut failed = Vec::new();
        for (errno, after) in (0..).flat_map(|after| [(EIO, after), (ENOSPC, after)]) {
            let directory = TestDirectory::new();
            let path = directory.path();
            let store = FileStore::open_single(path).unwrap();
            let version = store.replace(&entry(1)).await.unwrap();
            let claim = if operation.is_claimed { Some(claimed(&*store, &version).await) } else { None };
            let shown = format!("{} fails with {errno} after {after} steps", operation.name);

            steps::fail(path, after, errno);
            let outcome = operation.run(&*store, &version, claim.as_ref()).await;
            let made = steps::take(path);
            if made.len() <= after {
                outcome.unwrap();
                break;
            }
            let step = made[after];
            failed.push(step);
            let stored = generation(store.load().await.unwrap().as_ref());
            match outcome {
                // A claim on a version that is gone is none, whether it was removed or not.
                Ok(()) => assert_eq!((step, stored), (Step::Remove, operation.leaves), "{shown}"),
                Err(error) => {
                    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{shown}");
                    assert!(error.resource().starts_with(path.to_str().unwrap()), "{shown}: {error}");
                    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
                    assert_eq!(source.and_then(io::Error::raw_os_error), Some(errno), "{shown}");
                    let was_written = [Step::SyncDirectory, Step::Return].contains(&step);
                    assert_eq!(stored, if was_written { operation.leaves } else { Some(1) }, "{shown}");
                }
            }
            assert_eq!(directory.files(".tmp"), [] as [PathBuf; 0], "{shown}");

            // A later attempt succeeds, or finds that the first one was made.
            operation.run(&*store, &version, claim.as_ref()).await.unwrap();
            assert_eq!(generation(store.load().await.unwrap().as_ref()), operation.leaves, "{shown}, then repeated");
        }
        assert!(failed.len() >= 4, "{}: {failed:?}", operation.name);
    }
}

#[tokio::test]
async fn a_claim_that_fails_at_any_step_leaves_the_token_in_no_doubt() {
    for after in 0.. {
        let directory = TestDirectory::new();
        let [store, peer] = [(); 2].map(|()| FileStore::open_single(directory.path()).unwrap());
        let version = store.replace(&entry(1)).await.unwrap();
        steps::fail(directory.path(), after, ENOSPC);
        let outcome = store.claim(&version, LEASE).await;
        let made = steps::take(directory.path());
        if made.len() <= after {
            break;
        }
        outcome.unwrap_err();
        if made[after] != Step::Return {
            assert!(!claimed(&*peer, &version).await.is_in_doubt(), "{made:?}");
        }
    }
}

#[tokio::test]
async fn a_renewal_that_fails_at_any_step_leaves_the_claim_held() {
    for after in 0.. {
        let directory = TestDirectory::new();
        let [store, peer] = [(); 2].map(|()| FileStore::open_single(directory.path()).unwrap());
        let version = store.replace(&entry(1)).await.unwrap();
        let claim = claimed(&*store, &version).await;
        steps::fail(directory.path(), after, EIO);
        let outcome = store.renew(&claim, LEASE).await;
        let made = steps::take(directory.path());
        if made.len() <= after {
            break;
        }
        outcome.unwrap_err();
        let found = peer.claim(&version, LEASE).await.unwrap();
        assert!(matches!(found, ClaimOutcome::Busy { .. }), "{made:?}: {found:?}");
        assert!(store.renew(&claim, LEASE).await.unwrap());
    }
}

#[tokio::test]
async fn each_write_is_on_the_disk_before_it_is_acknowledged() {
    use Step::{Create, Lock, Remove, Rename, Return, SyncDirectory, SyncFile, Write};
    let written = [Lock, Create, Write, SyncFile, Rename, SyncDirectory];
    let directory = TestDirectory::new();
    let path = directory.path();
    let store = FileStore::open_single(path).unwrap();
    steps::take(path);

    let version = store.replace(&entry(1)).await.unwrap();
    let record: Vec<_> = written.into_iter().chain([Remove, Return]).collect();
    assert_eq!(steps::take(path), record);
    let claim = claimed(&*store, &version).await;
    let claimed: Vec<_> = written.into_iter().chain([Return]).collect();
    assert_eq!(steps::take(path), claimed);
    assert!(store.renew(&claim, LEASE).await.unwrap());
    assert_eq!(steps::take(path), claimed);
    let extended: Vec<_> = written.into_iter().chain([Return]).collect();
    let end = SystemTime::now() + LEASE;
    assert!(store.extend(&version, end).await.unwrap());
    assert_eq!(steps::take(path), extended);
    // Perhaps by another process, whose write is on the disk before it is reported.
    assert!(store.extend(&version, end).await.unwrap());
    assert_eq!(steps::take(path), [Lock, SyncDirectory, Return]);
    store.commit(&claim, &entry(2)).await.unwrap();
    assert_eq!(steps::take(path), record);
    // Another process's write is on the disk before it is reported.
    store.commit(&claim, &entry(3)).await.unwrap();
    assert_eq!(steps::take(path), [Lock, SyncDirectory, Return]);
    let version = store.load().await.unwrap().unwrap().version().clone();
    store.clear(&version).await.unwrap();
    assert_eq!(steps::take(path), [Lock, Remove, SyncDirectory, Remove, Return]);
    store.clear(&version).await.unwrap();
    assert_eq!(steps::take(path), [Lock, Remove, SyncDirectory, Remove, Return]);
}
