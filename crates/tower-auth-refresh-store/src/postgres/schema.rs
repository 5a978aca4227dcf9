//! The table: how it is made, checked, and swept.

use std::fmt;

use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row};

use super::fault::fault_of;
use crate::error::{Problem, StoreErrorKind};

pub(super) const DEFAULT_TABLE: &str = "tower_auth_refresh";

/// The oldest version of the server, as it writes it.
const OLDEST: i32 = 120_000;

const COLUMNS: [(&str, &str); 8] = [
    ("key", "bytea"),
    ("version", "bytea"),
    ("record", "bytea"),
    ("claim", "bytea"),
    ("claimed_until", "timestamp with time zone"),
    ("in_doubt", "boolean"),
    ("expires_at", "timestamp with time zone"),
    ("expires_on", "date"),
];

/// The longest name of a table or schema.
const LONGEST_NAME: usize = 63;

/// The name of the table, with or without that of its schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    schema: Option<String>,
    name: String,
}

impl Table {
    /// Reads `table` or `schema.table`, of small letters, digits and underscores.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let (schema, name) = text.split_once('.').map_or((None, text), |(schema, name)| (Some(schema), name));
        let is_name = |name: &str| {
            let mut bytes = name.bytes();
            (1..=LONGEST_NAME).contains(&name.len())
                && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
                && !name.starts_with(|first: char| first.is_ascii_digit())
        };
        if !schema.into_iter().chain([name]).all(is_name) {
            let reason = format!(
                "the table's name isn't 1 to {LONGEST_NAME} small letters, digits and underscores, after a schema and \
                 '.' or none"
            );
            return Err(Problem::new(StoreErrorKind::Misconfigured, reason));
        }
        Ok(Self { schema: schema.map(Into::into), name: name.into() })
    }

    /// Returns the channel on which sign-outs are published.
    pub(super) fn channel(&self) -> &str {
        &self.name
    }

    /// Returns the statements that make the table.
    ///
    /// Each update of a row leaves an old version of it behind. The fill factor leaves room for the next one on the same
    /// page, where the next update removes the old one and no index changes (a HOT update): therefore the index is on the
    /// day of the end, which seldom changes, and not on the end.
    pub(super) fn sql(&self) -> String {
        let index = format!("{}_expires_on", self.name.get(..LONGEST_NAME - 11).unwrap_or(&self.name));
        format!(
            "CREATE TABLE IF NOT EXISTS {self} (
    key bytea PRIMARY KEY,
    version bytea NOT NULL,
    record bytea NOT NULL,
    claim bytea,
    claimed_until timestamptz,
    in_doubt boolean NOT NULL DEFAULT false,
    expires_at timestamptz,
    expires_on date
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX IF NOT EXISTS \"{index}\" ON {self} (expires_on);
"
        )
    }
}

/// The name as it is written in a statement.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "\"{schema}\".")?;
        }
        write!(f, "\"{}\"", self.name)
    }
}

/// The values of a statement's parameters.
pub(super) type Parameters<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// The statements of a store. Each is a transaction of its own, and sent with its parameters, not prepared: but for `load`, on
/// a direct connection.
///
/// - `$1` is the storage key, but of `load`, and `$2` the version that is expected or written.
/// - An update that changes no row is followed by `load` as a statement of its own: within one, it would see the table as it
///   was before the update waited for another.
/// - Time is the server's: `clock_timestamp()`, since `now()` is the beginning of the transaction.
/// - `$5` of those that begin something is the time until when they have an effect: the call has failed by then.
pub(super) struct Statements {
    pub(super) load: String,
    pub(super) insert: String,
    pub(super) replace: String,
    pub(super) claim: String,
    pub(super) renew: String,
    pub(super) release: String,
    pub(super) commit: String,
    pub(super) clear: String,
    pub(super) extend: String,
    pub(super) delete_expired: String,
}

impl Statements {
    pub(super) fn new(table: &Table) -> Self {
        let row = "key, version, record, expires_at, expires_on";
        let values = "$1, $2, $3, $4, ($4 AT TIME ZONE 'UTC')::date";
        let no_claim = "claim = NULL, claimed_until = NULL, in_doubt = false";
        let is_held = "key = $1 AND version = $2 AND claim = $3 AND claimed_until IS NOT NULL";
        let channel = table.channel();
        Self {
            // `$1` are keys. A row for each that is found, in any order, or one without a key: a standby may not have a
            // row, or not any more. As plain as can be: where it isn't prepared, it is parsed and planned each time.
            load: format!(
                "SELECT pg_is_in_recovery(), clock_timestamp(), key, version, record, expires_at, claimed_until
                FROM (VALUES (1)) AS one LEFT JOIN {table} ON key = ANY($1)"
            ),
            insert: format!(
                "INSERT INTO {table} ({row}) SELECT {values} WHERE clock_timestamp() < $5
                ON CONFLICT (key) DO NOTHING RETURNING true"
            ),
            replace: format!(
                "INSERT INTO {table} ({row}) SELECT {values} WHERE clock_timestamp() < $5
                ON CONFLICT (key) DO UPDATE
                SET version = excluded.version, record = excluded.record, {no_claim},
                    expires_at = excluded.expires_at, expires_on = excluded.expires_on
                WHERE clock_timestamp() < $5 RETURNING true"
            ),
            // The record is written again, so that a claim takes as much space as the commit will.
            claim: format!(
                "UPDATE {table}
                SET claim = $3, claimed_until = clock_timestamp() + make_interval(secs => $4), record = record || ''::bytea,
                    in_doubt = CASE WHEN claim = $3 THEN in_doubt ELSE claim IS NOT NULL END
                WHERE key = $1 AND version = $2 AND (claim IS NULL OR claim = $3 OR claimed_until IS NULL
                    OR claimed_until <= clock_timestamp()) AND clock_timestamp() < $5
                RETURNING in_doubt"
            ),
            renew: format!(
                "UPDATE {table} SET claimed_until = clock_timestamp() + make_interval(secs => $4)
                WHERE {is_held} RETURNING true"
            ),
            release: format!(
                "UPDATE {table} SET claim = CASE WHEN in_doubt OR $4 THEN claim END, claimed_until = NULL
                WHERE {is_held} RETURNING true"
            ),
            // If it is repeated, it finds its own version, which a peer may have claimed.
            commit: format!(
                "UPDATE {table}
                SET version = $3, record = $4, expires_at = $5, expires_on = ($5 AT TIME ZONE 'UTC')::date,
                    claim = CASE WHEN version = $3 THEN claim END,
                    claimed_until = CASE WHEN version = $3 THEN claimed_until END,
                    in_doubt = version = $3 AND in_doubt
                WHERE key = $1 AND version IN ($2, $3) RETURNING true"
            ),
            clear: format!(
                "DELETE FROM {table} WHERE key = $1 AND version = $2
                RETURNING pg_notify('{channel}', encode(substr(key, 1, 8), 'hex'))::text"
            ),
            extend: format!(
                "UPDATE {table} SET expires_at = $3, expires_on = ($3 AT TIME ZONE 'UTC')::date
                WHERE key = $1 AND version = $2 RETURNING true"
            ),
            // Of two processes that sweep at once, one does nothing. The lock ends with the statement.
            delete_expired: format!(
                "DELETE FROM {table} WHERE key = ANY(ARRAY(
                    SELECT key FROM {table}
                    WHERE (SELECT pg_try_advisory_xact_lock(hashtext('{channel}'), 2))
                        AND expires_on <= (clock_timestamp() AT TIME ZONE 'UTC')::date
                        AND expires_at <= clock_timestamp()
                    ORDER BY expires_on LIMIT $1 FOR UPDATE SKIP LOCKED))
                RETURNING true"
            ),
        }
    }
}

/// Makes the table if there is none.
pub(super) async fn migrate(client: &Client, table: &Table) -> Result<(), Problem> {
    if exists(client, table).await? {
        return Ok(());
    }
    // One transaction. Two processes that make a table at once would fail, even with `IF NOT EXISTS`.
    let sql = format!("SELECT pg_advisory_xact_lock(hashtext('{}'), 1);\n{}", table.channel(), table.sql());
    client
        .batch_execute(&sql)
        .await
        .map_err(|error| fault_of(&error).into_problem().while_doing("failed to make the table"))
}

/// Finds the first setting that is unsafe. `allows_fsync_off`: the server's disk isn't what survives a crash.
pub(super) async fn check_server(client: &Client, allows_fsync_off: bool) -> Result<(), Problem> {
    let settings = "SELECT current_setting('server_version_num')::int4, current_setting('fsync') = 'on',
        current_setting('full_page_writes') = 'on', current_setting('synchronous_commit') <> 'off', pg_is_in_recovery()";
    let row = one(client, settings, &[]).await?;
    let (version, [fsync, full_page_writes, synchronous_commit, standby]) = (get::<i32>(&row, 0)?, flags(&row, 1)?);
    require(!standby, "the server is a standby")?;
    require(version >= OLDEST, "the server is older than PostgreSQL 12")?;
    for (is_on, setting) in [(fsync, "fsync"), (full_page_writes, "full_page_writes")] {
        let reason = format!(
            "{setting} is off: a crash loses tokens; if the provider's storage survives it nevertheless, see \
             PostgresStoresBuilder::allow_fsync_off"
        );
        require(is_on || allows_fsync_off, &reason)?;
    }
    let reason = "synchronous_commit is off: a crash loses the last tokens; \
                  ALTER ROLE … SET synchronous_commit = on for the store's user";
    require(synchronous_commit, reason)
}

/// Finds the first thing that is unsafe or missing, of the server and the table.
pub(super) async fn check(client: &Client, table: &Table, allows_fsync_off: bool) -> Result<(), Problem> {
    check_server(client, allows_fsync_off).await?;
    require(exists(client, table).await?, &format!("there is no table {table}: see PostgresStores::migrate"))?;
    let table_name = table.to_string();
    let parameters: Parameters<'_> = &[(&table_name, Type::TEXT)];
    let state = "SELECT relpersistence = 'p', row_security_active(oid),
            has_table_privilege(oid, 'SELECT'), has_table_privilege(oid, 'INSERT'),
            has_table_privilege(oid, 'UPDATE'), has_table_privilege(oid, 'DELETE'),
            EXISTS (SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey)
                WHERE indrelid = pg_class.oid AND indisunique AND indnkeyatts = 1 AND attname = 'key')
        FROM pg_class WHERE oid = to_regclass($1)";
    let row = one(client, state, parameters).await?;
    let [permanent, row_security, select, insert, update, delete, unique] = flags(&row, 0)?;
    require(permanent, &format!("{table} is unlogged or temporary: a crash empties it"))?;
    require(!row_security, &format!("row security hides rows of {table}: their users would be signed out"))?;
    for (granted, privilege) in [(select, "SELECT"), (insert, "INSERT"), (update, "UPDATE"), (delete, "DELETE")] {
        require(granted, &format!("the user may not {privilege} on {table}"))?;
    }
    require(unique, &format!("{table} has no unique index on \"key\""))?;
    let columns = "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute
        WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";
    let rows = client.query_typed(columns, parameters).await.map_err(|error| failed(&error))?;
    for column in COLUMNS {
        let is_there = rows.iter().any(|row| (get(row, 0).ok(), get(row, 1).ok()) == (Some(column.0), Some(column.1)));
        require(is_there, &format!("{table} has no column \"{}\" of type {}", column.0, column.1))?;
    }
    Ok(())
}

async fn exists(client: &Client, table: &Table) -> Result<bool, Problem> {
    let row = one(client, "SELECT to_regclass($1) IS NOT NULL", &[(&table.to_string(), Type::TEXT)]).await?;
    get(&row, 0)
}

async fn one(client: &Client, sql: &str, parameters: Parameters<'_>) -> Result<Row, Problem> {
    client.query_typed(sql, parameters).await.map_err(|error| failed(&error))?.pop().ok_or_else(unexpected)
}

fn failed(error: &tokio_postgres::Error) -> Problem {
    fault_of(error).into_problem().while_doing("failed to execute a statement")
}

/// Returns `N` booleans, from a column on.
fn flags<const N: usize>(row: &Row, from: usize) -> Result<[bool; N], Problem> {
    let mut flags = [false; N];
    for (flag, column) in flags.iter_mut().zip(from..) {
        *flag = get(row, column)?;
    }
    Ok(flags)
}

fn require(condition: bool, otherwise: &str) -> Result<(), Problem> {
    if condition { Ok(()) } else { Err(Problem::new(StoreErrorKind::Misconfigured, otherwise)) }
}

/// Returns the value of a column.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, Problem> {
    row.try_get(column).map_err(|_| unexpected())
}

pub(super) fn unexpected() -> Problem {
    Problem::new(StoreErrorKind::Misconfigured, "the server's answer isn't of the table's columns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_named_by_an_identifier_that_needs_no_escapes() {
        for (text, written) in
            [("tokens", "\"tokens\""), ("auth.tokens_2", "\"auth\".\"tokens_2\""), ("select", "\"select\"")]
        {
            assert_eq!(Table::parse(text).unwrap().to_string(), written);
        }
        let long = "t".repeat(64);
        for text in
            ["", ".", "a.", ".a", "a.b.c", "Tokens", "2tokens", "to-kens", "to\"kens", "to kens", "tökens", &long]
        {
            assert!(Table::parse(text).is_err(), "{text}");
        }
    }
}
