//! The lock of a session's files: waits for other processes, but not for long.

use std::fs::{File, TryLockError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{Problem, StoreErrorKind};
use crate::random;

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// Locks the file until it is closed.
pub(crate) fn acquire(file: &File, deadline: Instant) -> Result<(), Problem> {
    let mut pause = FIRST_PAUSE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let reason = "another process or task has kept the lock for too long";
            return Err(Problem::new(StoreErrorKind::Unavailable, reason));
        }
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(Problem::io("lock the file", error)),
        }
        sleep(random::jittered(pause).min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Locks a new file, which no other process knows, until it is closed. A sign of life for [`is_held`].
#[cfg(unix)]
pub(super) fn hold(file: &File) -> Result<(), Problem> {
    file.try_lock().map_err(|error| Problem::io("lock the file", error))
}

/// Does nothing on Windows, where a locked file can't be read.
#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "as on Unix")]
pub(super) fn hold(_: &File) -> Result<(), Problem> {
    Ok(())
}

/// Returns `true` if another open file holds the lock. Leaves the file locked otherwise, until it is closed.
pub(super) fn is_held(file: &File) -> Result<bool, Problem> {
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(Problem::io("lock the file", error)),
    }
}
