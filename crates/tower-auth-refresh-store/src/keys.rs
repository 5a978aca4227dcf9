//! [`Keys`]: encryption at rest, by `XChaCha20-Poly1305`.

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305};
use zeroize::Zeroizing;

use crate::error::{Problem, StoreError, StoreErrorKind};
use crate::{private, random};

/// The length of a key, in bytes.
pub(crate) const KEY: usize = 32;
pub(crate) const NONCE: usize = 24;
pub(crate) const TAG: usize = 16;
/// A key ring in a file is shorter by far.
const LONGEST_FILE: u64 = 64 * 1024;

/// The keys that a store encrypts its records with (feature `encryption`).
///
/// Each key has an identifier, which is stored in clear beside what is encrypted with it. Records are encrypted with
/// the first key and decrypted with any, so a key is replaced in three steps: put the new one first and keep the old
/// one; wait until each record has been written again, as each refresh does; then remove the old one.
///
/// As text, a ring is one key a line, `identifier:key`, the key being 32 bytes in base64. Empty lines and those that
/// begin with `#` are skipped. To make one:
///
/// ```sh
/// (umask 077; echo "2026-11:$(openssl rand -base64 32)" > keys)
/// ```
///
/// Keys are wiped when the last clone is dropped, and `Debug` shows their identifiers only.
#[derive(Clone)]
pub struct Keys {
    ring: Arc<Vec<Key>>,
    accepts_unencrypted: bool,
}

#[derive(Clone)]
struct Key {
    id: Box<str>,
    secret: Zeroizing<[u8; KEY]>,
}

impl Keys {
    /// Makes a ring of one key, of 32 bytes.
    ///
    /// For a key that the app keeps itself, such as a data key of a key management service. The caller wipes its own
    /// copy.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](StoreErrorKind::Misconfigured) if the key hasn't 32 bytes, or the identifier isn't 1 to 64
    /// bytes of visible ASCII without `:`.
    pub fn new(id: &str, key: &[u8]) -> Result<Self, StoreError> {
        Self::of(vec![Key::new(id, key)]).map_err(|problem| problem.of("the key ring"))
    }

    /// Adds a key that records are decrypted with, and none is encrypted with.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new), and if the ring has a key with this identifier.
    pub fn with_previous(self, id: &str, key: &[u8]) -> Result<Self, StoreError> {
        let ring = self.ring.iter().cloned().map(Ok).chain([Key::new(id, key)]).collect();
        let ring = Self::of(ring).map_err(|problem| problem.of("the key ring"))?;
        Ok(Self { accepts_unencrypted: self.accepts_unencrypted, ..ring })
    }

    /// Reads a ring from a file, which must be private to the user.
    ///
    /// It blocks for as long as the file takes to be read.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](StoreErrorKind::Unavailable) if the file can't be read, [`TooOpen`](StoreErrorKind::TooOpen) if
    /// it isn't private, [`Misconfigured`](StoreErrorKind::Misconfigured) if it isn't a key ring.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let failed = |error| Problem::io("read the key ring", error).at(path);
        let file = File::open(path).map_err(failed)?;
        private::check(&file.metadata().map_err(failed)?, path)?;
        let text = private::read(&file, LONGEST_FILE).map_err(failed)?.unwrap_or_default();
        Self::parse(std::str::from_utf8(&text).unwrap_or_default()).map_err(|problem| problem.at(path))
    }

    /// Reads a ring from an environment variable, where keys may be separated by spaces instead of lines.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](StoreErrorKind::Misconfigured) if the variable isn't set, or isn't a key ring.
    pub fn from_env(name: &str) -> Result<Self, StoreError> {
        // A ring that is absent is one without keys.
        let text = Zeroizing::new(std::env::var(name).unwrap_or_default());
        Self::parse(&text).map_err(|problem| problem.of(format!("the environment variable {name}")))
    }

    /// Lets records pass that aren't encrypted. Default: they are errors.
    ///
    /// For a store that was used without keys before. Each record is encrypted when it is next written. Until this is
    /// taken back, a process that can write to the store can put a record of its own in place of the user's.
    #[must_use]
    pub fn accept_unencrypted(mut self) -> Self {
        self.accepts_unencrypted = true;
        self
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let lines = text.lines().map(str::trim_ascii).filter(|line| !line.starts_with('#'));
        Self::of(lines.flat_map(str::split_ascii_whitespace).map(Key::parse).collect())
    }

    fn of(ring: Vec<Result<Key, Problem>>) -> Result<Self, Problem> {
        let ring = ring.into_iter().collect::<Result<Vec<_>, _>>()?;
        let is_repeated = |(at, key): (usize, &Key)| ring[..at].iter().any(|other| other.id == key.id);
        if ring.is_empty() {
            return Err(misconfigured("there is no key"));
        }
        if ring.iter().enumerate().any(is_repeated) {
            return Err(misconfigured("two keys have the same identifier"));
        }
        Ok(Self { ring: Arc::new(ring), accepts_unencrypted: false })
    }

    pub(crate) fn accepts_unencrypted(&self) -> bool {
        self.accepts_unencrypted
    }

    /// Returns the identifier of the key that records are encrypted with.
    pub(crate) fn current(&self) -> &str {
        &self.ring[0].id
    }

    /// Encrypts in place with the current key. Returns the nonce and the tag.
    pub(crate) fn encrypt(&self, context: &[u8], text: &mut [u8]) -> Result<([u8; NONCE], [u8; TAG]), Problem> {
        let nonce = random::bytes()?;
        let tag = self.ring[0].cipher().encrypt_inout_detached(&nonce.into(), context, text.into());
        let tag = tag.map_err(|_| misconfigured("the record is too long to be encrypted"))?;
        Ok((nonce, tag.into()))
    }

    /// Decrypts in place. Fails if any byte isn't as it was encrypted.
    pub(crate) fn decrypt(
        &self,
        id: &str,
        context: &[u8],
        nonce: [u8; NONCE],
        text: &mut [u8],
        tag: [u8; TAG],
    ) -> Result<(), Problem> {
        let Some(key) = self.ring.iter().find(|key| *key.id == *id) else {
            let reason = format!("the record is encrypted with the key {id:?}, which wasn't given");
            return Err(Problem::new(StoreErrorKind::UnknownKey, reason));
        };
        key.cipher().decrypt_inout_detached(&nonce.into(), context, text.into(), &tag.into()).map_err(|_| {
            let reason =
                format!("the record doesn't decrypt with the key {id:?}: it is damaged, or of another session");
            Problem::new(StoreErrorKind::Corrupt, reason)
        })
    }
}

impl Key {
    fn new(id: &str, key: &[u8]) -> Result<Self, Problem> {
        let is_valid = (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        if !is_valid {
            return Err(misconfigured("an identifier has 1 to 64 visible ASCII characters other than ':'"));
        }
        let mut secret = Zeroizing::new([0; KEY]);
        if key.len() != KEY {
            return Err(misconfigured(&format!("the key {id:?} has {} bytes instead of {KEY}", key.len())));
        }
        secret.copy_from_slice(key);
        Ok(Self { id: id.into(), secret })
    }

    /// Reads `identifier:key`. The error repeats nothing of it but the identifier.
    fn parse(text: &str) -> Result<Self, Problem> {
        let (id, key) = text.split_once(':').ok_or_else(|| misconfigured("a key isn't written as `identifier:key`"))?;
        let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let mut bytes = Zeroizing::new([0; 2 * KEY]);
        let length = [STANDARD, URL_SAFE]
            .iter()
            .find_map(|alphabet| GeneralPurpose::new(alphabet, config).decode_slice(key, &mut *bytes).ok())
            .ok_or_else(|| misconfigured("a key isn't 32 bytes in base64"))?;
        Self::new(id, &bytes[..length])
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.secret).into())
    }
}

fn misconfigured(reason: &str) -> Problem {
    Problem::new(StoreErrorKind::Misconfigured, reason)
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ring.iter().map(|key| &key.id)).finish()
    }
}
