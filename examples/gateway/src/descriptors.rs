//! File descriptors: each connection takes one, and the operating system limits their number.

use rustix::process::{Resource, getrlimit};

/// The descriptors of a process without a limit.
const UNLIMITED: u64 = 1 << 20;

/// Descriptors for the listener, the runtime, the log and the store.
const RESERVED: usize = 16;

/// Returns the number of clients' connections that may be open. The other half of the descriptors is kept for the
/// upstream and the authorization server.
pub(crate) fn for_connections() -> usize {
    (limit() / 2).saturating_sub(RESERVED).max(1)
}

/// Returns the number of requests that may be proxied, each on a connection to the upstream. A quarter of the descriptors
/// is kept for the authorization server.
pub(crate) fn for_requests() -> usize {
    (limit() / 4).max(1)
}

/// Returns the maximum number of descriptors.
pub(crate) fn limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED);
    usize::try_from(limit.min(UNLIMITED)).unwrap_or(usize::MAX)
}
