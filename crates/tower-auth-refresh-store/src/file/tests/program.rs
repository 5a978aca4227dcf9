//! A program with a session on a [`FileStore`], as a test starts it in a process of its own.

use std::env;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{Layer, ServiceExt};
use tower_auth_refresh::{AuthRefreshLayer, Origin, Session};
use tower_auth_refresh_http::{AuthClient, JsonRefresh};
use tower_auth_refresh_testkit::TestServer;

use super::super::FileStore;
use super::steps::KILL_AT;

const TASK: &str = "STORE_TASK";
const DIRECTORY: &str = "STORE_DIRECTORY";
const SERVER: &str = "STORE_SERVER";

/// The purpose of a process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    /// Refreshes once.
    Refresh,
    /// Refreshes until it is killed.
    RefreshForEver,
    /// Makes a call of the API, once its standard input ends.
    Call,
}

/// Starts a program. `kill_at`: the number of the step that it doesn't survive.
pub(super) fn start(task: Task, directory: &Path, server: &TestServer, kill_at: Option<usize>) -> Child {
    let mut command = this_program("file::tests::program::a_process_of_its_own");
    if let Some(step) = kill_at {
        command.env(KILL_AT, step.to_string());
    }
    command.env(TASK, format!("{task:?}")).env(DIRECTORY, directory).env(SERVER, server.origin());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// This program, to run one of its tests.
pub(super) fn this_program(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test]);
    command
}

#[test]
fn a_process_of_its_own() {
    let Ok(task) = env::var(TASK) else { return };
    let (directory, origin) = (env::var_os(DIRECTORY).unwrap(), env::var(SERVER).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let refresh = JsonRefresh::new(AuthClient::new(client), &format!("{origin}/auth/refresh")).unwrap();
        let store = FileStore::open_single(directory).unwrap();
        let session = Session::builder(refresh).store(store).build().await.unwrap();
        match task.as_str() {
            "Refresh" => drop(session.refresh().await.unwrap()),
            "RefreshForEver" => loop {
                session.refresh().await.unwrap();
            },
            _ => {
                std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
                let layer = AuthRefreshLayer::new(session, Origin::parse(&origin).unwrap());
                let client = layer.layer(Client::builder(TokioExecutor::new()).build_http());
                let request = http::Request::get(format!("{origin}/api/notes")).body(Full::<Bytes>::default()).unwrap();
                assert_eq!(client.oneshot(request).await.unwrap().status(), 200);
            }
        }
    });
}
