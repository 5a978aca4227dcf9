//! A replica of a gateway: a process with a session for each user, on stores that other replicas share. It calls the
//! API for its users until it is killed.

use std::env;
use std::io::{BufRead, BufReader, Write, stdin};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;
use tower::{Layer, Service, ServiceExt};
use tower_auth_refresh::{AuthRefreshLayer, Origin, Session, SessionRegistry};
use tower_auth_refresh_http::{AuthClient, JsonRefresh};

use crate::log::Log;
use crate::url::{self, StoreFactory};
use crate::witness::{Action, REFRESH_TIMEOUT, Witness};

/// The number of users.
pub(crate) const USERS: usize = 50;

const STORE: &str = "REPLICA_STORE";
const SERVER: &str = "REPLICA_SERVER";
const LOG: &str = "REPLICA_LOG";

/// A replica, as its parent sees it.
pub(crate) struct Replica {
    process: Child,
    orders: ChildStdin,
    /// The points that it has reached.
    reached: Receiver<()>,
}

impl Replica {
    pub(crate) fn start(url: &str, server: &str, log: &Path) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_replica", "--nocapture"])
            .env(STORE, url)
            .env(SERVER, server)
            .env(LOG, log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (send, reached) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.filter(|line| line == "reached").take_while(|_| send.send(()).is_ok()).for_each(drop);
        });
        Self { process, orders, reached }
    }

    /// Has the process stop or kill itself at a point. Returns `false` if it doesn't reach the point in time.
    pub(crate) fn arm(&mut self, action: Action, point: &str, within: Duration) -> bool {
        self.order(&format!("{action:?} {point}"));
        self.reached.recv_timeout(within).is_ok()
    }

    /// Takes an order back. Returns `false` if the process has executed it meanwhile.
    pub(crate) fn disarm(&mut self) -> bool {
        self.order("none");
        self.reached.recv_timeout(Duration::from_millis(100)).is_err()
    }

    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the process, as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn order(&mut self, order: &str) {
        // The process may be dead.
        let _ = self.orders.write_all(format!("{order}\n").as_bytes());
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.end();
    }
}

/// Returns the key of a user.
pub(crate) fn key(user: usize) -> String {
    format!("user-{user}")
}

/// Returns the refresh service of a process.
pub(crate) fn refresh_service(server: &str) -> JsonRefresh {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    JsonRefresh::new(AuthClient::new(client), &format!("{server}/auth/refresh")).unwrap()
}

/// In a process that [`Replica::start`] has started, runs until it is killed. Does nothing in other processes.
pub(crate) fn serve() {
    let Ok(url) = env::var(STORE) else { return };
    // A process that is stopped doesn't see its parent's end.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let (server, log) = (env::var(SERVER).unwrap(), env::var_os(LOG).unwrap());
    let witness = Witness::that_loses_answers(Log::create(Path::new(&log)));
    let armed = Arc::clone(&witness);
    std::thread::spawn(move || obey(&armed));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stores = url::open(&url).await;
        call_api(&server, registry(&server, &witness, stores)).await;
    });
}

/// Executes the parent's orders. Ends with the parent.
fn obey(witness: &Witness) -> ! {
    for order in stdin().lines().map_while(Result::ok) {
        match order.split_once(' ') {
            Some((action, point)) => witness.arm(action.parse().unwrap(), point),
            None => witness.disarm(),
        }
    }
    std::process::exit(0)
}

fn registry(server: &str, witness: &Arc<Witness>, stores: StoreFactory) -> SessionRegistry<String> {
    let template = Session::builder(witness.service(refresh_service(server))).refresh_timeout(REFRESH_TIMEOUT);
    let witness = Arc::clone(witness);
    SessionRegistry::builder(template)
        .store_factory(move |user: &String| witness.store(user, stores(user)))
        .recheck(Duration::from_secs(1))
        .build()
        .unwrap()
}

/// Calls the API for each user, once a second, for ever.
async fn call_api(server: &str, sessions: SessionRegistry<String>) {
    let origin = Origin::parse(server).unwrap();
    let client = AuthRefreshLayer::per_request(origin).layer(Client::builder(TokioExecutor::new()).build_http());
    let mut calls = JoinSet::new();
    for user in 0..USERS {
        let (mut client, sessions, url) = (client.clone(), sessions.clone(), format!("{server}/api/notes"));
        calls.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(400..1200))).await;
                let Ok(Some(session)) = sessions.get(&key(user)).await else { continue };
                let request = Request::get(&url).extension(session).body(Full::<Bytes>::default()).unwrap();
                if let Ok(response) = client.ready().await.unwrap().call(request).await {
                    let _ = response.into_body().collect().await;
                }
            }
        });
    }
    calls.join_all().await;
}
