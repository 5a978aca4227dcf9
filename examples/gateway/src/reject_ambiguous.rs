//! Rejects requests that two servers could interpret in two ways (request smuggling).

use http::header::{HOST, TRANSFER_ENCODING};
use http::{HeaderMap, Request, Version};

use crate::fields;

/// Checks if a request lacks exactly one host (RFC 9112 §3.2), or has a transfer coding other than a single `chunked`
/// (§6.1).
///
/// `Transfer-Encoding` is a hop-by-hop header: the upstream would receive a coded body without its coding.
pub(crate) fn is_ambiguous<B>(request: &Request<B>) -> bool {
    !(has_one_host(request.version(), request.headers()) && has_plain_framing(request.headers()))
}

fn has_one_host(version: Version, headers: &HeaderMap) -> bool {
    match headers.get_all(HOST).iter().count() {
        // HTTP/2 has the host in its request target, HTTP/1.0 may omit it.
        0 => version != Version::HTTP_11,
        hosts => hosts == 1,
    }
}

fn has_plain_framing(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let first = codings.next().is_none_or(|coding| fields::trim(coding.as_bytes()).eq_ignore_ascii_case(b"chunked"));
    first && codings.next().is_none()
}
