//! `--check`.

use std::net::TcpListener;
use std::path::Path;

use tower_auth_refresh_testkit::TestServer;

use crate::directory::TestDirectory;
use crate::program::command;

/// Runs a check, and returns whether it has passed, and its lines.
async fn check(arguments: &[&str]) -> (bool, Vec<String>) {
    let mut command = command(arguments);
    command.arg("--check").env("RUST_LOG", "off");
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.success(), text.lines().map(ToOwned::to_owned).collect())
}

fn make_private(directory: &Path) {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(directory).unwrap();
}

#[tokio::test]
async fn a_check_that_passes_has_a_line_for_each_part_and_does_not_listen() {
    let kit = TestServer::start().await.unwrap();
    let (origin, directory) = (kit.origin(), TestDirectory::new());
    make_private(directory.path());
    let store = format!("file:{}", directory.path().display());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (passed, lines) =
        check(&["--upstream", &origin, "--auth", &origin, "--store", &store, "--listen", &taken]).await;
    let expected =
        ["ok   settings", "ok   --store", &format!("ok   --upstream: {origin}"), &format!("ok   --auth: {origin}")];
    assert!(passed && lines == expected, "{lines:#?}");
    // No request was sent, and no user's record made.
    assert_eq!((kit.counters().api, kit.counters().logins), (0, 0));
}

#[tokio::test]
async fn a_check_that_fails_names_each_setting_and_makes_nothing() {
    // It accepts connections, but doesn't speak TLS.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("https://{}", silent.local_addr().unwrap());
    let directory = TestDirectory::new();
    let store = format!("file:{}", directory.path().display());
    let arguments = ["--upstream", &upstream, "--auth", "http://127.0.0.1:1", "--store", &store];
    let (passed, lines) = check(&arguments).await;
    assert!(!passed && !directory.path().exists());
    let starts = ["ok   settings", "FAIL --store: ", "FAIL --upstream: ", "FAIL --auth: "];
    assert_eq!(lines.len(), starts.len(), "{lines:#?}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{lines:#?}");
    }
    assert!(lines[2].contains("no connection within 5 s"), "{lines:#?}");

    let (passed, lines) = check(&[&arguments[..], &["--store-keys=/nonexistent"]].concat()).await;
    assert!(!passed && lines[1].starts_with("FAIL --store-keys: "), "{lines:#?}");
    // A secret in a URL is refused, and never printed.
    let (passed, lines) = check(&["--upstream", &upstream, "--auth=https://user:hunter2@127.0.0.1:1"]).await;
    assert!(!passed && !lines.concat().contains("hunter2"), "{lines:#?}");
    let (passed, lines) = check(&["--upstream=http://api.example.com", "--auth=https://auth.example.com"]).await;
    assert!(!passed && lines.len() == 1 && lines[0].starts_with("FAIL --upstream: "), "{lines:#?}");
}
