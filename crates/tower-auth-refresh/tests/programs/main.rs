//! Programs against the public API, written as a user of the crates would write them.
//!
//! Each file can be copied: a program first, then its tests over real sockets.

#![expect(clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]
#![expect(unreachable_pub, reason = "the programs' items are public where those of a library would be")]

#[cfg(feature = "serde")]
mod database_store;
mod gateway;
mod refresh_service;
mod sdk;
mod websocket;
