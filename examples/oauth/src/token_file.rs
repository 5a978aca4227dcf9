//! A token store of one file, with the refresh token in it and nothing else.
//!
//! The file is replaced, never overwritten: a crash at any moment leaves the old token or the new one. The session
//! stores what it bought before it uses it, so that a rotated token is never lost to a crash later on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tower::BoxError;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Epoch, MemoryStore, Presented, Record, StoreError, StoreFuture,
    TokenStore, Version,
};
use tower_auth_refresh::{RefreshToken, Tokens};

pub(crate) struct TokenFile {
    path: Arc<Path>,
    /// What the file held when it was opened.
    refresh_token: RefreshToken,
    /// Versions and claims live here: the lock sees to it that no other process has any.
    memory: MemoryStore,
    _lock: File,
}

impl TokenFile {
    /// Opens the file, for this process alone.
    pub(crate) fn open(path: &Path) -> Result<Self, BoxError> {
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let refresh_token = RefreshToken::new(text.trim()).map_err(|error| format!("{}: {error}", path.display()))?;
        let lock = beside(path, ".lock");
        let lock = File::create(&lock).map_err(|error| format!("{}: {error}", lock.display()))?;
        lock.try_lock().map_err(|_| format!("{}: in use by another process", path.display()))?;
        Ok(Self { path: path.into(), refresh_token, memory: MemoryStore::new(), _lock: lock })
    }

    pub(crate) fn refresh_token(&self) -> &RefreshToken {
        &self.refresh_token
    }

    async fn write(&self, tokens: &Tokens) -> Result<(), StoreError> {
        let Some(token) = tokens.refresh_token().cloned() else { return Ok(()) };
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || replace(&path, token.expose_secret()));
        written.await.map_err(StoreError::new)?.map_err(StoreError::new)
    }
}

/// A path in the same directory, for the same file system.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Puts a file with this token in the place of the old one.
fn replace(path: &Path, token: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|held| held.trim() == token) {
        return Ok(());
    }
    let new = beside(path, ".new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&new)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The rename itself is durable once the directory is.
    #[cfg(unix)]
    if let Some(directory) = path.parent() {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

impl TokenStore for TokenFile {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.memory.load()
    }

    fn replace<'a>(&'a self, epoch: Epoch, tokens: &'a Tokens) -> StoreFuture<'a, Version> {
        Box::pin(async move {
            self.write(tokens).await?;
            self.memory.replace(epoch, tokens).await
        })
    }

    fn claim(&self, version: Version, lease: Duration) -> StoreFuture<'_, ClaimOutcome> {
        self.memory.claim(version, lease)
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.memory.renew(claim, lease)
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.memory.release(claim, presented)
    }

    fn commit<'a>(&'a self, claim: &'a Claim, tokens: &'a Tokens) -> StoreFuture<'a, CommitOutcome> {
        Box::pin(async move {
            self.write(tokens).await?;
            self.memory.commit(claim, tokens).await
        })
    }

    /// Leaves the file as it is: a token that was rejected is of no use to anybody, and its file tells the user which.
    fn clear(&self, version: Version) -> StoreFuture<'_, ClearOutcome> {
        self.memory.clear(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test's own, gone at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn with(name: &str, content: &str) -> (Self, PathBuf) {
            let directory = std::env::temp_dir().join(format!("oauth-example-{}-{name}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            let file = directory.join("token");
            fs::write(&file, content).unwrap();
            (Self(directory), file)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn tokens(refresh: &str) -> Tokens {
        Tokens::from_refresh_token(RefreshToken::new(refresh).unwrap())
    }

    #[tokio::test]
    async fn a_rotated_token_is_in_the_file_once_it_is_committed() {
        let (_scratch, path) = Scratch::with("rotated", "r1\n");
        let store = TokenFile::open(&path).unwrap();
        assert_eq!(store.refresh_token().expose_secret(), "r1");
        let version = TokenStore::replace(&store, Epoch::random(), &tokens("r1")).await.unwrap();
        let ClaimOutcome::Claimed(claim) = store.claim(version, Duration::from_secs(9)).await.unwrap() else {
            panic!()
        };
        assert!(matches!(store.commit(&claim, &tokens("r2")).await.unwrap(), CommitOutcome::Stored(_)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "r2\n");
        assert!(!beside(&path, ".new").exists());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_file_is_open_once_at_a_time() {
        let (_scratch, path) = Scratch::with("locked", "r1");
        let first = TokenFile::open(&path).unwrap();
        let error = TokenFile::open(&path).err().unwrap();
        assert!(error.to_string().ends_with("in use by another process"));
        drop(first);
        TokenFile::open(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_missing_or_holds_no_token_is_named() {
        let (_scratch, path) = Scratch::with("empty", "\n");
        for path in [path.with_file_name("missing"), path] {
            let error = TokenFile::open(&path).err().unwrap().to_string();
            assert!(error.starts_with(&path.display().to_string()), "{error}");
        }
    }
}
