//! Files that hold secrets: that no other user may read or replace them, and reading them without leaving copies.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::StoreError;

/// Refuses a file or directory that isn't the user's own, or is open to others.
#[cfg(unix)]
pub(crate) fn check(metadata: &Metadata, path: &Path) -> Result<(), StoreError> {
    check_for(rustix::process::geteuid().as_raw(), metadata, path)
}

/// The check for one user, which tests choose.
#[cfg(unix)]
pub(crate) fn check_for(user: u32, metadata: &Metadata, path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::MetadataExt;

    use crate::error::{Problem, StoreErrorKind};

    let (owner, mode, shown) = (metadata.uid(), metadata.mode() & 0o7777, path.display());
    let refuse = |reason| Err(Problem::new(StoreErrorKind::TooOpen, reason).at(path));
    if owner != user {
        return refuse(format!(
            "belongs to user {owner}: run the program as that user instead of {user}, or `chown {user} {shown}`"
        ));
    }
    if mode & 0o077 != 0 {
        let private = if metadata.is_dir() { 700 } else { 600 };
        return refuse(format!("is open to other users (mode {mode:04o}): run `chmod {private} {shown}`"));
    }
    Ok(())
}

/// Access control lists aren't checked: a user's profile is private by default.
#[cfg(not(unix))]
pub(crate) fn check(_: &Metadata, _: &Path) -> Result<(), StoreError> {
    Ok(())
}

/// Reads a whole file, unless it is longer than `limit`, into memory that is wiped.
pub(crate) fn read(file: &File, limit: u64) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let length = file.metadata()?.len();
    if length > limit {
        return Ok(None);
    }
    // One byte more than the file has, since a vector that grows leaves a copy behind.
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(length).unwrap_or(usize::MAX).saturating_add(1)]);
    let mut filled = 0;
    let mut file = file;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(Some(bytes))
}
