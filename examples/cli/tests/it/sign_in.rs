//! `login`: with the browser, and with a code on another device.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::process::Signal;
use serde_json::json;
use tokio::process::{Child, Command};
use tower_auth_refresh_reqwest::reqwest::{self, Url};
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use crate::support::{Ended, Home, send, until, until_it_says};

/// A login that has shown the address for the browser.
pub(crate) struct BrowserLogin {
    pub(crate) process: Child,
    pub(crate) url: Url,
}

impl BrowserLogin {
    pub(crate) async fn start(home: &Home, server: &TestServer, arguments: &[&str]) -> Self {
        Self::of(login(home, server, arguments).env("BROWSER", "true").spawn().unwrap()).await
    }

    pub(crate) async fn of(mut process: Child) -> Self {
        let said = until_it_says(&mut process, "/oauth/authorize?").await;
        let url = said.lines().find_map(|line| line.strip_prefix("  http")).unwrap();
        Self { process, url: Url::parse(&format!("http{url}")).unwrap() }
    }

    /// Returns the redirect URI with these parameters and the right state.
    fn redirect(&self, params: &[(&str, &str)]) -> Url {
        let param = |name| self.url.query_pairs().find(|(other, _)| other == name).unwrap().1.into_owned();
        let mut url = Url::parse(&param("redirect_uri")).unwrap();
        url.query_pairs_mut().append_pair("state", &param("state")).extend_pairs(params);
        url
    }
}

fn login(home: &Home, server: &TestServer, arguments: &[&str]) -> Command {
    let mut command = login_with_scope("notes", home, server);
    command.args(arguments);
    command
}

pub(crate) fn login_with_scope(scope: &str, home: &Home, server: &TestServer) -> Command {
    let origin = server.origin();
    let mut command = home.app(&["login", "--issuer", &origin, "--client-id", "app", "--scope", scope]);
    command.args(["--api", &origin, "--store", "file"]);
    command
}

pub(crate) async fn page(url: Url) -> String {
    reqwest::get(url).await.unwrap().text().await.unwrap()
}

/// Starts a login by device, and returns the code that is shown.
async fn device_login(home: &Home, server: &TestServer) -> (Child, String) {
    let mut process = login(home, server, &["--device"]).spawn().unwrap();
    let code = code_of(&mut process, server).await;
    (process, code)
}

/// Returns the code that a login by device shows.
pub(crate) async fn code_of(process: &mut Child, server: &TestServer) -> String {
    let said = until_it_says(process, "and enter the code").await;
    assert!(said.contains(&server.url("/oauth/verify")), "{said}");
    said.lines().find_map(|line| line.strip_prefix("and enter the code")).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_sign_in_with_the_browser_is_kept() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    let login = BrowserLogin::start(&home, &server, &[]).await;
    let shown = page(login.url).await;
    assert!(shown.contains("close"), "{shown}");
    assert_eq!(Ended::of(login.process).await.expect_success(), "Signed in.");
    let call = home.run(&["call", "GET", "/api/notes"]).await;
    assert!(call.expect_success().contains(r#""user":"ada""#), "{call:?}");
    // The next one needs no options.
    let mut again = home.app(&["login", "--store", "file"]);
    let mut process = again.env("BROWSER", "true").spawn().unwrap();
    let said = until_it_says(&mut process, "/oauth/authorize?").await;
    assert!(said.contains("scope=notes"), "{said}");
}

#[tokio::test]
async fn the_browser_of_the_user_is_opened() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    let (browser, opened) = (home.path().join("browser"), home.path().join("opened"));
    fs::write(&browser, format!("#!/bin/sh\necho \"$1\" > {}.new\nmv {0}.new {0}\n", opened.display())).unwrap();
    fs::set_permissions(&browser, fs::Permissions::from_mode(0o700)).unwrap();
    let process = login(&home, &server, &[]).env("BROWSER", &browser).spawn().unwrap();
    until("the browser is opened", || opened.exists()).await;
    page(Url::parse(fs::read_to_string(&opened).unwrap().trim()).unwrap()).await;
    Ended::of(process).await.expect_success();
}

#[tokio::test]
async fn a_sign_in_that_fails_keeps_nothing_and_says_why() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();

    server.configure(|settings| settings.consent = false);
    let login = BrowserLogin::start(&home, &server, &[]).await;
    page(login.url).await;
    let denied = Ended::of(login.process).await;
    assert!(denied.expect_code(5).contains("the sign-in was denied (access_denied)"), "{denied:?}");

    let login = BrowserLogin::start(&home, &server, &[]).await;
    page(login.redirect(&[("code", "c"), ("iss", "https://evil.example")])).await;
    let mixed_up = Ended::of(login.process).await;
    assert!(mixed_up.expect_code(5).contains("another authorization server"), "{mixed_up:?}");

    let login = BrowserLogin::start(&home, &server, &[]).await;
    page(login.redirect(&[("code", "replayed"), ("iss", &server.origin())])).await;
    let replayed = Ended::of(login.process).await;
    assert!(replayed.expect_code(5).contains("invalid_grant"), "{replayed:?}");

    // The browser was closed.
    let login = BrowserLogin::start(&home, &server, &["--timeout", "0.5"]).await;
    let closed = Ended::of(login.process).await;
    assert!(closed.expect_code(5).contains("wasn't completed in time"), "{closed:?}");

    home.run(&["status"]).await.expect_code(3);
    assert!(!home.profile().exists());
}

#[tokio::test]
async fn a_stranger_at_the_port_changes_nothing() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    let login = BrowserLogin::start(&home, &server, &[]).await;
    let mut guess = login.redirect(&[("code", "c")]);
    guess.set_query(Some("state=guessed&code=c"));
    let refused = page(guess).await;
    assert!(!refused.contains("guessed"), "{refused}");
    page(login.url).await;
    Ended::of(login.process).await.expect_success();
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_a_way_out() {
    let server = TestServer::start().await.unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://127.0.0.1:{}/callback", taken.local_addr().unwrap().port());
    let home = Home::new();
    let mut command = login(&home, &server, &["--redirect-uri", &uri]);
    let ended = Ended::of(command.env("BROWSER", "true").spawn().unwrap()).await;
    assert!(ended.expect_code(1).contains("another port with --redirect-uri"), "{ended:?}");
}

#[tokio::test]
async fn ctrl_c_gives_a_sign_in_up() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    let mut login = BrowserLogin::start(&home, &server, &[]).await;
    until_it_says(&mut login.process, "Ctrl-C to give up").await;
    send(&login.process, Signal::INT);
    Ended::of(login.process).await.expect_code(130);
    home.run(&["status"]).await.expect_code(3);
}

#[tokio::test]
async fn a_device_is_approved() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    let (process, code) = device_login(&home, &server).await;
    assert!(server.approve_device(&code, "grace"));
    assert_eq!(Ended::of(process).await.expect_success(), "Signed in.");
    assert!(home.run(&["call", "GET", "/api/notes"]).await.expect_success().contains("grace"));
}

#[tokio::test]
async fn a_device_that_is_denied_or_forgotten_says_so() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    let (process, code) = device_login(&home, &server).await;
    assert!(server.deny_device(&code));
    let denied = Ended::of(process).await;
    assert!(denied.expect_code(5).contains("the sign-in was denied (access_denied)"), "{denied:?}");

    server.configure(|settings| settings.device_lifetime = std::time::Duration::from_secs(2));
    let (process, _) = device_login(&home, &server).await;
    let expired = Ended::of(process).await;
    assert!(expired.expect_code(5).contains("run the command again"), "{expired:?}");
}

#[tokio::test]
async fn a_server_that_slows_a_device_down_is_obeyed() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    let (process, code) = device_login(&home, &server).await;
    server.inject(Route::SignIn, Fault::status(400).body(r#"{"error":"slow_down"}"#).times(1));
    assert!(server.approve_device(&code, "ada"));
    Ended::of(process).await.expect_success();
    let polls: Vec<_> = server.log().into_iter().filter(|entry| entry.path == "/oauth/token").collect();
    let [slowed_down, answered] = &polls[..] else { panic!("{polls:?}") };
    let pause = answered.at.checked_sub(slowed_down.at).unwrap();
    assert!(pause.as_secs() >= 6, "1 s and 5 s more: {pause:?}");
}

#[tokio::test]
async fn without_a_display_a_code_is_shown_and_without_device_grants_the_address() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    let mut process = login(&home, &server, &[]).spawn().unwrap();
    until_it_says(&mut process, "and enter the code").await;

    server.inject(
        Route::SignIn,
        Fault::alter(|metadata| {
            metadata.as_object_mut().unwrap().remove("device_authorization_endpoint");
        })
        .times(2),
    );
    let mut process = login(&home, &server, &[]).spawn().unwrap();
    until_it_says(&mut process, "/oauth/authorize?").await;
    let refused = Ended::of(login(&home, &server, &["--device"]).spawn().unwrap()).await;
    assert!(refused.expect_code(1).contains("no device authorization endpoint"), "{refused:?}");
}

#[tokio::test]
async fn an_issuer_that_is_down_is_no_failure_of_the_settings() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    server.inject(Route::SignIn, Fault::status(503).times(1));
    let down = Ended::of(login(&home, &server, &[]).spawn().unwrap()).await;
    assert!(down.expect_code(4).contains("/.well-known/"), "{down:?}");
    server.inject(Route::SignIn, Fault::alter(|metadata| metadata["issuer"] = "https://other.example".into()).times(1));
    let other = Ended::of(login(&home, &server, &[]).spawn().unwrap()).await;
    assert!(other.expect_code(1).contains("another issuer"), "{other:?}");
}

#[tokio::test]
async fn the_user_is_known_by_the_id_token_and_by_the_userinfo_endpoint_without_one() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    let claims = URL_SAFE_NO_PAD.encode(json!({"sub": "7", "email": "ada@example.com"}).to_string());
    server.inject(
        Route::Refresh,
        Fault::alter(move |answer| answer["id_token"] = format!("e30.{claims}.sig").into()).times(1),
    );
    let import = home.import(&server, &[]).await;
    assert_eq!(import.expect_success(), "Signed in as ada@example.com.");
    let requests = server.counters().requests;
    assert_eq!(home.run(&["whoami"]).await.expect_success(), "ada@example.com");
    assert_eq!(home.run(&["whoami", "--json"]).await.json()["sub"], "7");
    assert!(home.run(&["status"]).await.expect_success().contains("yes, as ada@example.com"));
    assert_eq!(server.counters().requests, requests, "asked the server");

    let endpoint = server.url("/api/userinfo");
    server.inject(
        Route::SignIn,
        Fault::alter(move |metadata| metadata["userinfo_endpoint"] = (&*endpoint).into()).times(1),
    );
    home.import(&server, &[]).await.expect_success();
    server.inject(Route::Api, Fault::alter(|answer| answer["name"] = "Ada".into()));
    server.expire_access_tokens();
    assert_eq!(home.run(&["whoami"]).await.expect_success(), "Ada");
}
