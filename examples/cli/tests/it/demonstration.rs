//! The demonstration, and its recording in the README.

use std::time::{Duration, Instant};

use crate::support::Home;

const README: &str = include_str!("../../README.md");

#[tokio::test]
async fn the_recording_in_the_readme_is_what_the_demonstration_says() {
    let begun = Instant::now();
    let told = Home::new().run(&[]).await;
    let took = begun.elapsed();
    let (_, recorded) = README.split_once("with what the program says.\n\n```console\n").unwrap();
    let (recorded, _) = recorded.split_once("\n```").unwrap();
    assert_eq!(told.stderr, "");
    assert_eq!(settled(told.expect_success()), settled(recorded));
    // Most of it are pauses. It takes 5 s, and longer where the processes get little of the machine.
    assert!(took < Duration::from_secs(60), "{took:?}");
}

/// Replaces what differs each time, and leaves out the lines that only a long wait shows.
fn settled(text: &str) -> Vec<String> {
    let word = |word: &str| match word {
        word if word.contains("127.0.0.1") => "URL".to_owned(),
        word if word.contains("/app-demo-") => "DIRECTORY".to_owned(),
        word if word.len() == 9 && word.as_bytes()[4] == b'-' && word.to_uppercase() == word => "CODE".to_owned(),
        word if word.parse::<u32>().is_ok() => "NUMBER".to_owned(),
        word => word.to_owned(),
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.trim().lines().filter(|line| !line.ends_with('…')).map(line).collect()
}
