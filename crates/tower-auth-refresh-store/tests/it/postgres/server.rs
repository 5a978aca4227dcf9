//! A PostgreSQL server of a test, on a free port of the loopback interface.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::sync::OnceCell;

use crate::TestDirectory;

/// The password of the user `postgres`.
pub(crate) const PASSWORD: &str = "s3cr3t-w0rd";

/// A server with its directory. Both end with it, or with this process.
pub(crate) struct Server {
    bin: PathBuf,
    directory: TestDirectory,
    port: u16,
    settings: Vec<String>,
    /// The length of the longest file that the server may write.
    limit_kib: Option<u64>,
    /// Stops the server when its standard input is closed, as it is when this process ends.
    guard: Child,
}

/// Returns the server that tests share, each with a namespace of its own. `None` if none is installed. It doesn't wait for
/// its disk: no test here takes the machine's power away.
pub(crate) async fn shared() -> Option<&'static Server> {
    static SHARED: OnceCell<Option<Server>> = OnceCell::const_new();
    SHARED.get_or_init(async || Server::start(&["fsync=off"])).await.as_ref()
}

impl Server {
    /// Starts a server with these settings, such as `wal_level=replica`. `None` if none is installed.
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        let server = Self::new(settings)?;
        assert!(server.launch(), "the server hasn't started: {}", server.log());
        Some(server)
    }

    /// Starts a server none of whose files can become longer than this. `None` if none is installed.
    pub(crate) fn start_with_limit(kib: u64) -> Option<Self> {
        let mut server = Self::new(&[])?;
        server.limit_kib = Some(kib);
        assert!(server.launch(), "the server hasn't started: {}", server.log());
        Some(server)
    }

    /// Makes the files of a server.
    fn new(settings: &[&str]) -> Option<Self> {
        let server = Self::prepare(settings)?;
        let password = server.path().join("password");
        fs::write(&password, PASSWORD).unwrap();
        let made = server.run("initdb", |command| {
            command.args(["--no-sync", "--wal-segsize=1", "--auth=password", "--username=postgres", "--encoding=UTF8"]);
            command.args(["--locale=C", "--no-instructions", "--pgdata"]).arg(server.data());
            command.arg("--pwfile").arg(&password);
        });
        assert!(made, "initdb failed");
        // SCRAM takes 50 ms without optimization, so only the user that is about it has it.
        let file = server.data().join("pg_hba.conf");
        let access = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("host all scram 127.0.0.1/32 scram-sha-256\n{access}")).unwrap();
        Some(server)
    }

    /// Starts a standby of the server on a port.
    pub(crate) fn start_standby_of(port: u16) -> Option<Self> {
        let server = Self::prepare(&[])?;
        let primary = format!("host=127.0.0.1 port={port} user=postgres password={PASSWORD}");
        let copied = server.run("pg_basebackup", |command| {
            command.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname", &primary]);
            command.arg("--pgdata").arg(server.data());
        });
        assert!(copied && server.launch(), "the standby hasn't started: {}", server.log());
        Some(server)
    }

    /// Makes a primary of a standby.
    pub(crate) fn promote(&self) {
        let promoted = self.run("pg_ctl", |command| {
            command.arg("--pgdata").arg(self.data()).args(["--wait", "promote"]);
        });
        assert!(promoted, "the standby isn't promoted: {}", self.log());
    }

    /// Makes the directory, and the process that removes it.
    fn prepare(settings: &[&str]) -> Option<Self> {
        let Some(bin) = installed() else {
            assert!(env::var("CI").is_err(), "PostgreSQL isn't installed");
            eprintln!("skipped: PostgreSQL isn't installed");
            return None;
        };
        let directory = TestDirectory::new();
        fs::create_dir(directory.path()).unwrap();
        if is_root() {
            assert!(Command::new("chown").arg("postgres").arg(directory.path()).status().unwrap().success());
        }
        let stop = r#"trap '' INT; cat; "$0/pg_ctl" --pgdata "$1/data" --mode immediate stop; rm -rf "$1"/*"#;
        let guard = as_server("sh")
            .arg("-c")
            .arg(stop)
            .arg(&bin)
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let settings = settings.iter().map(|&setting| setting.into()).collect();
        Some(Self { bin, directory, port: free_port(), settings, limit_kib: None, guard })
    }

    /// Starts the server. If it has been started before, on the same port.
    pub(crate) fn launch(&self) -> bool {
        let fixed =
            ["listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=16MB", "min_wal_size=2MB"];
        let settings = fixed.iter().copied().chain(self.settings.iter().map(String::as_str));
        let options = settings.fold(format!("-p {}", self.port), |options, setting| format!("{options} -c {setting}"));
        let program = self.bin.join("pg_ctl");
        let mut command = match self.limit_kib {
            Some(kib) => {
                let mut command = as_server("prlimit");
                command.arg(format!("--fsize={}", kib * 1024)).arg(program);
                command
            }
            None => as_server(program),
        };
        run(&mut command, |command| {
            command.arg("--pgdata").arg(self.data()).arg("--log").arg(self.path().join("log"));
            command.args(["--wait", "--options", &options, "start"]);
        })
    }

    /// Stops the server: `fast` ends its connections, `immediate` is like a crash.
    pub(crate) fn stop(&self, mode: &str) {
        let stopped = self.run("pg_ctl", |command| {
            command.arg("--pgdata").arg(self.data()).args(["--wait", "--mode", mode, "stop"]);
        });
        assert!(stopped, "the server hasn't stopped: {}", self.log());
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        url_at(self.port)
    }

    pub(crate) fn url_without_credentials(&self) -> String {
        format!("postgres://127.0.0.1:{}/postgres", self.port)
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// Executes statements, and returns their rows, with `|` between columns.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub(crate) fn try_sql(&self, sql: &str) -> Result<String, String> {
        let psql = Command::new(self.bin.join("psql"))
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "--command", sql])
            .arg(self.url())
            .output()
            .unwrap();
        if psql.status.success() {
            Ok(String::from_utf8(psql.stdout).unwrap().trim_end().to_owned())
        } else {
            Err(String::from_utf8_lossy(&psql.stderr).into_owned())
        }
    }

    /// Executes a statement in a transaction that lasts as long as the guard that is returned.
    pub(crate) fn begin(&self, sql: &str) -> Transaction {
        let mut psql = Command::new(self.bin.join("psql"))
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .arg(self.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(psql.stdin.as_mut().unwrap(), "BEGIN; {sql}; SELECT 'begun';").unwrap();
        let mut lines = BufReader::new(psql.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "begun"), "{sql} failed");
        Transaction(psql)
    }

    /// Runs a program of the server's, as its user.
    fn run(&self, program: &str, arguments: impl FnOnce(&mut Command)) -> bool {
        run(&mut as_server(self.bin.join(program)), arguments)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// A transaction that is rolled back when this is dropped.
pub(crate) struct Transaction(Child);

impl Drop for Transaction {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn run(command: &mut Command, arguments: impl FnOnce(&mut Command)) -> bool {
    arguments(command);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

/// Returns the URL of a server on a port.
pub(crate) fn url_at(port: u16) -> String {
    format!("postgres://postgres:{PASSWORD}@127.0.0.1:{port}/postgres")
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Returns the directory of the newest server's programs.
fn installed() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|version| version.path());
    let mut places: Vec<_> = versions.map(|version| version.join("bin")).collect();
    places.sort();
    let on_path = env::var_os("PATH").unwrap_or_default();
    places.into_iter().rev().chain(env::split_paths(&on_path)).find(|bin| bin.join("initdb").exists())
}

/// Returns a command as the user of a server, which can't be root.
pub(super) fn as_server(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(if is_root() { "runuser".as_ref() } else { program.as_ref() });
    if is_root() {
        command.args(["-u", "postgres", "--"]).arg(program);
    }
    // Which the user of the server can open.
    command.current_dir("/");
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
