//! [`Gate`]: holds responses back until the test releases them.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

/// Holds responses back until the gate is opened or dropped.
///
/// Gates are made by [`TestKit::hold_refreshes`](crate::TestKit::hold_refreshes) and
/// [`TestKit::hold_unauthorized`](crate::TestKit::hold_unauthorized). A held request has been processed already: a
/// held refresh has rotated its token.
///
/// ```
/// # use bytes::Bytes;
/// # use http::Request;
/// # use http_body_util::Full;
/// # use tower::ServiceExt;
/// # use tower_auth_refresh_testkit::TestKit;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let kit = TestKit::new();
/// let gate = kit.hold_unauthorized();
/// let request = Request::get("/api/notes").body(Full::<Bytes>::default())?;
/// let call = tokio::spawn(kit.clone().oneshot(request));
///
/// gate.arrived(1).await;
/// // The server has refused the request, and the client still waits for the response.
/// gate.open();
/// assert_eq!(call.await??.status(), 401);
/// # Ok(()) }
/// ```
#[must_use = "dropping a gate opens it"]
pub struct Gate {
    bar: Bar,
}

/// The server's side of a gate, at which responses wait.
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

    /// Waits until `count` responses have arrived since the gate was made.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect on the gate.
    pub async fn arrived(&self, count: usize) {
        self.bar.reached(|progress| progress.arrived >= count).await;
    }

    /// Returns the number of responses that have arrived since the gate was made.
    #[must_use]
    pub fn count(&self) -> usize {
        self.bar.progress.borrow().arrived
    }

    /// Releases the held responses. Later responses aren't held.
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

    /// Makes a bar that opens when `count` responses have arrived.
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
        // Can't fail: `self` holds the sender.
        let _ = self.progress.subscribe().wait_for(enough).await;
    }
}
