//! The claim, as it is written beside a record.
//!
//! | bytes | content |
//! | ---: | --- |
//! | 4 | `tarc` |
//! | 1 | the format: 1 |
//! | 1 | bit 0: in doubt when it was made; bit 1: released, in doubt |
//! | 16 | the version that is claimed; a claim on another version than the record's is none |
//! | 16 | the identifier of the claim |
//! | 8 | the beginning of the lease, in milliseconds since 1970 |
//! | 8 | the beginning of the lease, in milliseconds since the host was booted; 0 if that isn't known |
//! | 8 | the length of the lease, in milliseconds |
//! | 16 | the host, and its boot: the first half of the SHA-256 of Linux's boot identifier, or of the host's name |
//! | 32 | SHA-256 of all bytes before |
//! | … | zeros, to reserve the space of the next record |
//!
//! The first five bytes keep their meaning in later formats. A claim that is damaged leaves its record's token in
//! doubt.
//!
//! The end of a lease is told by the time since the boot, for a process of the same boot: the wall clock may be set
//! meanwhile, by years if the host has no clock of its own.
//!
//! The process that made a claim keeps the file open and locked. If the lock is free although host and boot are those
//! of the reader, the process has died, or has dropped the store, and there is nothing to wait for.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::error::{Problem, StoreErrorKind};

const MAGIC: &[u8; 4] = b"tarc";
const FORMAT: u8 = 1;
const IN_DOUBT: u8 = 1;
const RELEASED: u8 = 2;
/// The length without the checksum and the zeros.
const CONTENT: usize = 4 + 1 + 1 + 16 + 16 + 8 + 8 + 8 + 16;
/// The length without the zeros.
pub(super) const LENGTH: usize = CONTENT + 32;

/// A claim on one version of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClaimFile {
    pub(super) version: u128,
    pub(super) id: u128,
    pub(super) in_doubt: bool,
    pub(super) is_released: bool,
    pub(super) begins: u64,
    pub(super) begins_since_boot: u64,
    pub(super) lease: u64,
    pub(super) host: [u8; 16],
}

impl ClaimFile {
    /// A claim whose lease begins now.
    pub(super) fn new(version: u128, id: u128, in_doubt: bool, lease: Duration) -> Self {
        let (begins, begins_since_boot, lease, host) = (now(), since_boot(), millis(lease), this_host());
        Self { version, id, in_doubt, is_released: false, begins, begins_since_boot, lease, host }
    }

    /// The end of this claim, which leaves the token in doubt.
    pub(super) fn released(self) -> Self {
        Self { is_released: true, ..self }
    }

    pub(super) fn encode(&self) -> [u8; LENGTH] {
        let flags = (u8::from(self.in_doubt) * IN_DOUBT) | (u8::from(self.is_released) * RELEASED);
        let content = [
            &MAGIC[..],
            &[FORMAT, flags],
            &self.version.to_be_bytes(),
            &self.id.to_be_bytes(),
            &self.begins.to_be_bytes(),
            &self.begins_since_boot.to_be_bytes(),
            &self.lease.to_be_bytes(),
            &self.host,
        ]
        .concat();
        let mut bytes = [0; LENGTH];
        let (head, checksum) = bytes.split_at_mut(CONTENT);
        head.copy_from_slice(&content);
        checksum.copy_from_slice(&Sha256::digest(&content));
        bytes
    }

    /// Returns the claim; `None` if it is damaged.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Self>, Problem> {
        if bytes.starts_with(MAGIC) && bytes.get(4).is_some_and(|format| *format > FORMAT) {
            let reason = "the claim has a format of a later version of this program";
            return Err(Problem::new(StoreErrorKind::NewerFormat, reason));
        }
        Ok(Self::decode_current(bytes))
    }

    fn decode_current(bytes: &[u8]) -> Option<Self> {
        let (content, rest) = bytes.split_at_checked(CONTENT)?;
        let is_whole = rest.starts_with(&Sha256::digest(content)) && content.starts_with(MAGIC) && content[4] == FORMAT;
        let (flags, rest) = (content[5], &content[6..]);
        let (version, rest) = rest.split_first_chunk()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (begins, rest) = rest.split_first_chunk()?;
        let (begins_since_boot, rest) = rest.split_first_chunk()?;
        let (lease, host) = rest.split_first_chunk()?;
        is_whole.then_some(Self {
            version: u128::from_be_bytes(*version),
            id: u128::from_be_bytes(*id),
            in_doubt: flags & IN_DOUBT != 0,
            is_released: flags & RELEASED != 0,
            begins: u64::from_be_bytes(*begins),
            begins_since_boot: u64::from_be_bytes(*begins_since_boot),
            lease: u64::from_be_bytes(*lease),
            host: host.try_into().ok()?,
        })
    }

    /// Returns the time until the lease ends, by the time since the boot or by the wall clock.
    pub(super) fn remaining(&self) -> Duration {
        let is_of_this_boot = self.is_of_this_boot() && self.begins_since_boot != 0;
        let (begins, now) = if is_of_this_boot { (self.begins_since_boot, since_boot()) } else { (self.begins, now()) };
        Duration::from_millis(begins.saturating_add(self.lease).saturating_sub(now))
    }

    /// Returns `true` if the claim was made on this host, since it was booted.
    pub(super) fn is_of_this_boot(&self) -> bool {
        self.host == this_host() && self.host != [0; 16]
    }
}

fn now() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Counts on while the host sleeps.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    millis(Duration::try_from(now).unwrap_or_default())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn since_boot() -> u64 {
    0
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Zeros if it isn't known.
fn this_host() -> [u8; 16] {
    static HOST: OnceLock<[u8; 16]> = OnceLock::new();
    *HOST.get_or_init(|| {
        let name = host_name().filter(|name| !name.is_empty());
        let hash = name.and_then(|name| Sha256::digest(name).first_chunk().copied());
        hash.unwrap_or_default()
    })
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn host_name() -> Option<Vec<u8>> {
    std::fs::read("/proc/sys/kernel/random/boot_id").ok()
}

#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
fn host_name() -> Option<Vec<u8>> {
    Some(rustix::system::uname().nodename().to_bytes().to_vec())
}

/// Windows locks a file against readers too, so a claim isn't locked there.
#[cfg(not(unix))]
fn host_name() -> Option<Vec<u8>> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_its_boot_are_told_from_others_by_the_boot_identifier() {
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(this_host(), Sha256::digest(boot)[..16]);
    }
}
