//! [`Stores`]: where the tokens of all sessions are kept.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tower_auth_refresh::TokenStore;
use tower_auth_refresh_store::{FileStore, Keys, PostgresStores, RedisStores, StoreError};

use crate::config::{InvalidSetting, Settings, Store};
use crate::cookie::SessionId;
use crate::problem::chain;

/// The time between two deletions of expired records.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The namespace of the gateway's records, so that other programs may use the same store.
const NAMESPACE: &str = "gateway";

/// An opened and tested store, which makes a handle for each session.
pub(crate) enum Stores {
    File(FileStore),
    Redis(RedisStores),
    Postgres(PostgresStores),
}

impl Stores {
    /// Opens the store and tests that it is safe to use; `None` if the tokens are kept in memory.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if the keys can't be read, if the store can't be reached, or if it is set up unsafely.
    pub(crate) async fn open(settings: &Settings) -> Result<Option<Self>, InvalidSetting> {
        Self::connect(settings, true).await
    }

    /// Tests the store like [`open`](Self::open), but makes nothing that is absent.
    pub(crate) async fn check(settings: &Settings) -> Result<(), InvalidSetting> {
        Self::connect(settings, false).await.map(drop)
    }

    /// Opens and tests the store. If `makes`, an absent directory or table is made.
    async fn connect(settings: &Settings, makes: bool) -> Result<Option<Self>, InvalidSetting> {
        let keys = settings.store_keys.as_ref().map(Keys::from_file).transpose();
        let keys = keys.map_err(|error| InvalidSetting::of("--store-keys", chain(&error)))?;
        let store = match &settings.store {
            Store::Memory => return Ok(None),
            Store::File(directory) if !makes && !directory.exists() => {
                let reason = format!("{}: absent: the first start makes it", directory.display());
                return Err(InvalidSetting::of("--store", reason));
            }
            Store::File(directory) => Self::open_files(directory, keys).await,
            Store::Redis(url) => Self::connect_to_redis(url, keys).await,
            Store::Postgres(url) => Self::connect_to_postgres(url, keys, settings.store_allow_fsync_off, makes).await,
        };
        store.map(Some).map_err(|error| InvalidSetting::of("--store", chain(&error)))
    }

    async fn open_files(directory: &Path, keys: Option<Keys>) -> Result<Self, StoreError> {
        let mut builder = FileStore::builder(directory).namespace(NAMESPACE);
        if let Some(keys) = keys {
            builder = builder.keys(keys);
        }
        let files = builder.open()?;
        files.check().await?;
        Ok(Self::File(files))
    }

    async fn connect_to_redis(url: &str, keys: Option<Keys>) -> Result<Self, StoreError> {
        let mut builder = RedisStores::builder(url).namespace(NAMESPACE);
        if let Some(keys) = keys {
            builder = builder.keys(keys);
        }
        let redis = builder.connect().await?;
        redis.check().await?;
        Ok(Self::Redis(redis))
    }

    async fn connect_to_postgres(
        url: &str,
        keys: Option<Keys>,
        allow_fsync_off: bool,
        makes: bool,
    ) -> Result<Self, StoreError> {
        let mut builder = PostgresStores::builder(url).namespace(NAMESPACE);
        if allow_fsync_off {
            builder = builder.allow_fsync_off();
        }
        if let Some(keys) = keys {
            builder = builder.keys(keys);
        }
        let postgres = builder.connect().await?;
        // Another user may have made the table: this one needs no right to make one then.
        if let Err(error) = postgres.check().await {
            if !makes {
                return Err(error);
            }
            // A server that is refused gets no table.
            postgres.check_server().await?;
            postgres.migrate().await?;
            postgres.check().await?;
        }
        Ok(Self::Postgres(postgres))
    }

    /// Deletes the records of expired sessions from time to time, until it is dropped.
    pub(crate) async fn sweep(&self) -> Infallible {
        loop {
            sleep(SWEEP_INTERVAL).await;
            let deleted = match self {
                Self::File(files) => files.delete_expired().await,
                // Redis deletes them by itself.
                Self::Redis(_) => Ok(0),
                Self::Postgres(postgres) => postgres.delete_expired().await,
            };
            match deleted {
                Ok(0) => {}
                Ok(records) => tracing::info!(records, "expired sessions deleted"),
                Err(error) => tracing::warn!(error = %chain(&error), "deleting expired sessions failed"),
            }
        }
    }

    /// Returns a handle on the tokens of one session.
    pub(crate) fn store(&self, id: SessionId) -> Arc<dyn TokenStore> {
        match self {
            Self::File(files) => files.store(id.as_bytes()),
            Self::Redis(redis) => redis.store(id.as_bytes()),
            Self::Postgres(postgres) => postgres.store(id.as_bytes()),
        }
    }
}
