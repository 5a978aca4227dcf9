//! The calls to the authorization server, over the same client as the requests.

use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener};

use tower_auth_refresh_reqwest::tower_auth_refresh::RefreshErrorKind;
use tower_auth_refresh_reqwest::{
    AccessToken, ApiClient, JsonLogin, JsonLogout, JsonRefresh, RefreshToken, Session, Tokens,
};
use tower_auth_refresh_testkit::TestServer;

use crate::support::{Server, origin, redirect, service};

#[tokio::test]
async fn a_user_signs_in_calls_refreshes_and_signs_out_over_one_connection() {
    let server = TestServer::start().await.unwrap();
    let http = service();
    let auth = http.auth_client();
    let session = Session::builder(JsonRefresh::new(auth.clone(), &server.url("/auth/refresh")).unwrap())
        .revoke(JsonLogout::new(auth.clone(), &server.url("/auth/logout")).unwrap())
        .build()
        .await
        .unwrap();
    let api = ApiClient::new(session.clone(), origin(&server.origin()), http);
    let login = JsonLogin::new(auth, &server.url("/auth/login")).unwrap();
    login.sign_in(&session, &HashMap::from([("username", "ada"), ("password", "right")])).await.unwrap();
    api.get(server.url("/api/notes")).send().await.unwrap().bytes().await.unwrap();
    session.refresh().await.unwrap();
    api.get(server.url("/api/notes")).send().await.unwrap().bytes().await.unwrap();
    session.sign_out().await.unwrap();
    let counters = server.counters();
    assert_eq!((counters.logins, counters.refreshes, counters.logouts, counters.api), (1, 1, 1, 2));
    assert_eq!((counters.connections, counters.unauthorized()), (1, 0));
}

async fn refresh_error(url: &str) -> RefreshErrorKind {
    let refresh = JsonRefresh::new(service().auth_client(), url).unwrap();
    let tokens = Tokens::new(AccessToken::new("a1").unwrap(), RefreshToken::new("r1").unwrap());
    refresh.refresh(&tokens).await.unwrap_err().kind()
}

#[tokio::test]
async fn a_call_that_finds_no_server_was_never_sent() {
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    assert_eq!(refresh_error(&format!("http://{closed}/auth/refresh")).await, RefreshErrorKind::Unavailable);
    assert_eq!(refresh_error("https://name.invalid/auth/refresh").await, RefreshErrorKind::Unavailable);
}

#[tokio::test]
async fn a_call_is_never_redirected() {
    let elsewhere = Server::start(|_| redirect(307, "/")).await;
    let target = elsewhere.url("/auth/refresh");
    let server = Server::start(move |_| redirect(307, &target)).await;
    refresh_error(&server.url("/auth/refresh")).await;
    assert_eq!(server.take_seen().len(), 1);
    assert_eq!(elsewhere.take_seen(), []);
}
