//! A store of a user's own: one row for each user in an embedded database, with UUIDs for versions and claims.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tower::BoxError;
use tower_auth_refresh::ExposedTokens;
use tower_auth_refresh::store::{
    Claim, ClaimId, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, Epoch, InsertOutcome, Presented, Record,
    StoreFuture, TokenStore, Version,
};
use uuid::Uuid;

/// The rows by user, as JSON. They hold tokens in clear: the file must be readable by its owner only.
const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sessions");

/// A database of sessions. Clones share the open file.
#[derive(Clone)]
pub struct SessionDatabase {
    database: Arc<Database>,
}

/// The store of one user's session.
#[derive(Clone)]
pub struct DatabaseStore {
    database: Arc<Database>,
    user: Arc<str>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    version: Uuid,
    epoch: u64,
    generation: u64,
    tokens: ExposedTokens,
    expires_at: Option<SystemTime>,
    ends_at: Option<SystemTime>,
    claim: Option<RowClaim>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct RowClaim {
    id: Uuid,
    /// `None`: released in doubt.
    until: Option<SystemTime>,
    in_doubt: bool,
}

impl SessionDatabase {
    /// Opens the database, or creates it.
    pub fn open(path: &Path) -> Result<Self, BoxError> {
        let database = Database::create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(ROWS)?;
        transaction.commit()?;
        Ok(Self { database: Arc::new(database) })
    }

    /// Returns the store of a user's session.
    pub fn store(&self, user: impl Into<Arc<str>>) -> DatabaseStore {
        DatabaseStore { database: Arc::clone(&self.database), user: user.into() }
    }
}

impl DatabaseStore {
    /// Changes the row in a transaction, which is durable when this returns.
    fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Option<Row>) -> T + Send + 'static,
    ) -> StoreFuture<'_, T> {
        let Self { database, user } = self.clone();
        blocking(move || {
            let transaction = database.begin_write()?;
            let result = {
                let mut table = transaction.open_table(ROWS)?;
                let before = parse(table.get(&*user)?.map(|row| row.value().to_vec()))?;
                let mut row = before.clone();
                let result = change(&mut row);
                if row == before {
                    return Ok(result);
                }
                match row {
                    Some(row) => drop(table.insert(&*user, &*serde_json::to_vec(&row)?)?),
                    None => drop(table.remove(&*user)?),
                }
                result
            };
            transaction.commit()?;
            Ok(result)
        })
    }
}

/// Runs a transaction, which blocks, on a thread for it. If the future is dropped, it still ends.
fn blocking<'a, T: Send + 'static>(
    transaction: impl FnOnce() -> Result<T, BoxError> + Send + 'static,
) -> StoreFuture<'a, T> {
    Box::pin(async { spawn_blocking(transaction).await? })
}

/// A row that can't be read is an error, not a sign-out. The parser's own error would quote the row.
fn parse(row: Option<Vec<u8>>) -> Result<Option<Row>, BoxError> {
    row.map(|row| serde_json::from_slice(&row)).transpose().map_err(|_| "the row of the session is corrupt".into())
}

impl Row {
    fn new(entry: &Entry) -> Self {
        Self {
            version: Uuid::new_v4(),
            epoch: entry.epoch().to_u64(),
            generation: entry.generation(),
            tokens: entry.tokens().clone().into(),
            expires_at: entry.expires_at(),
            ends_at: entry.ends_at(),
            claim: None,
        }
    }

    fn version(&self) -> Version {
        Version::from(self.version.as_u128())
    }

    fn record(&self) -> Record {
        let mut entry = Entry::new(Epoch::from(self.epoch), self.generation, self.tokens.clone().into());
        if let Some(at) = self.expires_at {
            entry = entry.with_expires_at(at);
        }
        if let Some(at) = self.ends_at {
            entry = entry.with_ends_at(at);
        }
        Record::new(self.version(), entry)
    }

    fn claim(&mut self, lease: Duration) -> ClaimOutcome {
        let now = SystemTime::now();
        let in_doubt = match &self.claim {
            None => false,
            Some(claim) => match claim.until.and_then(|until| until.duration_since(now).ok()) {
                Some(retry_in) if !retry_in.is_zero() => return ClaimOutcome::Busy { retry_in },
                // The lease has expired, or the claim was released in doubt.
                _ => true,
            },
        };
        let id = Uuid::new_v4();
        self.claim = Some(RowClaim { id, until: Some(now + lease), in_doubt });
        ClaimOutcome::Claimed(Claim::new(self.version(), ClaimId::from(id.as_u128()), in_doubt))
    }
}

fn has_version(row: Option<&Row>, version: &Version) -> bool {
    row.is_some_and(|row| row.version() == *version)
}

/// Returns the claim in the row, if it is this one.
fn held<'a>(row: &'a mut Option<Row>, claim: &Claim) -> Option<&'a mut RowClaim> {
    let row = row.as_mut().filter(|row| row.version() == *claim.version())?;
    row.claim.as_mut().filter(|held| ClaimId::from(held.id.as_u128()) == *claim.id())
}

impl TokenStore for DatabaseStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        let Self { database, user } = self.clone();
        blocking(move || {
            let table = database.begin_read()?.open_table(ROWS)?;
            let row = parse(table.get(&*user)?.map(|row| row.value().to_vec()))?;
            Ok(row.as_ref().map(Row::record))
        })
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        let new = Row::new(entry);
        self.write(move |row| match row {
            Some(row) => InsertOutcome::Exists(row.record()),
            None => InsertOutcome::Inserted(row.insert(new).version()),
        })
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        let new = Row::new(entry);
        self.write(move |row| row.insert(new).version())
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        let version = version.clone();
        self.write(move |row| match row {
            Some(row) if row.version() == version => row.claim(lease),
            other => ClaimOutcome::Changed(other.as_ref().map(Row::record)),
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        let claim = claim.clone();
        self.write(move |row| {
            let held = held(row, &claim).filter(|held| held.until.is_some());
            let is_held = held.is_some();
            if let Some(held) = held {
                held.until = Some(SystemTime::now() + lease);
            }
            is_held
        })
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        let claim = claim.clone();
        self.write(move |row| {
            let Some(held) = held(row, &claim).filter(|held| held.until.is_some()) else { return };
            held.until = None;
            if presented == Presented::Unused && !held.in_doubt {
                *row = row.take().map(|row| Row { claim: None, ..row });
            }
        })
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        let (version, new) = (claim.version().clone(), Row::new(entry));
        self.write(move |row| {
            if has_version(row.as_ref(), &version) {
                CommitOutcome::Stored(row.insert(new).version())
            } else {
                CommitOutcome::Conflict(row.as_ref().map(Row::record))
            }
        })
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        let version = version.clone();
        self.write(move |row| match row {
            Some(row) if row.version() != version => ClearOutcome::Conflict(row.record()),
            _ => {
                *row = None;
                ClearOutcome::Cleared
            }
        })
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        let version = version.clone();
        self.write(move |row| match row {
            Some(row) if row.version() == version => {
                row.expires_at = Some(expires_at);
                true
            }
            _ => false,
        })
    }

    fn is_durable(&self) -> bool {
        true
    }
}

mod tests {
    use std::path::PathBuf;

    use tower_auth_refresh::{Session, SessionState};
    use tower_auth_refresh_testkit::{TestKit, conformance};

    use super::*;

    /// The path of a database that does not exist yet. The file is deleted at the end.
    struct TemporaryFile(PathBuf);

    impl TemporaryFile {
        fn new() -> Self {
            Self(std::env::temp_dir().join(format!("sessions-{}.redb", Uuid::new_v4())))
        }
    }

    impl Drop for TemporaryFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// Opens two handles on a row that does not exist yet.
    fn new_row(database: &SessionDatabase) -> conformance::Handles {
        let user = Uuid::new_v4().to_string();
        [Arc::new(database.store(&*user)), Arc::new(database.store(&*user))]
    }

    const LEASE: Duration = Duration::from_millis(500);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_store_conforms() {
        let file = TemporaryFile::new();
        let database = SessionDatabase::open(&file.0).unwrap();
        conformance::stores(LEASE, async || new_row(&database)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_sessions_on_the_store_conform() {
        let file = TemporaryFile::new();
        let database = SessionDatabase::open(&file.0).unwrap();
        conformance::sessions(LEASE, async || new_row(&database)).await;
    }

    #[tokio::test]
    async fn a_session_goes_on_after_the_database_was_reopened() {
        let file = TemporaryFile::new();
        let kit = TestKit::new();
        {
            let database = SessionDatabase::open(&file.0).unwrap();
            let builder = Session::builder(kit.refresh_service()).store(database.store("ada"));
            let session = builder.tokens(kit.sign_in("ada").try_into().unwrap()).build().await.unwrap();
            session.refresh().await.unwrap();
        }
        let database = reopen(&file.0).await;
        let record = database.store("ada").load().await.unwrap().unwrap();
        assert_eq!(record.generation(), 2);
        let session = Session::builder(kit.refresh_service()).store(database.store("ada")).build().await.unwrap();
        assert_eq!((session.state(), &session.tokens()), (SessionState::Active, record.tokens()));
        session.refresh().await.unwrap();
        assert_eq!((kit.counters().refreshes, kit.violations()), (2, vec![]));
        assert!(database.store("ben").load().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_claim_outlives_the_process_and_is_then_in_doubt() {
        let file = TemporaryFile::new();
        let kit = TestKit::new();
        let entry = Entry::new(Epoch::random(), 1, kit.sign_in("ada").try_into().unwrap());
        let version = {
            let store = SessionDatabase::open(&file.0).unwrap().store("ada");
            let version = store.replace(&entry).await.unwrap();
            assert!(matches!(store.claim(&version, LEASE).await.unwrap(), ClaimOutcome::Claimed(_)));
            version
        };
        let store = reopen(&file.0).await.store("ada");
        assert!(matches!(store.claim(&version, LEASE).await.unwrap(), ClaimOutcome::Busy { .. }));
        tokio::time::sleep(LEASE).await;
        let claimed = store.claim(&version, LEASE).await.unwrap();
        assert!(matches!(claimed, ClaimOutcome::Claimed(claim) if claim.is_in_doubt()));
    }

    #[tokio::test]
    async fn a_corrupt_row_is_an_error_and_not_a_sign_out() {
        let file = TemporaryFile::new();
        let database = SessionDatabase::open(&file.0).unwrap();
        let transaction = database.database.begin_write().unwrap();
        transaction.open_table(ROWS).unwrap().insert("ada", &b"{\"secret"[..]).unwrap();
        transaction.commit().unwrap();
        let error = database.store("ada").load().await.unwrap_err();
        assert_eq!(error.to_string(), "the row of the session is corrupt");
    }

    /// Opens the database again once the last task that holds the file has ended.
    async fn reopen(path: &Path) -> SessionDatabase {
        loop {
            match SessionDatabase::open(path) {
                Ok(database) => return database,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}
