//! Stores in PostgreSQL, on servers that the tests start.

mod conformance;
mod cost;
mod deployment;
mod failover;
mod faults;
mod pooler;
mod prepared;
mod push;
mod rounds;
#[cfg(feature = "encryption")]
mod secrets;
mod server;
mod space;

use std::sync::atomic::{AtomicUsize, Ordering};

use self::server::shared;

/// Returns a namespace that no other test has.
fn new_namespace() -> String {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    LAST.fetch_add(1, Ordering::Relaxed).to_string()
}

/// Returns the URL of a new namespace on the shared server. `None` if there is no server.
pub(crate) async fn new_url() -> Option<String> {
    Some(format!("{}#{}", shared().await?.url(), new_namespace()))
}
