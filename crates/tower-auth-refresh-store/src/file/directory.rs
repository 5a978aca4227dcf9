//! The directory of a store: private, on a local disk, and written to in a way that survives a crash.
//!
//! A file is replaced by a new one: written under a name of its own, flushed to the disk, renamed, and the directory
//! flushed. If flushing fails, the new file is removed; another attempt writes another file, since a second flush of
//! the same one may report success for data that is lost.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::platform::{Handle, How};
use super::steps::{Step, reach};
use crate::error::{Problem, StoreError, StoreErrorKind};
use crate::wiped::Wiped;
use crate::{private, random, record};

/// The ending of a file that isn't complete.
const DRAFT: &str = ".tmp";

/// The name of the files with which a directory is checked.
pub(super) const PROBE: &str = "check";

/// An open directory.
pub(crate) struct Directory<'a> {
    handle: Handle,
    path: &'a Path,
}

impl<'a> Directory<'a> {
    /// Opens a directory, and refuses one that isn't private or is on a network.
    pub(crate) fn open(path: &'a Path, allows_network: bool) -> Result<Self, StoreError> {
        let handle = Handle::open(path).map_err(|problem| problem.at(path))?;
        private::check(&handle.metadata().map_err(|error| unreadable(error).at(path))?, path)?;
        require_local(allows_network, || handle.is_local()).map_err(|problem| problem.at(path))?;
        Ok(Self { handle, path })
    }

    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns the function that makes an error of a problem with a file.
    pub(crate) fn error_at<'b>(&'b self, name: &'b str) -> impl Fn(Problem) -> StoreError + 'b {
        |problem| problem.at(&self.path_of(name))
    }

    /// Opens a file for reading. Returns `None` if there is none.
    pub(crate) fn file(&self, name: &str) -> Result<Option<File>, StoreError> {
        match self.handle.open_file(name, How::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => self.checked(name, opened).map(Some),
        }
    }

    /// Opens a file whose lock is to be taken, and makes it if there is none.
    pub(crate) fn lock_file(&self, name: &str) -> Result<File, StoreError> {
        let opened = self.reach(Step::Lock).and_then(|()| self.handle.open_file(name, How::Lock));
        self.checked(name, opened)
    }

    /// Reads an open file.
    pub(crate) fn read(&self, name: &str, file: &File) -> Result<Wiped, StoreError> {
        let failed = |error| Problem::io("read the file", error).at(&self.path_of(name));
        private::read(file, 2 * record::LONGEST).map_err(failed)?.ok_or_else(|| {
            Problem::new(StoreErrorKind::Corrupt, "the file is too long to be a store's").at(&self.path_of(name))
        })
    }

    /// Writes a new file, followed by zeros up to `length`, which isn't visible until it is published.
    pub(crate) fn draft(&self, name: &str, bytes: &[u8], length: usize) -> Result<(Draft<'_>, File), StoreError> {
        let failed = |what: &str, error| Problem::io(what, error).at(&self.path_of(name));
        let unique = random::identifier().map_err(|problem| problem.at(self.path))?;
        let draft = format!("{name}.{unique:032x}{DRAFT}");
        let file = self.reach(Step::Create).and_then(|()| self.handle.open_file(&draft, How::Create));
        let mut file = file.map_err(|error| failed("create the file", error))?;
        // From here on, the file is removed if a step fails.
        let draft = Draft { directory: self, name: draft, is_published: false };
        let zeros = vec![0; length.saturating_sub(bytes.len())];
        let written =
            self.reach(Step::Write).and_then(|()| file.write_all(bytes)).and_then(|()| file.write_all(&zeros));
        written.map_err(|error| failed("write the file", error))?;
        let synced = self.reach(Step::SyncFile).and_then(|()| file.sync_all());
        synced.map_err(|error| failed("write the file to the disk", error))?;
        Ok((draft, file))
    }

    /// Removes a file, if there is one. Durable after [`sync`](Self::sync).
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        match self.reach(Step::Remove).and_then(|()| self.handle.remove(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Problem::io("remove the file", error).at(&self.path_of(name)))
            }
            _ => Ok(()),
        }
    }

    /// Makes all changes to the directory durable.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        let synced = self.reach(Step::SyncDirectory).and_then(|()| self.handle.sync());
        synced.map_err(|error| Problem::io("write the directory to the disk", error).at(self.path))
    }

    /// Returns the names of the files.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        let names = self.path.read_dir().and_then(|entries| {
            let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().unwrap_or_default()));
            names.collect::<io::Result<Vec<_>>>()
        });
        names.map_err(|error| Problem::io("list the directory", error).at(self.path))
    }

    pub(super) fn reach(&self, step: Step) -> io::Result<()> {
        reach(self.path, step)
    }

    fn checked(&self, name: &str, opened: io::Result<File>) -> Result<File, StoreError> {
        let path = self.path_of(name);
        let file = opened.map_err(|error| Handle::refusal(&path, error).at(&path))?;
        let metadata = file.metadata().map_err(|error| Problem::io("read the file's attributes", error).at(&path))?;
        private::check(&metadata, &path)?;
        if !metadata.is_file() {
            return Err(Problem::new(StoreErrorKind::TooOpen, "isn't a regular file: remove it").at(&path));
        }
        Ok(file)
    }
}

/// Refuses a directory on a file system that isn't local, unless that is allowed: then a server may not answer either.
fn require_local(allows_network: bool, is_local: impl FnOnce() -> io::Result<bool>) -> Result<(), Problem> {
    if allows_network || is_local().map_err(unreadable)? {
        return Ok(());
    }
    let reason = "is on a network or FUSE file system, whose locks may not work: see `allow_network`";
    Err(Problem::new(StoreErrorKind::Misconfigured, reason))
}

fn unreadable(error: io::Error) -> Problem {
    Problem::io("read the directory's attributes", error)
}

/// Returns the session, as files are named by, whose file this is; `None` for a file that no store has made.
pub(super) fn session_of(name: &str) -> Option<&str> {
    let (session, _) = name.split_once('.')?;
    let is_hash = session.len() == 64 && session.bytes().all(|digit| digit.is_ascii_hexdigit());
    (is_hash || session == PROBE).then_some(session)
}

/// Returns the storage key of a session, as files are named by.
pub(super) fn storage_key_of(session: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    let digits = session.as_bytes().chunks_exact(2);
    if session.len() != 64 {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(digits) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    // Not in capitals, for example.
    (record::hex(&key) == session).then_some(key)
}

/// Returns `true` for a file that isn't complete.
pub(super) fn is_draft(name: &str) -> bool {
    name.ends_with(DRAFT)
}

/// A new file that is complete, but not visible yet. Removed if it is dropped.
pub(crate) struct Draft<'a> {
    directory: &'a Directory<'a>,
    name: String,
    is_published: bool,
}

impl Draft<'_> {
    /// Puts the file in the place of another. Durable after [`sync`](Directory::sync).
    pub(crate) fn publish(mut self, name: &str) -> Result<(), StoreError> {
        let directory = self.directory;
        let renamed = directory.reach(Step::Rename).and_then(|()| directory.handle.rename(&self.name, name));
        renamed.map_err(|error| Problem::io("replace the file", error).at(&directory.path_of(name)))?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.is_published {
            // If this fails too, the file is removed when the store is opened the next time.
            let _ = self.directory.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_on_a_network_is_refused_unless_it_is_allowed() {
        let kind = |outcome: Result<(), Problem>| outcome.map_err(|problem| problem.of("directory").kind());
        assert_eq!(kind(require_local(false, || Ok(true))), Ok(()));
        assert_eq!(kind(require_local(false, || Ok(false))), Err(StoreErrorKind::Misconfigured));
        assert_eq!(kind(require_local(false, || Err(io::ErrorKind::Other.into()))), Err(StoreErrorKind::Unavailable));
        assert_eq!(kind(require_local(true, || panic!("it isn't asked"))), Ok(()));
    }
}
