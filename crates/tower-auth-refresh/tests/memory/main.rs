//! Large uploads and endless answers take no memory, and a session among many takes little. Each is measured in a process
//! of its own, whose memory the system tells.

#![expect(clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

mod answers;
mod registry;
mod uploads;

use std::env;
use std::process::Command;

const MEBIBYTE: usize = 1 << 20;

/// What anything may add to a peak.
const MARGIN: usize = 8 * MEBIBYTE;

/// Runs this test again, in a process of its own with these variables, and returns what it [`tell`]s.
fn alone<'a>(test: &str, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<usize> {
    let mut process = Command::new(env::current_exe().unwrap());
    process.args(["--exact", test, "--nocapture"]).envs(variables);
    let output = process.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    let bytes = told.lines().find_map(|line| line.strip_prefix("bytes: ")).expect("it was this very test");
    let bytes = bytes.parse::<usize>().ok();
    if bytes.is_none() {
        println!("skipped: this system doesn't tell how much memory a process has used");
    }
    bytes
}

/// Tells a number of bytes to the process that started this one.
fn tell(bytes: Option<usize>) {
    println!("\nbytes: {}", bytes.map_or(String::new(), |bytes| bytes.to_string()));
}

/// The most memory that this process has used, in bytes.
fn peak() -> Option<usize> {
    memory("VmHWM:")
}

/// What the system tells of this process's memory under this name, in bytes.
fn memory(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? * 1024)
}
