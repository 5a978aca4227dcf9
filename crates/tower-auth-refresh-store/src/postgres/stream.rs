//! The stream of bytes to a server, over TCP or a socket of the file system.

use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::PathBuf;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpStream, lookup_host};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
#[cfg(unix)]
use tokio_util::either::Either;

/// The time after which an idle connection is probed.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// While data is unacknowledged, Linux sends no keepalive, and would repeat the data for 15 minutes.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Without TLS there is no certificate, but something has to be its name: not all hosts' names can be.
const NO_NAME: &str = "localhost";

#[cfg(unix)]
pub(super) type Stream = Either<TcpStream, UnixStream>;
#[cfg(not(unix))]
pub(super) type Stream = TcpStream;

/// A place at which a server listens.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// The name that a certificate has to have.
    pub(super) name: String,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Tcp(SocketAddr),
    #[cfg(unix)]
    File(PathBuf),
}

/// The two ends of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
}

impl Endpoint {
    /// Returns the endpoints of a host: one for each of its addresses.
    pub(super) async fn all_of(host: &Config) -> io::Result<Vec<Self>> {
        let is_encrypted = host.get_ssl_mode() != SslMode::Disable;
        let mut endpoints = Vec::new();
        for (host, port) in host.get_hosts().iter().zip(host.get_ports()) {
            match host {
                Host::Tcp(name) => {
                    let addresses = lookup_host((name.as_str(), *port)).await?;
                    let name = if is_encrypted { name } else { NO_NAME };
                    endpoints.extend(addresses.map(|address| Self { name: name.into(), place: Place::Tcp(address) }));
                }
                #[cfg(unix)]
                Host::Unix(directory) => {
                    let path = directory.join(format!(".s.PGSQL.{port}"));
                    endpoints.push(Self { name: NO_NAME.into(), place: Place::File(path) });
                }
            }
        }
        Ok(endpoints)
    }

    /// Connects, and returns the ends of the connection if it is of TCP.
    pub(super) async fn connect(&self) -> io::Result<(Stream, Option<Ends>)> {
        match &self.place {
            Place::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                set_options(&stream)?;
                let ends = Ends { client: stream.local_addr()?, server: stream.peer_addr()? };
                #[cfg(unix)]
                let stream = Either::Left(stream);
                Ok((stream, Some(ends)))
            }
            #[cfg(unix)]
            Place::File(path) => Ok((Either::Right(UnixStream::connect(path).await?), None)),
        }
    }
}

fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
    // An idle connection that is gone without a word is noticed within a minute, where both settings are to be had. On
    // other systems, it is noticed when they say.
    #[cfg(any(
        target_os = "linux",
        target_os = "android",
        target_vendor = "apple",
        target_os = "freebsd",
        target_os = "netbsd",
        windows
    ))]
    let keepalive = keepalive.with_interval(Duration::from_secs(5)).with_retries(4);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_is_gone_without_a_word_is_noticed_within_a_minute() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        set_options(&stream).unwrap();
        let socket = SockRef::from(&stream);
        let probes = socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        assert!(socket.keepalive().unwrap() && socket.tcp_keepalive_time().unwrap() + probes < Duration::from_secs(60));
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn the_ends_of_a_connection_are_those_of_both_sides() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = Config::new();
        config.host("127.0.0.1").port(listener.local_addr().unwrap().port());
        let [endpoint] = &*Endpoint::all_of(&config).await.unwrap() else { panic!("one address") };
        let (_stream, ends) = endpoint.connect().await.unwrap();
        let (accepted, client) = listener.accept().await.unwrap();
        assert_eq!(ends, Some(Ends { client, server: accepted.local_addr().unwrap() }));
    }
}
