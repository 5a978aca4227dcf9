//! Rejects requests that two servers could interpret in two ways (request smuggling).

use http::header::{HOST, TRANSFER_ENCODING};
use http::{Request, Version};

use crate::fields;

/// Checks if a request lacks exactly one host (RFC 9112 §3.2), or has a transfer coding other than a single `chunked`
/// (§6.1).
///
/// `Transfer-Encoding` is a hop-by-hop header: the upstream would receive a coded body without its coding.
pub(crate) fn is_ambiguous<B>(request: &Request<B>) -> bool {
    let (mut hosts, mut codings, mut is_chunked) = (0, 0, true);
    for (name, value) in request.headers() {
        if *name == HOST {
            hosts += 1;
        } else if *name == TRANSFER_ENCODING {
            codings += 1;
            is_chunked &= fields::trim(value.as_bytes()).eq_ignore_ascii_case(b"chunked");
        }
    }
    let has_one_host = match hosts {
        // HTTP/2 has the host in its request target, HTTP/1.0 may omit it.
        0 => request.version() != Version::HTTP_11,
        hosts => hosts == 1,
    };
    !has_one_host || !is_chunked || codings > 1
}
