//! The record, as every store writes it: an entry, bound to its version and its session.
//!
//! | bytes | content |
//! | ---: | --- |
//! | 4 | `tarr` |
//! | 1 | the format: 1 |
//! | 1 | the protection: 0 a checksum, 1 `XChaCha20-Poly1305` |
//! | 16 | the version |
//! | 1 + n | encrypted: the length of the key's identifier, and the identifier |
//! | 24 | encrypted: the nonce |
//! | … | the entry as JSON, encrypted or in clear: `{"epoch":…,"generation":…,"tokens":{…},"expires_at":…,"ends_at":…}` |
//! | 16 | in clear: XXH3, 128 bits, of the storage key and the XXH3 of all bytes before; encrypted: the tag |
//!
//! The associated data of the encryption are the storage key and all bytes before the nonce. The storage key is the
//! hash of namespace and session key; the latter is not kept. So a record can't be moved to another session, nor a
//! version be given to another record, and any changed byte is noticed.
//!
//! The ends of the record and of the sign-in are in milliseconds since 1970, and absent if there are none.
//!
//! The first five bytes keep their meaning in later formats.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tower_auth_refresh::ExposedTokens;
use tower_auth_refresh::store::{Entry, Epoch, Record, Version};
use xxhash_rust::xxh3::xxh3_128;

use crate::error::{Problem, StoreErrorKind};
#[cfg(feature = "encryption")]
use crate::keys::{Keys, NONCE, TAG};
use crate::wiped::Wiped;

const MAGIC: &[u8; 4] = b"tarr";
const FORMAT: u8 = 1;
const CLEAR: u8 = 0;
const ENCRYPTED: u8 = 1;
const HEADER: usize = 4 + 1 + 1 + 16;
pub(crate) const CHECKSUM: usize = 16;

/// The longest record that is written or read: far more than tokens take.
pub(crate) const LONGEST: u64 = 1024 * 1024;

/// The place of one session's record, and what protects it there.
pub(crate) struct Codec {
    storage_key: [u8; 32],
    #[cfg(feature = "encryption")]
    keys: Option<Keys>,
}

#[derive(Serialize, Deserialize)]
struct Content {
    epoch: u64,
    generation: u64,
    tokens: ExposedTokens,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ends_at: Option<u64>,
}

impl Codec {
    /// A codec for the session with this [storage key](storage_key).
    pub(crate) fn new(storage_key: [u8; 32]) -> Self {
        Self {
            storage_key,
            #[cfg(feature = "encryption")]
            keys: None,
        }
    }

    #[cfg(feature = "encryption")]
    pub(crate) fn with_keys(self, keys: Option<Keys>) -> Self {
        Self { keys, ..self }
    }

    /// Returns the record's bytes.
    pub(crate) fn encode(&self, version: u128, entry: &Entry) -> Result<Wiped, Problem> {
        let entry = Content {
            epoch: entry.epoch().to_u64(),
            generation: entry.generation(),
            tokens: entry.tokens().clone().into(),
            expires_at: entry.expires_at().map(millis),
            ends_at: entry.ends_at().map(millis),
        };
        // Written twice, since a vector that grows leaves a copy behind.
        let mut count = Counter(0);
        serialize(&entry, &mut count)?;
        let mut bytes = Wiped::from(Vec::with_capacity(count.0 + HEADER + 1 + 64 + 24 + CHECKSUM));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[FORMAT, CLEAR]);
        bytes.extend_from_slice(&version.to_be_bytes());
        #[cfg(feature = "encryption")]
        if let Some(keys) = &self.keys {
            bytes[5] = ENCRYPTED;
            let id = keys.current().as_bytes();
            // An identifier has at most 64 bytes.
            bytes.push(u8::try_from(id.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(id);
            let context = self.context(&bytes);
            let nonce_at = bytes.len();
            bytes.extend_from_slice(&[0; NONCE]);
            let text_at = bytes.len();
            serialize(&entry, &mut *bytes)?;
            let (nonce, tag) = keys.encrypt(&context, &mut bytes[text_at..])?;
            bytes[nonce_at..text_at].copy_from_slice(&nonce);
            bytes.extend_from_slice(&tag);
            return within_limit(bytes);
        }
        serialize(&entry, &mut *bytes)?;
        let checksum = self.checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        within_limit(bytes)
    }

    /// Returns the record that these bytes hold. They may be decrypted in place.
    pub(crate) fn decode(&self, bytes: &mut [u8]) -> Result<Record, Problem> {
        if bytes.len() < HEADER || !bytes.starts_with(MAGIC) || bytes[4] < FORMAT {
            return Err(corrupt("the record is damaged"));
        }
        if bytes[4] > FORMAT {
            let reason = format!("the record has format {}, of a later version of this program", bytes[4]);
            return Err(Problem::new(StoreErrorKind::NewerFormat, reason));
        }
        let version = Version::from(&bytes[6..HEADER]);
        let entry = match bytes[5] {
            CLEAR => self.decode_clear(bytes)?,
            ENCRYPTED => self.decrypt(bytes)?,
            _ => return Err(corrupt("the record is damaged")),
        };
        Ok(Record::new(version, entry))
    }

    fn decode_clear(&self, bytes: &[u8]) -> Result<Entry, Problem> {
        let damaged = || corrupt("the record is damaged, or of another session");
        let (content, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or_else(damaged)?;
        if content.len() < HEADER || self.checksum(content) != *checksum {
            return Err(damaged());
        }
        #[cfg(feature = "encryption")]
        if self.keys.as_ref().is_some_and(|keys| !keys.accepts_unencrypted()) {
            let reason = "the record isn't encrypted, but keys were given: see `Keys::accept_unencrypted`";
            return Err(Problem::new(StoreErrorKind::Misconfigured, reason));
        }
        parse(&content[HEADER..])
    }

    #[cfg(feature = "encryption")]
    fn decrypt(&self, bytes: &mut [u8]) -> Result<Entry, Problem> {
        let damaged = || corrupt("the record is damaged");
        let id_length = usize::from(*bytes.get(HEADER).ok_or_else(damaged)?);
        let (head, rest) = bytes.split_at_mut_checked(HEADER + 1 + id_length).ok_or_else(damaged)?;
        let (nonce, rest) = rest.split_first_chunk_mut::<NONCE>().ok_or_else(damaged)?;
        let (text, tag) = rest.split_last_chunk_mut::<TAG>().ok_or_else(damaged)?;
        let id = std::str::from_utf8(&head[HEADER + 1..]).map_err(|_| damaged())?;
        let Some(keys) = &self.keys else { return Err(unknown_key()) };
        keys.decrypt(id, &self.context(head), *nonce, text, *tag)?;
        parse(text)
    }

    #[cfg(not(feature = "encryption"))]
    #[expect(clippy::unused_self, reason = "as with the feature `encryption`")]
    fn decrypt(&self, _: &mut [u8]) -> Result<Entry, Problem> {
        Err(unknown_key())
    }

    /// The associated data of an encrypted record, of which `head` are the bytes before the nonce.
    #[cfg(feature = "encryption")]
    fn context(&self, head: &[u8]) -> Vec<u8> {
        [&self.storage_key, head].concat()
    }

    /// The bytes are hashed where they are: a hasher that takes parts would leave a copy of tokens in its buffer.
    fn checksum(&self, bytes: &[u8]) -> [u8; CHECKSUM] {
        let mut parts = [0; 32 + CHECKSUM];
        parts[..32].copy_from_slice(&self.storage_key);
        parts[32..].copy_from_slice(&xxh3_128(bytes).to_be_bytes());
        xxh3_128(&parts).to_be_bytes()
    }
}

/// Returns bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut digits = vec![0; 2 * bytes.len()];
    write_hex(bytes, &mut digits);
    // The digits are ASCII.
    String::from_utf8(digits).unwrap_or_default()
}

/// Writes bytes in hexadecimal digits, two for each.
pub(crate) fn write_hex(bytes: &[u8], digits: &mut [u8]) {
    // Without a branch, so that many digits are made at a time.
    let digit = |value: u8| value + b'0' + u8::from(value > 9) * (b'a' - b'9' - 1);
    for (digits, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        digits.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
}

/// Returns the storage key of the session `key` of a namespace. Both are hashed: a gateway's key may be a secret itself.
pub(crate) fn storage_key(namespace: &str, key: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(b"tower-auth-refresh-store 1\0");
    hash.update((namespace.len() as u64).to_be_bytes());
    hash.update(namespace);
    hash.update(key);
    hash.finalize().into()
}

fn within_limit(bytes: Wiped) -> Result<Wiped, Problem> {
    if bytes.len() as u64 > LONGEST {
        let reason = format!("a record of {} bytes is longer than {LONGEST}", bytes.len());
        return Err(Problem::new(StoreErrorKind::Misconfigured, reason));
    }
    Ok(bytes)
}

fn serialize(content: &Content, to: impl Write) -> Result<(), Problem> {
    // The cause may quote a value.
    let unwritable = |_| Problem::new(StoreErrorKind::Misconfigured, "the tokens can't be written as JSON");
    serde_json::to_writer(to, content).map_err(unwritable)
}

fn parse(text: &[u8]) -> Result<Entry, Problem> {
    // The cause may quote a value.
    let content: Content = serde_json::from_slice(text).map_err(|_| corrupt("the record's content is invalid"))?;
    let mut entry = Entry::new(Epoch::from(content.epoch), content.generation, content.tokens.into());
    if let Some(at) = content.expires_at.and_then(time) {
        entry = entry.with_expires_at(at);
    }
    if let Some(at) = content.ends_at.and_then(time) {
        entry = entry.with_ends_at(at);
    }
    Ok(entry)
}

/// Returns a time in milliseconds since 1970.
pub(crate) fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the time of so many milliseconds since 1970; `None` if there is no such time.
pub(crate) fn time(millis: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

fn corrupt(reason: &str) -> Problem {
    Problem::new(StoreErrorKind::Corrupt, format!("{reason}; remove it to sign in again"))
}

fn unknown_key() -> Problem {
    Problem::new(StoreErrorKind::UnknownKey, "the record is encrypted, but no keys were given")
}

/// Counts the bytes that are written.
struct Counter(usize);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tower_auth_refresh::{RefreshToken, Tokens};

    use super::*;

    #[test]
    fn a_record_without_ends_is_written_and_read_as_before_there_were_any() {
        let codec = Codec::new([1; 32]);
        let entry = Entry::new(Epoch::from(7), 3, Tokens::from_refresh_token(RefreshToken::new("r3").unwrap()));
        let mut bytes = codec.encode(1, &entry).unwrap();
        let json = br#"{"epoch":7,"generation":3,"tokens":{"refresh_token":"r3"}}"#;
        assert_eq!(&bytes[HEADER..bytes.len() - CHECKSUM], json);
        assert_eq!(codec.decode(&mut bytes).unwrap(), Record::new(Version::from(1_u128), entry));
    }

    #[test]
    fn what_is_no_record_is_damaged_although_its_checksum_is_right() {
        let codec = Codec::new([1; 32]);
        let with_checksum = |content: &[u8]| Wiped::from([content, &codec.checksum(content)].concat());
        let entry = Entry::new(Epoch::from(7), 3, Tokens::default());
        let bytes = codec.encode(1, &entry).unwrap();
        let whole = &bytes[..bytes.len() - CHECKSUM];
        assert!(codec.decode(&mut with_checksum(whole)).is_ok());
        for (at, byte) in [(0, b'T'), (3, b'x'), (4, 0), (5, 2)] {
            let mut content = whole.to_vec();
            content[at] = byte;
            let problem = codec.decode(&mut with_checksum(&content)).unwrap_err();
            assert_eq!(problem.of("it").kind(), StoreErrorKind::Corrupt, "byte {at}");
        }
        for length in 0..=HEADER {
            assert!(codec.decode(&mut with_checksum(&whole[..length])).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_record_has_at_most_a_mebibyte() {
        let of_length = |length: u64| Wiped::from(vec![0; usize::try_from(length).unwrap()]);
        assert!(within_limit(of_length(LONGEST)).is_ok());
        let problem = within_limit(of_length(LONGEST + 1)).unwrap_err();
        assert_eq!(problem.of("it").kind(), StoreErrorKind::Misconfigured);
    }

    #[test]
    fn a_record_is_written_into_memory_of_its_length_and_leaves_no_copy_behind() {
        let tokens = Tokens::from_refresh_token(RefreshToken::new("r".repeat(1000)).unwrap());
        let bytes = Codec::new([1; 32]).encode(1, &Entry::new(Epoch::from(7), 3, tokens)).unwrap();
        let reserved = bytes.len() + 1 + 64 + 24;
        assert_eq!(bytes.capacity(), reserved, "the vector has not grown");
    }

    #[test]
    fn an_end_beyond_all_time_is_none() {
        let text = br#"{"epoch":7,"generation":3,"tokens":{},"expires_at":18446744073709551615,"ends_at":5}"#;
        let entry = parse(text).unwrap();
        // Where times reach that far, an entry keeps the year 9999.
        assert!(entry.expires_at().is_none_or(|end| millis(end) == 253_402_300_799_999));
        assert_eq!(entry.ends_at(), time(5));
    }
}
