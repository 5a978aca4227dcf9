//! Calls by path. Where there is no `fsync` of a directory (Windows), a rename is durable when the file system's own
//! journal is; owners, permissions and the kind of the file system aren't checked.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::How;
use crate::error::Problem;

/// A directory.
pub(in crate::file) struct Handle(PathBuf);

impl Handle {
    pub(in crate::file) fn make(path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    pub(in crate::file) fn open(path: &Path) -> Result<Self, Problem> {
        match path.metadata() {
            Ok(found) if found.is_dir() => Ok(Self(path.to_owned())),
            Ok(_) => Err(Self::refusal(path, io::ErrorKind::NotADirectory.into())),
            Err(error) => Err(Self::refusal(path, error)),
        }
    }

    pub(in crate::file) fn metadata(&self) -> io::Result<Metadata> {
        self.0.metadata()
    }

    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "as on Unix")]
    pub(in crate::file) fn is_local(&self) -> io::Result<bool> {
        Ok(true)
    }

    pub(in crate::file) fn open_file(&self, name: &str, how: How) -> io::Result<File> {
        let mut options = OpenOptions::new();
        match how {
            How::Read => options.read(true),
            How::Lock => options.read(true).write(true).create(true).truncate(false),
            How::Create => options.write(true).create_new(true),
        };
        options.open(self.0.join(name))
    }

    pub(in crate::file) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.0.join(from), self.0.join(to))
    }

    pub(in crate::file) fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.0.join(name))
    }

    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "as on Unix")]
    pub(in crate::file) fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    pub(in crate::file) fn refusal(_: &Path, error: io::Error) -> Problem {
        Problem::io("open the file or directory", error)
    }
}
