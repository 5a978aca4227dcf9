//! Encryption: what is in the files, and which key reads them.

use std::fs::{self, Permissions};
use std::io::BufRead;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use tower_auth_refresh::store::{CommitOutcome, Entry, Epoch, TokenStore};
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};
use tower_auth_refresh_store::{FileStore, Keys, StoreErrorKind};

use crate::kind;
use crate::support::{TestDirectory, claimed, entry};

pub(crate) const CANARY: &str = "c4n4ry-T0ken";

pub(crate) fn keys(id: &str, byte: u8) -> Keys {
    Keys::new(id, &[byte; 32]).unwrap()
}

fn files(directory: &Path, keys: Keys) -> FileStore {
    FileStore::builder(directory).keys(keys).open().unwrap()
}

pub(crate) fn canaries() -> Entry {
    let token = |kind: &str| format!("{CANARY}-{kind}");
    let tokens = Tokens::new(AccessToken::new(token("a")).unwrap(), RefreshToken::new(token("r")).unwrap());
    let members = serde_json::json!({"id_token": token("id")}).as_object().unwrap().clone();
    Entry::new(Epoch::from(7), 1, tokens.with_extra(members))
}

/// Returns `true` if the bytes contain the text, in clear or as hexadecimal digits.
pub(crate) fn has(bytes: &[u8], text: &[u8]) -> bool {
    let hex = text.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    [text, hex.as_bytes()].iter().any(|text| {
        let (first, rest) = text.split_first().unwrap();
        assert!(!rest.is_empty());
        // From one occurrence of the first byte to the next: without optimization, `windows` takes a minute for the files
        // of a server.
        let mut left = bytes;
        std::iter::from_fn(|| (left.skip_until(*first).unwrap() > 0).then_some(left)).any(|left| left.starts_with(rest))
    })
}

#[tokio::test]
async fn no_token_or_key_or_name_of_a_user_is_in_the_directory() {
    for (encrypts, expected) in [(true, false), (false, true)] {
        let directory = TestDirectory::new();
        let builder = FileStore::builder(directory.path()).namespace("programs");
        let builder = if encrypts { builder.keys(keys("2026", 7)) } else { builder };
        let store = builder.open().unwrap().store("ada@example.com");
        let version = store.replace(&canaries()).await.unwrap();
        let mut seen = [false; 4];
        let mut look = || {
            for path in directory.files("") {
                let bytes = fs::read(&path).unwrap();
                let all = [path.as_os_str().as_encoded_bytes(), &bytes].concat();
                let texts = [CANARY.as_bytes(), &[7; 32], b"ada@example", b"programs"];
                seen = std::array::from_fn(|at| seen[at] || has(&all, texts[at]));
            }
        };
        look();
        let claim = claimed(&*store, &version).await;
        look();
        store.commit(&claim, &canaries()).await.unwrap();
        look();
        assert_eq!(seen, [expected, false, false, false], "with keys: {encrypts}");
    }
}

#[tokio::test]
async fn a_record_of_another_user_or_program_or_version_is_not_believed() {
    for keys in [Some(keys("1", 7)), None] {
        let directory = TestDirectory::new();
        let open = |namespace: &str| {
            let builder = FileStore::builder(directory.path()).namespace(namespace);
            match &keys {
                Some(keys) => builder.keys(keys.clone()).open().unwrap(),
                None => builder.open().unwrap(),
            }
        };
        let [ada, bob, elsewhere] = [open("").store("ada"), open("").store("bob"), open("other").store("ada")];
        ada.replace(&canaries()).await.unwrap();
        let record = directory.file(".record");
        for other in [bob, elsewhere] {
            other.replace(&entry(1)).await.unwrap();
            let path = directory.files(".record").into_iter().find(|path| *path != record).unwrap();
            fs::copy(&record, &path).unwrap();
            assert_eq!(kind(other.load().await, &path), StoreErrorKind::Corrupt);
            fs::remove_file(path).unwrap();
        }
        // The version is bound too.
        let mut bytes = fs::read(&record).unwrap();
        bytes[6..22].fill(1);
        fs::write(&record, bytes).unwrap();
        assert_eq!(kind(ada.load().await, &record), StoreErrorKind::Corrupt);
    }
}

#[tokio::test]
async fn a_key_that_is_missing_foreign_or_wrong_is_an_error() {
    let directory = TestDirectory::new();
    let path = directory.path();
    files(path, keys("1", 7)).store("ada").replace(&entry(1)).await.unwrap();
    let record = directory.file(".record");
    let expect = async |store: Arc<dyn TokenStore>, expected| {
        assert_eq!(kind(store.load().await, &record), expected);
        assert_eq!(kind(store.insert(&entry(2)).await, &record), expected);
    };
    expect(files(path, keys("2", 7)).store("ada"), StoreErrorKind::UnknownKey).await;
    expect(files(path, keys("1", 8)).store("ada"), StoreErrorKind::Corrupt).await;
    expect(FileStore::open(path).unwrap().store("ada"), StoreErrorKind::UnknownKey).await;
    assert_eq!(files(path, keys("1", 7)).store("ada").load().await.unwrap().unwrap().generation(), 1);
}

#[tokio::test]
async fn a_record_in_clear_is_refused_if_there_are_keys_unless_it_is_accepted_and_then_encrypted() {
    let directory = TestDirectory::new();
    let path = directory.path();
    let version = FileStore::open(path).unwrap().store("ada").replace(&canaries()).await.unwrap();
    let record = directory.file(".record");
    assert_eq!(
        kind(files(path, keys("1", 7)).store("ada").load().await, &record),
        StoreErrorKind::Misconfigured,
        "any process could have put it there"
    );
    let accepting = keys("1", 7).accept_unencrypted().with_previous("0", &[6; 32]).unwrap();
    let store = files(path, accepting).store("ada");
    assert_eq!(store.load().await.unwrap().unwrap().entry(), &canaries());
    let claim = claimed(&*store, &version).await;
    store.commit(&claim, &canaries()).await.unwrap();
    assert!(!has(&fs::read(&record).unwrap(), CANARY.as_bytes()));
    assert_eq!(files(path, keys("1", 7)).store("ada").load().await.unwrap().unwrap().entry(), &canaries());
}

#[tokio::test]
async fn a_key_is_replaced_with_both_in_the_ring_and_the_next_commit() {
    let directory = TestDirectory::new();
    let path = directory.path();
    let version = files(path, keys("old", 7)).store("ada").replace(&entry(1)).await.unwrap();
    let both = files(path, keys("new", 8).with_previous("old", &[7; 32]).unwrap()).store("ada");
    assert_eq!(both.load().await.unwrap().unwrap().version(), &version);
    let claim = claimed(&*both, &version).await;
    let committed = both.commit(&claim, &entry(2)).await.unwrap();
    assert!(matches!(committed, CommitOutcome::Stored(_)));
    assert_eq!(files(path, keys("new", 8)).store("ada").load().await.unwrap().unwrap().generation(), 2);
    let record = directory.file(".record");
    assert_eq!(kind(files(path, keys("old", 7)).store("ada").load().await, &record), StoreErrorKind::UnknownKey);
}

#[test]
fn a_ring_is_read_from_a_private_file() {
    let directory = TestDirectory::new();
    fs::create_dir(directory.path()).unwrap();
    let path = directory.path().join("keys");
    let standard = "+/+/".repeat(10) + "+/8=";
    let url_safe = "-_-_".repeat(10) + "-_8";
    let read = |text: &str, mode: u32| {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        Keys::from_file(&path)
    };
    let keys = read(&format!("# ring\n\nnew:{standard}\n old:{url_safe} \n"), 0o600).unwrap();
    assert_eq!(format!("{keys:?}"), r#"["new", "old"]"#);
    let long = (0..1000).fold(String::new(), |ring, id| ring + &format!("{id}:{standard}\n"));
    assert!(read(&long, 0o600).is_ok(), "{} bytes", long.len());
    for (text, mode, expected, reason) in [
        (format!("1:{standard}"), 0o640, StoreErrorKind::TooOpen, "chmod 600"),
        (format!("1:{standard}"), 0o604, StoreErrorKind::TooOpen, "chmod 600"),
        (String::new(), 0o600, StoreErrorKind::Misconfigured, "no key"),
        (format!("1:{standard}\n1:{url_safe}"), 0o600, StoreErrorKind::Misconfigured, "the same identifier"),
        (standard.clone(), 0o600, StoreErrorKind::Misconfigured, "identifier:key"),
        (format!("1:{}", &standard[..40]), 0o600, StoreErrorKind::Misconfigured, "30 bytes"),
        (format!("1:{}", "+/+/".repeat(16)), 0o600, StoreErrorKind::Misconfigured, "48 bytes"),
        (format!("1:{CANARY}{standard}"), 0o600, StoreErrorKind::Misconfigured, "base64"),
        (format!(":{standard}"), 0o600, StoreErrorKind::Misconfigured, "identifier"),
        ("1:".to_owned() + &"A".repeat(200_000), 0o600, StoreErrorKind::Misconfigured, "no key"),
    ] {
        let error = read(&text, mode).unwrap_err();
        assert_eq!((error.kind(), error.resource()), (expected, path.to_str().unwrap()), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(
            !format!("{error:?} {error}").contains(&standard[..8]) && !error.to_string().contains(CANARY),
            "{error}"
        );
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(Keys::from_file(&path).unwrap_err().kind(), StoreErrorKind::Unavailable);
    assert_eq!(Keys::from_env("A_VARIABLE_THAT_IS_NOT_SET").unwrap_err().kind(), StoreErrorKind::Misconfigured);
    // Cargo sets this one.
    assert!(Keys::from_env("CARGO_PKG_NAME").unwrap_err().to_string().contains("CARGO_PKG_NAME"));
    assert!(Keys::new("1", &[7; 31]).is_err() && keys_of_the_same_id().is_err());
}

fn keys_of_the_same_id() -> Result<Keys, tower_auth_refresh_store::StoreError> {
    keys("1", 7).with_previous("1", &[8; 32])
}

#[tokio::test]
async fn no_secret_is_in_any_error_or_debug_output() {
    let directory = TestDirectory::new();
    let secret = *b"a key of thirty-two bytes, CANARY";
    let keys = Keys::new("1", &secret[..32]).unwrap();
    let files = FileStore::builder(directory.path()).keys(keys.clone());
    let mut shown = vec![format!("{files:?} {keys:?}")];
    let files = files.open().unwrap();
    let store = files.store("ada-session-cookie");
    let version = store.replace(&canaries()).await.unwrap();
    shown.push(format!("{files:?} {version:?} {:?}", store.load().await.unwrap()));
    let path = directory.file(".record");
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&path, bytes).unwrap();
        let error = store.load().await.unwrap_err();
        shown.push(format!("{error} {error:?} {:?}", error.source()));
    }
    for secret in [CANARY, "thirty-two", "session-cookie", "97, 32, 107"] {
        assert!(shown.iter().all(|shown| !shown.contains(secret)), "{secret} is shown");
    }
}
