//! With the ready-made client, over sockets: calls that were never sent are distinguished from calls in doubt.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_auth_refresh::{Session, SessionState, Tokens};
use tower_auth_refresh_http::{AuthClient, ClientAuth, JsonLogin, JsonLogout, JsonRefresh, OAuthRefresh};
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use crate::support::{cause, old_tokens, outcome};

async fn refreshed(url: &str) -> (String, String) {
    let refresh = JsonRefresh::new(AuthClient::rustls().timeout(Duration::from_secs(5)), url).unwrap();
    let result = refresh.refresh(&old_tokens()).await;
    let cause = result.as_ref().err().map(|error| cause(error).to_string()).unwrap_or_default();
    let cause = cause.strip_prefix(&format!("{url}: ")).map(str::to_owned).unwrap_or(cause);
    (outcome(&result), cause)
}

/// A server of one connection, which reads a request and then runs `then`.
async fn serving<F>(then: impl FnOnce(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let read = stream.read(&mut request).await.unwrap();
        assert!(read > 0);
        then(stream).await;
    });
    address
}

#[tokio::test]
async fn a_connection_that_fails_means_that_nothing_was_sent() {
    let closed = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    let unsent = ("unavailable".to_owned(), "the request was not sent".to_owned());
    assert_eq!(refreshed(&format!("http://{closed}/auth/refresh")).await, unsent);
    assert_eq!(refreshed("https://name.invalid/auth/refresh").await, unsent);

    // A peer that doesn't speak TLS, and one that closes the connection.
    let plain = serving(async |mut stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap()).await;
    assert_eq!(refreshed(&format!("https://{plain}/auth/refresh")).await, unsent);
    let closing = serving(async |stream| drop(stream)).await;
    assert_eq!(refreshed(&format!("https://{closing}/auth/refresh")).await, unsent);
}

#[tokio::test]
async fn a_connection_that_ends_after_the_request_is_in_doubt() {
    let closing = serving(async |stream| drop(stream)).await;
    assert_eq!(refreshed(&format!("http://{closing}/")).await.0, "in doubt");
    let garbling = serving(async |mut stream| stream.write_all(b"\x16\x03\x01 no HTTP\r\n\r\n").await.unwrap()).await;
    assert_eq!(refreshed(&format!("http://{garbling}/")).await.0, "in doubt");
    let cut = serving(async |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"access_token\":").await.unwrap();
    })
    .await;
    let in_doubt = ("in doubt".to_owned(), "the answer broke off (status 200)".to_owned());
    assert_eq!(refreshed(&format!("http://{cut}/")).await, in_doubt);
}

#[tokio::test]
async fn an_endless_answer_and_a_false_length_are_bounded() {
    let endless = serving(async |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let chunk = [b"400\r\n".as_slice(), &[b' '; 0x400], b"\r\n"].concat();
        while stream.write_all(&chunk).await.is_ok() {}
    })
    .await;
    assert_eq!(refreshed(&format!("http://{endless}/")).await.1, "the answer is longer than the limit (status 200)");
    let announcing = serving(async |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\n{").await.unwrap();
    })
    .await;
    assert_eq!(refreshed(&format!("http://{announcing}/")).await.0, "in doubt");
}

#[tokio::test]
async fn every_call_has_its_own_connection() {
    let server = TestServer::start().await.unwrap();
    let refresh = JsonRefresh::new(AuthClient::rustls(), &server.url("/auth/refresh")).unwrap();
    let session = Session::builder(refresh).tokens(signed_in(&server)).build().await.unwrap();
    for _ in 0..3 {
        session.refresh().await.unwrap();
    }
    let counters = server.counters();
    assert_eq!(counters.connections, 3);
    assert_eq!(server.violations(), []);
}

fn signed_in(server: &TestServer) -> Tokens {
    let pair = server.sign_in("ada");
    let pair = serde_json::to_value(pair).unwrap();
    Tokens::new(
        tower_auth_refresh::AccessToken::new(pair["access_token"].as_str().unwrap()).unwrap(),
        tower_auth_refresh::RefreshToken::new(pair["refresh_token"].as_str().unwrap()).unwrap(),
    )
}

#[tokio::test]
async fn a_user_signs_in_refreshes_and_signs_out() {
    let server = TestServer::start().await.unwrap();
    let client = AuthClient::rustls();
    let logout = JsonLogout::new(client.clone(), &server.url("/auth/logout")).unwrap();
    let session = Session::builder(JsonRefresh::new(client.clone(), &server.url("/auth/refresh")).unwrap())
        .revoke(logout)
        .build()
        .await
        .unwrap();
    let login = JsonLogin::new(client.clone(), &server.url("/auth/login")).unwrap();
    assert!(login.sign_in(&session, &json!({"username": "ada", "password": "wrong"})).await.is_err());
    login.sign_in(&session, &json!({"username": "ada", "password": "right"})).await.unwrap();
    assert!(session.tokens().expires_at().is_some());
    let first = session.tokens();
    session.refresh().await.unwrap();
    assert_ne!(session.tokens(), first);

    let last = session.tokens();
    session.sign_out().await.unwrap();
    assert_eq!(session.state(), SessionState::SignedOut);
    let refresh = JsonRefresh::new(client, &server.url("/auth/refresh")).unwrap();
    assert_eq!(outcome(&refresh.refresh(&last).await), "rejected");
}

#[tokio::test]
async fn each_fault_of_the_server_has_the_outcome_of_the_table() {
    let server = TestServer::start().await.unwrap();
    let refresh = JsonRefresh::new(AuthClient::rustls().timeout(Duration::from_secs(2)), &server.url("/auth/refresh"));
    let refresh = refresh.unwrap();
    for (fault, expected) in [
        (Fault::status(503).header("retry-after", "1"), "unavailable for 1 s"),
        (Fault::status(500), "in doubt"),
        (Fault::drop_connection(), "in doubt"),
        (Fault::drop_connection().after_processing(), "in doubt"),
        (Fault::malformed(), "in doubt"),
        (Fault::huge(1 << 40), "in doubt"),
        (Fault::endless(), "in doubt"),
        (Fault::hang(), "in doubt"),
    ] {
        let tokens = signed_in(&server);
        server.inject(Route::Refresh, fault.clone().times(1));
        assert_eq!(outcome(&refresh.refresh(&tokens).await), expected, "{fault:?}");
    }
    assert_eq!(server.violations(), []);
}

#[tokio::test]
async fn an_oauth_call_over_a_socket_is_framed_by_its_length() {
    let server = serving(async |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"access_token\":\"a2\"}").await.unwrap();
    })
    .await;
    let grant = OAuthRefresh::new(AuthClient::rustls(), &format!("http://{server}/token"), ClientAuth::basic("a", "b"))
        .unwrap();
    assert_eq!(outcome(&grant.refresh(&old_tokens()).await), "tokens");
}
