//! Tests at the steps of a write: failures, kills, and processes that share a directory.

mod clock;
mod crashes;
#[cfg(target_os = "linux")]
mod disk;
mod fail;
mod fleet;
mod program;
pub(super) mod steps;
#[cfg(target_os = "linux")]
mod strace;
#[path = "../../../tests/it/support.rs"]
mod support;

use tower_auth_refresh::Tokens;
use tower_auth_refresh::store::{Claim, ClaimOutcome, Record, TokenStore, Version};

use super::*;
use support::{LEASE, TestDirectory, claimed, entry};

fn generation(record: Option<&Record>) -> Option<u64> {
    record.map(Record::generation)
}
