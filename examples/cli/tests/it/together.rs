//! Many processes at once.

use tower_auth_refresh_testkit::TestServer;

use crate::support::{Ended, Home, arrived, home_with_expired_token};

#[tokio::test]
async fn twenty_processes_with_an_expired_token_share_one_refresh() {
    let server = TestServer::start().await.unwrap();
    let home = home_with_expired_token(&server).await;
    let before = server.counters().refreshes;

    // The refresh takes until most processes wait for it.
    let gate = server.hold_refreshes();
    let processes: Vec<_> = (0..20).map(|_| home.start(&["token"])).collect();
    arrived(&gate).await;
    gate.open();
    let mut tokens = Vec::new();
    for process in processes {
        tokens.push(Ended::of(process).await.expect_success().to_owned());
    }
    tokens.dedup();
    assert_eq!(tokens.len(), 1);
    assert_eq!(server.counters().refreshes, before + 1);
    assert_eq!(server.violations(), []);
}

#[tokio::test]
async fn processes_whose_calls_are_refused_together_share_one_refresh() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    // The clients don't know it yet.
    server.expire_access_tokens();
    let before = server.counters().refreshes;
    server.hold_unauthorized_until(8);
    let processes: Vec<_> = (0..8).map(|_| home.start(&["call", "GET", "/api/notes"])).collect();
    for process in processes {
        let answer = Ended::of(process).await;
        assert!(answer.expect_success().contains(r#""user":"ada""#), "{answer:?}");
    }
    assert_eq!(server.counters().refreshes, before + 1);
    assert_eq!(server.violations(), []);
}
