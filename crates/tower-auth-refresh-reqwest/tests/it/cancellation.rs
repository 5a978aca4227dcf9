//! Callers that are dropped.

use tower_auth_refresh_testkit::TestServer;

use crate::support::{builder, is_replayed, kit_client};

#[tokio::test]
async fn a_refresh_whose_callers_are_all_dropped_completes_for_the_next_request() {
    let server = TestServer::start().await.unwrap();
    let (api, session) = kit_client(&server, builder()).await;
    server.expire_access_tokens();
    let refreshed = server.hold_refreshes();
    let calls: Vec<_> = (0..3).map(|_| tokio::spawn(api.get(server.url("/api/notes")).send())).collect();
    refreshed.arrived(1).await;
    for call in calls {
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
    }
    let mut states = session.subscribe();
    refreshed.open();
    states
        .wait_for(|state| *state == tower_auth_refresh_reqwest::tower_auth_refresh::SessionState::Active)
        .await
        .unwrap();

    assert_eq!(api.get(server.url("/api/notes")).send().await.unwrap().status(), 200);
    let counters = server.counters();
    assert_eq!((counters.refreshes, server.violations().len()), (1, 0));
}

#[tokio::test]
async fn a_caller_that_is_dropped_before_its_401_leaves_nothing_behind() {
    let server = TestServer::start().await.unwrap();
    let (api, _) = kit_client(&server, builder()).await;
    server.expire_access_tokens();
    let refused = server.hold_unauthorized();
    let call = tokio::spawn(api.get(server.url("/api/notes")).send());
    refused.arrived(1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    refused.open();

    assert!(is_replayed(&api.get(server.url("/api/notes")).send().await.unwrap()));
    assert_eq!((server.counters().refreshes, server.violations().len()), (1, 0));
}
