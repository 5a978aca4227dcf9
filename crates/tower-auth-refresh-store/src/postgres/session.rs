//! One session's row, and the operations of a store on it.
//!
//! Each is one statement, and a second one only if the first has changed no row: then the row is read, to say why. Versions
//! and claims are made here, so that a statement whose answer was lost is recognized if it is sent again.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use tower_auth_refresh::store::{
    Claim, ClaimId, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, InsertOutcome, Presented, Record, StoreFuture,
    TokenStore, Version,
};
use zeroize::Zeroizing;

use super::Stores;
use super::link::{Parameters, Repeat};
use super::schema::{get, unexpected};
use crate::error::{Problem, StoreErrorKind};
use crate::random;
use crate::record::{Codec, hex};

/// The time after which a call fails, less than the 5 s that a session waits for it.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// The longest lease that is written, so that no time overflows.
const LONGEST_LEASE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A handle on one session's row.
pub(super) struct SessionStore {
    pub(super) stores: Arc<Stores>,
    pub(super) storage_key: [u8; 32],
}

/// A row as it is found.
struct Found {
    record: Record,
    claim: Standing,
}

/// The standing of a row's claim.
#[derive(Clone, Copy)]
enum Standing {
    /// None, released, or over.
    Free,
    Held(Duration),
}

/// One call, with its deadline.
struct Call<'a> {
    store: &'a SessionStore,
    deadline: Instant,
}

impl SessionStore {
    fn run<'a, T, F>(&'a self, operation: impl FnOnce(Call<'a>) -> F + Send + 'a) -> StoreFuture<'a, T>
    where
        T: Send + 'a,
        F: Future<Output = Result<T, Problem>> + Send + 'a,
    {
        Box::pin(async move {
            let outside =
                |_| Problem::new(StoreErrorKind::Misconfigured, "the store was called outside of a tokio runtime");
            let outcome = match Handle::try_current().map_err(outside) {
                Ok(_) => operation(Call { store: self, deadline: Instant::now() + CALL_TIMEOUT }).await,
                Err(problem) => Err(problem),
            };
            outcome.map_err(|problem| problem.of(self.stores.name()).into())
        })
    }
}

impl Call<'_> {
    async fn query(&self, sql: &str, parameters: Parameters<'_>, repeat: Repeat) -> Result<Vec<Row>, Problem> {
        let SessionStore { stores, storage_key } = self.store;
        let key = &storage_key[..];
        let mut all: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&key, Type::BYTEA)];
        all.extend_from_slice(parameters);
        stores.link_of(storage_key).query(sql, &all, repeat, self.deadline).await
    }

    /// Executes a statement that changes a row or none. Returns true if it has changed one.
    async fn change(&self, sql: &str, parameters: Parameters<'_>, repeat: Repeat) -> Result<bool, Problem> {
        Ok(!self.query(sql, parameters, repeat).await?.is_empty())
    }

    fn codec(&self) -> Codec {
        let codec = Codec::new(self.store.storage_key);
        #[cfg(feature = "encryption")]
        let codec = codec.with_keys(self.store.stores.keys.clone());
        codec
    }

    async fn find(&self) -> Result<Option<Found>, Problem> {
        let rows = self.query(&self.store.stores.statements.load, &[], Repeat::Harmless).await?;
        let [row] = &*rows else { return Err(unexpected()) };
        if get(row, 0)? {
            // It may lag behind: a row that isn't there yet would sign the user out.
            let problem = Problem::new(StoreErrorKind::Unavailable, "failed to read: the server is a standby");
            return Err(problem);
        }
        let Some(version) = get::<Option<&[u8]>>(row, 1)? else { return Ok(None) };
        let bytes = Zeroizing::new(get::<&[u8]>(row, 2)?.to_vec());
        let name = || format!("key {}", hex(&self.store.storage_key));
        let record = self.codec().decode(bytes).map_err(|problem| problem.while_doing(&name()))?;
        if record.version().as_bytes() != version {
            let problem = Problem::new(StoreErrorKind::Corrupt, "the record is of another version than its row");
            return Err(problem.while_doing(&name()));
        }
        let claim = match get::<Option<f64>>(row, 5)? {
            Some(left) if left > 0.0 => Standing::Held(Duration::try_from_secs_f64(left).unwrap_or(LONGEST_LEASE)),
            _ => Standing::Free,
        };
        Ok(Some(Found { record, claim }))
    }

    async fn load(&self) -> Result<Option<Record>, Problem> {
        Ok(self.find().await?.map(|found| found.record))
    }

    async fn insert(&self, entry: &Entry) -> Result<InsertOutcome, Problem> {
        loop {
            if let Some(version) = self.write(&self.store.stores.statements.insert, entry).await? {
                return Ok(InsertOutcome::Inserted(version));
            }
            if let Some(record) = self.load().await? {
                return Ok(InsertOutcome::Exists(record));
            }
            self.in_time()?;
        }
    }

    async fn replace(&self, entry: &Entry) -> Result<Version, Problem> {
        self.write(&self.store.stores.statements.replace, entry).await?.ok_or_else(unexpected)
    }

    /// Writes an entry over no record in particular. Another process may have written since a first attempt, or signed out,
    /// so it isn't repeated.
    async fn write(&self, sql: &str, entry: &Entry) -> Result<Option<Version>, Problem> {
        let version = random::identifier()?;
        let record = self.codec().encode(version, entry)?;
        let parameters: Parameters<'_> = &[
            (&&version.to_be_bytes()[..], Type::BYTEA),
            (&&record[..], Type::BYTEA),
            (&expires_at(entry), Type::TIMESTAMPTZ),
        ];
        Ok(self.change(sql, parameters, Repeat::Harmful).await?.then(|| Version::from(version)))
    }

    async fn claim(&self, version: &Version, lease: Duration) -> Result<ClaimOutcome, Problem> {
        let id = random::identifier()?;
        let parameters: Parameters<'_> = &[
            (&version.as_bytes(), Type::BYTEA),
            (&&id.to_be_bytes()[..], Type::BYTEA),
            (&seconds(lease), Type::FLOAT8),
        ];
        loop {
            let rows = self.query(&self.store.stores.statements.claim, parameters, Repeat::Harmless).await?;
            if let [row] = &*rows {
                return Ok(ClaimOutcome::Claimed(Claim::new(version.clone(), ClaimId::from(id), get(row, 0)?)));
            }
            match self.find().await? {
                Some(found) if found.record.version() == version => {
                    if let Standing::Held(retry_in) = found.claim {
                        return Ok(ClaimOutcome::Busy { retry_in });
                    }
                }
                found => return Ok(ClaimOutcome::Changed(found.map(|found| found.record))),
            }
            self.in_time()?;
        }
    }

    async fn renew(&self, claim: &Claim, lease: Duration) -> Result<bool, Problem> {
        let parameters: Parameters<'_> = &[
            (&claim.version().as_bytes(), Type::BYTEA),
            (&claim.id().as_bytes(), Type::BYTEA),
            (&seconds(lease), Type::FLOAT8),
        ];
        self.change(&self.store.stores.statements.renew, parameters, Repeat::Harmless).await
    }

    async fn release(&self, claim: &Claim, presented: Presented) -> Result<(), Problem> {
        let parameters: Parameters<'_> = &[
            (&claim.version().as_bytes(), Type::BYTEA),
            (&claim.id().as_bytes(), Type::BYTEA),
            (&(presented == Presented::InDoubt), Type::BOOL),
        ];
        self.change(&self.store.stores.statements.release, parameters, Repeat::Harmless).await?;
        Ok(())
    }

    async fn commit(&self, claim: &Claim, entry: &Entry) -> Result<CommitOutcome, Problem> {
        let version = random::identifier()?;
        let record = self.codec().encode(version, entry)?;
        let parameters: Parameters<'_> = &[
            (&claim.version().as_bytes(), Type::BYTEA),
            (&&version.to_be_bytes()[..], Type::BYTEA),
            (&&record[..], Type::BYTEA),
            (&expires_at(entry), Type::TIMESTAMPTZ),
        ];
        loop {
            if self.change(&self.store.stores.statements.commit, parameters, Repeat::Harmless).await? {
                return Ok(CommitOutcome::Stored(Version::from(version)));
            }
            match self.load().await? {
                Some(record) if record.version() == claim.version() => self.in_time()?,
                found => return Ok(CommitOutcome::Conflict(found)),
            }
        }
    }

    async fn clear(&self, version: &Version) -> Result<ClearOutcome, Problem> {
        let parameters: Parameters<'_> = &[(&version.as_bytes(), Type::BYTEA)];
        loop {
            if self.change(&self.store.stores.statements.clear, parameters, Repeat::Harmless).await? {
                return Ok(ClearOutcome::Cleared);
            }
            match self.load().await? {
                None => return Ok(ClearOutcome::Cleared),
                Some(record) if record.version() != version => return Ok(ClearOutcome::Conflict(record)),
                Some(_) => self.in_time()?,
            }
        }
    }

    /// Fails if the call has no time left for another round.
    fn in_time(&self) -> Result<(), Problem> {
        let late = || Problem::new(StoreErrorKind::Unavailable, "the row changes faster than it can be read");
        (Instant::now() < self.deadline).then_some(()).ok_or_else(late)
    }
}

impl TokenStore for SessionStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.run(async |call| call.load().await)
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.run(async |call| call.insert(entry).await)
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.run(async |call| call.replace(entry).await)
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.run(async move |call| call.claim(version, lease).await)
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.run(async move |call| call.renew(claim, lease).await)
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.run(async move |call| call.release(claim, presented).await)
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        self.run(async move |call| call.commit(claim, entry).await)
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.run(async move |call| call.clear(version).await)
    }

    fn is_durable(&self) -> bool {
        true
    }
}

fn seconds(lease: Duration) -> f64 {
    lease.min(LONGEST_LEASE).as_secs_f64()
}

fn expires_at(_: &Entry) -> Option<SystemTime> {
    None
}
