//! Maps paths to the upstream, and the upstream's redirects back to the gateway.

use http::Uri;

/// Checks that a path has no `.` or `..` segment, in any encoding, that could lead out of `/api`.
pub(super) fn has_no_dot_segments(path: &str) -> bool {
    let path = path.as_bytes();
    // Most paths have no dots, and nothing to decode.
    if !path.iter().any(|byte| matches!(byte, b'.' | b'%')) {
        return true;
    }
    if has_dot_segment(path) {
        return false;
    }
    let once = percent_decode(path);
    // A proxy between this gateway and the upstream may decode the path once more.
    let twice = percent_decode(&once);
    ![once, twice].iter().any(|path| has_dot_segment(path))
}

fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| {
        // Some servers drop the parameters of a segment, some everything after a zero byte, some blanks.
        let effective = segment.iter().take_while(|byte| !matches!(byte, b';' | 0)).filter(|byte| **byte > b' ');
        let (mut dots, mut others) = (0, 0);
        effective.for_each(|byte| *(if *byte == b'.' { &mut dots } else { &mut others }) += 1);
        others == 0 && matches!(dots, 1 | 2)
    })
}

/// Undoes percent-encoding once. Invalid escapes stay as they are.
fn percent_decode(path: &[u8]) -> Vec<u8> {
    let digit = |at: usize| {
        path.get(at).and_then(|byte| char::from(*byte).to_digit(16)).and_then(|digit| u8::try_from(digit).ok())
    };
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        if let (b'%', Some(high), Some(low)) = (byte, digit(at + 1), digit(at + 2)) {
            decoded.push(high << 4 | low);
            at += 3;
        } else {
            decoded.push(byte);
            at += 1;
        }
    }
    decoded
}

/// Appends the path and query of a request to the upstream's URL. Returns `None` if the result is too long for a URI.
pub(super) fn to_upstream(upstream: &Uri, request: &Uri) -> Option<Uri> {
    let base = upstream.path().trim_end_matches('/');
    let mut parts = upstream.clone().into_parts();
    let path = request.path_and_query().filter(|path| path.as_str().starts_with('/'))?;
    parts.path_and_query =
        if base.is_empty() { Some(path.clone()) } else { Some(format!("{base}{path}").parse().ok()?) };
    Uri::from_parts(parts).ok()
}

/// Returns the gateway's path for a URL within the upstream's API, and `None` for any other URL.
///
/// Only the origin has to be a valid URL: some servers send paths that aren't encoded.
pub(super) fn to_gateway<'a>(upstream: &Uri, url: &'a [u8]) -> Option<&'a [u8]> {
    let scheme = url.windows(3).position(|bytes| bytes == b"://")? + 3;
    let length = url[scheme..].iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
    let (origin, path) = url.split_at(length.map_or(url.len(), |length| scheme + length));
    let origin = Uri::try_from(origin).ok()?;
    if origin.scheme() != upstream.scheme() || origin.authority() != upstream.authority() {
        return None;
    }
    let path = path.strip_prefix(upstream.path().trim_end_matches('/').as_bytes())?;
    matches!(path.strip_prefix(b"/api")?, [] | [b'/' | b'?' | b'#', ..]).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_dot_segments_are_rejected() {
        for path in [
            "/api",
            "/api/",
            "/api/a.b/..c",
            "/api/...",
            "/api/%2e%2ea",
            "/api/a%20b",
            "/api//x",
            "/api/a;b=..",
            "/api/%",
            "/api/%2",
            "/api/%zz%e2%82%ac",
            "/api/100%25",
        ] {
            assert!(has_no_dot_segments(path), "{path}");
        }
        for path in
            ["/api/..", "/api/../admin", "/api/%2e%2E/x", "/api/.%2e/x", "/api/a%2f..%2fb", "/api/..%5Cx", "/api/./x"]
        {
            assert!(!has_no_dot_segments(path), "{path}");
        }
        // Some servers read these as `..`: they drop parameters, blanks, or everything after a zero byte, or decode
        // twice.
        for path in [
            "/api/..;/admin",
            "/api/..;a=b/admin",
            "/api/%2e%2e%3ba/admin",
            "/api/..%00/admin",
            "/api/..%00.png",
            "/api/..%20/admin",
            "/api/%09..%0d%0a/admin",
            "/api/%252e%252e/admin",
            "/api/..%252fadmin",
            "/api/..%255cadmin",
        ] {
            assert!(!has_no_dot_segments(path), "{path}");
        }
    }

    #[test]
    fn path_and_query_are_appended_to_the_upstreams_url() {
        let to = |upstream: &'static str, request: &'static str| {
            to_upstream(&Uri::from_static(upstream), &Uri::from_static(request)).unwrap().to_string()
        };
        assert_eq!(to("https://api.example.com", "/api/a?b=c"), "https://api.example.com/api/a?b=c");
        assert_eq!(to("https://api.example.com/v1/", "/api/a?"), "https://api.example.com/v1/api/a?");
        assert_eq!(to("http://[::1]:81/v1", "https://app.example.com/api"), "http://[::1]:81/v1/api");
    }

    #[test]
    fn urls_within_the_upstreams_api_map_to_the_gateway() {
        let mapped = |upstream: &'static str, url| to_gateway(&Uri::from_static(upstream), url);
        let api = "https://api.example.com";
        assert_eq!(mapped(api, b"https://api.example.com/api/a?b#c"), Some(&b"/api/a?b#c"[..]));
        assert_eq!(mapped(api, b"https://api.example.com/api#c"), Some(&b"/api#c"[..]));
        assert_eq!(mapped("https://api.example.com/v1/", b"https://API.example.com/v1/api?b"), Some(&b"/api?b"[..]));
        // Bytes that a URL must encode.
        for path in [&b"/api/caf\xc3\xa9"[..], b"/api/caf\xe9?\xff", b"/api/a b|c#\xe9"] {
            let url = [api.as_bytes(), path].concat();
            assert_eq!(to_gateway(&Uri::from_static(api), &url), Some(path), "{path:?}");
        }
        for url in [
            "http://api.example.com/v1/api/a",
            "https://api.example.com:8443/v1/api/a",
            "https://api.example.com/api/a",
            "https://api.example.com/v1/apis",
            "https://api.example.com/v1",
            "/v1/api/a",
            "//api.example.com/v1/api/a",
            "",
        ] {
            assert_eq!(mapped("https://api.example.com/v1", url.as_bytes()), None, "{url}");
        }
    }
}
