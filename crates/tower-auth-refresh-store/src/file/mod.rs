//! [`FileStore`]: tokens in files of a private directory, which several processes may share.

mod claim;
mod directory;
mod lock;
mod platform;
mod session;
mod steps;
#[cfg(test)]
#[cfg(unix)]
mod tests;

use std::future::{Future, ready};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, InsertOutcome, Presented, Record, StoreFuture, TokenStore,
    Version,
};

pub(crate) use self::directory::Directory;
use self::directory::{PROBE, is_draft, session_of, storage_key_of};
#[cfg(feature = "keychain")]
pub(crate) use self::lock::acquire;
use self::session::{Here, RECORD, SessionFiles, Turn};
use crate::error::{Problem, StoreError, StoreErrorKind};
use crate::gather::Gather;
#[cfg(feature = "encryption")]
use crate::keys::Keys;
use crate::record::{Codec, storage_key};

/// The time for which a call waits for the lock of a session's files.
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// The loads that share a thread: few, since they are made one after the other, and the disk may be slow.
const LOADS_A_THREAD: usize = 16;
/// The threads that load while which further loads are gathered.
const LOADING_THREADS: usize = 8;

/// The time after which a call fails, less than the 5 s that a session waits for it.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// A directory that holds the tokens of one session, or of many (feature `file`, on by default).
///
/// Several processes may use it at once: one of them refreshes, the others adopt its tokens. It survives the death of a
/// process, or of the machine, at any moment. See [the crate's documentation](crate#the-files) for the files.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
/// # use tower_auth_refresh::{RefreshError, RefreshRequest, Session, SessionRegistry, Tokens};
/// # use tower_auth_refresh_store::FileStore;
/// # let directory = std::env::temp_dir().join(format!("store-doc-{}", std::process::id()));
/// # let refresh = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
/// // One session, as a command-line program has it:
/// let session = Session::builder(refresh).store(FileStore::open_single(&directory)?).build().await?;
///
/// // Many sessions:
/// # let refresh = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
/// let files = FileStore::open(&directory)?;
/// let sessions = SessionRegistry::builder(Session::builder(refresh))
///     .store_factory(move |user: &String| files.store(user))
///     .build()?;
/// # std::fs::remove_dir_all(directory)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct FileStore {
    settings: Arc<Settings>,
}

/// A [`FileStore`] that is being set up.
#[derive(Clone, Debug)]
#[must_use]
pub struct FileStoreBuilder {
    settings: Settings,
}

/// The loads that are made at the same time, by storage keys.
type Loads = Gather<[u8; 32], Result<Option<Record>, StoreError>, Problem>;

#[derive(Clone, Debug)]
struct Settings {
    directory: PathBuf,
    namespace: String,
    allows_network: bool,
    #[cfg(feature = "encryption")]
    keys: Option<Keys>,
    loads: Arc<Loads>,
}

impl FileStore {
    /// Opens a directory with the default settings, and makes it if there is none.
    ///
    /// It blocks for some calls to the operating system, like [`FileStoreBuilder::open`].
    ///
    /// # Errors
    ///
    /// Those of [`FileStoreBuilder::open`].
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::builder(directory).open()
    }

    /// Opens a directory with the default settings, for the tokens of one session.
    ///
    /// # Errors
    ///
    /// Those of [`FileStoreBuilder::open`].
    pub fn open_single(directory: impl Into<PathBuf>) -> Result<Arc<dyn TokenStore>, StoreError> {
        Ok(Self::open(directory)?.store(""))
    }

    /// Sets up a store in a directory.
    pub fn builder(directory: impl Into<PathBuf>) -> FileStoreBuilder {
        FileStoreBuilder {
            settings: Settings {
                directory: directory.into(),
                namespace: String::new(),
                allows_network: false,
                #[cfg(feature = "encryption")]
                keys: None,
                loads: Arc::new(Gather::new(LOADS_A_THREAD, LOADING_THREADS)),
            },
        }
    }

    /// Returns the store of one session, by its key. Touches no file.
    ///
    /// Each call returns a handle of its own. While a handle exists, the claims that it has made hold; if it is dropped
    /// before it has committed or released a claim, that claim ends in doubt.
    ///
    /// # Cancel safety
    ///
    /// A call of the store that is dropped runs to its end on its own thread, and later calls on this handle wait for
    /// it. A claim that is granted after its call was dropped is given back.
    #[must_use]
    pub fn store(&self, key: impl AsRef<[u8]>) -> Arc<dyn TokenStore> {
        let storage_key = storage_key(&self.settings.namespace, key.as_ref());
        Arc::new(SessionStore { settings: Arc::clone(&self.settings), storage_key, here: Arc::default() })
    }

    /// Tests that the directory can be used: permissions, each file's owner, locks, and a write to the disk.
    ///
    /// A program may call it at its start, and show the error, which says how to mend it.
    ///
    /// # Errors
    ///
    /// The first thing that is unsafe or doesn't work.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, the test runs to its end on its own thread.
    pub async fn check(&self) -> Result<(), StoreError> {
        let settings = Arc::clone(&self.settings);
        bounded(&self.settings, ready(()), move |()| settings.check()).await
    }

    /// Deletes the records whose end has passed, whatever their namespace, and returns their number.
    ///
    /// A program may call it from time to time, such as at its start. Records that a process is refreshing are left, and
    /// those that can't be read: a damaged record or an unknown key is no reason to delete.
    ///
    /// # Errors
    ///
    /// The first failure of the operating system, or lock that another process has kept for too long, after all other
    /// records were looked at.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, it runs to its end on its own thread.
    pub async fn delete_expired(&self) -> Result<u64, StoreError> {
        let settings = Arc::clone(&self.settings);
        self.settings.blocking(&self.settings.runtime()?, move || Settings::delete_expired(&settings)).await
    }
}

impl FileStoreBuilder {
    /// Keeps the sessions apart from those of other programs that use the directory. Default: none.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.settings.namespace = namespace.into();
        self
    }

    /// Encrypts the records with the first of these keys. Default: they are in clear (feature `encryption`).
    #[cfg(feature = "encryption")]
    pub fn keys(mut self, keys: Keys) -> Self {
        self.settings.keys = Some(keys);
        self
    }

    /// Allows a directory on a network or FUSE file system. Default: it is refused.
    ///
    /// On many of them locks exclude nothing, or hang. Then two processes may present the same refresh token, and a
    /// server with reuse detection signs the user out. [`FileStore::check`] tests the locks within one host only. If a
    /// process dies, the next one waits for its lease, since a free lock proves nothing.
    pub fn allow_network(mut self) -> Self {
        self.settings.allows_network = true;
        self
    }

    /// Opens the directory, and makes it if there is none.
    ///
    /// Removes the unfinished files of processes that have died. It blocks for some calls to the operating system.
    ///
    /// # Errors
    ///
    /// [`TooOpen`](StoreErrorKind::TooOpen) if other users own the directory or may open it,
    /// [`Misconfigured`](StoreErrorKind::Misconfigured) if it is on a network file system, which isn't allowed,
    /// [`Unavailable`](StoreErrorKind::Unavailable) if it can't be made or opened.
    pub fn open(self) -> Result<FileStore, StoreError> {
        let directory = make_directory(&self.settings.directory)?;
        let settings = Arc::new(Settings { directory, ..self.settings });
        remove_unfinished(&settings.open()?)?;
        Ok(FileStore { settings })
    }
}

impl Settings {
    fn open(&self) -> Result<Directory<'_>, StoreError> {
        Directory::open(&self.directory, self.allows_network)
    }

    fn runtime(&self) -> Result<Handle, StoreError> {
        let reason = "the store was called outside of a tokio runtime";
        Handle::try_current().map_err(|_| Problem::new(StoreErrorKind::Misconfigured, reason).at(&self.directory))
    }

    /// Runs an operation on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        runtime: &Handle,
        operation: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        runtime.spawn_blocking(operation).await.map_err(|_| aborted().at(&self.directory))?
    }

    /// Loads a record together with those of other sessions that are loaded at this moment.
    async fn load(self: &Arc<Self>, storage_key: [u8; 32]) -> Result<Option<Record>, StoreError> {
        let found = self.loads.read(storage_key, || {
            let this = Arc::clone(self);
            Ok(move |keys| {
                let this = Arc::clone(&this);
                let load = spawn_blocking(move || this.load_all(keys));
                async { load.await.map_err(|_| aborted()) }
            })
        });
        found.await.unwrap_or_else(|problem| Err(problem.at(&self.directory)))
    }

    fn load_all(self: &Arc<Self>, storage_keys: Vec<[u8; 32]>) -> Vec<Result<Option<Record>, StoreError>> {
        let directory = self.open().ok();
        let load = |storage_key| {
            let files = SessionFiles::new(Arc::clone(self), storage_key);
            // If the directory can't be opened, each load has its own error.
            directory.as_ref().map_or_else(|| files.load(), |directory| files.load_from(directory))
        };
        storage_keys.into_iter().map(load).collect()
    }

    fn delete_expired(this: &Arc<Self>) -> Result<u64, StoreError> {
        let sessions = this.open()?.names()?.into_iter().filter_map(|name| storage_key_of(name.strip_suffix(RECORD)?));
        let (mut deleted, mut failure) = (0, None);
        for storage_key in sessions {
            match SessionFiles::new(Arc::clone(this), storage_key).delete_expired() {
                Ok(was_deleted) => deleted += u64::from(was_deleted),
                Err(error) if error.kind() == StoreErrorKind::Unavailable => failure = failure.or(Some(error)),
                Err(_) => {}
            }
        }
        failure.map_or(Ok(deleted), Err)
    }

    #[cfg_attr(not(feature = "encryption"), expect(clippy::unused_self, reason = "as with the feature `encryption`"))]
    fn codec(&self, storage_key: [u8; 32]) -> Codec {
        let codec = Codec::new(storage_key);
        #[cfg(feature = "encryption")]
        let codec = codec.with_keys(self.keys.clone());
        codec
    }

    fn check(&self) -> Result<(), StoreError> {
        let directory = self.open()?;
        for name in directory.names()?.into_iter().filter(|name| session_of(name).is_some()) {
            directory.file(&name)?;
        }
        let lock = format!("{PROBE}.lock");
        let (first, second, path) =
            (directory.lock_file(&lock)?, directory.lock_file(&lock)?, directory.path_of(&lock));
        lock::acquire(&first, Instant::now() + LOCK_TIMEOUT).map_err(|problem| problem.at(&path))?;
        if second.try_lock().is_ok() {
            return Err(Problem::new(StoreErrorKind::Misconfigured, "its lock excludes nothing").at(&path));
        }
        directory.draft(PROBE, &[0; 4096], 0)?.0.publish(PROBE)?;
        directory.remove(PROBE)?;
        directory.sync()
    }
}

fn aborted() -> Problem {
    Problem::new(StoreErrorKind::Unavailable, "the operation was aborted")
}

/// Makes a directory, if there is none. Returns its absolute path, since the process may change its working directory.
pub(crate) fn make_directory(path: &Path) -> Result<PathBuf, StoreError> {
    let failed = |error| Problem::io("make the directory", error).at(path);
    let path = std::path::absolute(path).map_err(failed)?;
    platform::Handle::make(&path).map_err(failed)?;
    Ok(path)
}

/// Removes the files that processes have begun to write when they died, since they may hold tokens.
fn remove_unfinished(directory: &Directory<'_>) -> Result<(), StoreError> {
    for unfinished in directory.names()?.into_iter().filter(|name| is_draft(name)) {
        let Some(session) = session_of(&unfinished) else { continue };
        // Without the lock, it may be a file that is being written.
        let lock = directory.lock_file(&format!("{session}.lock"))?;
        if lock.try_lock().is_ok() {
            directory.remove(&unfinished)?;
        }
    }
    Ok(())
}

/// Runs an operation on a thread that may block, within the time for a call. `ready`: what the operation waits for
/// first.
async fn bounded<T: Send + 'static, R: Send + 'static>(
    settings: &Settings,
    ready: impl Future<Output = R>,
    operation: impl FnOnce(R) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let runtime = settings.runtime()?;
    let call = async {
        let ready = ready.await;
        settings.blocking(&runtime, move || operation(ready)).await
    };
    in_time(settings, call).await
}

/// Makes a call within the time for it.
async fn in_time<T>(settings: &Settings, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let late = |_| Problem::new(StoreErrorKind::Unavailable, "the call has taken too long").at(&settings.directory);
    timeout(CALL_TIMEOUT, call).await.map_err(late)?
}

/// A handle on one session's files. A process may have many.
struct SessionStore {
    settings: Arc<Settings>,
    storage_key: [u8; 32],
    here: Arc<Mutex<Here>>,
}

impl SessionStore {
    /// Makes a call when all earlier calls on this handle have ended, those that were dropped too. Otherwise a write
    /// that was dropped could take effect after a later one.
    fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&SessionFiles, &mut Turn) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        Box::pin(async move {
            let (settings, storage_key) = (Arc::clone(&self.settings), self.storage_key);
            let deadline = Instant::now() + LOCK_TIMEOUT;
            let until_dropped = Arc::new(());
            let caller = Arc::downgrade(&until_dropped);
            let operation =
                move |here| operation(&SessionFiles::new(settings, storage_key), &mut Turn { here, deadline, caller });
            let outcome = bounded(&self.settings, Arc::clone(&self.here).lock_owned(), operation).await;
            drop(until_dropped);
            Ok(outcome?)
        })
    }
}

impl TokenStore for SessionStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        Box::pin(async move {
            self.settings.runtime()?;
            // Earlier calls on this handle have ended then, as in `run`.
            let load = async {
                let _turn = self.here.lock().await;
                self.settings.load(self.storage_key).await
            };
            Ok(in_time(&self.settings, load).await?)
        })
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        let entry = entry.clone();
        self.run(move |files, turn| files.insert(turn, &entry))
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        let entry = entry.clone();
        self.run(move |files, turn| files.replace(turn, &entry))
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        let version = version.clone();
        self.run(move |files, turn| files.claim(turn, &version, lease))
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        let claim = claim.clone();
        self.run(move |files, turn| files.renew(turn, &claim, lease))
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        let claim = claim.clone();
        self.run(move |files, turn| files.release(turn, &claim, presented))
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        let (claim, entry) = (claim.clone(), entry.clone());
        self.run(move |files, turn| files.commit(turn, &claim, &entry))
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        let version = version.clone();
        self.run(move |files, turn| files.clear(turn, &version))
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        let version = version.clone();
        self.run(move |files, turn| files.extend(turn, &version, expires_at))
    }

    fn is_durable(&self) -> bool {
        true
    }
}
