//! Directories and files that aren't the user's alone.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use tower_auth_refresh_store::{FileStore, StoreError, StoreErrorKind};

use crate::kind;
use crate::support::{LEASE, TestDirectory, entry};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn opening(path: &Path) -> Result<FileStore, tower::BoxError> {
    FileStore::open(path).map_err(Into::into)
}

#[tokio::test]
async fn a_directory_and_its_files_are_made_for_the_user_alone() {
    let directory = TestDirectory::new();
    let path = directory.path().join("a/b");
    let store = FileStore::open_single(&path).unwrap();
    let version = store.replace(&entry(1)).await.unwrap();
    store.claim(&version, LEASE).await.unwrap();
    for path in [directory.path().join("a"), path.clone()] {
        assert_eq!(mode(&path), 0o700);
    }
    let files: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 3, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn a_directory_that_others_may_open_is_refused_and_the_error_says_how_to_mend_it() {
    let directory = TestDirectory::new();
    let path = directory.path();
    let store = FileStore::open_single(path).unwrap();
    store.replace(&entry(1)).await.unwrap();
    for open in [0o755, 0o750, 0o701, 0o720] {
        set_mode(path, open);
        let error = FileStore::open(path).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::TooOpen);
        assert!(error.to_string().contains(&format!("run `chmod 700 {}`", path.display())), "{error}");
        // Also if it happens later.
        assert_eq!(kind(store.load().await, path), StoreErrorKind::TooOpen);
        assert_eq!(kind(store.replace(&entry(2)).await, path), StoreErrorKind::TooOpen);
    }
    set_mode(path, 0o700);
    assert_eq!(store.load().await.unwrap().unwrap().generation(), 1);
}

#[tokio::test]
async fn a_file_that_others_may_read_is_refused_and_the_error_says_how_to_mend_it() {
    let directory = TestDirectory::new();
    let files = FileStore::open(directory.path()).unwrap();
    let store = files.store("ada");
    let version = store.replace(&entry(1)).await.unwrap();
    store.claim(&version, LEASE).await.unwrap();
    files.check().await.unwrap();
    for ending in [".record", ".claim", ".lock"] {
        let path = directory.files(ending).into_iter().find(|path| !path.ends_with("check.lock")).unwrap();
        for open in [0o644, 0o640, 0o604, 0o620] {
            set_mode(&path, open);
            let claim = store.claim(&version, LEASE).await;
            let error = claim.unwrap_err().to_string();
            assert!(error.contains(&format!("run `chmod 600 {}`", path.display())), "{error}");
            let checked = files.check().await.unwrap_err();
            assert_eq!((checked.kind(), checked.to_string()), (StoreErrorKind::TooOpen, error));
        }
        set_mode(&path, 0o600);
    }
    // Only a store's own files have to be private.
    let notes = directory.path().join("notes.txt");
    fs::write(&notes, "").unwrap();
    set_mode(&notes, 0o644);
    files.check().await.unwrap();
}

#[tokio::test]
async fn a_symbolic_link_in_the_directory_is_never_followed() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    let version = store.replace(&entry(1)).await.unwrap();
    let record = directory.file(".record");
    let elsewhere = directory.path().join("elsewhere");
    fs::rename(&record, &elsewhere).unwrap();
    symlink(&elsewhere, &record).unwrap();
    assert_eq!(kind(store.load().await, &record), StoreErrorKind::TooOpen);
    assert_eq!(kind(store.claim(&version, LEASE).await, &record), StoreErrorKind::TooOpen);
    // A new sign-in replaces the link, and leaves its target as it was.
    let before = fs::read(&elsewhere).unwrap();
    store.replace(&entry(2)).await.unwrap();
    assert_eq!((store.load().await.unwrap().unwrap().generation(), fs::read(&elsewhere).unwrap()), (2, before));

    let lock = directory.file(".lock");
    fs::remove_file(&lock).unwrap();
    symlink(&elsewhere, &lock).unwrap();
    assert_eq!(kind(store.replace(&entry(3)).await, &lock), StoreErrorKind::TooOpen);
    for path in [&record, &lock] {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }
    assert_eq!(kind(store.load().await, &record), StoreErrorKind::TooOpen);
}

#[tokio::test]
async fn the_directory_may_be_one_symbolic_link_of_the_users_own() {
    let directory = TestDirectory::new();
    let real = directory.path().join("real");
    let store = FileStore::open_single(&real).unwrap();
    store.replace(&entry(1)).await.unwrap();
    let link = directory.path().join("link");
    symlink("real", &link).unwrap();
    let by_link = FileStore::open_single(&link).unwrap();
    assert_eq!(by_link.load().await.unwrap(), store.load().await.unwrap());

    let second = directory.path().join("second");
    symlink(&link, &second).unwrap();
    assert_eq!(kind(opening(&second), &second), StoreErrorKind::TooOpen);
    // With a slash at the end, the system follows the link. Its target has to be private as well.
    set_mode(&real, 0o755);
    assert_eq!(kind(opening(&link), &link), StoreErrorKind::TooOpen);
}

#[tokio::test]
async fn what_another_user_owns_is_refused() {
    let directory = TestDirectory::new();
    let path = directory.path();
    let store = FileStore::open_single(path).unwrap();
    let version = store.replace(&entry(1)).await.unwrap();
    store.claim(&version, LEASE).await.unwrap();
    if chown(path, Some(1), None).is_err() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    assert_eq!(kind(opening(path), path), StoreErrorKind::TooOpen);
    assert_eq!(kind(store.load().await, path), StoreErrorKind::TooOpen);
    chown(path, Some(0), None).unwrap();
    for ending in [".record", ".claim", ".lock"] {
        let file = directory.file(ending);
        chown(&file, Some(1), None).unwrap();
        assert_eq!(kind(store.claim(&version, LEASE).await, &file), StoreErrorKind::TooOpen);
        chown(&file, Some(0), None).unwrap();
    }
    let link = directory.path().join("link");
    symlink(path, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(1), None).unwrap();
    assert_eq!(kind(opening(&link), &link), StoreErrorKind::TooOpen);
}

#[tokio::test]
async fn a_directory_that_is_gone_is_an_error_and_no_sign_out() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    store.replace(&entry(1)).await.unwrap();
    fs::remove_dir_all(directory.path()).unwrap();
    assert_eq!(kind(store.load().await, directory.path()), StoreErrorKind::Unavailable);
    assert_eq!(kind(store.replace(&entry(2)).await, directory.path()), StoreErrorKind::Unavailable);
    fs::write(directory.path(), b"a file").unwrap();
    assert_eq!(kind(opening(directory.path()), directory.path()), StoreErrorKind::Unavailable);
    fs::remove_file(directory.path()).unwrap();
}

#[tokio::test]
async fn a_file_in_the_place_of_the_directory_is_an_error_that_names_it() {
    let directory = TestDirectory::new();
    let path = directory.path();
    let store = FileStore::open_single(path).unwrap();
    fs::remove_dir(path).unwrap();
    fs::write(path, "").unwrap();
    set_mode(path, 0o600);
    let error = store.load().await.unwrap_err().downcast::<StoreError>().unwrap();
    fs::remove_file(path).unwrap();
    assert_eq!((error.kind(), error.resource()), (StoreErrorKind::Unavailable, path.to_str().unwrap()), "{error}");
}
