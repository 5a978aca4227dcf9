//! One session's row, and the operations of a store on it.
//!
//! Each is one statement, and a second one only if the first has changed no row: then the row is read, to say why. Versions
//! and claims are made here, so that a statement whose answer was lost is recognized if it is sent again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_postgres::types::{ToSql, Type};
use tower_auth_refresh::Tokens;
use tower_auth_refresh::store::{
    Claim, ClaimId, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, Epoch, InsertOutcome, Presented, Record,
    RecordChanged, StoreFuture, TokenStore, Version,
};

use super::fault::Fault;
use super::link::{Effect, Link, Statement};
use super::schema::{Parameters, Statements, get, unexpected};
use super::{FoundRow, Stores};
use crate::error::{Problem, StoreErrorKind};
use crate::random;
use crate::record::{Codec, hex};
use crate::wiped::Wiped;

/// The time after which a call fails, less than the 5 s that a session waits for it.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// The time that has to be left for another round of a call whose row changes meanwhile.
const ROUND: Duration = Duration::from_millis(500);
const EXECUTE: &str = "failed to execute a statement";
/// The longest lease that is written, so that no time overflows.
const LONGEST_LEASE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A handle on one session's row.
pub(super) struct SessionStore {
    row: Row,
    /// The number of changes that are under way, have failed, or were dropped: they may still take effect.
    unsettled: AtomicUsize,
}

/// The place of one session's row.
#[derive(Clone)]
struct Row {
    stores: Arc<Stores>,
    storage_key: [u8; 32],
}

/// A row as it is found.
struct Found {
    record: Record,
    /// The time until its claim's lease ends; zero if it has none that holds.
    claimed_for: Duration,
}

/// One call on a row, with its deadline.
struct Call<'a> {
    row: &'a Row,
    deadline: Instant,
}

impl SessionStore {
    pub(super) fn new(stores: Arc<Stores>, storage_key: [u8; 32]) -> Self {
        Self { row: Row { stores, storage_key }, unsettled: AtomicUsize::new(0) }
    }

    /// Tells this handle from others on the same row. It is behind an `Arc` for as long as it watches.
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn run<'a, T, F>(&'a self, operation: impl FnOnce(Call<'a>) -> F + Send + 'a) -> StoreFuture<'a, T>
    where
        T: Send + 'a,
        F: Future<Output = Result<T, Problem>> + Send + 'a,
    {
        Box::pin(async move {
            let outcome = match Handle::try_current() {
                Ok(_) => operation(Call::on(&self.row)).await,
                Err(_) => {
                    Err(Problem::new(StoreErrorKind::Misconfigured, "the store was called outside of a tokio runtime"))
                }
            };
            outcome.map_err(|problem| problem.of(self.row.stores.name()).into())
        })
    }

    /// As `run`, for an operation that changes the row.
    fn change<'a, T, F>(&'a self, operation: impl FnOnce(Call<'a>) -> F + Send + 'a) -> StoreFuture<'a, T>
    where
        T: Send + 'a,
        F: Future<Output = Result<T, Problem>> + Send + 'a,
    {
        self.run(move |call| {
            let change = operation(call);
            async {
                self.unsettled.fetch_add(1, Ordering::Relaxed);
                let outcome = change.await;
                if outcome.is_ok() {
                    self.unsettled.fetch_sub(1, Ordering::Relaxed);
                }
                outcome
            }
        })
    }
}

impl<'a> Call<'a> {
    fn on(row: &'a Row) -> Self {
        Self { row, deadline: Instant::now() + CALL_TIMEOUT }
    }

    fn statements(&self) -> &'a Statements {
        &self.row.stores.statements
    }

    async fn execute(
        &self,
        sql: &str,
        parameters: Parameters<'_>,
        effect: Effect,
    ) -> Result<Vec<tokio_postgres::Row>, Fault> {
        let Row { stores, storage_key } = self.row;
        let key = &storage_key[..];
        let mut all: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&key, Type::BYTEA)];
        all.extend_from_slice(parameters);
        stores
            .link_of(storage_key)
            .execute(Statement { sql, parameters: &all, effect, is_prepared: false }, self.deadline)
            .await
    }

    /// Executes a statement that changes a row or none. Returns true if it has changed one.
    async fn change(&self, sql: &str, parameters: Parameters<'_>) -> Result<bool, Problem> {
        let rows = self.execute(sql, parameters, Effect::Repeatable).await;
        Ok(!rows.map_err(|fault| fault.into_problem().while_doing(EXECUTE))?.is_empty())
    }

    fn codec(&self) -> Codec {
        let codec = Codec::new(self.row.storage_key);
        #[cfg(feature = "encryption")]
        let codec = codec.with_keys(self.row.stores.keys.clone());
        codec
    }

    async fn find(&self) -> Result<Option<Found>, Problem> {
        let Row { stores, storage_key } = self.row;
        let rows = read(stores, stores.link_of(storage_key), &[*storage_key], self.deadline).await?;
        self.found(rows.first().and_then(Option::as_deref))
    }

    fn found(&self, row: Option<&tokio_postgres::Row>) -> Result<Option<Found>, Problem> {
        let Some(row) = row else { return Ok(None) };
        let now = get(row, 1)?;
        let version = get::<&[u8]>(row, 3)?;
        let mut bytes = Wiped::from(get::<&[u8]>(row, 4)?.to_vec());
        let name = || format!("key {}", hex(&self.row.storage_key));
        let record = self.codec().decode(&mut bytes).map_err(|problem| problem.while_doing(&name()))?;
        if record.version().as_bytes() != version {
            let problem = Problem::new(StoreErrorKind::Corrupt, "the record is of another version than its row");
            return Err(problem.while_doing(&name()));
        }
        // Of the ends, the row's was extended, and the one in the record wasn't.
        let record = match get(row, 5)? {
            Some(end) => Record::new(record.version().clone(), record.entry().clone().with_expires_at(end)),
            None => record,
        };
        let claimed_until = get::<Option<SystemTime>>(row, 6)?;
        let claimed_for = claimed_until.and_then(|until| until.duration_since(now).ok()).unwrap_or_default();
        Ok(Some(Found { record, claimed_for }))
    }

    async fn load(&self) -> Result<Option<Record>, Problem> {
        Ok(self.find().await?.map(|found| found.record))
    }

    /// Loads the record together with those of other sessions that are loaded at this moment.
    async fn load_gathered(&self) -> Result<Option<Record>, Problem> {
        let Row { stores, storage_key } = self.row;
        let row = stores.reads.read(*storage_key, || {
            let stores = Arc::clone(stores);
            Ok(move |keys: Vec<_>| {
                let stores = Arc::clone(&stores);
                async move {
                    let (link, deadline) = (stores.link_to_read(), Instant::now() + CALL_TIMEOUT);
                    read(&stores, &link, &keys, deadline).await
                }
            })
        });
        Ok(self.found(row.await?.as_deref())?.map(|found| found.record))
    }

    async fn insert(&self, entry: &Entry) -> Result<InsertOutcome, Problem> {
        loop {
            if let Some(version) = self.write(&self.statements().insert, entry).await? {
                return Ok(InsertOutcome::Inserted(version));
            }
            if let Some(record) = self.load().await? {
                return Ok(InsertOutcome::Exists(record));
            }
            self.in_time()?;
        }
    }

    async fn replace(&self, entry: &Entry) -> Result<Version, Problem> {
        loop {
            if let Some(version) = self.write(&self.statements().replace, entry).await? {
                return Ok(version);
            }
            // It was too late by a clock that has been set since: this reads it.
            self.load().await?;
            self.in_time()?;
        }
    }

    /// Writes an entry over no record in particular. If the answer is lost, looks for it instead: another process may have
    /// written since, or signed out.
    async fn write(&self, sql: &str, entry: &Entry) -> Result<Option<Version>, Problem> {
        let number = random::identifier()?;
        let (version, bytes) = (Version::from(number), self.codec().encode(number, entry)?);
        let parameters: Parameters<'_> =
            &[(&version.as_bytes(), Type::BYTEA), (&&bytes[..], Type::BYTEA), (&entry.expires_at(), Type::TIMESTAMPTZ)];
        match self.execute(sql, parameters, Effect::OnceInTime).await {
            Ok(rows) => Ok((!rows.is_empty()).then_some(version)),
            Err(fault @ Fault::Lost(_)) => match self.load().await {
                Ok(Some(record)) if *record.version() == version => Ok(Some(version)),
                _ => Err(fault.into_problem().while_doing(EXECUTE)),
            },
            Err(fault) => Err(fault.into_problem().while_doing(EXECUTE)),
        }
    }

    async fn claim(&self, version: &Version, lease: Duration) -> Result<ClaimOutcome, Problem> {
        let id = ClaimId::from(random::identifier()?);
        let parameters: Parameters<'_> =
            &[(&version.as_bytes(), Type::BYTEA), (&id.as_bytes(), Type::BYTEA), (&seconds(lease), Type::FLOAT8)];
        loop {
            let mut unused = UnusedClaim { row: self.row, claim: Some(Claim::new(version.clone(), id.clone(), false)) };
            let rows = self.execute(&self.statements().claim, parameters, Effect::InTime).await;
            if !matches!(rows, Err(Fault::Lost(_))) {
                // It was granted or it wasn't.
                unused.claim = None;
            }
            let rows = rows.map_err(|fault| fault.into_problem().while_doing(EXECUTE))?;
            if let [row] = &*rows {
                return Ok(ClaimOutcome::Claimed(Claim::new(version.clone(), id, get(row, 0)?)));
            }
            match self.find().await? {
                Some(found) if found.record.version() == version => {
                    if !found.claimed_for.is_zero() {
                        return Ok(ClaimOutcome::Busy { retry_in: found.claimed_for });
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
        self.change(&self.statements().renew, parameters).await
    }

    async fn release(&self, claim: &Claim, presented: Presented) -> Result<(), Problem> {
        let parameters: Parameters<'_> = &[
            (&claim.version().as_bytes(), Type::BYTEA),
            (&claim.id().as_bytes(), Type::BYTEA),
            (&(presented == Presented::InDoubt), Type::BOOL),
        ];
        self.change(&self.statements().release, parameters).await?;
        Ok(())
    }

    async fn commit(&self, claim: &Claim, entry: &Entry) -> Result<CommitOutcome, Problem> {
        let number = random::identifier()?;
        let (version, bytes) = (Version::from(number), self.codec().encode(number, entry)?);
        let parameters: Parameters<'_> = &[
            (&claim.version().as_bytes(), Type::BYTEA),
            (&version.as_bytes(), Type::BYTEA),
            (&&bytes[..], Type::BYTEA),
            (&entry.expires_at(), Type::TIMESTAMPTZ),
        ];
        loop {
            if self.change(&self.statements().commit, parameters).await? {
                return Ok(CommitOutcome::Stored(version));
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
            if self.change(&self.statements().clear, parameters).await? {
                return Ok(ClearOutcome::Cleared);
            }
            match self.load().await? {
                None => return Ok(ClearOutcome::Cleared),
                Some(record) if record.version() != version => return Ok(ClearOutcome::Conflict(record)),
                Some(_) => self.in_time()?,
            }
        }
    }

    async fn extend(&self, version: &Version, expires_at: SystemTime) -> Result<bool, Problem> {
        let parameters: Parameters<'_> = &[(&version.as_bytes(), Type::BYTEA), (&expires_at, Type::TIMESTAMPTZ)];
        self.change(&self.statements().extend, parameters).await
    }

    /// Fails if the call has no time left for another round.
    fn in_time(&self) -> Result<(), Problem> {
        let late = || Problem::new(StoreErrorKind::Unavailable, "the row changes faster than it can be read");
        (Instant::now() + ROUND < self.deadline).then_some(()).ok_or_else(late)
    }
}

/// A claim that may have been granted, and is given back when this is dropped: its token was not presented.
struct UnusedClaim<'a> {
    row: &'a Row,
    claim: Option<Claim>,
}

impl Drop for UnusedClaim<'_> {
    fn drop(&mut self) {
        let Some(claim) = self.claim.take() else { return };
        let row = self.row.clone();
        // On the claim's own connection, so after it. If that connection is gone, the claim is too late by itself.
        self.row.stores.runtime.spawn(async move { Call::on(&row).release(&claim, Presented::Unused).await });
    }
}

impl TokenStore for SessionStore {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        // After a change that may still take effect, on the same connection, so that it is found.
        let is_settled = self.unsettled.load(Ordering::Relaxed) == 0;
        self.run(async move |call| if is_settled { call.load_gathered().await } else { call.load().await })
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.change(async |call| call.insert(entry).await)
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.change(async |call| call.replace(entry).await)
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.change(async move |call| call.claim(version, lease).await)
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.change(async move |call| call.renew(claim, lease).await)
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.change(async move |call| call.release(claim, presented).await)
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        self.change(async move |call| call.commit(claim, entry).await)
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.change(async move |call| call.clear(version).await)
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        // To the millisecond, and not beyond what the column holds.
        let expires_at = Entry::new(Epoch::from(0), 0, Tokens::default()).with_expires_at(expires_at).expires_at();
        self.change(async move |call| call.extend(version, expires_at.unwrap_or(SystemTime::UNIX_EPOCH)).await)
    }

    fn watch(&self, changed: RecordChanged) {
        self.row.stores.push.watch(&self.row.storage_key, self.address(), changed);
    }

    fn is_durable(&self) -> bool {
        true
    }
}

impl Drop for SessionStore {
    fn drop(&mut self) {
        self.row.stores.push.forget(&self.row.storage_key, self.address());
    }
}

/// Reads the rows of keys, in their order.
async fn read(
    stores: &Stores,
    link: &Link,
    keys: &[[u8; 32]],
    deadline: Instant,
) -> Result<Vec<Option<FoundRow>>, Problem> {
    let bytes: Vec<_> = keys.iter().map(|key| &key[..]).collect();
    let parameters: Parameters<'_> = &[(&bytes, Type::BYTEA_ARRAY)];
    let (sql, effect) = (&stores.statements.load, Effect::Repeatable);
    let statement = Statement { sql, parameters, effect, is_prepared: true };
    let failed = |problem: Problem| problem.while_doing("failed to read");
    let rows = link.execute(statement, deadline).await.map_err(|fault| failed(fault.into_problem()))?;
    let any = rows.first().ok_or_else(unexpected)?;
    if get(any, 0)? {
        // It may lag behind: a row that isn't there yet would sign the user out.
        link.leave_standby();
        return Err(failed(Fault::Standby.into_problem()));
    }
    stores.server.set_clock(get(any, 1)?);
    let mut found = HashMap::<[u8; 32], _>::with_capacity(rows.len());
    for row in rows {
        if let Some(key) = get::<Option<&[u8]>>(&row, 2)? {
            found.insert(key.try_into().map_err(|_| unexpected())?, Arc::new(row));
        }
    }
    Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
}

fn seconds(lease: Duration) -> f64 {
    lease.min(LONGEST_LEASE).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_for_a_year_at_most() {
        assert!((seconds(Duration::from_millis(1500)) - 1.5).abs() < f64::EPSILON);
        assert!((seconds(Duration::MAX) - 31_536_000.0).abs() < f64::EPSILON);
    }
}
