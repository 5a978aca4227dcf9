//! Answers that an upstream sends before it has read the upload, and then closes its connection.
//!
//! Writing the rest of the upload fails then, and hyper would report that failure instead of the answer, which has
//! arrived. A server that doesn't announce the close (`Connection: close`) may reset the connection so late that another
//! request is already on it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response, Version};
use http_body::Body;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{
    CaptureConnection, Connected, Connection, HttpConnector, capture_connection,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::util::MapResponse;

use super::send_again::Kept;
use crate::gather::{GATHERED, gather};

/// A connector of TCP whose connections are [`AnswerFirst`].
pub(crate) type Connector = MapResponse<HttpConnector, fn(TokioIo<TcpStream>) -> AnswerFirst<TokioIo<TcpStream>>>;

/// Makes the connections of a connector [`AnswerFirst`].
pub(super) fn answer_first(connector: HttpConnector) -> Connector {
    MapResponse::new(connector, AnswerFirst::new)
}

/// A connection to a server that may stop reading.
///
/// A failure to write is not reported: the rest is discarded. If an answer has arrived, it is read; if none has, reading
/// ends or fails.
#[derive(Debug)]
pub(crate) struct AnswerFirst<S> {
    io: S,
    write_failed: bool,
    kept: Kept,
}

impl<S> AnswerFirst<S> {
    fn new(io: S) -> Self {
        Self { io, write_failed: false, kept: Kept::default() }
    }
}

impl<S: Write + Unpin> AnswerFirst<S> {
    /// Runs a write of `length` bytes.
    fn write(
        &mut self,
        length: usize,
        write: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.write_failed {
            return Poll::Ready(Ok(length));
        }
        match write(Pin::new(&mut self.io)) {
            Poll::Ready(Err(error)) if is_disconnected(&error) => {
                self.write_failed = true;
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
        if self.write_failed { Poll::Ready(Ok(())) } else { Pin::new(&mut self.io).poll_flush(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S: Connection> Connection for AnswerFirst<S> {
    fn connected(&self) -> Connected {
        self.io.connected().extra(self.kept.clone())
    }
}

/// The connection of an upload, which is not used again if its server may be closing it.
#[derive(Debug)]
pub(super) struct UploadConnection(CaptureConnection);

impl UploadConnection {
    /// Notes the connection of a request. Returns `None` if the request has no body.
    pub(super) fn of<B: Body>(request: &mut Request<B>) -> Option<Self> {
        (!request.body().is_end_stream()).then(|| Self(capture_connection(request)))
    }

    /// Keeps other requests from the connection if the answer may have been sent before the upload was read.
    pub(super) fn answered<B>(&self, response: &Response<B>) {
        let may_close = response.status().is_client_error() || response.status().is_server_error();
        // Over HTTP/2 only the stream ends.
        if may_close
            && response.version() != Version::HTTP_2
            && let Some(connected) = &*self.0.connection_metadata()
        {
            connected.poison();
        }
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
        while !client.inner().write_failed {
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
