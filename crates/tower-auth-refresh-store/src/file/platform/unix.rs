//! Calls relative to an open directory, so that a change of its path meanwhile has no effect.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, fstatfs, open, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::How;
use crate::error::{Problem, StoreErrorKind};

/// An open directory.
pub(in crate::file) struct Handle(File);

impl Handle {
    /// Makes a directory that only the user may open, and its parents.
    pub(in crate::file) fn make(path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let new: Vec<_> = path.ancestors().take_while(|path| !path.exists()).collect();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // The name of a new directory is in its parent, which the user may be unable to read.
        for parent in new.iter().filter_map(|path| File::open(path.parent()?).ok()) {
            parent.sync_all()?;
        }
        Ok(())
    }

    /// Opens a directory. Follows one symbolic link, if the user or root made it.
    pub(in crate::file) fn open(path: &Path) -> Result<Self, Problem> {
        use std::os::unix::fs::MetadataExt;
        let failed = |error: io::Error| Problem::io("open the directory", error);
        let opened = match path.symlink_metadata() {
            Ok(link) if link.is_symlink() => {
                if ![0, rustix::process::geteuid().as_raw()].contains(&link.uid()) {
                    let reason = format!("is a symbolic link that user {} has made: remove it", link.uid());
                    return Err(Problem::new(StoreErrorKind::TooOpen, reason));
                }
                // Relative to the directory that holds the link.
                let target = path.read_link().map_err(failed)?;
                open_directory(&path.parent().unwrap_or(path).join(target))
            }
            _ => open_directory(path),
        };
        opened.map(Self).map_err(|error| Self::refusal(path, error))
    }

    pub(in crate::file) fn metadata(&self) -> io::Result<Metadata> {
        self.0.metadata()
    }

    /// Returns `true` if the file system is known to be of this host alone.
    pub(in crate::file) fn is_local(&self) -> io::Result<bool> {
        let attributes = fstatfs(&self.0)?;
        #[cfg(any(target_os = "linux", target_os = "android"))]
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the numbers have 32 bits")]
        return Ok(!super::is_remote(attributes.f_type as u32));
        #[cfg(target_vendor = "apple")]
        return Ok(attributes.f_flags & 0x1000 != 0); // MNT_LOCAL
        #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
        return Ok({
            let _ = attributes;
            true
        });
    }

    /// Opens a file, unless its name is a symbolic link.
    pub(in crate::file) fn open_file(&self, name: &str, how: How) -> io::Result<File> {
        // A FIFO, which isn't a store's, would otherwise block until it is written to.
        let always = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = match how {
            How::Read => OFlags::RDONLY,
            How::Lock => OFlags::RDWR | OFlags::CREATE,
            How::Create => OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
        };
        Ok(File::from(openat(&self.0, name, flags | always, Mode::RUSR | Mode::WUSR)?))
    }

    pub(in crate::file) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.0, from, &self.0, to)?)
    }

    pub(in crate::file) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, AtFlags::empty())?)
    }

    pub(in crate::file) fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    /// The error of a file or directory that can't be opened.
    pub(in crate::file) fn refusal(path: &Path, error: io::Error) -> Problem {
        let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
        // A symbolic link that isn't followed is no directory to `O_DIRECTORY`.
        if is(Errno::LOOP) || is(Errno::NOTDIR) && path.is_symlink() {
            return Problem::new(StoreErrorKind::TooOpen, "is a symbolic link, which isn't followed: remove it");
        }
        Problem::io("open the file or directory", error)
    }
}

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(open(path, flags, Mode::empty())?))
}
