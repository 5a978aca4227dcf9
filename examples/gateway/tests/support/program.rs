//! The gateway as a child process.

use std::env;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A running gateway, killed on drop.
pub(crate) struct Program {
    child: Child,
    pub(crate) address: SocketAddr,
    /// The address of the admin listener, if there is one.
    pub(crate) admin: Option<SocketAddr>,
}

/// Returns the command of the program, with nothing from the environment of this process. `GATEWAY_LOG` sets what it logs.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    let log = env::var("GATEWAY_LOG").unwrap_or_else(|_| "info".into());
    command.args(arguments).env_clear().env("RUST_LOG", log);
    command
}

/// Runs a program that should exit with an error, and returns its output.
pub(crate) fn run_to_failure(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the program has started: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

impl Program {
    /// Starts the program on a free port and waits until it listens.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_command(command(arguments).args(["--listen", "127.0.0.1:0"]))
    }

    pub(crate) fn start_command(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut line = lines.next().unwrap_or_default();
        let admin = line.strip_prefix("admin on http://").map(|address| address.parse().unwrap());
        if admin.is_some() {
            line = lines.next().unwrap_or_default();
        }
        let origin = line.strip_prefix("listening on ");
        let address = origin.and_then(|origin| origin.strip_prefix("http://").or(origin.strip_prefix("https://")));
        let address = address.unwrap_or_else(|| panic!("unexpected output: {line:?}"));
        Self { child, address: address.parse().unwrap(), admin }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the program, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Returns the resident memory in bytes, or `None` on systems without `/proc`.
    pub(crate) fn resident_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    }

    /// Waits until the program refuses connections.
    pub(crate) async fn stops_accepting(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while TcpStream::connect(self.address).is_ok() {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until the program has exited.
    pub(crate) async fn exit(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the program is still running");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Reads the piped stderr in a thread.
    pub(crate) fn take_log(&mut self) -> Log {
        let stderr = self.child.stderr.take().unwrap();
        Log(std::thread::spawn(|| std::io::read_to_string(stderr).unwrap()))
    }
}

/// The stderr of a program.
pub(crate) struct Log(std::thread::JoinHandle<String>);

impl Log {
    pub(crate) fn join(self) -> String {
        self.0.join().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}
