//! File descriptors: each connection takes one, and the operating system limits their number.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::server::Limits;

/// The descriptors of a process without a limit.
const UNLIMITED: u64 = 1 << 20;

/// The most that the limit is raised to by itself: the limits of memory that follow from it suit a machine of some GiB.
const MAX_RAISED: u64 = 65_536;

/// Descriptors for the listeners, the runtime, the log, the store and the connections to the admin listener.
const RESERVED: usize = 16 + Limits::ADMIN_CONNECTIONS;

/// Raises the soft limit of descriptors to the hard limit, or to 65,536 if that is less, and logs it.
///
/// The soft limit is low by default, 1,024, for programs that use `select(2)`.
pub fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(soft) = current else { return };
    let raised = maximum.unwrap_or(UNLIMITED).min(MAX_RAISED);
    if raised <= soft {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        Ok(()) => tracing::info!(from = soft, to = raised, "limit of file descriptors raised"),
        Err(error) => tracing::warn!(%error, limit = soft, "the limit of file descriptors could not be raised"),
    }
}

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
