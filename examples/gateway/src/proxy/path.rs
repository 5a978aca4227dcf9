//! Which path a request asks the upstream for.

use http::Uri;

/// Whether a path says what it means: no `.` or `..` segment, however it is spelled, could lead out of `/api`.
pub(super) fn is_plain(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    let path = path.replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
    !path.split(['/', '\\']).any(|segment| segment == "." || segment == "..")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_none() {
        for plain in ["/api", "/api/", "/api/a.b/..c", "/api/...", "/api/%2e%2ea", "/api/a%20b", "/api//x"] {
            assert!(is_plain(plain), "{plain}");
        }
        for not in
            ["/api/..", "/api/../admin", "/api/%2e%2E/x", "/api/.%2e/x", "/api/a%2f..%2fb", "/api/..%5Cx", "/api/./x"]
        {
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
}
