//! The load by wrk.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use crate::servers::Server;

const CONNECTIONS: usize = 32;

/// The requests for one proxy.
pub(crate) struct Load {
    address: SocketAddr,
    cookies: PathBuf,
}

/// The figures of one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    requests: f64,
    seconds: f64,
    cpu_seconds: f64,
}

impl Load {
    /// Creates the load of users whose cookies are the lines of a file.
    pub(crate) fn new(address: SocketAddr, cookies: PathBuf) -> Self {
        Self { address, cookies }
    }

    /// Runs a round.
    pub(crate) fn run(&self, server: &Server, seconds: u64) -> Sample {
        let mut wrk = Command::new("wrk");
        wrk.args([format!("--connections={CONNECTIONS}"), format!("--duration={seconds}s"), "--threads=2".to_owned()]);
        wrk.args(["--script", concat!(env!("CARGO_MANIFEST_DIR"), "/config/load.lua")]);
        wrk.arg(format!("http://{}", self.address)).env("COOKIES", &self.cookies);
        let before = server.cpu_seconds();
        let output = wrk.output().expect("wrk runs");
        let cpu_seconds = server.cpu_seconds() - before;
        let output = String::from_utf8_lossy(&output.stdout);
        let line = output.lines().last().unwrap_or_default();
        let figures: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [requests, microseconds, failed] = figures[..] else { panic!("unexpected output of wrk: {output}") };
        assert!(failed == 0., "{failed} requests failed: {output}");
        Sample { requests, seconds: microseconds / 1e6, cpu_seconds }
    }
}

impl Sample {
    pub(crate) fn cpu_microseconds(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.requests
    }

    pub(crate) fn rate(&self) -> f64 {
        self.requests / self.seconds
    }
}
