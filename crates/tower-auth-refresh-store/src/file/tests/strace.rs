//! The calls that reach the operating system, as `strace` shows them.

use std::env;
use std::fs;
use std::process::Command;

use super::program::this_program;
use super::*;

const TRACED: &str = "STORE_TRACED";
const INJECTED: &str = "STORE_INJECTED";
const OUTCOMES: &str = "outcomes.log";

/// The calls that the thread of the store makes first, of the kinds that other threads make too, but fewer. Calls are
/// counted for each thread.
const FIRST_CALLS: usize = 100;

#[test]
fn each_file_is_flushed_before_it_is_renamed_and_each_directory_afterwards() {
    let directory = TestDirectory::new();
    fs::create_dir(directory.path()).unwrap();
    let home = directory.path().canonicalize().unwrap();
    let test = this_program("file::tests::strace::under_strace");
    let traced = strace(&["-y", "-s", "200", "-e", "trace=fsync,renameat,renameat2"], &test, |strace| {
        strace.env(TRACED, "a/b").current_dir(&home);
    });
    let Some(trace) = traced else { return };
    let seen: Vec<_> = trace.lines().filter_map(|line| seen(line, home.to_str().unwrap())).collect();
    let made = ["fsync /a", "fsync "].map(str::to_owned);
    let written = |file| [format!("fsync {file}.tmp"), format!("rename {file}.tmp {file}"), "fsync /a/b".to_owned()];
    let expected: Vec<_> =
        made.into_iter().chain(["record", "claim", "record"].into_iter().flat_map(written)).collect();
    assert_eq!(seen, expected);
}

/// Runs a program under `strace`, and returns the trace. `None` if `strace` isn't installed.
fn strace(options: &[&str], program: &Command, set_up: impl FnOnce(&mut Command)) -> Option<String> {
    let directory = TestDirectory::new();
    fs::create_dir(directory.path()).unwrap();
    let trace = directory.path().canonicalize().unwrap().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq"]).args(options).arg("-o").arg(&trace);
    strace.arg(program.get_program()).args(program.get_args());
    set_up(&mut strace);
    let Ok(output) = strace.output() else {
        assert!(env::var("CI").is_err(), "strace isn't installed");
        eprintln!("skipped: strace isn't installed");
        return None;
    };
    assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stdout));
    Some(fs::read_to_string(&trace).unwrap())
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

/// The operating system itself fails, at each call of each kind, in a process of its own.
#[tokio::test]
async fn a_refresh_whose_calls_to_the_operating_system_fail_loses_and_tears_no_record() {
    for (call, errno, least) in [
        // A file for the claim, one for its renewal, and one for the record.
        ("write", "EIO", 3),
        ("write", "ENOSPC", 3),
        ("fsync", "EIO", 6),
        ("fsync", "ENOSPC", 6),
        ("/^rename", "EIO", 3),
        ("/^rename", "ENOSPC", 3),
        ("openat", "ENOSPC", 9),
        ("unlinkat", "EIO", 1),
        ("ftruncate", "EIO", 1),
    ] {
        let first = if ["write", "openat"].contains(&call) { FIRST_CALLS } else { 0 };
        for nth in 1.. {
            let directory = TestDirectory::new();
            let store = FileStore::open_single(directory.path()).unwrap();
            let version = store.replace(&entry(1)).await.unwrap();
            let fault = format!("inject={call}:error={errno}:when={}", first + nth);
            let test = this_program("file::tests::strace::under_injection");
            let traced = strace(&["-e", &format!("trace={call}"), "-e", &fault], &test, |strace| {
                strace.env(INJECTED, directory.path());
            });
            let Some(trace) = traced else { return };
            if !trace.contains("(INJECTED)") {
                assert!(nth > least, "{fault}: {trace}");
                break;
            }
            let outcomes = fs::read_to_string(directory.path().join(OUTCOMES)).unwrap();
            let shown = format!("{fault}: {outcomes}");
            let [is_claimed, is_renewed, is_committed] =
                ["claimed", "renewed", "committed"].map(|it| outcomes.contains(it));
            // Neither absent nor damaged.
            let record = store.load().await.unwrap().expect(&shown);
            assert_eq!(record.tokens(), entry(record.generation()).tokens(), "{shown}");
            assert!(is_claimed || !is_renewed && record.version() == &version, "{shown}");
            assert!(!is_committed || record.generation() == 2, "{shown}");
            // The next process goes on from there.
            let claim = claimed(&*store, record.version()).await;
            assert!(claim.is_in_doubt() || !is_claimed || record.generation() == 2, "{shown}");
            assert!(matches!(store.commit(&claim, &entry(3)).await.unwrap(), CommitOutcome::Stored(_)), "{shown}");
        }
    }
}

#[test]
fn under_injection() {
    let Some(path) = env::var_os(INJECTED) else { return };
    // All calls of the store are made by one thread, and none of their kinds by the runtime.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().max_blocking_threads(1).thread_keep_alive(LEASE).build().unwrap();
    let outcomes = runtime.block_on(async {
        tokio::task::spawn_blocking(|| {
            for _ in 0..FIRST_CALLS {
                fs::write("/dev/null", "x").unwrap();
            }
        })
        .await
        .unwrap();
        refresh(&*FileStore::open_single(&path).unwrap()).await
    });
    fs::write(Path::new(&path).join(OUTCOMES), format!("{outcomes:?}")).unwrap();
}

/// Returns the operations that have succeeded.
async fn refresh(store: &dyn TokenStore) -> Vec<&'static str> {
    let mut outcomes = Vec::new();
    let Ok(Some(record)) = store.load().await else { return outcomes };
    let Ok(ClaimOutcome::Claimed(claim)) = store.claim(record.version(), LEASE).await else { return outcomes };
    outcomes.push("claimed");
    if store.renew(&claim, LEASE).await.is_ok() {
        outcomes.push("renewed");
    }
    if store.commit(&claim, &entry(2)).await.is_ok() {
        outcomes.push("committed");
    }
    outcomes
}
