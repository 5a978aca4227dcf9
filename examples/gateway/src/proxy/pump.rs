//! [`pumped`]: an upstream's body that is dropped when the client takes nothing of it.
//!
//! Over HTTP/1 it is the connection that tells: nothing can be written to it. Over HTTP/2 a connection may be well
//! alive while one of its streams is not read: then nobody asks for the next part of its body, and the upstream would be
//! kept waiting for ever.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;
use tower::BoxError;

use super::body::BoxBody;

type Item = Result<Frame<Bytes>, BoxError>;

/// The same body, read by a task of its own, for a client that takes some of it every so often.
pub(super) fn pumped(body: BoxBody, patience: Duration) -> BoxBody {
    if body.is_end_stream() {
        return body;
    }
    let (frames, coming) = mpsc::channel(1);
    tokio::spawn(pump(body, frames, patience));
    let frames = stream::unfold(Some(coming), async |coming| {
        let mut coming: mpsc::Receiver<Option<Item>> = coming?;
        match coming.recv().await {
            Some(item) => Some((item?, Some(coming))),
            // It must not look whole.
            None => Some((Err("the client takes too slowly".into()), None)),
        }
    });
    Box::pin(StreamBody::new(frames))
}

/// Passes frames on, and `None` behind the last one.
async fn pump(mut body: BoxBody, frames: mpsc::Sender<Option<Item>>, patience: Duration) {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // The client has gone.
            () = frames.closed() => return,
        };
        let goes_on = matches!(frame, Some(Ok(_)));
        if frames.send_timeout(frame, patience).await.is_err() || !goes_on {
            return;
        }
    }
}
