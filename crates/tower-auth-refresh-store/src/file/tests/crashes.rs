//! Processes that are killed (`kill -9`) at each step of a refresh, and at random.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tower::ServiceExt;
use tower_auth_refresh::{RefreshRequest, Session};
use tower_auth_refresh_testkit::{Rotation, TestServer};

use super::program::{Task, start};
use super::*;

/// The number of steps of a refresh: of a claim, then of a commit.
const STEPS: usize = 7 + 8;
/// The numbers of the steps before which a claim has been made, and the record that it is on not been replaced.
const IN_DOUBT: std::ops::RangeInclusive<usize> = 6..=12;
/// Those of them before which the refresh token has been presented.
const PRESENTED: std::ops::RangeInclusive<usize> = 8..=12;

/// A server, and a directory that processes use one after the other.
struct Scene {
    server: TestServer,
    directory: TestDirectory,
}

impl Scene {
    async fn new() -> Self {
        let scene = Self { server: TestServer::start().await.unwrap(), directory: TestDirectory::new() };
        // The answer of a process that was killed is lost. The server then issues the same tokens again.
        scene.server.configure(|settings| settings.rotation = Rotation::Grace(Duration::from_secs(3600)));
        let tokens: Tokens = scene.server.sign_in("ada").try_into().unwrap();
        let store = FileStore::open_single(scene.directory.path()).unwrap();
        Session::builder(scene.server.refresh_service()).store(store).tokens(tokens).build().await.unwrap();
        scene
    }

    fn start(&self, task: Task, kill_at: Option<usize>) -> Child {
        start(task, self.directory.path(), &self.server, kill_at)
    }

    /// Refreshes in another process than the one that was killed. Returns the generation whose token it presented, and
    /// whether that token was in doubt.
    async fn recover(&self, shown: &str) -> (u64, bool) {
        let begun = Instant::now();
        let in_doubt = Arc::new(AtomicBool::new(false));
        let (seen, service) = (Arc::clone(&in_doubt), self.server.refresh_service());
        let refresh = tower::service_fn(move |request: RefreshRequest| {
            seen.fetch_or(request.is_in_doubt(), Ordering::SeqCst);
            service.clone().oneshot(request)
        });
        let store = FileStore::open_single(self.directory.path()).unwrap();
        let presented = generation(store.load().await.unwrap().as_ref()).unwrap();
        let session = Session::builder(refresh).store(store.clone()).build().await.unwrap();
        session.refresh().await.unwrap_or_else(|error| panic!("{shown}: {error:?}"));
        assert!(begun.elapsed() < Duration::from_secs(3), "{shown}: the claim of a dead process was waited for");
        assert_eq!(store.load().await.unwrap().unwrap().tokens(), &session.tokens(), "{shown}");
        assert_eq!(self.directory.files(".tmp"), [] as [PathBuf; 0], "{shown}");
        (presented, in_doubt.load(Ordering::SeqCst))
    }

    /// Returns the generations whose refresh tokens were presented twice. Those of the store and of the server are equal.
    fn presented_twice(&self) -> Vec<u64> {
        self.server.violations().iter().map(|violation| violation.generation).collect()
    }
}

async fn wait(mut process: Child) -> ExitStatus {
    tokio::task::spawn_blocking(move || process.wait()).await.unwrap().unwrap()
}

/// Returns a number of kills, or as many times more as the variable says.
fn times(number: usize) -> usize {
    number * env::var("STORE_KILLS").map_or(1, |factor| factor.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_at_any_step_of_a_refresh_loses_nothing_and_holds_up_no_other() {
    let scene = Scene::new().await;
    for round in 0..times(3) {
        for step in 1..=STEPS + 1 {
            let shown = format!("killed at step {step}, round {round}");
            let status = wait(scene.start(Task::Refresh, Some(step))).await;
            assert_eq!(status.signal(), (step <= STEPS).then_some(9), "{shown}: {status}");
            let before = scene.presented_twice().len();
            let (generation, in_doubt) = scene.recover(&shown).await;
            assert_eq!(in_doubt, IN_DOUBT.contains(&step), "{shown}");
            let expected: &[u64] = if PRESENTED.contains(&step) { &[generation] } else { &[] };
            assert_eq!(&scene.presented_twice()[before..], expected, "{shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_at_a_random_moment_loses_nothing() {
    let (scene, mut doubtful) = (Scene::new().await, Vec::new());
    for round in 0..times(25) {
        let refreshes = scene.server.counters().refreshes;
        let mut process = scene.start(Task::RefreshForEver, None);
        while scene.server.counters().refreshes == refreshes {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let [moment] = crate::random::bytes().unwrap();
        tokio::time::sleep(Duration::from_micros(u64::from(moment) * 100)).await;
        process.kill().unwrap();
        assert_eq!(wait(process).await.signal(), Some(9));
        let (generation, in_doubt) = scene.recover(&format!("round {round}")).await;
        doubtful.extend(in_doubt.then_some(generation));
    }
    // The server may have read the request of a dead process after the one of the process that took over.
    let mut twice = scene.presented_twice();
    twice.sort_unstable();
    assert!(twice.iter().all(|generation| doubtful.contains(generation)), "not in doubt: {twice:?}, {doubtful:?}");
    assert!(twice.is_sorted_by(|one, next| one < next), "presented three times: {twice:?}");
}

#[tokio::test]
async fn the_claim_of_a_handle_that_is_dropped_ends_in_doubt_at_once() {
    let directory = TestDirectory::new();
    let [store, peer] = [(); 2].map(|()| FileStore::open_single(directory.path()).unwrap());
    let version = store.replace(&entry(1)).await.unwrap();
    let claim = claimed(&*store, &version).await;
    assert!(matches!(peer.claim(&version, LEASE).await.unwrap(), ClaimOutcome::Busy { .. }));
    drop(store);
    // A process that another test starts at this moment has the lock as well, until its `exec`.
    let begun = Instant::now();
    let next = loop {
        match peer.claim(&version, LEASE).await.unwrap() {
            ClaimOutcome::Claimed(claim) => break claim,
            busy => assert!(begun.elapsed() < Duration::from_secs(5), "{busy:?}"),
        }
    };
    assert!(next.is_in_doubt() && next.id() != claim.id());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_claim_that_is_given_up_leaves_no_file_open() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    let open_files = || {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|file| file.unwrap().path().read_link().ok());
        open.filter(|file| file.starts_with(directory.path())).count()
    };
    let version = store.replace(&entry(1)).await.unwrap();
    for presented in [Presented::Unused, Presented::InDoubt] {
        let claim = claimed(&*store, &version).await;
        assert_eq!(open_files(), 1, "its lock is the sign of life");
        store.release(&claim, presented).await.unwrap();
        assert_eq!(open_files(), 0);
    }
    let claim = claimed(&*store, &version).await;
    FileStore::open_single(directory.path()).unwrap().replace(&entry(2)).await.unwrap();
    assert!(matches!(store.commit(&claim, &entry(3)).await.unwrap(), CommitOutcome::Conflict(Some(_))));
    assert_eq!(open_files(), 0, "the claim is lost");
}
