//! What a server answered, read within bounds: [`Answer`].

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::{Instant, timeout_at};
use tower::BoxError;

/// What the server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: AnswerBody,
}

/// What came of the answer's body.
#[derive(Debug)]
pub(crate) enum AnswerBody {
    Whole(Bytes),
    /// Longer than the limit.
    TooLong,
    /// In a `Content-Encoding` that nobody took off.
    Encoded,
    /// The connection or the time ended before the body did.
    BrokenOff(BoxError),
}

impl Answer {
    /// Reads `limit` bytes of the body at most, and until `deadline`.
    pub(crate) async fn read(
        response: Response<UnsyncBoxBody<Bytes, BoxError>>,
        limit: usize,
        deadline: Instant,
    ) -> Self {
        let (head, body) = response.into_parts();
        let body = if is_encoded(&head.headers) {
            AnswerBody::Encoded
        } else if content_length(&head.headers).is_some_and(|length| length > limit as u64) {
            AnswerBody::TooLong
        } else {
            match timeout_at(deadline, read(body, limit)).await {
                Ok(body) => body,
                Err(elapsed) => AnswerBody::BrokenOff(elapsed.into()),
            }
        };
        Self { status: head.status, headers: head.headers, body }
    }
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|value| {
        let value = value.as_bytes().trim_ascii();
        !value.is_empty() && !value.eq_ignore_ascii_case(b"identity")
    })
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn read(body: UnsyncBoxBody<Bytes, BoxError>, limit: usize) -> AnswerBody {
    let mut body = std::pin::pin!(body);
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(data)) if data.len() > limit - text.len() => return AnswerBody::TooLong,
            Ok(Ok(data)) => text.extend_from_slice(&data),
            // Trailers mean nothing here.
            Ok(Err(_)) => {}
            Err(error) => return AnswerBody::BrokenOff(error),
        }
    }
    AnswerBody::Whole(text.into())
}
