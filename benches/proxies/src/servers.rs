//! The servers, each as processes of its own, and the CPU time that they have used.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The clock ticks of `/proc/PID/stat`, on every Linux that runs these servers.
const TICKS_PER_SECOND: f64 = 100.;

/// A server, stopped on drop.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts `command` and waits until it accepts connections at `address`.
    pub(crate) fn start(command: &mut Command, address: SocketAddr) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?} could not start: {error}"));
        let mut server = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            let running = server.child.try_wait().is_ok_and(|status| status.is_none());
            assert!(running && Instant::now() < deadline, "{command:?} doesn't listen on {address}");
            sleep(Duration::from_millis(10));
        }
        server
    }

    /// Returns the CPU seconds that the server's processes have used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let processes: Vec<_> =
            fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| stat(&entry.path())).collect();
        let mut family = vec![self.child.id()];
        let mut at = 0;
        while let Some(&parent) = family.get(at) {
            family.extend(processes.iter().filter(|process| process.parent == parent).map(|process| process.id));
            at += 1;
        }
        let ticks: u32 =
            processes.iter().filter(|process| family.contains(&process.id)).map(|process| process.ticks).sum();
        f64::from(ticks) / TICKS_PER_SECOND
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's workers end with their master only if it is asked to.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

struct Process {
    id: u32,
    parent: u32,
    ticks: u32,
}

/// Reads `/proc/PID/stat`, proc(5): the second field is in parentheses, and may contain anything.
fn stat(process: &Path) -> Option<Process> {
    let id = process.file_name()?.to_str()?.parse().ok()?;
    let text = fs::read_to_string(process.join("stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u32>().ok();
    Some(Process { id, parent: field(4)?, ticks: field(14)? + field(15)? })
}

/// Starts the servers, in a directory for their configurations and logs.
pub(crate) struct Place {
    directory: PathBuf,
    upstream: Option<SocketAddr>,
}

impl Place {
    pub(crate) fn new(directory: PathBuf) -> Self {
        fs::create_dir_all(&directory).expect("the directory can be made");
        Self { directory, upstream: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Starts the upstream, with access tokens of the length of a small JWT.
    pub(crate) fn upstream(&mut self) -> Server {
        let address = free_address();
        self.upstream = Some(address);
        let configuration = include_str!("../config/upstream.conf").replace("ACCESS_TOKEN", &"a".repeat(230));
        self.nginx("upstream.conf", &configuration, address)
    }

    pub(crate) fn nginx_proxy(&self) -> Server {
        self.nginx("nginx.conf", include_str!("../config/nginx.conf"), free_address())
    }

    fn nginx(&self, name: &str, configuration: &str, address: SocketAddr) -> Server {
        let file = self.configure(name, configuration, address);
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&self.directory).arg("-c").arg(file).stderr(Stdio::null());
        Server::start(&mut command, address)
    }

    pub(crate) fn haproxy(&self) -> Server {
        let address = free_address();
        let file = self.configure("haproxy.cfg", include_str!("../config/haproxy.cfg"), address);
        Server::start(Command::new("haproxy").arg("-db").arg("-f").arg(file), address)
    }

    /// Starts a program whose arguments are the address to listen on, and that of the upstream.
    pub(crate) fn program(&self, program: &Path) -> Server {
        let address = free_address();
        Server::start(Command::new(program).args([address.to_string(), self.upstream_address().to_string()]), address)
    }

    /// Starts the gateway, with the sessions in memory.
    pub(crate) fn gateway(&self, program: &Path, log: &str) -> Server {
        let (address, upstream) = (free_address(), format!("http://{}", self.upstream_address()));
        let mut command = Command::new(program);
        command.args(["--listen", &address.to_string(), "--upstream", &upstream, "--auth", &upstream]);
        let stderr = File::create(self.path("gateway.log")).expect("the log can be made");
        Server::start(command.env("RUST_LOG", log).stderr(stderr), address)
    }

    fn upstream_address(&self) -> SocketAddr {
        self.upstream.expect("the upstream is started first")
    }

    fn configure(&self, name: &str, configuration: &str, address: SocketAddr) -> PathBuf {
        let upstream = self.upstream_address().port().to_string();
        let configuration = configuration.replace("UPSTREAM", &upstream).replace("LISTEN", &address.port().to_string());
        let file = self.path(name);
        fs::write(&file, configuration).expect("the configuration can be written");
        file
    }
}

/// Signs a user in at a gateway and returns the cookie.
pub(crate) fn sign_in(gateway: SocketAddr) -> String {
    let login = format!(
        "POST /login HTTP/1.1\r\nhost: {gateway}\r\nx-requested-with: proxies\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    let response = exchange(gateway, &login);
    let mut lines = response.lines();
    let cookie = lines.find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next());
    cookie.unwrap_or_else(|| panic!("the login failed: {response}")).to_owned()
}

/// Makes one call and returns its status line.
pub(crate) fn call(proxy: SocketAddr, cookie: &str) -> String {
    let call = format!("GET /api/notes HTTP/1.1\r\nhost: {proxy}\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n");
    exchange(proxy, &call).lines().next().unwrap_or_default().to_owned()
}

fn exchange(address: SocketAddr, request: &str) -> String {
    let mut response = Vec::new();
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.write_all(request.as_bytes()).expect("the server reads");
    stream.read_to_end(&mut response).expect("the server responds");
    String::from_utf8_lossy(&response).into_owned()
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("the socket is bound")
}
