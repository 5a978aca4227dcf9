//! Metrics of the process, with the names that all exporters use. Those that need `/proc` are absent without it.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Exposition;
use crate::descriptors;

/// The clock ticks of a second in `/proc`, on all architectures of Linux.
const TICKS: f64 = 100.;

/// Writes the metrics of a process that has started at this time.
pub(super) fn render(page: &mut Exposition, started: SystemTime) {
    page.family("gateway_build_info", "gauge", "1, with the version of the program.");
    page.sample("gateway_build_info", format_args!("version=\"{}\"", env!("CARGO_PKG_VERSION")), 1);
    let since = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    page.single("process_start_time_seconds", "gauge", "Start of the process, in seconds since 1970.", since);
    if let Some(seconds) = cpu_seconds() {
        page.single("process_cpu_seconds_total", "counter", "CPU time of the process, user and system.", seconds);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them reads the directory.
        let open = open.count().saturating_sub(1);
        page.single("process_open_fds", "gauge", "Open file descriptors.", open);
    }
    page.single("process_max_fds", "gauge", "Maximum number of open file descriptors.", descriptors::limit());
    if let Some(bytes) = resident_bytes() {
        page.single("process_resident_memory_bytes", "gauge", "Resident memory.", bytes);
    }
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name before may hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS)
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
