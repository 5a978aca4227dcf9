//! [`Server`]: a server's process, and its routes under `/test`.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::framework::Framework;

/// The refresh tokens of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Behaviour {
    /// A refresh replaces the refresh token. The replaced one is refused.
    Strict,
    /// A refresh replaces the refresh token. The replaced one is accepted for ten seconds.
    Grace,
    /// A refresh issues another refresh token. The one before stays valid.
    Rotating,
    /// The refresh token stays the same.
    Reusable,
}

/// A server's process. It ends when its standard input is closed, with this process at the latest.
pub(crate) struct Server {
    pub(crate) framework: Framework,
    behaviour: Behaviour,
    address: SocketAddr,
    database: PathBuf,
    process: Child,
}

/// A user of a server, and the client through which that user signs in, if the server has clients.
pub(crate) struct User {
    /// The name of the user, or of the client, by which the server counts refresh calls.
    pub(crate) owner: String,
    pub(crate) username: String,
    pub(crate) password: String,
    /// The id and the secret.
    pub(crate) client: Option<(String, String)>,
}

/// The refresh calls of one user, as the server saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Events {
    pub(crate) presented: u64,
    pub(crate) granted: u64,
    pub(crate) refused: u64,
    /// The calls with a refresh token that an earlier call had presented.
    pub(crate) repeated: u64,
}

impl Server {
    /// Returns the process that all tests of this framework and behaviour share; `None` to skip the test.
    pub(crate) fn shared(framework: Framework, behaviour: Behaviour) -> Option<&'static Self> {
        type Slot = Arc<OnceLock<Option<&'static Server>>>;
        static SERVERS: Mutex<Option<HashMap<(Framework, Behaviour), Slot>>> = Mutex::new(None);

        let mut servers = SERVERS.lock().unwrap();
        let slot = servers.get_or_insert_default().entry((framework, behaviour)).or_default().clone();
        drop(servers);
        *slot.get_or_init(|| {
            let server = Self::start(framework, behaviour, &format!("{}-{behaviour}", framework.script()), 0)?;
            Some(Box::leak(Box::new(server)))
        })
    }

    /// Starts a process that can be restarted: its port is not one that the system gives to others meanwhile.
    pub(crate) fn of_its_own(framework: Framework, behaviour: Behaviour, name: &str) -> Option<Self> {
        Self::start(framework, behaviour, &format!("{}-{name}", framework.script()), free_port())
    }

    fn start(framework: Framework, behaviour: Behaviour, name: &str, port: u16) -> Option<Self> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop-python");
        std::fs::create_dir_all(&folder).unwrap();
        let database = folder.join(name);
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", database.display()));
        }
        match spawn(framework, behaviour, &database, port) {
            Ok((process, address)) => Some(Self { framework, behaviour, address, database, process }),
            Err(reason) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{reason}"),
            Err(reason) => {
                eprintln!("skipped: {reason}");
                None
            }
        }
    }

    /// Kills the process: nothing listens at its address from now on.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts the process again, at the same address, with the same database.
    pub(crate) fn restart(&mut self) {
        let port = self.address.port();
        (self.process, self.address) = spawn(self.framework, self.behaviour, &self.database, port).unwrap();
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn create_user(&self) -> User {
        let user = self.post("/test/user", &json!({})).await;
        let text = |name: &str| user[name].as_str().map(str::to_owned);
        User {
            owner: text("owner").unwrap(),
            username: text("username").unwrap(),
            password: text("password").unwrap(),
            client: text("client_id").zip(text("client_secret")),
        }
    }

    /// Revokes all grants of a user, by the framework's own means.
    pub(crate) async fn revoke(&self, user: &User) {
        self.post("/test/revoke", &json!({"owner": user.owner})).await;
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        let request = Request::post(self.url(path)).body(Full::from(body.to_string())).unwrap();
        let (status, answer) = call(request).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        answer
    }

    pub(crate) async fn events(&self, user: &User) -> Events {
        let url = self.url(&format!("/test/events?owner={}", user.owner));
        let (_, seen) = call(Request::get(url).body(Full::default()).unwrap()).await;
        let count = |name: &str| seen[name].as_u64().unwrap();
        Events {
            presented: count("presented"),
            granted: count("granted"),
            refused: count("refused"),
            repeated: count("repeated"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strict => "strict",
            Self::Grace => "grace",
            Self::Rotating => "rotating",
            Self::Reusable => "reusable",
        })
    }
}

/// Sends a request without any layer; returns the status and the JSON of the answer.
pub(crate) async fn call(request: Request<Full<Bytes>>) -> (StatusCode, Value) {
    let answer = Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

fn spawn(
    framework: Framework,
    behaviour: Behaviour,
    database: &Path,
    port: u16,
) -> Result<(Child, SocketAddr), String> {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = crate_root.join("../../target/interop-venv/bin/python");
    if !python.exists() {
        return Err("the Python servers are not installed: run `just tools`".to_owned());
    }
    let log = PathBuf::from(format!("{}.log", database.display()));
    let log_file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
    let mut process = Command::new(python)
        // Nothing is written beside the sources.
        .arg("-B")
        .arg(format!("{}.py", framework.script()))
        .args(["--rotation", &behaviour.to_string(), "--port", &port.to_string(), "--database"])
        .arg(database)
        .current_dir(crate_root.join("tests/interop/python"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .spawn()
        .map_err(|error| format!("Python can't be started: {error}"))?;
    let mut line = String::new();
    let output = process.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).map_err(|error| format!("{framework} is silent: {error}"))?;
    let ready: Value = serde_json::from_str(&line)
        .map_err(|_| format!("{framework} failed to start; its log is {}", log.display()))?;
    let port = ready["port"].as_u64().and_then(|port| port.try_into().ok()).ok_or("the server has no port")?;
    Ok((process, SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

/// Returns a free port below those that the system hands out by itself (32,768 and up on Linux).
fn free_port() -> u16 {
    static NEXT: Mutex<u16> = Mutex::new(0);
    let mut next = NEXT.lock().unwrap();
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    loop {
        let port = first + *next;
        *next += 1;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
