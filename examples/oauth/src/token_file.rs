//! A token store in a file that contains only the refresh token.
//!
//! The file is replaced atomically: a crash at any moment leaves the old token or the new one. The session stores new
//! tokens before it uses them, so that no later crash loses a rotated token.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tower::BoxError;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, InsertOutcome, MemoryStore, Presented, Record,
    StoreFuture, TokenStore, Version,
};
use tower_auth_refresh::{RefreshToken, Tokens};

pub(crate) struct TokenFile {
    path: Arc<Path>,
    /// The refresh token in the file when it was opened.
    refresh_token: RefreshToken,
    /// Versions and claims. They are kept in memory, since the lock excludes other processes.
    memory: MemoryStore,
    _lock: File,
}

impl TokenFile {
    /// Opens the file and locks it against other processes.
    pub(crate) fn open(path: &Path) -> Result<Self, BoxError> {
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let refresh_token = RefreshToken::new(text.trim()).map_err(|error| format!("{}: {error}", path.display()))?;
        let lock = sibling(path, ".lock");
        let lock = File::create(&lock).map_err(|error| format!("{}: {error}", lock.display()))?;
        lock.try_lock().map_err(|_| format!("{}: in use by another process", path.display()))?;
        Ok(Self { path: path.into(), refresh_token, memory: MemoryStore::new(), _lock: lock })
    }

    pub(crate) fn refresh_token(&self) -> &RefreshToken {
        &self.refresh_token
    }

    async fn write(&self, tokens: &Tokens) -> Result<(), BoxError> {
        let Some(token) = tokens.refresh_token().cloned() else { return Ok(()) };
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || replace(&path, token.expose_secret()));
        Ok(written.await??)
    }
}

/// Returns a path in the same directory, and therefore on the same file system.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Replaces the file by a new one with this token.
fn replace(path: &Path, token: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|current| current.trim() == token) {
        return Ok(());
    }
    let new = sibling(path, ".new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&new)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // Makes the rename durable.
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

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        Box::pin(async {
            self.write(entry.tokens()).await?;
            self.memory.insert(entry).await
        })
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        Box::pin(async move {
            self.write(entry.tokens()).await?;
            self.memory.replace(entry).await
        })
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.memory.claim(version, lease)
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.memory.renew(claim, lease)
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.memory.release(claim, presented)
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        Box::pin(async move {
            self.write(entry.tokens()).await?;
            self.memory.commit(claim, entry).await
        })
    }

    /// Keeps the file: a rejected token is harmless, and the user can see which token was rejected.
    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.memory.clear(version)
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.memory.extend(version, expires_at)
    }

    fn is_durable(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use tower_auth_refresh::store::Epoch;

    use super::*;

    /// A temporary directory that is removed on drop.
    struct TempDir(PathBuf);

    impl TempDir {
        fn with(name: &str, content: &str) -> (Self, PathBuf) {
            let directory = std::env::temp_dir().join(format!("oauth-example-{}-{name}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            let file = directory.join("token");
            fs::write(&file, content).unwrap();
            (Self(directory), file)
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn entry(generation: u64, refresh: &str) -> Entry {
        Entry::new(Epoch::from(7), generation, Tokens::from_refresh_token(RefreshToken::new(refresh).unwrap()))
    }

    #[tokio::test]
    async fn a_committed_token_is_in_the_file() {
        let (_directory, path) = TempDir::with("rotated", "r1\n");
        let store = TokenFile::open(&path).unwrap();
        assert_eq!(store.refresh_token().expose_secret(), "r1");
        let version = TokenStore::replace(&store, &entry(1, "r1")).await.unwrap();
        let ClaimOutcome::Claimed(claim) = store.claim(&version, Duration::from_secs(9)).await.unwrap() else {
            panic!()
        };
        assert!(matches!(store.commit(&claim, &entry(2, "r2")).await.unwrap(), CommitOutcome::Stored(_)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "r2\n");
        assert!(!sibling(&path, ".new").exists());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_second_open_of_the_same_file_fails() {
        let (_directory, path) = TempDir::with("locked", "r1");
        let first = TokenFile::open(&path).unwrap();
        let error = TokenFile::open(&path).err().unwrap();
        assert!(error.to_string().ends_with("in use by another process"));
        drop(first);
        TokenFile::open(&path).unwrap();
    }

    #[test]
    fn an_error_names_a_file_that_is_missing_or_empty() {
        let (_directory, path) = TempDir::with("empty", "\n");
        for path in [path.with_file_name("missing"), path] {
            let error = TokenFile::open(&path).err().unwrap().to_string();
            assert!(error.starts_with(&path.display().to_string()), "{error}");
        }
    }
}
