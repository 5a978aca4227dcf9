//! Many processes with one file.

use tower_auth_refresh::Session;
use tower_auth_refresh_testkit::TestServer;

use super::program::{Task, start};
use super::*;

const PROCESSES: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_processes_with_an_expired_token_refresh_it_once() {
    let server = TestServer::start().await.unwrap();
    let directory = TestDirectory::new();
    let tokens: Tokens = server.sign_in("ada").try_into().unwrap();
    let store = FileStore::open_single(directory.path()).unwrap();
    Session::builder(server.refresh_service()).store(store.clone()).tokens(tokens).build().await.unwrap();

    server.expire_access_tokens();
    server.hold_unauthorized_until(PROCESSES);
    let mut processes: Vec<_> = (0..PROCESSES).map(|_| start(Task::Call, directory.path(), &server, None)).collect();
    for process in &mut processes {
        drop(process.stdin.take());
    }
    for mut process in processes {
        let status = tokio::task::spawn_blocking(move || process.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }
    let counters = server.counters();
    assert_eq!((counters.unauthorized(), counters.refreshes, counters.granted), (PROCESSES as u64, 1, 1));
    assert_eq!(server.violations(), []);
    assert_eq!(generation(store.load().await.unwrap().as_ref()), Some(2));
}
