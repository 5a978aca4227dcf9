//! [`Listener`]: a socket that accepts connections, and loses none when it is closed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

/// The number of connections that may wait to be accepted. The operating system may allow fewer.
const BACKLOG: u32 = 1024;

/// The time for handshakes that are under way when the socket is about to be closed: a round trip.
const HANDSHAKE_TIME: Duration = Duration::from_millis(100);

/// A socket that accepts connections.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    /// Another process has it too: the service manager, and after a restart the next gateway.
    is_shared: bool,
}

impl Listener {
    /// Opens a socket.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Otherwise a restart can't bind until the connections of the previous process are gone.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { socket: socket.listen(BACKLOG)?, is_shared: false })
    }

    /// Takes a socket that is open already.
    pub(crate) fn adopt(socket: std::net::TcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket: TcpListener::from_std(socket)?, is_shared: true })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts a connection.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no connection is lost.
    pub(super) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.socket.accept().await
    }

    /// Closes the socket, and returns the connections that clients have made already: the operating system would reset
    /// them, unless another process has the socket too. Later ones are refused, so that their clients can try another
    /// instance.
    ///
    /// On Linux this takes [`HANDSHAKE_TIME`], unless another process has the socket. A client that begins to connect in it
    /// is refused when it tries again, by default after a second.
    pub(super) async fn close(self) -> Vec<(TcpStream, SocketAddr)> {
        // For the next process too, if it is shared.
        if !self.is_shared && begins_no_handshake(&self.socket) {
            sleep(HANDSHAKE_TIME).await;
        }
        // `tokio` knows of a connection only after the runtime has looked at the sockets.
        let Ok(socket) = self.socket.into_std() else { return Vec::new() };
        let mut accepted = Vec::new();
        for _ in 0..=BACKLOG {
            match socket.accept() {
                Ok((stream, address)) => {
                    if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                        accepted.push((stream, address));
                    }
                }
                // A client that has hung up while it waited (`accept(2)`).
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(%error, "accepting the last connections failed");
                    break;
                }
            }
        }
        accepted
    }
}

/// Makes a socket ignore all clients but those whose handshake has begun. Returns `false` if it can't.
#[cfg(target_os = "linux")]
fn begins_no_handshake(socket: &TcpListener) -> bool {
    use socket2::{SockFilter, SockRef};

    // Instructions of `linux/filter.h`, over a segment of TCP (RFC 9293 §3.1).
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let ignore_first_segments = [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    SockRef::from(socket).attach_filter(&ignore_first_segments).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn begins_no_handshake(_: &TcpListener) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream as Client;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test(flavor = "multi_thread")]
    async fn each_connection_that_a_client_has_made_is_returned() {
        for _ in 0..3 {
            let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
            let address = listener.local_addr().unwrap();
            let (first, connected) = mpsc::channel();
            let clients = thread::spawn(move || {
                let mut clients = Vec::new();
                while let Ok(client) = Client::connect_timeout(&address, Duration::from_secs(10)) {
                    clients.push(client.local_addr().unwrap());
                    let _ = first.send(());
                    // Fewer than may wait.
                    thread::sleep(Duration::from_millis(1));
                }
                clients
            });
            connected.recv().unwrap();
            let accepted: Vec<_> = listener.close().await.into_iter().map(|(_, address)| address).collect();
            assert_eq!(accepted, clients.join().unwrap());
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_client_that_connects_while_handshakes_are_finished_waits_and_is_refused() {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(begins_no_handshake(&listener.socket));
        let error = Client::connect_timeout(&address, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let waiting = thread::spawn(move || Client::connect_timeout(&address, Duration::from_secs(30)));
        assert!(listener.close().await.is_empty());
        let error = waiting.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    /// The next process serves the clients that connect in the meantime.
    #[tokio::test]
    async fn a_shared_socket_takes_connections_after_the_close() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let closed = Listener::adopt(socket.try_clone().unwrap()).unwrap().close().await;
        assert!(closed.is_empty());
        let client = Client::connect(address).unwrap();
        assert_eq!(socket.accept().unwrap().1, client.local_addr().unwrap());
    }
}
