//! A directory for one test, and the entries that are written there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tower_auth_refresh::store::{Claim, ClaimOutcome, Entry, Epoch, TokenStore, Version};
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};

/// Longer than any test takes.
pub(crate) const LEASE: Duration = Duration::from_secs(60);

/// A path at which there is nothing yet. What is there in the end is removed.
pub(crate) struct TestDirectory(PathBuf);

impl TestDirectory {
    pub(crate) fn new() -> Self {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("tower-auth-refresh-store-{}-{number}", std::process::id());
        // In memory if possible, where the tests don't depend on the time that a disk takes.
        let memory = Path::new("/dev/shm");
        let on_disk = std::env::var_os("TMPDIR").is_some() || !memory.is_dir();
        Self(if on_disk { std::env::temp_dir().join(name) } else { memory.join(name) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the paths of the files with this ending.
    pub(crate) fn files(&self, ending: &str) -> Vec<PathBuf> {
        let paths = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.to_str().unwrap().ends_with(ending)).collect()
    }

    /// Returns the path of the only file with this ending.
    pub(crate) fn file(&self, ending: &str) -> PathBuf {
        let [path] = self.files(ending).try_into().unwrap();
        path
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn entry(generation: u64) -> Entry {
    let access = AccessToken::new(format!("access-{generation}")).unwrap();
    let refresh = RefreshToken::new(format!("refresh-{generation}")).unwrap();
    Entry::new(Epoch::from(7), generation, Tokens::new(access, refresh))
}

pub(crate) async fn claimed(store: &dyn TokenStore, version: &Version) -> Claim {
    match store.claim(version, LEASE).await.unwrap() {
        ClaimOutcome::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    }
}
