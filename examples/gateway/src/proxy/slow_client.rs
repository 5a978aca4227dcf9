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

use super::body::DownloadBody;

type Item = Result<Frame<Bytes>, BoxError>;

/// Reads `body` in a task that drops the body when the client takes no frame for `timeout`.
pub(super) fn with_client_timeout(body: DownloadBody, timeout: Duration) -> AxumBody {
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

/// Sends each frame, and `None` after the last.
async fn forward(mut body: DownloadBody, sender: mpsc::Sender<Option<Item>>, timeout: Duration) {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // The client has disconnected.
            () = sender.closed() => return,
        };
        let has_more = matches!(frame, Some(Ok(_)));
        if sender.send_timeout(frame, timeout).await.is_err() || !has_more {
            return;
        }
    }
}
