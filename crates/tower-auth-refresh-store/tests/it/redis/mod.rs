//! Stores in Redis, on servers that the tests start.

mod conformance;
mod server;

pub(crate) use self::server::Server;
