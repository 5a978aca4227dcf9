//! [`Inherited`]: sockets that the program was started with (systemd's socket activation, `sd_listen_fds(3)`).
//!
//! The service manager keeps them open across a restart, so that no connection is refused.

use std::env;
use std::net::TcpListener;

use listenfd::ListenFd;

use crate::config::{Args, InvalidSetting};

/// The listeners that the program was started with.
#[derive(Debug, Default)]
pub struct Inherited {
    pub(crate) listener: Option<TcpListener>,
    pub(crate) admin: Option<TcpListener>,
}

impl Inherited {
    /// Takes the sockets that `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` describe: that with the name `admin` is
    /// the admin listener, another one is for clients.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if a socket can't be used, or has no use.
    pub fn from_env() -> Result<Self, InvalidSetting> {
        let invalid = |reason: String| InvalidSetting::of("LISTEN_FDS", reason);
        let mut sockets = ListenFd::from_env();
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut inherited = Self::default();
        for index in 0..sockets.len() {
            let socket = sockets.take_tcp_listener(index).map_err(|error| invalid(error.to_string()))?;
            let (place, purpose) = match names.next() {
                Some("admin") => (&mut inherited.admin, "the admin listener"),
                _ => (&mut inherited.listener, "clients"),
            };
            if place.is_some() {
                return Err(invalid(format!("more than one socket for {purpose}")));
            }
            *place = socket;
        }
        Ok(inherited)
    }

    /// Puts the addresses of the sockets into the settings: what depends on an address, such as the need for a public
    /// origin, depends on that of the socket.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if the address of a socket is unknown.
    pub fn set_addresses(&self, args: &mut Args) -> Result<(), InvalidSetting> {
        let address =
            |socket: &TcpListener| socket.local_addr().map_err(|error| InvalidSetting::of("LISTEN_FDS", error));
        if let Some(socket) = &self.listener {
            args.listen = address(socket)?;
        }
        if let Some(socket) = &self.admin {
            args.admin_listen = Some(address(socket)?);
        }
        Ok(())
    }
}
