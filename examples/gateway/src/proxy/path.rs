//! Which path a request asks the upstream for, and where a redirection of it leads.

use http::Uri;

/// Whether a path says what it means: no `.` or `..` segment, however it is spelled, could lead out of `/api`.
pub(super) fn is_plain(path: &str) -> bool {
    let once = decoded(path.as_bytes());
    // A proxy behind this gateway may decode it before the upstream does.
    let twice = decoded(&once);
    ![path.as_bytes(), &once, &twice].into_iter().any(leads_elsewhere)
}

fn leads_elsewhere(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| {
        // Some servers drop a segment's parameters, some what follows a zero byte, some blanks.
        let meant = segment.iter().take_while(|byte| !matches!(byte, b';' | 0)).filter(|byte| **byte > b' ');
        let (mut dots, mut others) = (0, 0);
        meant.for_each(|byte| *(if *byte == b'.' { &mut dots } else { &mut others }) += 1);
        others == 0 && matches!(dots, 1 | 2)
    })
}

/// Percent-encoding undone once; what is none stays as it is.
fn decoded(path: &[u8]) -> Vec<u8> {
    let digit =
        |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16)).and_then(|it| u8::try_from(it).ok());
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

/// The request's path and query, at the upstream. `None` if together they are too long for a URI.
pub(super) fn at_upstream(upstream: &Uri, request: &Uri) -> Option<Uri> {
    let base = upstream.path().trim_end_matches('/');
    let mut parts = upstream.clone().into_parts();
    let path = request.path_and_query().filter(|path| path.as_str().starts_with('/'))?;
    parts.path_and_query =
        if base.is_empty() { Some(path.clone()) } else { Some(format!("{base}{path}").parse().ok()?) };
    Uri::from_parts(parts).ok()
}

/// What a URL within the upstream's API is called here. `None` for every other.
pub(super) fn at_gateway(upstream: &Uri, url: &str) -> Option<String> {
    let (url, fragment) = url.split_at(url.find('#').unwrap_or(url.len()));
    let url = url.parse::<Uri>().ok()?;
    let path = url.path_and_query()?.as_str().strip_prefix(upstream.path().trim_end_matches('/'))?;
    let rest = path.strip_prefix("/api")?;
    let is_there = url.scheme() == upstream.scheme() && url.authority() == upstream.authority();
    (is_there && (rest.is_empty() || rest.starts_with(['/', '?']))).then(|| format!("{path}{fragment}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_none() {
        for plain in [
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
            assert!(is_plain(plain), "{plain}");
        }
        for not in
            ["/api/..", "/api/../admin", "/api/%2e%2E/x", "/api/.%2e/x", "/api/a%2f..%2fb", "/api/..%5Cx", "/api/./x"]
        {
            assert!(!is_plain(not), "{not}");
        }
        // What some servers make `..` of: they drop parameters, what follows a zero byte, and blanks, or decode twice.
        for not in [
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
            assert!(!is_plain(not), "{not}");
        }
    }

    #[test]
    fn path_and_query_stand_behind_the_upstreams_own() {
        let to = |upstream: &'static str, request: &'static str| {
            at_upstream(&Uri::from_static(upstream), &Uri::from_static(request)).unwrap().to_string()
        };
        assert_eq!(to("https://api.example.com", "/api/a?b=c"), "https://api.example.com/api/a?b=c");
        assert_eq!(to("https://api.example.com/v1/", "/api/a?"), "https://api.example.com/v1/api/a?");
        assert_eq!(to("http://[::1]:81/v1", "https://app.example.com/api"), "http://[::1]:81/v1/api");
    }

    #[test]
    fn within_the_api_the_upstream_is_called_as_the_gateway_is() {
        let here = |upstream: &'static str, url| at_gateway(&Uri::from_static(upstream), url);
        let path = |path: &str| Some(path.to_owned());
        assert_eq!(here("https://api.example.com", "https://api.example.com/api/a?b#c"), path("/api/a?b#c"));
        assert_eq!(here("https://api.example.com/v1/", "https://API.example.com/v1/api?b"), path("/api?b"));
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
            assert_eq!(here("https://api.example.com/v1", url), None, "{url}");
        }
    }
}
