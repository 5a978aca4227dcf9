//! The commands by themselves: results, exit codes, and files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use crate::support::{Ended, Home, home_with_expired_token};

#[tokio::test]
async fn without_a_sign_in_every_command_names_the_login() {
    let home = Home::new();
    for arguments in [&["whoami"][..], &["token"], &["call", "GET", "/x"], &["status"]] {
        let ended = home.run(arguments).await;
        assert!(ended.expect_code(3).contains("app login --issuer URL --client-id ID"), "{ended:?}");
        assert_eq!(ended.stdout, "");
    }
    assert_eq!(home.run(&["logout"]).await.expect_success(), "No user is signed in.");
    let login = home.run(&["login"]).await;
    assert!(login.expect_code(2).contains("--issuer is missing"), "{login:?}");
}

#[tokio::test]
async fn errors_are_json_for_scripts_that_ask_for_it() {
    let ended = Home::new().run(&["token", "--json", "--profile", "work"]).await;
    let error: Value = serde_json::from_str(ended.expect_code(3)).unwrap();
    assert_eq!(error["error"]["code"], "sign_in_required");
    assert_eq!(error["error"]["exit_code"], 3);
    assert!(error["error"]["hint"].as_str().unwrap().contains("--profile work"), "{error}");
}

#[tokio::test]
async fn a_call_renews_an_expired_token_and_prints_the_body_alone() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    server.expire_access_tokens();
    let call = home.run(&["call", "post", "/api/upload?a=b", "-H", "x-note: 1", "-d", "hello", "--include"]).await;
    let body: Value = serde_json::from_str(call.expect_success()).unwrap();
    assert_eq!((&body["user"], &body["method"], &body["body_length"]), (&json!("ada"), &json!("POST"), &json!(5)));
    assert!(call.stderr.contains("200 OK") && call.stderr.contains("content-type: application/json"), "{call:?}");

    let call = home.run(&["call", "GET", &server.url("/api/headers"), "-H", "x-note: 1", "--json"]).await;
    call.expect_success();
    assert_eq!(call.json()["status"], 200);
    assert_eq!(call.json()["body"]["headers"]["x-note"], json!(["1"]));

    let bytes = home.run(&["call", "GET", "/api/bytes/3"]).await;
    assert_eq!(bytes.stdout.as_bytes(), [0, 1, 2, b'\n']);
}

#[tokio::test]
async fn a_token_that_is_known_to_have_expired_is_renewed_before_it_is_sent() {
    let server = TestServer::start().await.unwrap();
    server.configure(|settings| settings.access_lifetime = Duration::from_secs(1));
    let home = Home::signed_in(&server).await;
    server.configure(|settings| settings.access_lifetime = Duration::from_secs(600));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    home.run(&["call", "GET", "/api/notes"]).await.expect_success();
    assert_eq!((server.counters().unauthorized(), server.counters().refreshes), (0, 2));
}

#[tokio::test]
async fn a_body_is_the_text_or_a_file_or_stdin() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    let file = home.path().join("body");
    fs::write(&file, "1234").unwrap();
    let input = format!("@{}", file.display());
    for (data, length) in [("123", 3), (&*input, 4), ("-", 4)] {
        let mut app = home.app(&["call", "PUT", "/api/notes", "--data", data, "--json"]);
        app.stdin(fs::File::open(&file).unwrap());
        let call = Ended::of(app.spawn().unwrap()).await;
        assert_eq!(call.json()["body"]["body_length"], length, "{data}: {call:?}");
    }
    home.run(&["call", "PUT", "/api/notes", "-d", "@/nonexistent"]).await.expect_code(1);
}

#[tokio::test]
async fn an_error_of_the_api_has_its_own_exit_code_and_its_body_on_stdout() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    server.inject(Route::Api, Fault::status(404).body("no such note"));
    let call = home.run(&["call", "GET", "/api/notes/7"]).await;
    assert!(call.expect_code(6).contains("404 Not Found"), "{call:?}");
    assert_eq!(call.stdout, "no such note\n");
}

#[tokio::test]
async fn a_token_is_sent_to_the_profiles_apis_only() {
    let (server, foreign) = (TestServer::start().await.unwrap(), TestServer::start().await.unwrap());
    let home = Home::signed_in(&server).await;
    let call = home.run(&["call", "GET", &foreign.url("/api/notes")]).await;
    assert!(call.expect_code(2).contains("is no API of this profile, so it gets no token"), "{call:?}");
    assert_eq!(foreign.counters().requests, 0);
    home.run(&["call", "GET", "http://api.example.com/"]).await.expect_code(2);
}

#[tokio::test]
async fn a_token_of_the_environment_takes_the_place_of_the_session() {
    let server = TestServer::start().await.unwrap();
    let token = server.sign_in("grace").access_token;
    // With no profile, as on a build machine.
    let home = Home::new();
    let run = |arguments: &[&str]| Ended::of(home.app(arguments).env("APP_TOKEN", &token).spawn().unwrap());
    assert_eq!(run(&["token"]).await.expect_success(), token);
    let call = run(&["call", "GET", &server.url("/api/notes")]).await;
    assert!(call.expect_success().contains(r#""user":"grace""#), "{call:?}");
    assert!(run(&["status"]).await.expect_success().contains("APP_TOKEN"));

    // Nothing renews it, and the session isn't touched.
    home.import(&server, &["--api", &server.origin()]).await.expect_success();
    let before = server.counters().refreshes;
    server.expire_access_tokens_of("grace");
    let refused = run(&["call", "GET", "/api/notes"]).await;
    assert!(refused.expect_code(3).contains("APP_TOKEN"), "{refused:?}");
    assert_eq!(server.counters().refreshes, before);
    let ada = home.run(&["call", "GET", "/api/notes"]).await;
    assert!(ada.expect_success().contains("ada"), "{ada:?}");
}

#[tokio::test]
async fn a_revoked_session_ends_and_names_the_login() {
    let server = TestServer::start().await.unwrap();
    let home = home_with_expired_token(&server).await;
    server.revoke("ada");
    for _ in 0..2 {
        let ended = home.run(&["token"]).await;
        assert!(ended.expect_code(3).contains("app login"), "{ended:?}");
    }
    let status = home.run(&["status", "--json"]).await;
    status.expect_code(3);
    assert_eq!(status.json()["signed_in"], false);
    // The profile remains, so that the next login needs no options.
    home.import(&server, &[]).await.expect_success();
    home.run(&["call", "GET", "/api/notes"]).await.expect_success();
}

#[tokio::test]
async fn a_session_that_the_api_says_is_over_names_the_login() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    server.revoke("ada");
    let call = home.run(&["call", "GET", "/api/notes"]).await;
    assert!(call.expect_code(3).contains("sign in again: app login"), "{call:?}");
}

#[tokio::test]
async fn a_network_that_is_down_keeps_the_session() {
    let server = TestServer::start().await.unwrap();
    let home = home_with_expired_token(&server).await;
    let (kit, address) = (server.kit().clone(), server.address());
    drop(server);
    for arguments in [&["token"][..], &["call", "GET", "/api/notes"]] {
        let ended = home.run(arguments).await;
        assert_eq!(ended.status.code(), Some(4), "{ended:?}");
    }
    let _server = kit.serve(address).await.unwrap();
    home.run(&["token"]).await.expect_success();
}

#[tokio::test]
async fn a_logout_revokes_the_tokens() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    let token = home.run(&["token"]).await.expect_success().to_owned();
    let logout = home.run(&["logout"]).await;
    assert_eq!(logout.expect_success(), "Signed out, and the tokens are revoked.");
    assert!(server.log().iter().any(|entry| entry.path == "/oauth/revoke" && entry.status == Some(200)));
    home.run(&["token"]).await.expect_code(3);
    let stale = home.app(&["call", "GET", "/api/notes"]).env("APP_TOKEN", token).spawn().unwrap();
    Ended::of(stale).await.expect_code(3);
}

#[tokio::test]
async fn a_logout_forgets_the_tokens_offline_too() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    drop(server);
    let logout = home.run(&["logout"]).await;
    assert_eq!(logout.expect_success(), "Signed out on this machine.");
    assert!(logout.stderr.contains("may be valid at the provider until they expire"), "{logout:?}");
    assert_eq!(home.file(".record"), None);
    home.run(&["status"]).await.expect_code(3);
}

#[tokio::test]
async fn a_damaged_session_is_an_error_until_a_logout_forgets_it() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    fs::write(home.file(".record").unwrap(), "damaged").unwrap();
    let status = home.run(&["status"]).await;
    assert!(status.expect_code(1).contains("app logout"), "{status:?}");
    home.run(&["logout"]).await.expect_success();
    home.run(&["status"]).await.expect_code(3);
    home.import(&server, &[]).await.expect_success();
}

#[tokio::test]
async fn the_status_says_until_when_and_where_and_by_which_key() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    let status = home.run(&["status"]).await;
    let text = status.expect_success();
    for part in
        ["default", &server.origin(), "expires in", "renewed when it is needed", "not encrypted; only you may read"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains(home.sessions().to_str().unwrap()), "{text}");
    let json = home.run(&["status", "--json"]).await.json();
    assert_eq!((&json["signed_in"], &json["access_token"]["renewable"]), (&json!(true), &json!(true)));
    assert_eq!(json["store"]["keychain"], Value::Null);
    // Looking changes nothing.
    assert_eq!(server.counters().refreshes, 1);
}

#[tokio::test]
async fn profiles_are_users_apart() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    home.import(&server, &["--profile", "work"]).await.expect_success();
    home.run(&["logout", "--profile", "work"]).await.expect_success();
    home.run(&["token", "--profile", "work"]).await.expect_code(3);
    home.run(&["token"]).await.expect_success();
    let chosen = home.app(&["token"]).env("APP_PROFILE", "work").spawn().unwrap();
    Ended::of(chosen).await.expect_code(3);
}

#[tokio::test]
async fn tokens_are_never_sent_to_another_server_or_for_another_client() {
    let (first, second) = (TestServer::start().await.unwrap(), TestServer::start().await.unwrap());
    let home = Home::signed_in(&first).await;
    let profile = fs::read_to_string(home.profile()).unwrap();
    // A login at the second server has ended between its two writes.
    for changed in [profile.replace(&first.origin(), &second.origin()), profile.replace("\"app\"", "\"other\"")] {
        assert_ne!(changed, profile);
        fs::write(home.profile(), changed).unwrap();
        for arguments in [&["token", "--valid-for", "3600"][..], &["call", "GET", "/api/notes"], &["whoami"]] {
            let ended = home.run(arguments).await;
            assert!(ended.expect_code(3).contains("sign in: app login"), "{ended:?}");
        }
    }
    assert_eq!((second.counters().requests, first.counters().refreshes), (0, 1));
    fs::write(home.profile(), profile).unwrap();
    let token = home.run(&["token", "--valid-for", "3600"]).await.expect_success().to_owned();
    let holders = || {
        let files = fs::read_dir(home.sessions()).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
        files.filter(|bytes| bytes.windows(token.len()).any(|part| part == token.as_bytes())).count()
    };
    assert_eq!(holders(), 1);

    // A login that is complete removes the tokens of the first server.
    home.import(&second, &["--api", &second.origin()]).await.expect_success();
    assert_eq!(holders(), 0);
    home.run(&["call", "GET", "/api/notes"]).await.expect_success();
    assert_eq!((first.violations(), second.violations()), (vec![], vec![]));
}

#[tokio::test]
async fn a_client_secret_is_kept_for_its_server_and_client_only() {
    let (first, second) = (TestServer::start().await.unwrap(), TestServer::start().await.unwrap());
    let home = Home::new();
    let import = |server: &TestServer, arguments: &[&str]| {
        let refresh = home.path().join("refresh");
        fs::write(&refresh, server.sign_in("ada").refresh_token).unwrap();
        let mut login = home.app(&["login", "--with-refresh-token", "--store", "file"]);
        login.args(arguments).env("FIRST_SECRET", "s3cret").stdin(fs::File::open(&refresh).unwrap());
        Ended::of(login.spawn().unwrap())
    };
    let keeps = || fs::read_to_string(home.profile()).unwrap().contains("FIRST_SECRET");
    let (at_first, at_second) = (first.url("/oauth/token"), second.url("/oauth/token"));
    let login = ["--token-endpoint", &at_first, "--client-id", "app", "--client-secret-env", "FIRST_SECRET"];
    import(&first, &login).await.expect_success();
    import(&first, &["--token-endpoint", &at_first]).await.expect_success();
    assert!(keeps());
    import(&first, &["--client-id", "other"]).await.expect_success();
    assert!(!keeps(), "another client");

    import(&first, &login).await.expect_success();
    assert!(keeps());
    import(&second, &["--token-endpoint", &at_second, "--client-id", "app"]).await.expect_success();
    assert!(!keeps(), "another server");
}

#[tokio::test]
async fn files_are_the_users_own_and_hold_no_secret_but_the_tokens() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home.profile()), 0o600);
    assert_eq!(mode(home.profile().parent().unwrap()), 0o700);
    assert_eq!(mode(&home.sessions()), 0o700);
    assert_eq!(mode(&home.file(".record").unwrap()), 0o600);

    let before = fs::read_to_string(home.profile()).unwrap();
    fs::set_permissions(home.profile(), fs::Permissions::from_mode(0o666)).unwrap();
    let refused = home.run(&["token"]).await;
    assert!(refused.expect_code(1).contains("chmod 600"), "{refused:?}");
    fs::set_permissions(home.profile(), fs::Permissions::from_mode(0o600)).unwrap();
    let directory = home.profile().parent().unwrap().to_owned();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = home.run(&["token"]).await;
    assert!(refused.expect_code(1).contains("chmod 700"), "{refused:?}");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    // Only root can give a file away.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(home.profile(), Some(65534), None).unwrap();
        let refused = home.run(&["token"]).await;
        assert!(refused.expect_code(1).contains("must be yours"), "{refused:?}");
        std::os::unix::fs::chown(home.profile(), Some(0), None).unwrap();
    }
    fs::write(home.profile(), before.replace("\"apis\"", "\"api\"")).unwrap();
    let refused = home.run(&["token"]).await;
    assert!(refused.expect_code(1).contains("unknown field `api`"), "{refused:?}");
}

#[tokio::test]
async fn an_imported_refresh_token_that_the_provider_refuses_signs_no_user_in() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    server.inject(Route::Refresh, Fault::status(400).body(r#"{"error":"invalid_grant"}"#));
    let login = home.import(&server, &[]).await;
    assert!(login.expect_code(5).contains("gave no access token"), "{login:?}");
    home.run(&["status"]).await.expect_code(3);
}

#[tokio::test]
async fn without_a_keychain_a_login_says_that_the_tokens_are_unencrypted() {
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    let login = home.import(&server, &["--store", "auto"]).await;
    login.expect_success();
    assert!(login.stderr.contains("warning: the tokens are kept unencrypted in"), "{login:?}");
    let refused = home.import(&server, &["--store", "keychain"]).await;
    assert!(refused.expect_code(1).contains("--store file"), "{refused:?}");
}

#[tokio::test]
async fn a_token_that_lives_long_enough_is_printed_without_a_call() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    let first = home.run(&["token", "--json"]).await;
    assert!(first.json()["expires_at"].as_u64().unwrap() > 1_700_000_000, "{first:?}");
    assert_eq!(server.counters().refreshes, 1);
    // It lives for a minute.
    let renewed = home.run(&["token", "--valid-for", "3600"]).await;
    assert_ne!(Some(renewed.expect_success()), first.json()["access_token"].as_str());
    assert_eq!(server.counters().refreshes, 2);
    home.run(&["token", "--valid-for", "1e19"]).await.expect_success();
}

#[tokio::test]
async fn completions_and_help_need_no_settings() {
    let home = Home::new();
    for (shell, part) in [("bash", "_app"), ("zsh", "#compdef app"), ("fish", "complete -c app"), ("powershell", "app")]
    {
        assert!(home.run(&["completions", shell]).await.expect_success().contains(part));
    }
    let help = home.run(&["--help"]).await;
    assert!(help.expect_success().contains("Exit codes:") && !help.stdout.contains('\x1b'), "{help:?}");
}

#[tokio::test]
async fn a_reader_that_has_had_enough_is_no_error() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    let mut call = home.start(&["call", "GET", "/api/bytes/10000000"]);
    drop(call.stdout.take());
    let ended = tokio::time::timeout(Duration::from_secs(60), call.wait_with_output()).await.unwrap().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}
