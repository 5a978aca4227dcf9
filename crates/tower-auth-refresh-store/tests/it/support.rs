//! The files in the directory of a test, and the entries that are written there.

#[path = "directory.rs"]
mod directory;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tower_auth_refresh::store::{Claim, ClaimOutcome, Entry, Epoch, TokenStore, Version};
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};

pub(crate) use self::directory::TestDirectory;

/// Longer than any test takes.
pub(crate) const LEASE: Duration = Duration::from_secs(60);

impl TestDirectory {
    /// Returns the paths of the files with this ending.
    pub(crate) fn files(&self, ending: &str) -> Vec<PathBuf> {
        let paths = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.to_str().unwrap().ends_with(ending)).collect()
    }

    /// Returns the path of the only file with this ending.
    pub(crate) fn file(&self, ending: &str) -> PathBuf {
        let [path] = self.files(ending).try_into().unwrap();
        path
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
