//! [`Gates`]: where everything that a session's tasks wait for is held until the schedule opens it.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

/// Where somebody stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Gate {
    /// A call to the store, before it takes effect, and before it is answered.
    Store(&'static str),
    StoreAnswer(&'static str),
    /// The refresh service, before it is ready, before the call reaches the server, and before the answer comes back.
    RefreshReady,
    Refresh,
    RefreshAnswer,
    Revoke,
    /// A caller's client, before it is ready, before a request reaches the API, and before the answer comes back.
    ApiReady(usize),
    Api(usize),
    ApiAnswer(usize),
}

/// How a gate opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pass {
    Go,
    /// What was to be done isn't, or its answer is lost.
    Fail,
    Panic,
    /// The authorization server's own word.
    Reject,
    Misconfigured,
}

/// Clones share their gates.
#[derive(Clone, Default)]
pub(crate) struct Gates(Arc<Mutex<Vec<Closed>>>);

type Closed = (Gate, oneshot::Sender<Pass>);

impl Gates {
    /// Resolves when the schedule opens the gate.
    pub(crate) fn stand_at(&self, gate: Gate) -> oneshot::Receiver<Pass> {
        let (open, opened) = oneshot::channel();
        self.0.lock().unwrap().push((gate, open));
        opened
    }

    pub(crate) async fn pass(&self, gate: Gate) -> Pass {
        let pass = self.stand_at(gate).await;
        if pass == Ok(Pass::Panic) {
            // Without a word on stderr.
            std::panic::resume_unwind(Box::new("as the schedule wants it"));
        }
        pass.unwrap_or(Pass::Fail)
    }

    /// Where somebody stands now.
    pub(crate) fn closed(&self) -> Vec<Gate> {
        let mut gates = self.0.lock().unwrap();
        // Who timed out, or was dropped, stands there no more.
        gates.retain(|(_, open)| !open.is_closed());
        gates.iter().map(|(gate, _)| *gate).collect()
    }

    /// Opens one of those that `closed` named.
    pub(crate) fn open(&self, index: usize, pass: Pass) {
        let (_, open) = self.0.lock().unwrap().remove(index);
        let _ = open.send(pass);
    }
}
