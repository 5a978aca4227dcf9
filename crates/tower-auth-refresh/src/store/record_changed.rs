//! [`RecordChanged`]: the way from a store that pushes changes to its session.

use std::fmt;
use std::sync::Arc;

use crate::session::RecordWatch;

/// A handle by which a store reports that another process has changed the record.
///
/// A store receives it by [`watch`](crate::TokenStore::watch). It is one word, cheap to clone, and keeps no session in
/// memory. Once the session is gone, its calls do nothing. They may be made from any thread, and outside of a runtime.
#[derive(Clone)]
pub struct RecordChanged {
    watch: Arc<RecordWatch>,
}

impl RecordChanged {
    pub(crate) fn new(watch: Arc<RecordWatch>) -> Self {
        Self { watch }
    }

    /// Has the session look at the store again: another process has deleted or written the record.
    ///
    /// The look is made in the background, on the session's runtime, as by [`Session::recheck`](crate::Session::recheck).
    /// A [registry](crate::SessionRegistry::get) that is asked for the session waits for the look.
    pub fn notify(&self) {
        self.watch.look();
    }

    /// Has the next use of the session look at the store first: changes may have been missed.
    ///
    /// The session reads nothing until a [registry](crate::SessionRegistry::get) is asked for it. One that is in no registry
    /// looks at once, as after [`notify`](Self::notify).
    pub fn mark_stale(&self) {
        self.watch.mark_stale();
    }
}

impl fmt::Debug for RecordChanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordChanged").finish_non_exhaustive()
    }
}
