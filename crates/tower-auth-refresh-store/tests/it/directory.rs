//! A directory for one test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A path at which there is nothing yet. What is there in the end is removed.
pub(crate) struct TestDirectory(PathBuf);

impl TestDirectory {
    pub(crate) fn new() -> Self {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        // In memory if possible, where the tests don't depend on the time that a disk takes.
        let memory = Path::new("/dev/shm");
        let on_disk = std::env::var_os("TMPDIR").is_some() || !memory.is_dir();
        let place = if on_disk { std::env::temp_dir() } else { memory.to_owned() };
        loop {
            let number = LAST.fetch_add(1, Ordering::Relaxed);
            let path = place.join(format!("tower-auth-refresh-store-{}-{number}", std::process::id()));
            // An earlier process with this number may have been killed, and have left its own.
            if !path.exists() {
                return Self(path);
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
