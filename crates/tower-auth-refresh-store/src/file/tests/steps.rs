//! The steps as tests see them: recorded, failed, or the process's last.

use std::collections::HashMap;
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};

use super::super::steps::Step;

/// In a process with this variable, the number of the step that it doesn't survive.
pub(super) const KILL_AT: &str = "STORE_KILL_AT";

/// The steps in one directory since they were last taken, and the one that fails.
#[derive(Default)]
struct Plan {
    steps: Vec<Step>,
    failure: Option<(usize, i32)>,
}

static PLANS: LazyLock<Mutex<HashMap<PathBuf, Plan>>> = LazyLock::new(Mutex::default);

/// Makes a step fail with this number of the operating system: the one before which `after` others are made.
pub(super) fn fail(directory: &Path, after: usize, errno: i32) {
    let plan = Plan { steps: Vec::new(), failure: Some((after, errno)) };
    PLANS.lock().unwrap().insert(directory.to_owned(), plan);
}

/// Returns the steps that were made since the last call or the last [`fail`], and lets all steps succeed.
pub(super) fn take(directory: &Path) -> Vec<Step> {
    PLANS.lock().unwrap().insert(directory.to_owned(), Plan::default()).unwrap_or_default().steps
}

pub(in crate::file) fn reach(directory: &Path, step: Step) -> io::Result<()> {
    die_if_due();
    let mut plans = PLANS.lock().unwrap();
    let Some(plan) = plans.get_mut(directory) else { return Ok(()) };
    plan.steps.push(step);
    match plan.failure {
        Some((after, errno)) if plan.steps.len() == after + 1 => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(()),
    }
}

fn die_if_due() {
    static KILLED_AT: LazyLock<Option<usize>> = LazyLock::new(|| env::var(KILL_AT).ok()?.parse().ok());
    static REACHED: AtomicUsize = AtomicUsize::new(0);
    let reached = REACHED.fetch_add(1, Ordering::SeqCst) + 1;
    if Some(reached) == *KILLED_AT {
        use rustix::process::{Signal, getpid, kill_process};
        kill_process(getpid(), Signal::KILL).unwrap();
        // The signal may take a moment.
        loop {
            std::thread::park();
        }
    }
}
