//! Stores in PostgreSQL, on servers that the tests start.

mod conformance;
mod server;

use std::sync::atomic::{AtomicUsize, Ordering};

use self::server::{Server, shared};

/// Returns the URL of a new namespace on the shared server, in which the table has been made. `None` if there is no server.
async fn new_url() -> Option<String> {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    let server = shared().await?;
    Some(format!("{}#{}", server.url(), LAST.fetch_add(1, Ordering::Relaxed)))
}
