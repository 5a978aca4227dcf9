//! pgbouncer in transaction mode, in front of a server: consecutive statements of a client run on any of its connections.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::server::{PASSWORD, Server, as_server, free_port};

/// A pooler, which ends with it, or with this process.
pub(crate) struct Pooler {
    guard: Child,
    port: u16,
}

impl Pooler {
    /// Starts a pooler with two connections to the server. `None` if none is installed.
    pub(crate) async fn start(server: &Server) -> Option<Self> {
        Self::start_at(server, server.port()).await
    }

    /// Starts a pooler as [`start`](Self::start) does, which reaches the server at this port.
    pub(crate) async fn start_at(server: &Server, target: u16) -> Option<Self> {
        let Some(program) =
            ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| Path::new(path).exists())
        else {
            assert!(env::var("CI").is_err(), "pgbouncer isn't installed");
            eprintln!("skipped: pgbouncer isn't installed");
            return None;
        };
        let (port, file) = (free_port(), server.path().join("pgbouncer.ini"));
        let settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={target} user=postgres password={PASSWORD}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n\
             default_pool_size = 2\nlogfile = {}\n",
            server.path().join("pgbouncer.log").display()
        );
        fs::write(&file, settings).unwrap();
        let run = r#"trap '' INT; "$0" --quiet "$1" & cat; kill $!; wait"#;
        let guard = as_server("sh").arg("-c").arg(run).arg(program).arg(&file).stdin(Stdio::piped()).spawn().unwrap();
        let pooler = Self { guard, port };
        timeout(Duration::from_secs(10), async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("pgbouncer hasn't started");
        Some(pooler)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}
