//! Stores in Redis, on servers that the tests start.

mod conformance;
mod cost;
mod faults;
mod push;
mod server;

pub(crate) use self::server::Server;
