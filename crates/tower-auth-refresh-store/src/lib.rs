//! Durable stores for the tokens of [`tower_auth_refresh`], which several processes may share.
//!
//! | store | for | feature |
//! | --- | --- | --- |
//! | [`FileStore`] | a command-line program, a desktop app, services of one host | `file` (default) |
//! | [`RedisStores`] | replicas of a service | `redis` |
//! | [`PostgresStores`] | replicas of a service that has a database | `postgres` |
//!
//! [`operations`] compares what they survive, and says what happens when a store is slow, down, full or restored.
//!
//! With the feature `encryption`, a store encrypts its records: see `Keys`. With the feature `keychain`, the key of a
//! [`FileStore`] is in the keychain of the operating system: see `KeychainKey`.
//!
//! # The files
//!
//! A [`FileStore`] is a directory that only the user may open. For each session it has up to three files, named by a
//! hash of the namespace and the session's key:
//!
//! | file | content |
//! | --- | --- |
//! | `….record` | the tokens. Absent if no user is signed in |
//! | `….claim` | the claim of the process that refreshes them |
//! | `….lock` | nothing: an operation locks it. It is never removed, or two processes could hold the lock at once |
//!
//! - A record is replaced as a whole: a new file is written to the disk, renamed, and the directory written to the
//!   disk. A process or machine that dies at any moment leaves the old record or the new one, and no copy of an old
//!   one. A refresh flushes two files to the disk, and the directory after each.
//! - A claim reserves the disk space for the next record, so that a full disk is noticed before the refresh token is
//!   used up.
//! - If the process that made a claim dies, the next process takes over at once; the refresh token is then in doubt.
//!   Otherwise a claim holds until its lease ends: on Linux by the time since the boot, elsewhere and for a claim of
//!   another host by the wall clock, but never for longer than the lease, if the clock is set back.
//! - A record whose end has passed is deleted by [`FileStore::delete_expired`], and read until then.
//! - A record that is damaged, of a later format, or encrypted with an unknown key is an error. The user stays signed
//!   in until the cause is mended, or the file is removed.
//! - A file or directory that another user owns or may open is refused, as is a symbolic link in the directory. The
//!   directory itself may be a symbolic link that the user or root has made; it is followed once.
//! - A network file system is refused, and with it FUSE, unless [allowed](FileStoreBuilder::allow_network).
//!
//! A directory whose key is in a keychain also has `keychain.id`, the identifier of that key, and `keychain.lock`.
//!
//! On Windows, owners and permissions aren't checked, nor is the file system; a rename is as durable as NTFS makes it;
//! and the next process waits for the lease of a process that died. The crate is compiled, but not tested there.
//!
//! # Redis
//!
//! [`RedisStores`] keeps each session under one key, `tar:` and a hash of the namespace and the session's key. Redis 7 or
//! Valkey is needed.
//!
//! - **Round trips.** A refresh takes two, a claim and a commit, and a first use one; a session in memory takes none. First
//!   uses of up to 128 sessions at the same time share one. All sessions of a process share one connection, and a second
//!   one listens; writes that [wait](RedisStoresBuilder::wait) for replicas have up to 8 more. Each operation is one
//!   script, which the server loads when it needs it.
//! - **Sign-outs and sign-ins** are published on a channel of the namespace, `tar:changed:` and a hash; a sign-out is in
//!   force on the others within 100 ms. A refresh isn't published: the others adopt its tokens when they need some, in
//!   one round trip as well. While the connection that listens is down, sessions find sign-outs by looking. One that is
//!   dead without a sign is noticed within 3 s; when the next one is up, the next use of each session looks.
//! - **Time.** Leases and lifetimes are counted by the server's clock, so that a wrong clock of a process changes neither.
//!   If the clock of the server is set, or a failover changes it, leases end sooner or later by as much. The server
//!   deletes a record at its end.
//! - **Lost answers.** A call whose answer is lost is made again if its script recognizes what the lost call has done. A
//!   new record isn't written again, as it could undo what others have made of it since: it is looked for instead. A call
//!   that arrives after it has failed begins nothing. Each call ends within 4 s; in an outage that has lasted for 4 s,
//!   calls fail at once while the next attempt at a connection is due in at most 1 s.
//! - **Failover.** The name of the host is resolved, or the sentinels are asked, for each connection. A connection is made
//!   anew when it breaks, when an answer takes longer than 1.5 s, and when its server refuses to write, because it is a
//!   replica now (`READONLY`), or is loading. Records are read by a command that a replica refuses (`GETEX`), since one
//!   that lags behind could sign a user out.
//! - **Writes that a failover loses.** Redis acknowledges a write before its replicas have it. A session that knows of
//!   newer tokens than the store writes them back before any are presented; so no user is signed out, unless the process
//!   that has made the refresh is gone too, or another one refreshes first. [`wait`](RedisStoresBuilder::wait) closes
//!   that gap: no refresh token is presented until replicas have its claim, so that the next process waits for its lease,
//!   and the token is in doubt then.
//! - **Full memory.** A claim is refused, like any write that begins something; a commit, and any write that ends
//!   something, is allowed. So a refresh token isn't used up whose successor can't be stored.
//! - **Cluster.** Each operation needs one key only, but `MOVED` is not followed: a cluster works behind a proxy that
//!   follows it, such as Envoy.
//! - **Permissions.** `~tar:* &tar:* +getex +get +set +setrange +del +eval +evalsha +time +publish +subscribe +ping
//!   +wait`, and for [`check`](RedisStores::check) `+info +config|get`.
//!
//! [`check`](RedisStores::check) finds settings that lose sessions (an eviction policy, no file on the disk) and lacking
//! permissions. `appendonly yes` with `appendfsync everysec`, the default, loses the last second in a crash of the
//! machine, as a failover may; `always` loses nothing.
//!
//! | tokens | bytes on the server |
//! | ---: | ---: |
//! | 294 bytes (a JWT of 230 bytes) | 730 |
//! | 864 bytes (a JWT of 800 bytes) | 1,380 |
//! | 1,564 bytes (a JWT of 1,500 bytes) | 2,150 |
//!
//! In the memory of a process a session takes 1.1 KiB, its tokens of 294 bytes included.
//!
//! # PostgreSQL
//!
//! [`PostgresStores`] keeps each session in one row of a table, by a hash of the namespace and the session's key.
//!
//! - **Round trips.** A refresh takes two, a claim and a commit, and a first use one; a session in memory takes none. Each
//!   is one statement in a transaction of its own; first uses of up to 128 sessions at the same time share one. No
//!   connection or lock is held while the authorization server is called.
//! - **Connections.** A process has at most 4, or as [set](PostgresStoresBuilder::connections), each made at its first use,
//!   and one that listens. All sessions share them, and statements don't wait for each other's answers to be sent. One
//!   that answers nothing for 2 s is replaced. If the old one doesn't end by itself, it is closed within a minute, and
//!   its statements are cancelled before. Until then it counts: old and new ones together are at most twice as many.
//! - **Poolers.** pgbouncer may be in between, in transaction mode: statements are not prepared, and leave nothing behind in
//!   their connection. [`listen_url`](PostgresStoresBuilder::listen_url) is then the server's own.
//! - **Direct connections.** There is no pooler in between if the server sees the addresses and ports of the connection's
//!   own two ends and, without TLS, its process is the one that the connection began with. The statement that reads is
//!   prepared then, after a connection's first read, and `plan_cache_mode`, `enable_seqscan` and `jit` are set for the
//!   connection. Behind a proxy or a translation of addresses, over a socket of the file system, and with TLS on
//!   a loopback address, it isn't: first uses one at a time then have two thirds of the throughput.
//! - **Sign-outs** are pushed to the other processes by `NOTIFY`, in the statement that deletes the record: nothing else
//!   is, since `NOTIFY` takes a lock on the whole server when it commits. A sign-in over another process's record is found
//!   by looking, as are sign-outs while the connection that listens is down; when it is up again, the next use of each
//!   session looks.
//! - **Time** is the server's. A process whose clock is wrong neither shortens nor prolongs a lease.
//! - **Lost answers.** A statement whose answer is lost is sent again if that can't undo what others have done since: the
//!   versions and claims that it writes are made by the client, and recognized. One that arrives after its call has failed
//!   does nothing, if it would begin something. Each call ends within 4 s, of which it spends as many as it takes on
//!   reconnecting.
//! - **Failover.** Of several hosts in the URL, the one that can be written to is used; a standby is never read from. A
//!   failover that loses the last commits is noticed by the sessions that know of newer tokens, which write them back. With
//!   `synchronous_standby_names` set, no refresh token is presented until the standby has its claim, so none can be lost.
//! - **Full disks.** A claim writes the record again, so that it takes as much space and the same privileges as the commit
//!   will. It can't reserve the space, which other writers may take meanwhile: then the commit is repeated, as after other
//!   failures, and its claim is prolonged.
//! - **Secrets.** A server that logs statements with their values (`log_statement`, `log_min_duration_statement`) logs the
//!   tokens. With `Keys` they are encrypted in the log, as in the table and in the write-ahead log.
//!
//! The table is made by [`migrate`](PostgresStores::migrate), or by the statements of [`sql`](PostgresStores::sql).
//! [`check`](PostgresStores::check) finds settings that lose tokens in a crash (`fsync`, `synchronous_commit`, an unlogged
//! table), missing columns and privileges, and row security. A managed server whose commits survive a crash without
//! `fsync` is [accepted](PostgresStoresBuilder::allow_fsync_off) if the program says so.
//! [`delete_expired`](PostgresStores::delete_expired) sweeps.
//!
//! | record | bytes in the table, its indexes and its TOAST table, after some refreshes |
//! | ---: | ---: |
//! | 350 bytes (opaque tokens) | 1,000 |
//! | 1,050 bytes (a JWT of 800 bytes) | 2,360 |
//! | 1,750 bytes (a JWT of 1,500 bytes) | 4,230 |
//!
//! In the memory of a process a session takes 1.1 KiB, its tokens of 300 bytes included.
//!
//! The fill factor of 60 leaves room on each page for the next version of a row: 99 % of updates change no index (HOT).
//! The table's own setting has autovacuum begin at 2 % of dead rows, rather than 20 %.
//!
//! # Errors
//!
//! Every failure is a [`StoreError`] with a [`StoreErrorKind`]. Each call ends within 4 s, of which at most 3 s are
//! spent waiting for other processes.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Without a store, the rest has no caller.
#![cfg_attr(not(feature = "_record"), allow(dead_code, reason = "a store uses it"))]

mod error;
#[cfg(feature = "file")]
mod file;
#[cfg(any(feature = "file", feature = "postgres", feature = "redis"))]
mod gather;
#[cfg(feature = "keychain")]
mod keychain;
#[cfg(feature = "encryption")]
mod keys;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "file", feature = "encryption"))]
mod private;
#[cfg(any(feature = "_record", feature = "encryption"))]
mod random;
#[cfg(feature = "_record")]
mod record;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod watchers;
#[cfg(any(feature = "_record", feature = "encryption"))]
mod wiped;

pub use self::error::{StoreError, StoreErrorKind};
#[cfg(feature = "file")]
pub use self::file::{FileStore, FileStoreBuilder};
#[cfg(feature = "keychain")]
pub use self::keychain::KeychainKey;
#[cfg(feature = "encryption")]
pub use self::keys::Keys;
#[cfg(feature = "postgres")]
pub use self::postgres::{PostgresStores, PostgresStoresBuilder};
#[cfg(feature = "redis")]
pub use self::redis::{RedisStores, RedisStoresBuilder};

#[doc = include_str!("operations.md")]
pub mod operations {}

/// The README's example, compiled.
#[cfg(all(doctest, feature = "file"))]
#[doc = include_str!("../README.md")]
mod readme {}
