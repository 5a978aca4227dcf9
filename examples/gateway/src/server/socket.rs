//! [`Socket`]: a client's connection in the hands of hyper, and the [lingering close](linger) after it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::activity::Activity;

/// The longest time in which a client sends nothing while its connection lingers, unless the limit is shorter.
const MAX_LINGER_PAUSE: Duration = Duration::from_secs(5);

/// A connection that hyper gives back when it is done, for whatever reason.
#[derive(Debug)]
pub(super) struct Socket<S> {
    stream: Option<S>,
    give_back: Option<oneshot::Sender<S>>,
    activity: Arc<Activity>,
}

impl<S: Unpin> Socket<S> {
    /// Creates the socket, and the receiver of its stream after the drop of the socket.
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> (Self, oneshot::Receiver<S>) {
        let (give_back, given_back) = oneshot::channel();
        (Self { stream: Some(stream), give_back: Some(give_back), activity }, given_back)
    }

    fn stream(&mut self) -> io::Result<Pin<&mut S>> {
        // Present until the drop.
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S> Drop for Socket<S> {
    fn drop(&mut self) {
        if let (Some(stream), Some(give_back)) = (self.stream.take(), self.give_back.take()) {
            // Nothing waits for the stream of a connection that is cut off.
            let _ = give_back.send(stream);
        }
    }
}

/// Closes the write side of a connection and reads until the client closes too (RFC 9112 §9.6), but at most `bytes`
/// and for `time`.
///
/// If a socket with unread data is closed, the operating system resets the connection, and the client may lose the
/// response.
pub(super) async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin, time: Duration, mut bytes: u64) {
    let discard = async {
        stream.shutdown().await?;
        let mut discarded = vec![0; 16 * 1024];
        loop {
            let read = timeout(MAX_LINGER_PAUSE, stream.read(&mut discarded)).await??;
            match bytes.checked_sub(read as u64) {
                Some(left) if read > 0 => bytes = left,
                _ => return io::Result::Ok(()),
            }
        }
    };
    let _ = timeout(time, discard).await;
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.stream()?.poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.activity.bytes_arrived();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}
