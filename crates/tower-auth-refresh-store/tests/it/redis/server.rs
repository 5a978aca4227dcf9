//! A Redis server of a test, on a free port of the loopback interface.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, io};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::TestDirectory;

/// The time that a server has to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A server, which ends with it.
pub(crate) struct Server {
    process: Child,
    port: u16,
    directory: TestDirectory,
}

impl Server {
    /// Starts a server that keeps its data in memory. `None` if none is installed.
    pub(crate) async fn start() -> Option<Self> {
        // A replica gets its data at once.
        Self::start_with(&["--save", "", "--repl-diskless-sync-delay", "0"]).await
    }

    /// Starts a server with these settings, as on the command line. `None` if none is installed.
    pub(crate) async fn start_with(settings: &[&str]) -> Option<Self> {
        let directory = TestDirectory::new();
        fs::create_dir(directory.path()).unwrap();
        let (process, port) = launch("redis-server", directory.path(), settings).await?;
        Some(Self { process, port, directory })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Returns the directory of the server's files.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Sends a command, with its words between spaces. Returns the answer as it was sent.
    pub(crate) async fn command(&self, command: &str) -> String {
        command_to(self.port, command).await.unwrap()
    }

    /// Returns the value of a key.
    pub(crate) async fn value(&self, name: &str) -> Vec<u8> {
        let answer = answer_of(self.port, &format!("GET {name}")).await.unwrap();
        let start = answer.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        answer[start..answer.len() - 2].to_vec()
    }

    /// Stops the server, or has it go on.
    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.process), signal).unwrap();
    }

    /// Kills the server, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts `redis-server` or `redis-sentinel` on a free port, and waits until it answers. `None` if it isn't installed.
pub(crate) async fn launch(program: &str, directory: &Path, settings: &[&str]) -> Option<(Child, u16)> {
    let begun = Instant::now();
    loop {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        // A sentinel has its configuration in a file.
        if let Some((file, settings)) = settings.split_first().filter(|(first, _)| !first.starts_with("--")) {
            command.arg(file).args(settings);
        } else {
            command.args(settings);
        }
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"]).arg(directory);
        let Ok(mut process) = command.stdout(Stdio::null()).spawn() else {
            assert!(env::var("CI").is_err(), "{program} isn't installed");
            eprintln!("skipped: {program} isn't installed");
            return None;
        };
        // If another program has taken the port meanwhile, the process ends.
        while process.try_wait().unwrap().is_none() {
            if command_to(port, "PING").await.is_ok_and(|answer| answer.starts_with(['+', '-'])) {
                return Some((process, port));
            }
            assert!(begun.elapsed() < START_TIMEOUT, "{program} hasn't started");
            sleep(Duration::from_millis(5)).await;
        }
        assert!(begun.elapsed() < START_TIMEOUT, "{program} ends at once");
    }
}

/// Sends a command to the server on a port, and returns the answer as it was sent.
pub(crate) async fn command_to(port: u16, command: &str) -> io::Result<String> {
    let answer = answer_of(port, command).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn answer_of(port: u16, command: &str) -> io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.write_all(format!("{command}\r\n").as_bytes()).await?;
    // The server answers, then closes the connection too.
    socket.shutdown().await?;
    let mut answer = Vec::new();
    timeout(START_TIMEOUT, socket.read_to_end(&mut answer)).await??;
    Ok(answer)
}
