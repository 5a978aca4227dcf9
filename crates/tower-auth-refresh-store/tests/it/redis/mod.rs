//! Stores in Redis, on servers that the tests start.

mod conformance;
mod faults;
mod server;

pub(crate) use self::server::Server;
