//! Durable stores for the tokens of [`tower_auth_refresh`], which several processes may share.
//!
//! | store | for | feature |
//! | --- | --- | --- |
//! | [`FileStore`] | a command-line program, a desktop app, services of one host | `file` (default) |
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
#[cfg(feature = "postgres")]
mod watchers;

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

/// The README's example, compiled.
#[cfg(all(doctest, feature = "file"))]
#[doc = include_str!("../README.md")]
mod readme {}
