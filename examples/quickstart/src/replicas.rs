//! The scenes of `--replicas`: two processes with the tokens of one user in a directory that both use.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tower::BoxError;
use tower_auth_refresh_testkit::{Entry, Rotation, Route, TestServer};

use crate::inspector::Inspector;
use crate::replica::Replica;

/// Figures of all scenes, counted in the servers' log.
#[derive(Serialize)]
pub(crate) struct Figures {
    sign_ins: u64,
    /// With the token that two processes found expired at the same moment.
    refreshes: usize,
    /// By the process that was killed during its refresh, and by the one that took over.
    refreshes_around_kill: usize,
    /// After both processes were killed and started again.
    refreshes_after_restart: usize,
    failed_calls: usize,
    violations: u64,
}

pub(crate) async fn run(inspector: &Inspector) -> Result<Figures, BoxError> {
    let directory = TemporaryDirectory(std::env::temp_dir().join(format!("quickstart-{}", std::process::id())));
    let server = TestServer::start().await?;
    // The answer to a process that is killed is lost. The server sends the same tokens again to the one that takes over.
    server.configure(|settings| settings.rotation = Rotation::Grace(Duration::from_secs(60)));
    let start = || Replica::start(&directory.0, &server.origin());
    let mut shown = 0;
    let mut show = || {
        let mut entries: Vec<_> = server.log().into_iter().filter(|entry| entry.number > shown).collect();
        entries.sort_by_key(|entry| entry.number);
        shown = server.counters().requests;
        inspector.requests(&entries);
        entries
    };
    let mut outcomes = Vec::new();

    inspector.headline("Two processes, A and B, keep their tokens in one directory. Ada signs in at A only:");
    let mut a = start()?;
    a.sign_in("ada").await?;
    let mut b = start()?;
    outcomes.extend([a.get("/api/from-a").await?, b.get("/api/from-b").await?]);
    show();

    inspector
        .headline("The access token expires. A and B find out together: one refreshes, the other adopts its tokens:");
    server.expire_access_tokens();
    server.hold_unauthorized_until(2);
    a.begin("/api/from-a").await?;
    b.begin("/api/from-b").await?;
    outcomes.extend([a.answer().await?, b.answer().await?]);
    let refreshes = refreshes_of(&show());

    inspector.headline("A is killed (kill -9) during a refresh, and its new tokens are lost. B takes over at once:");
    server.expire_access_tokens();
    let gate = server.hold_refreshes();
    a.begin("/api/from-a").await?;
    gate.arrived(1).await;
    a.kill().await?;
    gate.open();
    outcomes.push(b.get("/api/from-b").await?);
    let refreshes_around_kill = refreshes_of(&show());
    inspector.note("(The server has a grace period. Without one, the token would count as stolen.)");

    inspector.headline("B is killed too. Both are started again, and Ada is still signed in:");
    b.kill().await?;
    let (mut a, mut b) = (start()?, start()?);
    outcomes.extend([a.get("/api/from-a").await?, b.get("/api/from-b").await?]);
    let refreshes_after_restart = refreshes_of(&show());

    let counters = server.counters();
    let failed_calls = outcomes.iter().filter(|outcome| *outcome != "200 OK").count();
    inspector.headline(&format!("Sign-ins: {}. Failed calls: {failed_calls}.", counters.logins));
    Ok(Figures {
        sign_ins: counters.logins,
        refreshes,
        refreshes_around_kill,
        refreshes_after_restart,
        failed_calls,
        violations: counters.violations,
    })
}

/// Returns the number of refreshes.
fn refreshes_of(entries: &[Entry]) -> usize {
    entries.iter().filter(|entry| entry.route == Route::Refresh).count()
}

/// A directory that is removed in the end.
struct TemporaryDirectory(PathBuf);

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
