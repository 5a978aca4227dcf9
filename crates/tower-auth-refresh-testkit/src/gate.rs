//! [`Gate`]: answers that wait until the test lets them go.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

/// Holds answers back until it is opened: see [`TestKit::hold_refreshes`](crate::TestKit::hold_refreshes) and
/// [`TestKit::hold_unauthorized`](crate::TestKit::hold_unauthorized).
///
/// The server has done its work by then: a held refresh has rotated its token. Dropping the gate opens it.
#[must_use = "dropping a gate opens it"]
pub struct Gate {
    bar: Bar,
}

/// The server's side of a gate: what an answer waits at.
#[derive(Clone)]
pub(crate) struct Bar {
    progress: Arc<watch::Sender<Progress>>,
    opens_at: usize,
}

#[derive(Default)]
struct Progress {
    arrived: usize,
    open: bool,
}

impl Gate {
    pub(crate) fn on(bar: Bar) -> Self {
        Self { bar }
    }

    /// Waits until `count` answers have arrived at the gate, since it was made.
    pub async fn arrived(&self, count: usize) {
        self.bar.reached(|progress| progress.arrived >= count).await;
    }

    /// How many answers have arrived at the gate, since it was made.
    #[must_use]
    pub fn count(&self) -> usize {
        self.bar.progress.borrow().arrived
    }

    /// Lets them go, and all that come later.
    pub fn open(self) {}
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.bar.progress.send_modify(|progress| progress.open = true);
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl Bar {
    pub(crate) fn new() -> Self {
        Self::opening_at(usize::MAX)
    }

    /// Opens by itself when so many have arrived.
    pub(crate) fn opening_at(count: usize) -> Self {
        Self { progress: Arc::default(), opens_at: count }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.progress.borrow().open
    }

    pub(crate) async fn pass(&self) {
        self.progress.send_modify(|progress| {
            progress.arrived += 1;
            progress.open |= progress.arrived >= self.opens_at;
        });
        self.reached(|progress| progress.open).await;
    }

    async fn reached(&self, enough: impl FnMut(&Progress) -> bool) {
        // The sender is `self`'s own, so it can't be gone.
        let _ = self.progress.subscribe().wait_for(enough).await;
    }
}
