//! [`StoreErrors`]: calls to the store that fail.

use std::sync::atomic::AtomicU64;

use super::{Exposition, increment};

/// The operations of a store.
const OPERATIONS: [&str; 9] = ["load", "insert", "replace", "claim", "renew", "release", "commit", "clear", "extend"];

/// An operation of a store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StoreOperation {
    Load,
    Insert,
    Replace,
    Claim,
    Renew,
    Release,
    Commit,
    Clear,
    Extend,
}

#[derive(Debug, Default)]
pub(crate) struct StoreErrors([AtomicU64; OPERATIONS.len()]);

impl StoreErrors {
    pub(crate) fn count(&self, operation: StoreOperation) {
        increment(&self.0[operation as usize]);
    }

    pub(super) fn render(&self, page: &mut Exposition) {
        let help = "Calls to the store that have failed or were given up, by operation.";
        page.labelled("gateway_store_errors_total", help, "operation", &OPERATIONS, &self.0);
    }
}
