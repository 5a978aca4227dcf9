//! A disk that is full: a file system of 64 KiB, in a process that may mount one.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use super::program::this_program;
use super::*;

const DISK: &str = "STORE_SMALL_DISK";

#[test]
fn a_full_disk_is_noticed_before_the_token_is_presented_and_a_claim_reserves_the_space_of_the_commit() {
    let directory = TestDirectory::new();
    fs::create_dir(directory.path()).unwrap();
    let test = this_program("file::tests::disk::in_a_namespace_with_a_small_disk");
    let mount =
        r#"mount -t tmpfs -o size=64k,mode=700 tmpfs "$STORE_SMALL_DISK" 2>/dev/null || exit 77; exec "$0" "$@""#;
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["-rm", "sh", "-c", mount]).arg(test.get_program()).args(test.get_args());
    let status = unshare.env(DISK, directory.path()).status().map(|status| status.code());
    if !matches!(status, Ok(Some(0 | 101))) && env::var("CI").is_err() {
        eprintln!("skipped: no file system can be mounted here ({status:?})");
        return;
    }
    assert_eq!(status.unwrap(), Some(0));
}

#[tokio::test]
async fn in_a_namespace_with_a_small_disk() {
    let Some(disk) = env::var_os(DISK) else { return };
    let disk = Path::new(&disk);
    let store = FileStore::open_single(disk).unwrap();
    let version = store.replace(&entry(1)).await.unwrap();

    fill(disk);
    let error = store.claim(&version, LEASE).await.unwrap_err().downcast::<StoreError>().unwrap();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    fs::remove_file(disk.join("filler")).unwrap();

    let claim = claimed(&*store, &version).await;
    assert!(!claim.is_in_doubt(), "the claim that failed has left no doubt");
    fill(disk);
    store.replace(&entry(9)).await.unwrap_err();
    let committed = store.commit(&claim, &entry(2)).await.unwrap();
    assert!(matches!(committed, CommitOutcome::Stored(_)), "{committed:?}");
    assert_eq!(generation(store.load().await.unwrap().as_ref()), Some(2));
}

fn fill(disk: &Path) {
    let mut file = File::create(disk.join("filler")).unwrap();
    while file.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
}
