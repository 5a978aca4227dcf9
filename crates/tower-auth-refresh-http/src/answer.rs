//! [`Answer`]: the response of a server, read within bounds.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::{Instant, timeout_at};
use tower::BoxError;

use crate::decode::{BodyEnd, decode};
use crate::error::{AuthServerError, Kind};

/// The response of a server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// As much of the body as was read and decoded, without a byte order mark.
    pub(crate) text: Vec<u8>,
    pub(crate) end: BodyEnd,
}

impl Answer {
    /// Reads at most `limit` bytes of the body, until `deadline`.
    pub(crate) async fn read(
        response: Response<UnsyncBoxBody<Bytes, BoxError>>,
        limit: usize,
        deadline: Instant,
    ) -> Self {
        let (head, body) = response.into_parts();
        let (status, headers) = (head.status, head.headers);
        // A success may hold a refresh token in the part that is read; nothing of another answer is of use.
        let skip = !status.is_success() && content_length(&headers).is_some_and(|length| length > limit as u64);
        let mut text = Vec::new();
        let end = if skip {
            BodyEnd::TooLong
        } else {
            match timeout_at(deadline, read(body, limit, &mut text)).await {
                Ok(end) => end,
                Err(elapsed) => BodyEnd::BrokenOff(elapsed.into()),
            }
        };
        let (mut text, end) = decode(&headers, text, end, limit);
        // RFC 8259 §8.1 lets a parser ignore a byte order mark.
        if text.starts_with(b"\xEF\xBB\xBF") {
            text.drain(..3);
        }
        Self { status, headers, text, end }
    }

    /// A success with this body, as if a server had sent it.
    pub(crate) fn of_json(text: Vec<u8>) -> Self {
        Self { status: StatusCode::OK, headers: HeaderMap::new(), text, end: BodyEnd::Complete }
    }

    /// Returns the response, decoded.
    ///
    /// # Errors
    ///
    /// If it is a redirect, or its body isn't complete.
    pub(crate) fn into_response(self) -> Result<Response<Vec<u8>>, AuthServerError> {
        if self.status.is_redirection() {
            return Err(AuthServerError::redirected().with_status(self.status));
        }
        if let Some(problem) = self.end.problem() {
            let error = AuthServerError::new(Kind::InDoubt, problem).with_status(self.status);
            return Err(match self.end {
                BodyEnd::BrokenOff(source) => error.with_source(source),
                _ => error,
            });
        }
        let mut response = Response::new(self.text);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        // They describe the body as it was sent.
        for name in [CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING] {
            response.headers_mut().remove(name);
        }
        Ok(response)
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn read(body: UnsyncBoxBody<Bytes, BoxError>, limit: usize, text: &mut Vec<u8>) -> BodyEnd {
    let mut body = std::pin::pin!(body);
    while let Some(frame) = body.frame().await {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(data)) => {
                let room = limit - text.len();
                text.extend_from_slice(&data[..data.len().min(room)]);
                if data.len() > room {
                    return BodyEnd::TooLong;
                }
            }
            // Trailers carry nothing that is used here.
            Ok(Err(_)) => {}
            Err(error) => return BodyEnd::BrokenOff(error),
        }
    }
    BodyEnd::Complete
}
