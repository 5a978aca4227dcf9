//! A user's home on a machine, in which the app runs as a process.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{env, fs};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tower_auth_refresh_testkit::{Gate, TestServer};

/// Longer than any wait takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The home of a user. It is removed when it is dropped.
pub(crate) struct Home(PathBuf);

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Home {
    pub(crate) fn new() -> Self {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("app-test-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Signs in as ada with a refresh token of this server.
    pub(crate) async fn signed_in(server: &TestServer) -> Self {
        let home = Self::new();
        home.import(server, &["--api", &server.origin()]).await.expect_success();
        home
    }

    /// Imports a refresh token of ada.
    pub(crate) async fn import(&self, server: &TestServer, arguments: &[&str]) -> Ended {
        let mut login = self.app(&["login", "--issuer", &server.origin(), "--client-id", "app"]);
        login.args(["--with-refresh-token"]).args(arguments);
        if !arguments.contains(&"--store") {
            login.args(["--store", "file"]);
        }
        let mut process = login.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = process.stdin.take().unwrap();
        stdin.write_all(server.sign_in("ada").refresh_token.as_bytes()).await.unwrap();
        drop(stdin);
        Ended::of(process).await
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The app in this home, without a display, a keychain and settings of the machine.
    pub(crate) fn app(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
        command.args(arguments).env_clear().env("PATH", env::var_os("PATH").unwrap()).kill_on_drop(true);
        self.set_environment(|name, value| {
            command.env(name, value);
        });
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn set_environment(&self, mut set: impl FnMut(&str, &Path)) {
        set("HOME", &self.0);
        // No bus there, so no keychain.
        set("XDG_RUNTIME_DIR", &self.0);
        set("DBUS_SESSION_BUS_ADDRESS", Path::new("unix:path=/nonexistent"));
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.app(arguments).spawn().unwrap()).await
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        self.app(arguments).spawn().unwrap()
    }

    pub(crate) fn sessions(&self) -> PathBuf {
        self.0.join(".local/state/app/sessions/default")
    }

    pub(crate) fn profile(&self) -> PathBuf {
        self.0.join(".config/app/profiles/default.json")
    }

    /// Returns the session's file with this ending.
    pub(crate) fn file(&self, ending: &str) -> Option<PathBuf> {
        let files = fs::read_dir(self.sessions()).unwrap().map(|file| file.unwrap().path());
        // The probe of a check isn't a session's.
        files.into_iter().find(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.ends_with(ending) && name.len() > 40
        })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Ended {
    pub(crate) async fn of(process: Child) -> Self {
        let output = timeout(PATIENCE, process.wait_with_output()).await.expect("the app doesn't end").unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let ended = Self { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(![&ended.stdout, &ended.stderr].iter().any(|text| text.contains('\x1b')), "no terminal: {ended:?}");
        ended
    }

    #[track_caller]
    pub(crate) fn expect_success(&self) -> &str {
        assert!(self.status.success(), "{self:?}");
        self.stdout.trim_end()
    }

    /// Returns stderr.
    #[track_caller]
    pub(crate) fn expect_code(&self, code: i32) -> &str {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        &self.stderr
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Returns a home with a token that the app takes for expired.
pub(crate) async fn home_with_expired_token(server: &TestServer) -> Home {
    server.configure(|settings| settings.access_lifetime = Duration::from_secs(5));
    let home = Home::signed_in(server).await;
    server.configure(|settings| settings.access_lifetime = Duration::from_secs(600));
    home
}

/// Waits until something is the case that no channel reports.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Waits until the process has opened a file: it then waits for the lock of the file, or for room in it.
pub(crate) async fn until_it_has_opened(process: &Child, path: &Path) {
    let files = PathBuf::from(format!("/proc/{}/fd", process.id().unwrap()));
    let is_path = |link: PathBuf| fs::read_link(link).is_ok_and(|target| target == path);
    let is_open = || fs::read_dir(&files).is_ok_and(|mut files| files.any(|file| is_path(file.unwrap().path())));
    until("the process opens the file", is_open).await;
}

/// Takes the lock of a file, for as long as the returned handle lives.
pub(crate) fn locked(path: &Path) -> File {
    let file = File::open(path).unwrap();
    file.lock().unwrap();
    file
}

/// A standard output in which there is room for no byte more, and its reader.
pub(crate) fn full_stdout() -> (Stdio, UnixStream) {
    let (mut stdout, reader) = UnixStream::pair().unwrap();
    stdout.set_nonblocking(true).unwrap();
    fill(&mut stdout);
    stdout.set_nonblocking(false).unwrap();
    (OwnedFd::from(stdout).into(), reader)
}

/// Writes to a file, which doesn't block, until it is full.
pub(crate) fn fill(file: &mut impl Write) {
    loop {
        match file.write(&[b'\n'; 1]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Reads what the process says on stderr, up to this text and the end of its line.
pub(crate) async fn until_it_says(process: &mut Child, text: &str) -> String {
    let (mut said, stderr) = (Vec::new(), process.stderr.as_mut().unwrap());
    let mut is_said = false;
    while !(is_said && said.ends_with(b"\n")) {
        let byte = timeout(PATIENCE, stderr.read_u8()).await.unwrap_or_else(|_| panic!("{text:?} isn't said"));
        said.push(byte.unwrap_or_else(|_| panic!("the process ends: {}", String::from_utf8_lossy(&said))));
        is_said = String::from_utf8_lossy(&said).contains(text);
    }
    String::from_utf8(said).unwrap()
}

/// Waits until a response is held.
pub(crate) async fn arrived(gate: &Gate) {
    timeout(PATIENCE, gate.arrived(1)).await.expect("no response is held");
}

/// Sends a signal to the process.
pub(crate) fn send(process: &Child, signal: Signal) {
    let id = Pid::from_raw(process.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(id, signal).unwrap();
}
