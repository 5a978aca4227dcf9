//! The log of a process: each call of its stores and of its refresh service, as it begins and as it ends.
//!
//! A line is written by one call of the operating system, so that it outlives the process, and before the call goes on.
//! Tokens are in it as hashes.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tower_auth_refresh::Tokens;
use tower_auth_refresh::store::{self, Record};

/// The beginning or the end of a call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) at: Nanos,
    /// The number of the call in its process.
    pub(crate) number: u64,
    /// The user of a store. Empty for a call of the refresh service.
    pub(crate) user: String,
    pub(crate) event: Event,
}

/// A moment: nanoseconds on the clock that the processes of a host share.
pub(crate) type Nanos = u64;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    Begins(Call),
    Ends(Outcome),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    Load,
    Insert(Entry),
    Replace(Entry),
    Claim { lease: Nanos },
    Renew { claim: Claim, lease: Nanos },
    Release { claim: Claim, in_doubt: bool },
    Commit { claim: Claim, entry: Entry },
    Clear,
    Extend,
    Present { token: u64, in_doubt: bool },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// The answer of a load, or of a call that has found another record than it was for.
    Found(Option<Found>),
    Written(String),
    Claimed(Claim),
    Busy,
    Held(bool),
    Done,
    /// New tokens.
    Received,
    /// No new tokens. The token that was presented may have been used up.
    Doubtful,
    /// No new tokens: the server has not used the token up.
    Unused,
    Failed(String),
}

/// An entry, by the hash of its refresh token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) epoch: u64,
    pub(crate) generation: u64,
    pub(crate) token: u64,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) version: String,
    pub(crate) entry: Entry,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) version: String,
    pub(crate) id: String,
    pub(crate) in_doubt: bool,
}

/// Writes the log of this process.
pub(crate) struct Log {
    file: File,
    last: AtomicU64,
}

impl Log {
    pub(crate) fn create(path: &Path) -> Self {
        let file = OpenOptions::new().append(true).create_new(true).open(path).unwrap();
        Self { file, last: AtomicU64::new(0) }
    }

    /// Writes the beginning of a call, and returns its number.
    pub(crate) fn begins(&self, user: &str, call: Call) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        self.write(number, user, Event::Begins(call));
        number
    }

    pub(crate) fn ends(&self, number: u64, user: &str, outcome: Outcome) {
        self.write(number, user, Event::Ends(outcome));
    }

    fn write(&self, number: u64, user: &str, event: Event) {
        let line = Line { at: now(), number, user: user.to_owned(), event };
        let line = format!("{}\n", serde_json::to_string(&line).unwrap());
        (&self.file).write_all(line.as_bytes()).unwrap();
    }
}

/// Reads the log of a process, which may have died while it wrote the last line.
pub(crate) fn read(path: &Path) -> Vec<Line> {
    let text = fs::read_to_string(path).unwrap();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn now() -> Nanos {
    let now = clock_gettime(ClockId::Monotonic);
    Nanos::try_from(now.tv_sec).unwrap() * 1_000_000_000 + Nanos::try_from(now.tv_nsec).unwrap()
}

/// Returns the hash of the refresh token.
pub(crate) fn hash(tokens: &Tokens) -> u64 {
    let digest = Sha256::digest(tokens.refresh_token().unwrap().expose_secret());
    u64::from_be_bytes(*digest.first_chunk().unwrap())
}

impl From<&store::Entry> for Entry {
    fn from(entry: &store::Entry) -> Self {
        Self { epoch: entry.epoch().to_u64(), generation: entry.generation(), token: hash(entry.tokens()) }
    }
}

impl From<&Record> for Found {
    fn from(record: &Record) -> Self {
        Self { version: digits(record.version().as_bytes()), entry: record.entry().into() }
    }
}

impl From<&store::Claim> for Claim {
    fn from(claim: &store::Claim) -> Self {
        let (version, id) = (digits(claim.version().as_bytes()), digits(claim.id().as_bytes()));
        Self { version, id, in_doubt: claim.is_in_doubt() }
    }
}

/// Returns an identifier in hexadecimal digits.
pub(crate) fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"))
}
