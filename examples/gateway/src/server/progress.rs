//! Cuts off clients that make no progress with a response.
//!
//! A socket becomes writable when a third of its buffer has been sent, and the buffer grows to megabytes: that takes a slow
//! client minutes, though it reads steadily. So little unsent data is kept in the operating system
//! (`TCP_NOTSENT_LOWAT`), and each write stands for some 100 KiB that the client has received. Stalled downloads take
//! less memory too.

use std::pin::Pin;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::server::TlsStream;

/// The data that may wait to be sent when a socket becomes writable, twice as much as it then is.
#[cfg(target_os = "linux")]
const MAX_UNSENT: u32 = 16 * 1024;

/// A connection that fails if the client makes no progress.
pub(super) type Stream = Pin<Box<TimeoutStream<TcpStream>>>;

/// Limits the time without progress. A client that has vanished without a word is noticed too.
pub(super) fn limit_stalls(stream: TcpStream, time: Duration) -> Stream {
    let socket = SockRef::from(&stream);
    // With Nagle's algorithm, a response of two small writes waits for the client's delayed acknowledgement.
    let _ = socket.set_tcp_nodelay(true);
    // Whole seconds.
    let keepalive = time.max(Duration::from_secs(1));
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive).with_interval(keepalive));
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_notsent_lowat(MAX_UNSENT);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(time));
    Box::pin(stream)
}

/// A [`Stream`], with or without TLS on it.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Returns the stream below TLS.
    fn tcp(&self) -> &Stream;

    /// Makes the close of the connection a reset: without TLS, the only sign that a response without framing is not
    /// complete.
    fn close_by_reset(&self) {
        let _ = SockRef::from(self.tcp().get_ref()).set_linger(Some(Duration::ZERO));
    }
}

impl Transport for Stream {
    fn tcp(&self) -> &Stream {
        self
    }
}

impl Transport for TlsStream<Stream> {
    fn tcp(&self) -> &Stream {
        self.get_ref().0
    }
}
