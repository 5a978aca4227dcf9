//! The checks of the fuzz targets, each for one input: no panic; a record that can be read is read again as it was, and
//! any other is an error, never an absent user; a claim that can't be read leaves the token in doubt.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::runtime::{Builder, Runtime};
use tower_auth_refresh::store::{ClaimOutcome, Entry, Epoch, TokenStore};
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};
use tower_auth_refresh_store::{FileStore, Keys, StoreError, StoreErrorKind};
use xxhash_rust::xxh3::xxh3_128;

const LEASE: Duration = Duration::from_secs(60);

/// One session's files, which each input replaces.
struct Files {
    runtime: Runtime,
    plain: Arc<dyn TokenStore>,
    /// The same files, by a store with keys.
    encrypted: Arc<dyn TokenStore>,
    record: PathBuf,
    claim: PathBuf,
    storage_key: [u8; 32],
}

static FILES: LazyLock<Mutex<Files>> = LazyLock::new(|| {
    // It is left behind: by a test below `target`, by a fuzz target in memory.
    let parent = option_env!("CARGO_TARGET_TMPDIR").unwrap_or("/dev/shm");
    let directory = Path::new(parent).join(format!("tower-auth-refresh-store-fuzzed-{}", std::process::id()));
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let plain = FileStore::open_single(&directory).unwrap();
    runtime.block_on(plain.replace(&entry())).unwrap();
    let names: Vec<_> = fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path()).collect();
    let record = names.into_iter().find(|path| path.extension().is_some_and(|it| it == "record")).unwrap();
    let digits = record.file_stem().unwrap().to_str().unwrap();
    let storage_key = std::array::from_fn(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap());
    let keys = Keys::new("1", &[7; 32]).unwrap();
    let encrypted = FileStore::builder(&directory).keys(keys).open().unwrap().store("");
    Mutex::new(Files { runtime, plain, encrypted, claim: record.with_extension("claim"), record, storage_key })
});

fn entry() -> Entry {
    let tokens = Tokens::new(AccessToken::new("access").unwrap(), RefreshToken::new("refresh").unwrap());
    Entry::new(Epoch::from(7), 1, tokens)
}

/// A record: one byte that selects whether it gets a valid beginning and checksum, and its content.
pub(crate) fn record(data: &[u8]) {
    let [is_whole, content @ ..] = data else { return };
    let files = FILES.lock().unwrap();
    let bytes = if is_whole % 2 == 0 {
        content.to_vec()
    } else {
        let record = [b"tarr\x01\x00", &[9; 16][..], content].concat();
        let parts = [&files.storage_key[..], &xxh3_128(&record).to_be_bytes()].concat();
        [&record[..], &xxh3_128(&parts).to_be_bytes()].concat()
    };
    for store in [&files.plain, &files.encrypted] {
        write(&files.record, &bytes);
        match files.runtime.block_on(store.load()) {
            Ok(found) => {
                let found = found.expect("the record isn't absent");
                files.runtime.block_on(store.replace(found.entry())).unwrap();
                let again = files.runtime.block_on(store.load()).unwrap().unwrap();
                assert_eq!(again.entry(), found.entry());
            }
            Err(error) => {
                let kind = error.downcast::<StoreError>().unwrap().kind();
                assert_ne!(kind, StoreErrorKind::Unavailable);
            }
        }
    }
}

/// A claim: one byte that selects whether it gets a valid beginning, the record's version and a checksum, and the rest.
pub(crate) fn claim(data: &[u8]) {
    let [is_whole, content @ ..] = data else { return };
    let files = FILES.lock().unwrap();
    let version = files.runtime.block_on(files.plain.replace(&entry())).unwrap();
    let is_whole = is_whole % 2 == 1;
    let bytes = match content {
        [flags, rest @ ..] if is_whole => {
            let claim = [b"tarc\x01", &[*flags][..], version.as_bytes(), rest].concat();
            [&claim[..], &Sha256::digest(&claim)].concat()
        }
        _ => content.to_vec(),
    };
    write(&files.claim, &bytes);
    match files.runtime.block_on(files.plain.claim(&version, LEASE)) {
        // On this version, or damaged.
        Ok(ClaimOutcome::Claimed(claim)) => assert!(claim.is_in_doubt()),
        Ok(ClaimOutcome::Busy { .. }) => assert!(is_whole),
        Ok(other) => panic!("{other:?}"),
        Err(error) => assert_eq!(error.downcast::<StoreError>().unwrap().kind(), StoreErrorKind::NewerFormat),
    }
    let _ = fs::remove_file(&files.claim);
}

fn write(path: &Path, bytes: &[u8]) {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).unwrap().write_all(bytes).unwrap();
}
