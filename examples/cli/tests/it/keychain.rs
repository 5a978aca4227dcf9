//! The key in GNOME Keyring, on a bus of its own.

use std::process::Command;
use std::{env, fs};

use serde_json::Value;
use tower_auth_refresh_testkit::TestServer;

use crate::support::{Ended, Home};

/// Without the files that have the bus start services.
const BUS: &str = r#"<busconfig>
  <type>session</type>
  <listen>unix:tmpdir=/tmp</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>"#;

/// Runs commands of the shell, with `app` among them, in a session with an unlocked keychain.
async fn in_session(home: &Home, commands: &str) -> Ended {
    let configuration = home.path().join("bus.conf");
    fs::write(&configuration, BUS).unwrap();
    let mut session = tokio::process::Command::new("dbus-run-session");
    session.arg(format!("--config-file={}", configuration.display())).args(["--", "sh", "-ec"]);
    let unlock = "printf password | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1";
    session.arg(format!("{unlock}; app() {{ {} \"$@\"; }}; {commands}", env!("CARGO_BIN_EXE_app")));
    home.set_environment(|name, value| {
        session.env(name, value);
    });
    session.env_remove("DBUS_SESSION_BUS_ADDRESS").env_remove("DISPLAY").env_remove("GNOME_KEYRING_CONTROL");
    session.env_remove("APP_TOKEN").env_remove("APP_PROFILE").kill_on_drop(true);
    session
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    Ended::of(session.spawn().unwrap()).await
}

#[tokio::test]
async fn with_a_keychain_the_tokens_are_encrypted_and_never_kept_otherwise() {
    for program in ["dbus-run-session", "gnome-keyring-daemon"] {
        if Command::new(program).arg("--version").output().is_err() {
            assert!(env::var("CI").is_err(), "{program} isn't installed");
            return eprintln!("skipped: {program} isn't installed");
        }
    }
    let server = TestServer::start().await.unwrap();
    let home = Home::new();
    let origin = server.origin();
    fs::write(home.path().join("refresh"), server.sign_in("ada").refresh_token).unwrap();
    let login = format!("login --issuer {origin} --client-id app --api {origin} --with-refresh-token");
    let commands = format!("app {login} < {}/refresh >&2; app status --json; app token", home.path().display());
    let ended = in_session(&home, &commands).await;
    let (status, token) = ended.expect_success().split_once('\n').unwrap();
    let status: Value = serde_json::from_str(status).unwrap();
    assert_eq!(status["store"]["keychain"], "app/default");
    assert!(!ended.stderr.contains("warning"), "{ended:?}");
    let record = fs::read(home.file(".record").unwrap()).unwrap();
    assert!(!record.windows(token.len()).any(|bytes| bytes == token.as_bytes()), "a token is in clear");

    // Without the keychain nothing is read, and a login writes nothing in clear.
    let locked_out = home.run(&["token"]).await;
    assert!(locked_out.expect_code(1).contains("app/default"), "{locked_out:?}");
    let login = home.import(&server, &["--store", "auto"]).await;
    assert!(login.expect_code(1).contains("--store file"), "{login:?}");
    let again = in_session(&home, "app token").await;
    assert_eq!(again.expect_success(), token);

    // The session in the keychain's place isn't replaced unasked, and no new one is lost.
    let refused = home.import(&server, &["--store", "file"]).await;
    assert!(refused.expect_code(1).contains("app logout"), "{refused:?}");
    assert_eq!(in_session(&home, "app token").await.expect_success(), token);
    home.run(&["logout"]).await.expect_success();
    home.import(&server, &["--store", "file"]).await.expect_success();
    home.run(&["token"]).await.expect_success();
}
