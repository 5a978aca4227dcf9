//! Answers that an upstream sends before it has read the upload, and then closes its connection.
//!
//! Writing the rest of the upload fails then, and hyper would report that failure instead of the answer, which has
//! arrived. A server that doesn't announce the close (`Connection: close`) may reset the connection so late that another
//! request is already on it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::StatusCode;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::util::MapResponse;

use crate::gather::{GATHERED, gather};

/// A connector of TCP whose connections are [`AnswerFirst`].
pub(crate) type Connector = MapResponse<HttpConnector, fn(TokioIo<TcpStream>) -> AnswerFirst<TokioIo<TcpStream>>>;

/// Makes the connections of a connector [`AnswerFirst`].
pub(super) fn answer_first(connector: HttpConnector) -> Connector {
    MapResponse::new(connector, AnswerFirst::new)
}

/// Checks if an upstream may have sent an answer to an upload without reading it, and be closing its connection.
pub(super) fn may_be_early(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// A connection to a server that may stop reading.
///
/// A failure to write is not reported: the rest is discarded. If an answer has arrived, it is read; if none has, reading
/// ends or fails.
#[derive(Debug)]
pub(crate) struct AnswerFirst<S> {
    io: S,
    writes_failed: WritesFailed,
}

/// Tells of a connection if its server doesn't read any more. It is an extra of the connection, for its pool.
#[derive(Clone, Debug, Default)]
pub(super) struct WritesFailed(pub(super) Arc<AtomicBool>);

impl<S> AnswerFirst<S> {
    pub(super) fn new(io: S) -> Self {
        Self { io, writes_failed: WritesFailed::default() }
    }

    fn have_writes_failed(&self) -> bool {
        self.writes_failed.0.load(Ordering::Relaxed)
    }
}

impl<S: Write + Unpin> AnswerFirst<S> {
    /// Runs a write of `length` bytes.
    fn write(
        &mut self,
        length: usize,
        write: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.have_writes_failed() {
            return Poll::Ready(Ok(length));
        }
        match write(Pin::new(&mut self.io)) {
            Poll::Ready(Err(error)) if is_disconnected(&error) => {
                self.writes_failed.0.store(true, Ordering::Relaxed);
                Poll::Ready(Ok(length))
            }
            written => written,
        }
    }
}

fn is_disconnected(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset | ConnectionAborted)
}

impl<S: Read + Unpin> Read for AnswerFirst<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<S: Write + Unpin> Write for AnswerFirst<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.write(data.len(), |io| io.poll_write(cx, data))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(data) = gather(data, &mut [0; GATHERED]) {
            return self.write(data.len(), |io| io.poll_write(cx, data));
        }
        let length = data.iter().map(|part| part.len()).sum();
        self.write(length, |io| io.poll_write_vectored(cx, data))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.have_writes_failed() { Poll::Ready(Ok(())) } else { Pin::new(&mut self.io).poll_flush(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S: Connection> Connection for AnswerFirst<S> {
    fn connected(&self) -> Connected {
        self.io.connected().extra(self.writes_failed.clone())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_answer_is_read_after_writing_has_failed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut client = TokioIo::new(AnswerFirst::new(TokioIo::new(stream)));
        client.write_all(b"upload").await.unwrap();
        server.readable().await.unwrap();
        server.write_all(b"answer").await.unwrap();
        // Closed with unread data, the connection is reset.
        drop(server);
        while !client.inner().have_writes_failed() {
            client.write_all(&[0; 1024]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        client.write_all(b"more").await.unwrap();
        client.flush().await.unwrap();
        assert!(matches!(client.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    }
}
