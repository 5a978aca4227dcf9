//! A real HAProxy, in front of gateways or behind one.

use std::env;
use std::fmt::Write;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running HAProxy, killed on drop.
pub(crate) struct HaProxy {
    child: Child,
    folder: PathBuf,
    pub(crate) address: SocketAddr,
}

impl HaProxy {
    /// Starts HAProxy in front of servers, or returns `None` if it is not installed. On CI a missing HAProxy is a
    /// failure.
    ///
    /// A server gets requests while its `/readyz` answers with 200. Connections to it are kept alive, and shared by all
    /// clients.
    pub(crate) fn in_front_of(servers: &[SocketAddr]) -> Option<Self> {
        Self::start(|address| {
            let mut settings = format!(
                "frontend clients
                    bind {address}
                    default_backend gateways
                backend gateways
                    http-reuse always
                    http-request set-header X-Forwarded-For %[src]
                    http-request del-header X-Request-Id
                    option httpchk GET /readyz
                    default-server check inter 200ms fall 1 rise 1\n"
            );
            for (number, server) in servers.iter().enumerate() {
                let _ = writeln!(settings, "                server gateway-{number} {server}");
            }
            settings
        })
    }

    /// Starts HAProxy with these sections, or returns `None` if it is not installed. On CI a missing HAProxy is a
    /// failure.
    pub(crate) fn start(sections: impl FnOnce(SocketAddr) -> String) -> Option<Self> {
        let installed = |program: &&str| Command::new(program).arg("-v").stdout(Stdio::null()).status().is_ok();
        let Some(program) = ["haproxy", "/usr/sbin/haproxy"].into_iter().find(installed) else {
            assert_ne!(env::var("CI").as_deref(), Ok("true"), "HAProxy is not installed");
            println!("skipped: HAProxy is not installed (apt-get install haproxy)");
            return None;
        };
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = env::temp_dir().join(format!("gateway-haproxy-{}-{}", std::process::id(), address.port()));
        fs::create_dir_all(&folder).unwrap();
        let settings = format!(
            "global
                log stdout format raw local0
            defaults
                mode http
                log global
                option httplog
                timeout connect 5s
                timeout client 60s
                timeout server 60s
            {}\n",
            sections(address)
        );
        fs::write(folder.join("haproxy.cfg"), settings).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(folder.join("haproxy.cfg")).stderr(log.try_clone().unwrap()).stdout(log);
        let proxy = Self { child: command.spawn().unwrap(), folder, address };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "HAProxy doesn't listen: {}", proxy.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(proxy)
    }

    /// Returns the log: a line for each request, and for each change of a server's state.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
