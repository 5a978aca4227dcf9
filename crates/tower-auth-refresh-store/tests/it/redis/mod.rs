//! Stores in Redis, on servers that the tests start.

mod conformance;
mod cost;
mod failover;
mod faults;
mod limits;
mod model;
mod push;
mod scripted;
#[cfg(all(feature = "encryption", unix))]
mod secrets;
mod server;

pub(crate) use self::server::Server;
