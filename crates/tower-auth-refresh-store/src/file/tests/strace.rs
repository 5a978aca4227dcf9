//! The calls that reach the operating system, as `strace` shows them.

use std::env;
use std::fs;
use std::process::Command;

use super::program::this_program;
use super::*;

const TRACED: &str = "STORE_TRACED";

#[test]
fn each_file_is_flushed_before_it_is_renamed_and_each_directory_afterwards() {
    let directory = TestDirectory::new();
    fs::create_dir(directory.path()).unwrap();
    let home = directory.path().canonicalize().unwrap();
    let (trace, test) = (home.join("trace"), this_program("file::tests::strace::under_strace"));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-y", "-s", "200", "-e", "trace=fsync,renameat,renameat2", "-o"]).arg(&trace);
    strace.arg(test.get_program()).args(test.get_args()).env(TRACED, "a/b").current_dir(&home);
    let Ok(status) = strace.status() else {
        assert!(env::var("CI").is_err(), "strace isn't installed");
        eprintln!("skipped: strace isn't installed");
        return;
    };
    assert!(status.success());

    let trace = fs::read_to_string(&trace).unwrap();
    let seen: Vec<_> = trace.lines().filter_map(|line| seen(line, home.to_str().unwrap())).collect();
    let made = ["fsync /a", "fsync "].map(str::to_owned);
    let written = |file| [format!("fsync {file}.tmp"), format!("rename {file}.tmp {file}"), "fsync /a/b".to_owned()];
    let expected: Vec<_> =
        made.into_iter().chain(["record", "claim", "record"].into_iter().flat_map(written)).collect();
    assert_eq!(seen, expected);
}

/// Returns a call by its name and the endings of its files: `7 fsync(3</home/0123.record.4567.tmp>) = 0`.
fn seen(line: &str, home: &str) -> Option<String> {
    let (call, arguments) = line.split_once(' ')?.1.trim_start().split_once('(')?;
    let ending = |name: &str| {
        let parts: Vec<_> = name.split('.').collect();
        match parts[..] {
            [_, ending, _, "tmp"] => format!("{ending}.tmp"),
            [_, ending] => ending.to_owned(),
            _ => name.to_owned(),
        }
    };
    if call == "fsync" {
        let path = arguments.split(['<', '>']).nth(1)?.strip_prefix(home)?;
        return Some(format!("fsync {}", ending(path)));
    }
    let quoted: Vec<_> = arguments.split('"').collect();
    Some(format!("rename {} {}", ending(quoted.get(1)?), ending(quoted.get(3)?)))
}

#[tokio::test]
async fn under_strace() {
    let Some(path) = env::var_os(TRACED) else { return };
    let store = FileStore::open_single(path).unwrap();
    // The store's path is relative to the working directory of its start.
    env::set_current_dir("/").unwrap();
    let version = store.replace(&entry(1)).await.unwrap();
    let claim = claimed(&*store, &version).await;
    store.commit(&claim, &entry(2)).await.unwrap();
}
