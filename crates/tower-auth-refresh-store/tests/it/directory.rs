//! A directory for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A path at which there is nothing yet. What is there in the end is removed.
pub(crate) struct TestDirectory(PathBuf);

impl TestDirectory {
    pub(crate) fn new() -> Self {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("tower-auth-refresh-store-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the paths of the files with this ending.
    pub(crate) fn files(&self, ending: &str) -> Vec<PathBuf> {
        let paths = fs::read_dir(&self.0)
            .expect("the directory is readable")
            .map(|entry| entry.expect("the directory is readable").path());
        paths.filter(|path| path.to_str().expect("the directory is readable").ends_with(ending)).collect()
    }

    /// Returns the path of the only file with this ending.
    pub(crate) fn file(&self, ending: &str) -> PathBuf {
        let [path] = self.files(ending).try_into().expect("the directory is readable");
        path
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
