//! [`KeychainKey`]: the key of a file store, in the keychain of the operating system.
//!
//! No keychain has a compare-and-set, some hold 2.5 KB, and one asks the user again after each rewrite. So it holds one
//! key that is written once, and the tokens are in files that are encrypted with it.

use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keyring_core::api::CredentialStoreApi;
use keyring_core::{Entry, Error};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use self::system::Store;
use crate::error::{Problem, StoreError, StoreErrorKind};
use crate::file::{Directory, LOCK_TIMEOUT, acquire, make_directory};
use crate::keys::{KEY, Keys};
use crate::random;

/// The file that is locked while a key is made.
const LOCK: &str = "keychain.lock";

/// The file with the identifier of the key that the directory's records are encrypted with.
const IDENTIFIER: &str = "keychain.id";

/// The time for a call of the keychain.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The key of a [`FileStore`](crate::FileStore) in the keychain of the operating system (feature `keychain`).
///
/// The keychain is the Secret Service of Linux and other Unix systems (GNOME Keyring, `KWallet`, `KeePassXC`), the
/// Keychain of macOS, or the Credential Manager of Windows. It holds one key of 32 bytes, which is made at the first start
/// and never changed. Without a keychain there is an error, and nothing is stored in clear.
///
/// ```no_run
/// # fn example(directory: std::path::PathBuf) -> Result<(), tower_auth_refresh_store::StoreError> {
/// use tower_auth_refresh_store::{FileStore, KeychainKey};
///
/// let keys = KeychainKey::new("com.example.acme").open(&directory)?;
/// let store = FileStore::builder(directory).keys(keys).open()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct KeychainKey {
    name: String,
    timeout: Duration,
}

impl KeychainKey {
    /// Names a key. Programs that use different directories use different names.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), timeout: TIMEOUT }
    }

    /// Bounds each call of the keychain. Default: 5 s.
    ///
    /// Within this time a user has to answer the keychain's question for a password or for consent.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Returns the key for the records of a directory, and makes it at the first start.
    ///
    /// Of several processes that start for the first time at once, one makes the key. The directory keeps the key's
    /// identifier: if the keychain loses the key, no second one is made, since the records could be read with neither.
    ///
    /// It blocks for as long as the keychain takes, and for 3 s if another process makes the key.
    ///
    /// # Errors
    ///
    /// [`Locked`](StoreErrorKind::Locked) if the keychain is locked, or the user has refused access;
    /// [`Unanswered`](StoreErrorKind::Unanswered) if it doesn't answer in time, for example since it waits for the user;
    /// [`Unavailable`](StoreErrorKind::Unavailable) if there is none; [`UnknownKey`](StoreErrorKind::UnknownKey) if it has lost the key or has another one;
    /// [`Corrupt`](StoreErrorKind::Corrupt) if what it has is no key. Those of
    /// [`FileStoreBuilder::open`](crate::FileStoreBuilder::open) for the directory.
    pub fn open(&self, directory: impl AsRef<Path>) -> Result<Keys, StoreError> {
        let path = make_directory(directory.as_ref())?;
        // It keeps no secret, so that it may be on a network.
        let directory = Directory::open(&path, true)?;
        if let (Some(key), Some(known)) = (self.read()?, identifier_in(&directory)?) {
            return self.checked(&key, &known);
        }
        let lock = directory.lock_file(LOCK)?;
        acquire(&lock, Instant::now() + LOCK_TIMEOUT).map_err(directory.error_at(LOCK))?;
        match (self.read()?, identifier_in(&directory)?) {
            (Some(key), Some(known)) => self.checked(&key, &known),
            (None, Some(known)) => {
                let reason =
                    format!("has lost the key {known}: restore it, or remove {} to sign in again", path.display());
                Err(self.error(Problem::new(StoreErrorKind::UnknownKey, reason)))
            }
            (found, None) => {
                let key = found.map_or_else(|| self.make(), Ok)?;
                let id = identifier_of(&key);
                directory.draft(IDENTIFIER, id.as_bytes(), 0)?.0.publish(IDENTIFIER)?;
                directory.sync()?;
                self.checked(&key, &id)
            }
        }
    }

    /// Makes a key. Returns what the keychain has then: another program may have made one too.
    fn make(&self) -> Result<Key, StoreError> {
        let key = Zeroizing::new(random::bytes::<KEY>().map_err(|problem| self.error(problem))?);
        let mut text = Zeroizing::new(vec![0; KEY.div_ceil(3) * 4]);
        // The text has room for the key.
        let length = STANDARD.encode_slice(key.as_slice(), &mut text).unwrap_or_default();
        text.truncate(length);
        self.call("write the key to the keychain", move |entry| entry.set_secret(&text))?;
        let lost = || Problem::new(StoreErrorKind::Unavailable, "has not kept the key that was written to it");
        self.read()?.ok_or_else(|| self.error(lost()))
    }

    fn read(&self) -> Result<Option<Key>, StoreError> {
        let found = self.call("read the key from the keychain", |entry| match entry.get_secret() {
            Ok(text) => Ok(Some(Zeroizing::new(text))),
            Err(Error::NoEntry) => Ok(None),
            Err(error) => Err(error),
        })?;
        let Some(text) = found else { return Ok(None) };
        let (mut bytes, mut key) = (Zeroizing::new([0; 2 * KEY]), Zeroizing::new([0; KEY]));
        let length = STANDARD.decode_slice(text.trim_ascii(), &mut *bytes).unwrap_or_default();
        if length != KEY {
            return Err(self.error(Problem::new(StoreErrorKind::Corrupt, "has an entry that is no key")));
        }
        key.copy_from_slice(&bytes[..KEY]);
        Ok(Some(key))
    }

    fn checked(&self, key: &Key, known: &str) -> Result<Keys, StoreError> {
        let id = identifier_of(key);
        if id != known {
            let reason = format!("has the key {id}, but the records are encrypted with the key {known}");
            return Err(self.error(Problem::new(StoreErrorKind::UnknownKey, reason)));
        }
        Keys::new(&id, &**key)
    }

    /// Calls the keychain, on a thread of its own: it may wait for the user, or never answer.
    fn call<T: Send + 'static>(
        &self,
        what: &str,
        operation: impl FnOnce(&Entry) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + self.timeout;
        let silent = || {
            let reason = format!("failed to {what}: no answer within {:?}; it may wait for the user", self.timeout);
            self.error(Problem::new(StoreErrorKind::Unanswered, reason))
        };
        let turn = Turn::begin(deadline).ok_or_else(silent)?;
        let (send, answer) = mpsc::channel();
        let name = self.name.clone();
        let call = move || {
            let outcome = Store::new().and_then(|store| operation(&store.build(&name, "key", None)?));
            drop(turn);
            // The caller may have gone.
            let _ = send.send(outcome);
        };
        let started = thread::Builder::new().name("keychain".to_owned()).spawn(call);
        started.map_err(|error| self.error(Problem::io("start a thread", error)))?;
        let outcome = answer.recv_timeout(deadline.saturating_duration_since(Instant::now())).map_err(|_| silent())?;
        outcome.map_err(|error| self.error(problem(what, error)))
    }

    fn error(&self, problem: Problem) -> StoreError {
        problem.of(format!("the keychain entry {:?}", self.name))
    }
}

type Key = Zeroizing<[u8; KEY]>;

/// Returns the identifier of a key, which tells keys apart and reveals nothing of them.
fn identifier_of(key: &Key) -> String {
    let hash = Sha256::new_with_prefix(b"tower-auth-refresh-store keychain 1\0").chain_update(**key).finalize();
    let (start, _) = hash.split_at(8);
    start.iter().fold("keychain-".to_owned(), |id, byte| id + &format!("{byte:02x}"))
}

/// Returns the identifier of the key that the directory's records are encrypted with.
fn identifier_in(directory: &Directory<'_>) -> Result<Option<String>, StoreError> {
    let Some(file) = directory.file(IDENTIFIER)? else { return Ok(None) };
    let text = directory.read(IDENTIFIER, &file)?;
    Ok(Some(String::from_utf8_lossy(&text).trim_ascii().to_owned()))
}

/// Leaves out the errors' data, which may be the key.
fn problem(what: &str, error: Error) -> Problem {
    match error {
        Error::NoStorageAccess(source) => Problem::io(what, io::Error::other(source)).with_kind(StoreErrorKind::Locked),
        Error::PlatformFailure(source) => Problem::io(what, io::Error::other(source)),
        Error::BadEncoding(_) | Error::BadDataFormat(..) => {
            Problem::new(StoreErrorKind::Corrupt, "has an entry that is no key")
        }
        Error::Ambiguous(_) => Problem::new(StoreErrorKind::Misconfigured, "exists more than once"),
        Error::Invalid(..) | Error::TooLong(..) => {
            Problem::new(StoreErrorKind::Misconfigured, "has a name that the keychain doesn't take")
        }
        _ => Problem::new(StoreErrorKind::Unavailable, format!("failed to {what}")),
    }
}

/// The turn of a call: a process makes one at a time, since some keychains mix up concurrent ones.
struct Turn;

static IS_TAKEN: Mutex<bool> = Mutex::new(false);
static ENDED: Condvar = Condvar::new();

impl Turn {
    /// Waits until earlier calls have ended.
    fn begin(deadline: Instant) -> Option<Self> {
        let left = deadline.saturating_duration_since(Instant::now());
        let is_taken = IS_TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = ENDED.wait_timeout_while(is_taken, left, |is_taken| *is_taken);
        let (mut is_taken, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *is_taken = true;
        Some(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *IS_TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = false;
        ENDED.notify_one();
    }
}

/// The keychain of this operating system.
mod system {
    #[cfg(target_os = "macos")]
    pub(super) use apple_native_keyring_store::keychain::Store;
    #[cfg(windows)]
    pub(super) use windows_native_keyring_store::Store;
    #[cfg(all(unix, not(target_os = "macos")))]
    pub(super) use zbus_secret_service_keyring_store::Store;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_keychain_are_told_apart_and_show_nothing_of_an_entry() {
        let source = || Box::new(io::Error::other("cause"));
        for (error, kind, text) in [
            (Error::NoStorageAccess(source()), StoreErrorKind::Locked, "failed to read"),
            (Error::PlatformFailure(source()), StoreErrorKind::Unavailable, "failed to read"),
            (Error::BadEncoding(b"s3cret".into()), StoreErrorKind::Corrupt, "no key"),
            (Error::BadDataFormat(b"s3cret".into(), source()), StoreErrorKind::Corrupt, "no key"),
            (Error::Ambiguous(Vec::new()), StoreErrorKind::Misconfigured, "more than once"),
            (Error::Invalid("name".into(), "s3cret".into()), StoreErrorKind::Misconfigured, "a name"),
            (Error::TooLong("name".into(), 7), StoreErrorKind::Misconfigured, "a name"),
            (Error::NoEntry, StoreErrorKind::Unavailable, "failed to read"),
        ] {
            let has_cause = matches!(error, Error::NoStorageAccess(_) | Error::PlatformFailure(_));
            let error = KeychainKey::new("acme").error(problem("read", error));
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().starts_with("the keychain entry \"acme\": "), "{error}");
            assert!(error.to_string().contains(text) && !format!("{error:?}").contains("s3cret"), "{error:?}");
            assert_eq!(std::error::Error::source(&error).is_some(), has_cause, "{error:?}");
        }
    }
}
