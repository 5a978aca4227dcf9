//! [`Phase`]: the life of a gateway, from its start to its end.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

/// The phase of a gateway's life. Each is followed by the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Ready for requests.
    Serving,
    /// About to stop: requests are served, but `/readyz` fails, so that balancers send no more of them.
    Draining,
    /// New connections are refused, and open requests finished.
    Stopping,
}

impl Phase {
    /// Waits for a later phase. A gateway that has been dropped is stopping.
    pub(crate) async fn after(self, phase: &mut watch::Receiver<Self>) -> Self {
        phase.wait_for(|phase| *phase > self).await.map_or(Self::Stopping, |phase| *phase)
    }
}

/// Goes through the phases: drains once `shutdown` completes, and stops after a further `drain_delay`.
pub(crate) async fn run(phase: watch::Sender<Phase>, shutdown: impl Future<Output = ()>, drain_delay: Duration) {
    shutdown.await;
    if !drain_delay.is_zero() {
        tracing::info!(seconds = drain_delay.as_secs_f32(), "draining");
        phase.send_replace(Phase::Draining);
        sleep(drain_delay).await;
    }
    phase.send_replace(Phase::Stopping);
}
