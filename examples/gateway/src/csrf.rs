//! Protection against cross-site request forgery: unsafe requests must come from this origin.

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use tower_auth_refresh::Origin;

use crate::config::PublicOrigin;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// A page of another site can't set this header without a CORS preflight, which is never granted.
const X_REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");

/// Checks if a request is unsafe (RFC 9110 §9.2.1) and another site may have made it.
pub(crate) fn is_cross_origin<B>(public: &PublicOrigin, request: &Request<B>) -> bool {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    !(safe || is_same_origin(public, request.headers(), request.uri()))
}

/// Requires `Sec-Fetch-Site` and `Origin`, as far as present, to name this origin. If both are absent, requires
/// `X-Requested-With`.
fn is_same_origin(public: &PublicOrigin, headers: &HeaderMap, uri: &Uri) -> bool {
    let site = all(headers, &SEC_FETCH_SITE, |site| site == "same-origin");
    let origin = all(headers, &ORIGIN, |origin| {
        let origin = origin.to_str().ok().and_then(|origin| Origin::parse_allowing_http(origin).ok());
        origin.is_some_and(|origin| is_ours(public, &origin, headers, uri))
    });
    match (site, origin) {
        (Some(false), _) | (_, Some(false)) => false,
        (Some(true), _) | (_, Some(true)) => true,
        (None, None) => headers.contains_key(X_REQUESTED_WITH),
    }
}

/// Checks all lines of a header: the next server may read another one than the first. Returns `None` if there is none.
fn all(headers: &HeaderMap, name: &HeaderName, check: impl Fn(&HeaderValue) -> bool) -> Option<bool> {
    headers.contains_key(name).then(|| headers.get_all(name).iter().all(check))
}

fn is_ours(public: &PublicOrigin, origin: &Origin, headers: &HeaderMap, uri: &Uri) -> bool {
    match public {
        PublicOrigin::Named(ours) => ours == origin,
        PublicOrigin::Loopback => {
            let host = uri.authority().map(http::uri::Authority::as_str);
            let host = host.or_else(|| headers.get(HOST)?.to_str().ok());
            // `Origin::parse` accepts plain HTTP for loopback hosts only, which prevents DNS rebinding.
            let ours = host.and_then(|host| Origin::parse(&format!("http://{host}")).ok());
            ours.as_ref() == Some(origin)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(public: &PublicOrigin, headers: &[(&'static str, &str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        is_same_origin(public, &headers.collect(), &Uri::from_static("/login"))
    }

    #[test]
    fn all_origin_headers_must_name_this_origin() {
        let public = PublicOrigin::Named(Origin::parse("https://app.example.com").unwrap());
        let accepted = |headers: &[_]| assert!(check(&public, headers), "{headers:?}");
        let rejected = |headers: &[_]| assert!(!check(&public, headers), "{headers:?}");
        accepted(&[("sec-fetch-site", "same-origin")]);
        accepted(&[("origin", "https://app.example.com")]);
        accepted(&[("origin", "https://APP.example.com:443")]);
        accepted(&[("x-requested-with", "curl")]);
        rejected(&[]);
        rejected(&[("sec-fetch-site", "cross-site")]);
        rejected(&[("sec-fetch-site", "same-site")]);
        rejected(&[("sec-fetch-site", "none")]);
        rejected(&[("sec-fetch-site", "same-origin"), ("origin", "https://evil.example")]);
        rejected(&[("sec-fetch-site", "cross-site"), ("x-requested-with", "curl")]);
        rejected(&[("origin", "null"), ("x-requested-with", "curl")]);
        rejected(&[("origin", "http://app.example.com")]);
        rejected(&[("origin", "https://app.example.com.evil.example")]);
        rejected(&[("origin", "https://app.example.com:8443")]);
    }

    #[test]
    fn all_lines_of_an_origin_header_must_name_this_origin() {
        let public = PublicOrigin::Named(Origin::parse("https://app.example.com").unwrap());
        let (ours, theirs) = ("https://app.example.com", "https://evil.example");
        assert!(check(&public, &[("origin", ours), ("origin", ours)]));
        assert!(!check(&public, &[("origin", ours), ("origin", theirs)]));
        assert!(!check(&public, &[("origin", theirs), ("origin", ours)]));
        assert!(!check(&public, &[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")]));
        assert!(!check(&public, &[("sec-fetch-site", "same-origin"), ("origin", ours), ("origin", theirs)]));
    }

    #[test]
    fn on_loopback_the_origin_must_match_the_host_header() {
        let check = |headers: &[_]| check(&PublicOrigin::Loopback, headers);
        assert!(check(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]));
        assert!(check(&[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:8080")]));
        assert!(!check(&[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:9090")]));
        assert!(!check(&[("host", "rebound.example:8080"), ("origin", "http://rebound.example:8080")]));
        assert!(!check(&[("origin", "http://127.0.0.1:8080")]));
    }
}
