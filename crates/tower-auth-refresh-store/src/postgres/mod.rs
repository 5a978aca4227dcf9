//! [`PostgresStores`]: tokens in a table of PostgreSQL, which the replicas of a service share.

mod fault;
mod link;
mod prepared;
mod push;
mod schema;
mod server;
mod session;
mod stream;
mod tls;
mod url;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use tower_auth_refresh::store::TokenStore;

use self::link::{Effect, Link, Reading, Statement};
use self::push::Push;
use self::schema::{DEFAULT_TABLE, Parameters, Statements, Table};
use self::server::{Connected, Server};
use self::session::SessionStore;
use self::url::Address;
use crate::error::{Problem, StoreError, StoreErrorKind};
use crate::gather::Gather;
#[cfg(feature = "encryption")]
use crate::keys::Keys;
use crate::record::storage_key;

const DEFAULT_CONNECTIONS: usize = 4;
/// The time for the first connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for each connection that [`PostgresStores::check`] tries.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(60);

/// A table of PostgreSQL that holds the tokens of many sessions (feature `postgres`).
///
/// The replicas of a service use it at once: one of them refreshes, the others adopt its tokens. See [the crate's
/// documentation](crate#postgresql). Clones share their connections.
///
/// ```no_run
/// # use tower_auth_refresh::{RefreshService, Session, SessionRegistry};
/// # use tower_auth_refresh_store::PostgresStores;
/// # async fn example(refresh: impl RefreshService + Clone) -> Result<(), tower::BoxError> {
/// let stores = PostgresStores::connect("postgres://gateway:secret@db.internal/auth").await?;
/// stores.migrate().await?;
/// stores.check().await?;
/// let sessions = SessionRegistry::builder(Session::builder(refresh))
///     .store_factory(move |user: &String| stores.store(user))
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PostgresStores {
    stores: Arc<Stores>,
}

/// A [`PostgresStores`] that is being set up.
#[derive(Clone)]
#[must_use]
pub struct PostgresStoresBuilder {
    url: String,
    table: String,
    namespace: String,
    connections: usize,
    listen_url: Option<String>,
    allows_fsync_off: bool,
    #[cfg(feature = "encryption")]
    keys: Option<Keys>,
}

/// The reads that share a statement. A statement takes longer than one more row in it does, most of all if it is planned.
const READS_A_STATEMENT: usize = 128;

/// The statements under way while which further reads are gathered.
const READING_STATEMENTS: usize = 2;

/// A row of a session, for each call that reads it at the same time.
type FoundRow = Arc<tokio_postgres::Row>;

/// Reads of rows by their keys.
type Reads = Gather<[u8; 32], Option<FoundRow>, Problem>;

/// The part that all sessions' stores share.
struct Stores {
    server: Arc<Server>,
    links: Vec<Link>,
    reads: Reads,
    table: Table,
    statements: Statements,
    namespace: String,
    allows_fsync_off: bool,
    #[cfg(feature = "encryption")]
    keys: Option<Keys>,
    push: Push,
    runtime: Handle,
}

impl PostgresStores {
    /// Connects to a database with the default settings.
    ///
    /// # Errors
    ///
    /// Those of [`PostgresStoresBuilder::connect`].
    pub async fn connect(url: impl Into<String>) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Sets up stores in a database, by a URL as libpq has it: `postgres://user:password@host:port/database`.
    ///
    /// Several hosts are separated by commas; the primary among them is used. The parameters `application_name`,
    /// `connect_timeout` (default: 1 s for an address), `options`, `sslmode` and `sslrootcert` follow libpq, with two
    /// differences, for a connection that isn't verified may be another server's:
    ///
    /// - `sslmode=require` verifies the server's certificate and its name, as `verify-full` does, and is the default for
    ///   all hosts but this one. `verify-ca` leaves out the name, `disable` is without TLS, `prefer` and `allow` are errors.
    /// - Without `sslrootcert`, a PEM file, the authorities are those of Mozilla's list.
    pub fn builder(url: impl Into<String>) -> PostgresStoresBuilder {
        PostgresStoresBuilder {
            url: url.into(),
            table: DEFAULT_TABLE.into(),
            namespace: String::new(),
            connections: DEFAULT_CONNECTIONS,
            listen_url: None,
            allows_fsync_off: false,
            #[cfg(feature = "encryption")]
            keys: None,
        }
    }

    /// Returns the store of one session, by its key. Sends nothing.
    ///
    /// # Cancel safety
    ///
    /// A call of the store that is dropped may still take effect. A claim then holds until its lease ends.
    #[must_use]
    pub fn store(&self, key: impl AsRef<[u8]>) -> Arc<dyn TokenStore> {
        let storage_key = storage_key(&self.stores.namespace, key.as_ref());
        Arc::new(SessionStore::new(Arc::clone(&self.stores), storage_key))
    }

    /// Makes the table if there is none, by the statements of [`sql`](Self::sql).
    ///
    /// Several processes may call it at the same time. If the table exists, no privilege is needed.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](StoreErrorKind::Misconfigured) if the user may not make tables.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let stores = &self.stores;
        aside(&stores.server, MIGRATE_TIMEOUT, async |client| schema::migrate(client, &stores.table).await).await
    }

    /// Returns the statements that make the table, for an operator to execute.
    #[must_use]
    pub fn sql(&self) -> String {
        self.stores.table.sql()
    }

    /// Tests the version and the settings of the server, as [`check`](Self::check) does, without the table.
    ///
    /// A program that makes the table may call it before [`migrate`](Self::migrate), which looks at no setting.
    ///
    /// # Errors
    ///
    /// The first thing that is unsafe or doesn't work.
    pub async fn check_server(&self) -> Result<(), StoreError> {
        let stores = &self.stores;
        let check = async |client: &Client| schema::check_server(client, stores.allows_fsync_off).await;
        aside(&stores.server, CHECK_TIMEOUT, check).await
    }

    /// Tests that the database can be used: version, settings, table and privileges; and that a connection can listen.
    ///
    /// A program may call it at its start, and show the error, which says how to mend it.
    ///
    /// # Errors
    ///
    /// The first thing that is unsafe or doesn't work.
    pub async fn check(&self) -> Result<(), StoreError> {
        let stores = &self.stores;
        let check = async |client: &Client| schema::check(client, &stores.table, stores.allows_fsync_off).await;
        aside(&stores.server, CHECK_TIMEOUT, check).await?;
        stores.push.check().await
    }

    /// Deletes the records whose end has passed, and returns their number.
    ///
    /// Each replica may call it from time to time, such as once an hour: one at a time deletes, the others return 0.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, some records have been deleted.
    pub async fn delete_expired(&self) -> Result<u64, StoreError> {
        self.stores.delete_expired().await.map_err(|problem| problem.of(self.stores.name()))
    }
}

impl PostgresStoresBuilder {
    /// Keeps the sessions apart from those of other programs that use the table. Default: none.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Sets the table, `name` or `schema.name`, of small letters, digits and underscores. Default: `tower_auth_refresh`.
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = table.into();
        self
    }

    /// Sets the number of connections, which all sessions share. Default: 4, each opened at its first use.
    ///
    /// A connection that answers nothing for 2 s is replaced, and closed within a minute if it doesn't end by itself.
    /// Until then, twice as many may be open. If none of those answers, calls fail.
    pub fn connections(mut self, connections: NonZeroUsize) -> Self {
        self.connections = connections.get();
        self
    }

    /// Sets the URL of the connection on which sign-outs by other processes arrive. Default: the stores' own URL.
    ///
    /// A pooler in transaction mode, such as pgbouncer's, passes statements on, but no notifications. If the stores' URL is
    /// that of a pooler, this one is the server's. Without it, sessions find sign-outs by looking, within the registry's
    /// [`recheck`](tower_auth_refresh::registry::SessionRegistryBuilder::recheck).
    pub fn listen_url(mut self, url: impl Into<String>) -> Self {
        self.listen_url = Some(url.into());
        self
    }

    /// Has [`check`](PostgresStores::check) accept a server without `fsync`.
    ///
    /// Default: `fsync = off` and `full_page_writes = off` are errors. With this, neither is looked at.
    ///
    /// On a server with a disk of its own, a crash then loses tokens. A managed server, such as Neon's, may have these
    /// settings and be safe, since its commits wait for other storage. Everything else is still tested,
    /// `synchronous_commit` as well.
    pub fn allow_fsync_off(mut self) -> Self {
        self.allows_fsync_off = true;
        self
    }

    /// Encrypts the records with the first of these keys. Default: they are in clear (feature `encryption`).
    #[cfg(feature = "encryption")]
    pub fn keys(mut self, keys: Keys) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Connects to the database. Later connections are made on the same `tokio` runtime.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](StoreErrorKind::Misconfigured) if the URL or the table's name can't be read, or the server refuses
    /// the credentials or isn't the one that its certificate has to name;
    /// [`Unavailable`](StoreErrorKind::Unavailable) if there is no primary to be reached.
    pub async fn connect(self) -> Result<PostgresStores, StoreError> {
        let unreadable = |problem: Problem| problem.of("the URL of PostgreSQL");
        let address = Address::parse(&self.url).map_err(unreadable)?;
        let name = address.name.clone();
        let table = Table::parse(&self.table).map_err(|problem| problem.of(&*name))?;
        let server = Server::new(address, self.connections).map_err(|problem| problem.of(&*name))?;
        let outside = |_| Problem::new(StoreErrorKind::Misconfigured, "there is no tokio runtime").of(&*name);
        let runtime = Handle::try_current().map_err(outside)?;
        let links: Vec<_> = (0..self.connections).map(|_| Link::new(Arc::clone(&server), &runtime)).collect();
        links[0].open(Instant::now() + CONNECT_TIMEOUT).await.map_err(|problem| problem.of(&*name))?;
        let listened = match &self.listen_url {
            Some(url) => {
                let address = Address::parse(url).map_err(|problem| problem.of("the URL to listen at"))?;
                Server::new(address, 1).map_err(|problem| problem.of(&*name))?
            }
            None => Arc::clone(&server),
        };
        let stores = Stores {
            push: Push::new(listened, table.channel(), runtime.clone()),
            server,
            reads: Reads::new(READS_A_STATEMENT, READING_STATEMENTS),
            links,
            statements: Statements::new(&table),
            table,
            namespace: self.namespace,
            allows_fsync_off: self.allows_fsync_off,
            #[cfg(feature = "encryption")]
            keys: self.keys,
            runtime,
        };
        Ok(PostgresStores { stores: Arc::new(stores) })
    }
}

impl Stores {
    /// Returns the URL without credentials.
    fn name(&self) -> &str {
        self.server.name()
    }

    /// Returns the connection of a session. It is always the same one, so that statements are executed in order, those of
    /// calls that were dropped too.
    fn link_of(&self, storage_key: &[u8; 32]) -> &Link {
        &self.links[usize::from(storage_key[31]) % self.links.len()]
    }

    /// Returns the connection for gathered reads: the first of those with the fewest, so that few reads stay on one, whose
    /// server process then has all that it needs in the processor's caches. What was written before is found on any.
    fn link_to_read(&self) -> Reading<'_> {
        let fewest = self.links.iter().min_by_key(|link| link.reads());
        Reading::on(fewest.unwrap_or(&self.links[0]))
    }

    async fn delete_expired(&self) -> Result<u64, Problem> {
        /// Few enough for other statements to pass between two batches.
        const BATCH: u16 = 500;
        let mut deleted = 0;
        loop {
            let deadline = Instant::now() + CONNECT_TIMEOUT;
            let (sql, parameters): (_, Parameters<'_>) =
                (&self.statements.delete_expired, &[(&i64::from(BATCH), Type::INT8)]);
            let rows = self.links[0]
                .execute(Statement { sql, parameters, effect: Effect::Repeatable, is_prepared: false }, deadline)
                .await;
            let batch =
                rows.map_err(|fault| fault.into_problem().while_doing("failed to delete expired records"))?.len();
            deleted += batch as u64;
            if batch < usize::from(BATCH) {
                return Ok(deleted);
            }
        }
    }
}

/// Runs an operation on a connection of its own.
async fn aside<T>(
    server: &Server,
    time: Duration,
    operation: impl AsyncFnOnce(&Client) -> Result<T, Problem>,
) -> Result<T, StoreError> {
    let run = async {
        let Connected { client, driver, .. } = server.connect(time / server.hosts()).await?;
        tokio::select! {
            outcome = operation(&client) => outcome,
            _ = driver => Err(Problem::new(StoreErrorKind::Unavailable, "the connection was closed")),
        }
    };
    let late = |_| Problem::new(StoreErrorKind::Unavailable, "the server doesn't answer");
    timeout(time, run).await.map_err(late).and_then(|outcome| outcome).map_err(|problem| problem.of(server.name()))
}

impl fmt::Debug for PostgresStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stores { push, .. } = &*self.stores;
        f.debug_struct("PostgresStores")
            .field("database", &self.stores.name())
            .field("watched", &push.watched())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PostgresStoresBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL has a password.
        f.debug_struct("PostgresStoresBuilder").field("table", &self.table).finish_non_exhaustive()
    }
}
