//! [`Gates`]: suspends everything that a session's tasks wait for until the schedule opens the gate.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

/// A point at which a task is suspended.
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

/// The outcome that the schedule gives to a gated operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Proceed,
    /// The operation isn't done, or its answer is lost.
    Fail,
    Panic,
    /// The authorization server rejects the refresh token.
    Reject,
    Misconfigured,
}

/// Clones share their gates.
#[derive(Clone, Default)]
pub(crate) struct Gates(Arc<Mutex<Vec<Waiting>>>);

type Waiting = (Gate, oneshot::Sender<Outcome>);

impl Gates {
    /// Resolves when the schedule opens the gate.
    pub(crate) fn wait_at(&self, gate: Gate) -> oneshot::Receiver<Outcome> {
        let (open, opened) = oneshot::channel();
        self.0.lock().unwrap().push((gate, open));
        opened
    }

    pub(crate) async fn pass(&self, gate: Gate) -> Outcome {
        let outcome = self.wait_at(gate).await;
        if outcome == Ok(Outcome::Panic) {
            // Skips the panic hook, which would print to stderr.
            std::panic::resume_unwind(Box::new("a panic that the schedule asked for"));
        }
        outcome.unwrap_or(Outcome::Fail)
    }

    /// The gates at which a task waits now.
    pub(crate) fn waiting(&self) -> Vec<Gate> {
        let mut gates = self.0.lock().unwrap();
        // Removes waiters that timed out or were dropped.
        gates.retain(|(_, open)| !open.is_closed());
        gates.iter().map(|(gate, _)| *gate).collect()
    }

    /// Opens the gate at this index of `waiting()`.
    pub(crate) fn open(&self, index: usize, outcome: Outcome) {
        let (_, open) = self.0.lock().unwrap().remove(index);
        let _ = open.send(outcome);
    }
}
