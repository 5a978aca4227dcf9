//! Memory bounds: large uploads and endless responses take no memory, and a session in a registry takes little.
//!
//! Each is measured in a process of its own, from the memory figures of the operating system.

#![expect(clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

mod answers;
mod registry;
mod uploads;

use std::env;
use std::process::Command;

const MEBIBYTE: usize = 1 << 20;

/// The allowed growth of a peak.
const MARGIN: usize = 8 * MEBIBYTE;

/// Runs this test again in a process of its own, with these variables, and returns the number that it [`report`]s.
fn run_in_own_process<'a>(test: &str, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<usize> {
    let mut process = Command::new(env::current_exe().unwrap());
    process.args(["--exact", test, "--nocapture"]).envs(variables);
    let output = process.output().unwrap();
    let output_text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output_text}{}", String::from_utf8_lossy(&output.stderr));
    let bytes =
        output_text.lines().find_map(|line| line.strip_prefix("bytes: ")).expect("the child process ran this test");
    let bytes = bytes.parse::<usize>().ok();
    if bytes.is_none() {
        println!("skipped: this system doesn't report the memory of a process");
    }
    bytes
}

/// Reports a number of bytes to the parent process.
fn report(bytes: Option<usize>) {
    println!("\nbytes: {}", bytes.map_or(String::new(), |bytes| bytes.to_string()));
}

/// Returns the peak memory of this process, in bytes.
fn peak_memory() -> Option<usize> {
    memory("VmHWM:")
}

/// Returns a memory figure of this process from `/proc/self/status`, in bytes.
fn memory(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? * 1024)
}
