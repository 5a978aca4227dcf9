//! Runs the program as its readers do, and checks the figures that it prints.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use std::process::Command;

use serde_json::{Value, json};

fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_quickstart")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn figures(arguments: &[&str]) -> Value {
    serde_json::from_str(&run(arguments)).unwrap()
}

#[test]
fn one_process_refreshes_once_and_keeps_its_session() {
    let expected = json!({
        "calls": 5, "unauthorized": 5, "refreshes": 1, "replays": 5, "ok": 5, "late_401_refreshes": 0,
        "network_failure_kept_session": true, "revoked_ended_session": true, "violations": 0,
    });
    assert_eq!(figures(&["--json"]), expected);
}

#[test]
fn two_processes_refresh_once_and_stay_signed_in_when_they_are_killed() {
    let expected = json!({
        "sign_ins": 1, "refreshes": 1, "refreshes_around_kill": 2, "refreshes_after_restart": 0, "failed_calls": 0,
        "violations": 0,
    });
    assert_eq!(figures(&["--replicas", "--json"]), expected);
}

#[test]
fn the_requests_of_two_processes_are_shown() {
    let shown = run(&["--replicas"]);
    assert_eq!(shown.lines().filter(|line| line.contains("POST /auth/refresh")).count(), 3, "{shown}");
    assert!(shown.lines().count() < 30 && shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
}
