//! [`Supervisor`]: tells systemd what the program does (`sd_notify(3)`).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::interval;

/// The socket of the service manager that has started the program, if it wants to be told.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    /// The time within which the manager expects a sign of life.
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    #[must_use]
    pub fn from_env() -> Self {
        let Some(address) = env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        let socket = connect(&address)
            .inspect_err(|error| tracing::warn!(%error, ?address, "NOTIFY_SOCKET can't be connected to"));
        Self { socket: socket.ok(), watchdog: watchdog() }
    }

    /// Tells that requests are served, and gives signs of life from here on if the manager expects them.
    ///
    /// # Panics
    ///
    /// Panics outside of a `tokio` runtime.
    pub fn ready(&self) {
        self.send("READY=1");
        let Some((watchdog, socket)) =
            self.watchdog.zip(self.socket.as_ref().and_then(|socket| socket.try_clone().ok()))
        else {
            return;
        };
        // A task: a runtime whose threads are all blocked gives none.
        tokio::spawn(async move {
            let mut interval = interval(watchdog / 2);
            loop {
                interval.tick().await;
                let _ = socket.send(b"WATCHDOG=1");
            }
        });
    }

    /// Tells that the shutdown has begun.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(state.as_bytes())
        {
            tracing::warn!(%error, state, "the service manager could not be told");
        }
    }
}

/// Connects to a path, or on Linux, if the first character is `@`, to an abstract address.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // Nothing waits for the manager.
    socket.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    if let Some(name) = address.as_encoded_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt;
        socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
        return Ok(socket);
    }
    socket.connect_addr(&SocketAddr::from_pathname(address)?)?;
    Ok(socket)
}

fn watchdog() -> Option<Duration> {
    let is_meant = env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
    let microseconds = env::var("WATCHDOG_USEC").ok()?.parse().ok().filter(|microseconds| *microseconds > 1)?;
    is_meant.then(|| Duration::from_micros(microseconds))
}
