//! What two servers could read in two ways is refused.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{HOST, TRANSFER_ENCODING};
use http::{HeaderMap, Version};

use crate::problem::Kind;

/// Refuses a request that has not one host (RFC 9112 §3.2), or whose body is coded for this connection in another way
/// than in chunks, once (§6.1): the upstream would not hear of the coding.
pub(crate) async fn refuse_ambiguous(request: Request, next: Next) -> Response {
    if has_one_host(request.version(), request.headers()) && is_plainly_framed(request.headers()) {
        next.run(request).await
    } else {
        Kind::MalformedRequest.into_response()
    }
}

fn has_one_host(version: Version, headers: &HeaderMap) -> bool {
    match headers.get_all(HOST).iter().count() {
        // HTTP/2 has it in the request's target, HTTP/1.0 may have none.
        0 => version != Version::HTTP_11,
        hosts => hosts == 1,
    }
}

fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let first = codings.next().is_none_or(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
    first && codings.next().is_none()
}
