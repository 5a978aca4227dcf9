//! Answers that an upstream sends before it has read the upload, and then closes its connection.
//!
//! Writing the rest of the upload fails then, and hyper would report that failure instead of the answer, which has
//! arrived. A server that doesn't announce the close (`Connection: close`) may reset the connection so late that another
//! request is already on it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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
    writes: Arc<Mutex<Writes>>,
}

/// The writes to a connection, as its uploads see them.
#[derive(Debug, Default)]
struct Writes {
    have_failed: bool,
    /// The connection itself, once an upload has been answered.
    connection: Option<CaptureConnection>,
}

/// Leads from an answer to the writes of its connection. These hold the connection in turn, so this reference is weak.
#[derive(Clone, Debug)]
struct WritesOf(Weak<Mutex<Writes>>);

impl<S> AnswerFirst<S> {
    fn new(io: S) -> Self {
        Self { io, write_failed: false, kept: Kept::default(), writes: Arc::default() }
    }
}

impl Writes {
    /// Keeps other requests from the connection: the server doesn't read them.
    fn fail(&mut self) {
        self.have_failed = true;
        if let Some(connection) = self.connection.take() {
            poison(&connection);
        }
    }

    /// Keeps other requests from the connection if a write has failed, or once one does.
    fn watch(&mut self, connection: &CaptureConnection) {
        if self.have_failed {
            poison(connection);
        } else {
            self.connection = Some(connection.clone());
        }
    }
}

fn poison(connection: &CaptureConnection) {
    if let Some(connected) = &*connection.connection_metadata() {
        connected.poison();
    }
}

fn lock(writes: &Mutex<Writes>) -> MutexGuard<'_, Writes> {
    writes.lock().unwrap_or_else(PoisonError::into_inner)
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
                lock(&self.writes).fail();
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
        self.io.connected().extra(self.kept.clone()).extra(WritesOf(Arc::downgrade(&self.writes)))
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

    /// Keeps other requests from the connection if the answer may have been sent before the upload was read, or if the
    /// server doesn't read the rest.
    pub(super) fn answered<B>(&self, response: &Response<B>) {
        // Over HTTP/2 only the stream ends.
        if response.version() == Version::HTTP_2 {
            return;
        }
        if response.status().is_client_error() || response.status().is_server_error() {
            poison(&self.0);
        } else if let Some(WritesOf(writes)) = response.extensions().get()
            && let Some(writes) = writes.upgrade()
        {
            lock(&writes).watch(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::ready;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use axum::body::Body;
    use futures_util::stream;
    use http::Uri;
    use http_body_util::BodyExt;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio::time::timeout;
    use tower::service_fn;

    use super::*;

    /// A connection whose writes fail from a moment on, and whose server keeps it open.
    struct Failing {
        io: TokioIo<DuplexStream>,
        fails: Arc<AtomicBool>,
        has_failed: Arc<AtomicBool>,
    }

    impl Read for Failing {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_read(cx, buffer)
        }
    }

    impl Write for Failing {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            if self.fails.load(Ordering::Relaxed) {
                self.has_failed.store(true, Ordering::Relaxed);
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            Pin::new(&mut self.io).poll_write(cx, data)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(cx)
        }
    }

    impl Connection for Failing {
        fn connected(&self) -> Connected {
            Connected::new()
        }
    }

    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::task::yield_now().await;
        }
    }

    async fn read_until(server: &mut DuplexStream, end: &[u8]) {
        let mut read = Vec::new();
        while !read.ends_with(end) {
            read.push(server.read_u8().await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_not_written_to_any_more_is_not_used_again() {
        const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        for is_answered_first in [false, true] {
            let (fails, has_failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
            let (mut servers, mut connections) = (Vec::new(), Vec::new());
            for fails in [Arc::default(), fails.clone()] {
                let (io, server) = duplex(1024);
                servers.push(server);
                connections.push(Failing { io: TokioIo::new(io), fails, has_failed: has_failed.clone() });
            }
            let connections = Arc::new(Mutex::new(connections));
            let connector = service_fn(move |_: Uri| {
                let connection = connections.lock().unwrap().pop().unwrap();
                ready(Ok::<_, Infallible>(AnswerFirst::new(connection)))
            });
            let client = Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
            let send = |body: Body| {
                let mut request = Request::post("http://server/").body(body).unwrap();
                let upload = UploadConnection::of(&mut request);
                let answer = client.request(request);
                tokio::spawn(timeout(Duration::from_secs(20), async {
                    let answer = answer.await.unwrap();
                    if let Some(upload) = upload {
                        upload.answered(&answer);
                    }
                    answer
                }))
            };
            let (upload, parts) = mpsc::unbounded_channel::<&str>();
            let parts =
                stream::unfold(parts, async |mut parts| Some((Ok::<_, Infallible>(parts.recv().await?), parts)));
            let call = send(Body::from_stream(parts));
            let mut server = servers.pop().unwrap();
            upload.send("first part").unwrap();
            read_until(&mut server, b"first part\r\n").await;
            let write = async || {
                fails.store(true, Ordering::Relaxed);
                upload.send("second part").unwrap();
                until(|| has_failed.load(Ordering::Relaxed)).await;
            };
            if !is_answered_first {
                write().await;
            }
            server.write_all(ANSWER).await.unwrap();
            let answer = call.await.unwrap().unwrap();
            if is_answered_first {
                write().await;
            }
            drop(upload);
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");

            let call = send(Body::empty());
            let mut other = servers.pop().unwrap();
            timeout(Duration::from_secs(20), read_until(&mut other, b"\r\n\r\n")).await.unwrap();
            other.write_all(ANSWER).await.unwrap();
            assert_eq!(call.await.unwrap().unwrap().status(), 200);
        }
    }

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
