//! A real nginx, in front of a gateway or behind it.

use std::env;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A running nginx, killed on drop.
pub(crate) struct Nginx {
    child: Child,
    folder: PathBuf,
    pub(crate) address: SocketAddr,
}

impl Nginx {
    /// Starts nginx with its default settings in front of a server, or returns `None` if it is not installed. On CI a
    /// missing nginx is a failure.
    pub(crate) fn in_front_of(server: SocketAddr) -> Option<Self> {
        Self::with_location(
            "",
            &format!(
                "proxy_pass http://{server}; proxy_set_header Host {server};
                proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
            ),
        )
    }

    /// Starts nginx in front of several servers, with connections that are kept alive, as OPERATIONS.md has it.
    pub(crate) fn balancing(servers: &[SocketAddr]) -> Option<Self> {
        let servers: Vec<_> = servers.iter().map(|server| format!("server {server} fail_timeout=1s;")).collect();
        let upstream = format!("upstream gateways {{ {} keepalive 16; keepalive_timeout 1s; }}", servers.join(" "));
        let location = "proxy_pass http://gateways; proxy_http_version 1.1; proxy_set_header Connection \"\";
                        proxy_set_header Host $http_host;
                        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                        proxy_set_header X-Request-Id $request_id;";
        Self::with_location(&upstream, location)
    }

    fn with_location(upstream: &str, location: &str) -> Option<Self> {
        // A body over 1 MiB, which nginx refuses by default, has to reach the gateway. The rest is as installed.
        Self::start(|address| {
            format!(
                "{upstream}
                server {{
                    listen {address}; client_max_body_size 64m;
                    location / {{ {location} }}
                }}"
            )
        })
    }

    /// Starts nginx with these settings of its `http` block, or returns `None` if it is not installed. On CI a missing
    /// nginx is a failure. The access log has a line for each request, with the address of its upstream or `-`.
    pub(crate) fn start(http: impl FnOnce(SocketAddr) -> String) -> Option<Self> {
        let program = ["nginx", "/usr/sbin/nginx"].into_iter().find(|program| {
            Command::new(program).arg("-v").stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        });
        let Some(program) = program else {
            assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "nginx is not installed");
            println!("skipped: nginx is not installed (apt-get install nginx-light)");
            return None;
        };
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = env::temp_dir().join(format!("gateway-nginx-{}-{}", std::process::id(), address.port()));
        fs::create_dir_all(&folder).unwrap();
        let settings = format!(
            "daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
            events {{ worker_connections 4096; }}
            http {{
                log_format upstream '$upstream_addr $status $request'; access_log {folder}/access.log upstream;
                client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
                {http}
            }}",
            folder = folder.display(),
            http = http(address)
        );
        fs::write(folder.join("nginx.conf"), settings).unwrap();
        let mut command = Command::new(program);
        command.arg("-c").arg(folder.join("nginx.conf")).arg("-p").arg(&folder);
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let nginx = Self { child, folder, address };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "nginx doesn't listen");
            sleep(Duration::from_millis(10));
        }
        Some(nginx)
    }

    /// Returns the access log.
    pub(crate) fn access_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("access.log")).unwrap_or_default()).into_owned()
    }

    /// Returns the error log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("error.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its worker on SIGTERM; a killed one would leave it behind.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
