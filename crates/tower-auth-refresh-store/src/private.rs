//! Files that hold secrets: that no other user may read or replace them, and reading them without leaving copies.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use crate::error::StoreError;
use crate::wiped::Wiped;

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
pub(crate) fn read(file: &File, limit: u64) -> io::Result<Option<Wiped>> {
    let length = file.metadata()?.len();
    if length > limit {
        return Ok(None);
    }
    // All at once, since a vector that grows leaves a copy behind.
    let mut bytes = Wiped::from(vec![0; usize::try_from(length).unwrap_or(usize::MAX)]);
    let filled = fill(file, &mut bytes)?;
    bytes.truncate(filled);
    Ok(Some(bytes))
}

/// Reads until the buffer is full, or to the end. Returns the number of bytes.
fn fill(mut from: impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match from.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each read with the next of these outcomes, then with the end.
    struct Scripted(Vec<Result<&'static [u8], io::ErrorKind>>);

    impl Read for Scripted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            self.0.remove(0).map_err(Into::into).and_then(|mut bytes| bytes.read(buffer))
        }
    }

    #[test]
    fn a_file_is_read_to_its_end_in_pieces_and_past_signals() {
        let pieces = vec![Ok(&b"ab"[..]), Err(io::ErrorKind::Interrupted), Ok(b"c")];
        let mut bytes = [0; 8];
        assert_eq!(fill(Scripted(pieces), &mut bytes).unwrap(), 3);
        assert_eq!(&bytes, b"abc\0\0\0\0\0");
    }

    #[test]
    fn a_file_may_be_as_long_as_the_limit_and_no_longer() {
        // Of a length that isn't zero, and known.
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let length = file.metadata().unwrap().len();
        assert_eq!(read(&file, length).unwrap().unwrap().len() as u64, length);
        assert_eq!(read(&file, length - 1).unwrap(), None);
    }

    #[test]
    fn a_failure_in_the_middle_of_a_file_is_an_error() {
        let pieces = vec![Ok(&b"ab"[..]), Err(io::ErrorKind::Other), Ok(b"c")];
        assert_eq!(fill(Scripted(pieces), &mut [0; 8]).unwrap_err().kind(), io::ErrorKind::Other);
    }

    #[test]
    fn a_buffer_that_is_full_is_the_end() {
        let mut bytes = [0; 2];
        assert_eq!((fill(Scripted(vec![Ok(b"ab"), Ok(b"c")]), &mut bytes).unwrap(), &bytes), (2, b"ab"));
    }
}
