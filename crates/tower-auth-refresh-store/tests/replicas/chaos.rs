//! The run: three replicas that are killed and stopped, and what is left for the judge.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::AUTHORIZATION;
use http_body_util::Full;
use tokio::sync::broadcast::error::RecvError;
use tower::ServiceExt;
use tower_auth_refresh::store::{Entry, Epoch};
use tower_auth_refresh::{Session, Tokens};
use tower_auth_refresh_testkit::{Fault, Rotation, Route, TestServer, Violation};

use crate::directory::TestDirectory;
use crate::log::{self, Line, Log, Nanos};
use crate::replica::{Replica, USERS, key, refresh_service};
use crate::url::{self, StoreFactory};
use crate::witness::{Action, LEASE, Witness};

const REPLICAS: usize = 3;

/// The points at which a replica is stopped or killed.
const POINTS: [&str; 11] = [
    "before claim",
    "after claim",
    "before the refresh call",
    "after the refresh call",
    "before commit",
    "after commit",
    "after load",
    "before release",
    "after release",
    "before renew",
    "after renew",
];

/// The time that a replica has to reach a point. Some calls are rare.
const REACHED_WITHIN: Duration = Duration::from_secs(3);

/// What a run has left.
pub(crate) struct Evidence {
    pub(crate) processes: Vec<Process>,
    pub(crate) sign_ins: Vec<SignIn>,
    /// The uses of superseded tokens that the server has seen.
    pub(crate) reuses: Vec<Violation>,
    /// The accounts that the server has signed out, since their tokens were used again too late.
    pub(crate) signed_out: Vec<String>,
    /// For each user, the error of a refresh with the token of the last record.
    pub(crate) last: Vec<(String, Option<String>)>,
    /// The kills and stops, by the point.
    pub(crate) done: Vec<(Action, String)>,
    pub(crate) granted: u64,
    pub(crate) served: u64,
}

/// One life of a process.
pub(crate) struct Process {
    pub(crate) lines: Vec<Line>,
    /// When it was stopped, and when it was resumed.
    pub(crate) stops: Vec<(Nanos, Nanos)>,
}

/// A sign-in of a user: an epoch of the store, and an account of the server.
#[derive(Clone)]
pub(crate) struct SignIn {
    pub(crate) user: String,
    pub(crate) account: String,
    pub(crate) epoch: u64,
    tokens: Tokens,
}

struct Run {
    url: String,
    server: TestServer,
    logs: TestDirectory,
    witness: Arc<Witness>,
    stores: StoreFactory,
    sign_ins: Mutex<Vec<SignIn>>,
    signed_out: Mutex<Vec<String>>,
    processes: Mutex<Vec<Process>>,
    done: Mutex<Vec<(Action, String)>>,
    begun: AtomicUsize,
    number: AtomicUsize,
}

/// Kills and stops the replicas on a store this many times.
pub(crate) async fn run(url: &str, times: usize) -> Evidence {
    let logs = TestDirectory::new();
    fs::create_dir(logs.path()).unwrap();
    let server = TestServer::start().await.unwrap();
    server.configure(|settings| {
        settings.access_lifetime = Duration::from_secs(1);
        // The answer of a process that was killed is lost. The server then issues the same tokens again.
        settings.rotation = Rotation::Grace(Duration::from_secs(24 * 3600));
        settings.log_capacity = 0;
    });
    let run = Arc::new(Run {
        url: url.to_owned(),
        server,
        witness: Witness::new(Log::create(&logs.path().join("parent"))),
        stores: url::open(url).await,
        logs,
        sign_ins: Mutex::default(),
        signed_out: Mutex::default(),
        processes: Mutex::default(),
        done: Mutex::default(),
        begun: AtomicUsize::new(0),
        number: AtomicUsize::new(0),
    });
    for user in 0..USERS {
        run.sign_in(&key(user)).await;
    }
    let (faults, sign_outs) =
        (tokio::spawn(Arc::clone(&run).lose_answers()), tokio::spawn(Arc::clone(&run).sign_in_again()));
    let replicas = [(); REPLICAS].map(|()| {
        let run = Arc::clone(&run);
        tokio::task::spawn_blocking(move || run.disturb(times))
    });
    for replica in replicas {
        replica.await.unwrap();
    }
    faults.abort();
    run.server.clear_faults();
    let last = run.refresh_all().await;
    // The server reports a sign-out before it answers.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!sign_outs.is_finished(), "the users were signed in again");
    sign_outs.abort();
    run.evidence(last)
}

impl Run {
    /// Signs a user in: to the server with an account of its own, and in the store.
    async fn sign_in(&self, user: &str) {
        let before = self.sign_ins.lock().unwrap().iter().filter(|it| it.user == user).count();
        let (account, epoch) = (format!("{user}/{before}"), Epoch::random());
        let tokens: Tokens = self.server.sign_in(&account).try_into().unwrap();
        let sign_in = SignIn { user: user.to_owned(), account, epoch: epoch.to_u64(), tokens: tokens.clone() };
        self.sign_ins.lock().unwrap().push(sign_in);
        let store = self.witness.store(user, (self.stores)(user));
        let entry = Entry::new(epoch, 1, tokens);
        // A process that is stopped may hold the lock.
        while store.replace(&entry).await.is_err() {}
    }

    /// Has the server refuse some refreshes, and lose the answers of others.
    async fn lose_answers(self: Arc<Self>) {
        loop {
            self.server.inject(Route::Refresh, Fault::status(429).times(1));
            tokio::time::sleep(Duration::from_millis(250)).await;
            self.server.inject(Route::Refresh, Fault::drop_connection().after_processing().times(1));
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Signs the users in again whose sign-in the server has ended.
    async fn sign_in_again(self: Arc<Self>) {
        let mut entries = self.server.subscribe();
        loop {
            let entry = match entries.recv().await {
                Ok(entry) => entry,
                Err(RecvError::Closed) => return,
                Err(RecvError::Lagged(_)) => panic!("the log of the server is too long"),
            };
            if !matches!(entry.note, Some("reused" | "revoked")) {
                continue;
            }
            let account = entry.user.unwrap().to_string();
            if !self.signed_out.lock().unwrap().contains(&account) {
                self.signed_out.lock().unwrap().push(account.clone());
                self.sign_in(account.split_once('/').unwrap().0).await;
            }
        }
    }

    /// Keeps a replica running, and kills and stops it.
    fn disturb(&self, times: usize) {
        let (mut log, mut replica, mut stops) = self.start();
        loop {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            if number >= times {
                break;
            }
            // For a moment nothing happens.
            sleep(Duration::from_millis(fastrand::u64(50..300)));
            let action = if number.is_multiple_of(2) { Action::Kill } else { Action::Stop };
            let point = POINTS[(number / 2) % POINTS.len()];
            let by_name =
                !number.is_multiple_of(3) && (replica.arm(action, point, REACHED_WITHIN) || !replica.disarm());
            self.done.lock().unwrap().push((action, if by_name { point } else { "at random" }.to_owned()));
            let at = log::now();
            match action {
                Action::Kill => {
                    replica.kill();
                    self.bury(&log, stops);
                    (log, replica, stops) = self.start();
                }
                Action::Stop => {
                    replica.stop();
                    sleep(LEASE + Duration::from_millis(fastrand::u64(300..800)));
                    replica.resume();
                    stops.push((at, log::now()));
                }
            }
        }
        sleep(Duration::from_secs(1));
        replica.kill();
        self.bury(&log, stops);
    }

    fn start(&self) -> (PathBuf, Replica, Vec<(Nanos, Nanos)>) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let log = self.logs.path().join(number.to_string());
        let replica = Replica::start(&self.url, &self.server.origin(), &log);
        // It has opened its stores.
        while !log.exists() {
            sleep(Duration::from_millis(5));
        }
        (log, replica, Vec::new())
    }

    /// Keeps the log of a process that has died.
    fn bury(&self, log: &Path, stops: Vec<(Nanos, Nanos)>) {
        self.processes.lock().unwrap().push(Process { lines: log::read(log), stops });
        fs::remove_file(log).unwrap();
    }

    /// Presents the token of each user's last record.
    async fn refresh_all(&self) -> Vec<(String, Option<String>)> {
        let mut last = Vec::new();
        for user in (0..USERS).map(key) {
            let store = self.witness.store(&user, (self.stores)(&user));
            let session = Session::builder(self.witness.service(refresh_service(&self.server.origin())));
            let session = session.store(store).build().await.unwrap();
            let error = session.refresh().await.err();
            if error.is_some() {
                self.call_api_with_first_token_of(&user).await;
            }
            last.push((user, error.map(|error| format!("{error:?}"))));
        }
        last
    }

    /// Makes a call that the server logs as `revoked` if it has ended the user's last sign-in.
    async fn call_api_with_first_token_of(&self, user: &str) {
        let tokens = self.sign_ins.lock().unwrap().iter().rfind(|it| it.user == user).unwrap().tokens.clone();
        let bearer = format!("Bearer {}", tokens.access_token().unwrap().expose_secret());
        let request = Request::get("/api/notes").header(AUTHORIZATION, bearer).body(Full::<Bytes>::default());
        self.server.kit().clone().oneshot(request.unwrap()).await.unwrap();
    }

    fn evidence(&self, last: Vec<(String, Option<String>)>) -> Evidence {
        let lines = log::read(&self.logs.path().join("parent"));
        let mut processes = std::mem::take(&mut *self.processes.lock().unwrap());
        processes.push(Process { lines, stops: Vec::new() });
        let counters = self.server.counters();
        let reuses = self.server.violations();
        assert_eq!(reuses.len() as u64, counters.violations, "the server has kept each of them");
        Evidence {
            processes,
            sign_ins: self.sign_ins.lock().unwrap().clone(),
            reuses,
            signed_out: self.signed_out.lock().unwrap().clone(),
            last,
            done: std::mem::take(&mut *self.done.lock().unwrap()),
            granted: counters.granted,
            served: counters.api_by_status.get(&200).copied().unwrap_or_default(),
        }
    }
}
