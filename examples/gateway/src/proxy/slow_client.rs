//! [`with_client_timeout`]: drops a response body when its client stops reading.
//!
//! Over HTTP/1 the write time-out of the connection does this. Over HTTP/2 a connection can be active while one of its
//! streams is not read: hyper then stops polling the body of that stream, and the upstream would wait without limit.

use std::time::Duration;

use axum::body::Body as AxumBody;
use bytes::Bytes;
use futures_util::stream;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;
use tower::BoxError;

/// The most that the client has to read within the time-out.
const PIECE: usize = 16 * 1024;

type Item = Result<Frame<Bytes>, BoxError>;

/// Reads `body` in a task that drops the body when the client takes no frame for `timeout`.
pub(super) fn with_client_timeout<B>(body: B, timeout: Duration) -> AxumBody
where
    B: Body<Data = Bytes, Error = BoxError> + Send + Unpin + 'static,
{
    if body.is_end_stream() {
        return AxumBody::new(body);
    }
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(forward(body, sender, timeout));
    let frames = stream::unfold(Some(receiver), async |receiver| {
        let mut receiver: mpsc::Receiver<Option<Item>> = receiver?;
        match receiver.recv().await {
            Some(item) => Some((item?, Some(receiver))),
            // Without this error a truncated body would look complete.
            None => Some((Err("the client reads the response too slowly".into()), None)),
        }
    });
    AxumBody::new(StreamBody::new(frames))
}

/// Sends each frame in pieces, and `None` after the last.
async fn forward<B>(mut body: B, sender: mpsc::Sender<Option<Item>>, timeout: Duration)
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // The client has disconnected.
            () = sender.closed() => return,
        };
        let has_more = matches!(frame, Some(Ok(_)));
        let frame = match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(mut data))) => {
                // A large frame takes a slow client longer than the time-out, though it reads steadily.
                while data.len() > PIECE {
                    if sender.send_timeout(Some(Ok(Frame::data(data.split_to(PIECE)))), timeout).await.is_err() {
                        return;
                    }
                }
                Some(Ok(Frame::data(data)))
            }
            Some(Ok(Err(frame))) => Some(Ok(frame)),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        };
        if sender.send_timeout(frame, timeout).await.is_err() || !has_more {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// Three frames of a mebibyte.
    fn large_frames() -> AxumBody {
        let frames = std::iter::repeat_n(Bytes::from(vec![7; 1 << 20]), 3);
        let body = StreamBody::new(stream::iter(frames.map(|data| Ok(Frame::data(data)))));
        with_client_timeout(body, TIMEOUT)
    }

    /// At 20 kB/s. hyper takes the next frame when it has sent the last.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_steadily_receives_large_frames() {
        let mut body = large_frames();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            length += data.len();
            sleep(Duration::from_secs(1) * u32::try_from(data.len()).unwrap() / 20_000).await;
        }
        assert_eq!(length, 3 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_cut_off() {
        let mut body = large_frames();
        body.frame().await.unwrap().unwrap();
        sleep(TIMEOUT * 2).await;
        assert!(body.collect().await.is_err());
    }
}
