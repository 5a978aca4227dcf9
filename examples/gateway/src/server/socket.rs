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
use super::connection::Protocol;
use super::frames::ControlFrames;
use crate::gather::{GATHERED, gather};
use crate::metrics::CloseReason;

/// The longest time in which a client sends nothing while its connection lingers, unless the limit is shorter.
const MAX_LINGER_PAUSE: Duration = Duration::from_secs(5);

/// The number of control frames of HTTP/2 without a response or data in between, at which a client is hung up on. One
/// that downloads sends two for each frame of data.
const MAX_CONTROL_FRAMES: u32 = 1000;

/// A connection that hyper gives back when it is done, for whatever reason.
#[derive(Debug)]
pub(super) struct Socket<S> {
    stream: Option<S>,
    owner: Option<oneshot::Sender<S>>,
    activity: Arc<Activity>,
    /// Present on a connection of HTTP/2.
    control_frames: Option<ControlFrames>,
}

impl<S: Unpin> Socket<S> {
    /// Creates the socket, and the receiver of its stream after the drop of the socket.
    pub(super) fn new(stream: S, protocol: Protocol, activity: Arc<Activity>) -> (Self, oneshot::Receiver<S>) {
        let (owner, given_back) = oneshot::channel();
        let control_frames = (protocol == Protocol::Http2).then(ControlFrames::default);
        (Self { stream: Some(stream), owner: Some(owner), activity, control_frames }, given_back)
    }

    /// Notes that bytes have arrived. Fails if they are a flood.
    fn arrived(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.control_frames {
            None if bytes.is_empty() => {}
            None => self.activity.bytes_arrived(),
            Some(frames) => match frames.count(bytes) {
                0 => {}
                frames if self.activity.count_control_frames(frames) <= MAX_CONTROL_FRAMES => {}
                _ => {
                    self.activity.closes_for(CloseReason::Flood);
                    return Err(io::Error::other("the client floods the connection with control frames"));
                }
            },
        }
        Ok(())
    }

    fn stream(&mut self) -> io::Result<Pin<&mut S>> {
        // Present until the drop.
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S> Drop for Socket<S> {
    fn drop(&mut self) {
        if let (Some(stream), Some(owner)) = (self.stream.take(), self.owner.take()) {
            // Nothing waits for the stream of a connection that is cut off.
            let _ = owner.send(stream);
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
        Poll::Ready(self.arrived(&buffer.filled()[before..]))
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
        match gather(data, &mut [0; GATHERED]) {
            Some(data) => self.stream()?.poll_write(cx, data),
            None => self.stream()?.poll_write_vectored(cx, data),
        }
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
