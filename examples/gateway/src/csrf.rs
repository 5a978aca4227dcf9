//! No other site may act in a signed-in user's name: unsafe requests must show that they come from this origin.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderName, Method, Uri};
use tower_auth_refresh::Origin;

use crate::config::PublicOrigin;
use crate::problem::Kind;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// A page of another site can't set it without this origin's consent, which is never given.
const X_REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");

/// Refuses unsafe requests (RFC 9110 §9.2.1) that another site may have made.
pub(crate) async fn refuse_cross_origin(State(public): State<PublicOrigin>, request: Request, next: Next) -> Response {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if safe || is_same_origin(&public, request.headers(), request.uri()) {
        next.run(request).await
    } else {
        Kind::CrossOrigin.into_response()
    }
}

/// All that a browser says must say the same; where it says nothing, the custom header must be there.
fn is_same_origin(public: &PublicOrigin, headers: &HeaderMap, uri: &Uri) -> bool {
    let site = headers.get(SEC_FETCH_SITE).map(|site| site == "same-origin");
    let origin = headers.get(ORIGIN).map(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| Origin::parse_allowing_http(origin).ok());
        origin.is_some_and(|origin| is_ours(public, &origin, headers, uri))
    });
    match (site, origin) {
        (Some(false), _) | (_, Some(false)) => false,
        (Some(true), _) | (_, Some(true)) => true,
        (None, None) => headers.contains_key(X_REQUESTED_WITH),
    }
}

fn is_ours(public: &PublicOrigin, origin: &Origin, headers: &HeaderMap, uri: &Uri) -> bool {
    match public {
        PublicOrigin::Named(ours) => ours == origin,
        PublicOrigin::Loopback => {
            let host = uri.authority().map(http::uri::Authority::as_str);
            let host = host.or_else(|| headers.get(HOST)?.to_str().ok());
            // Loopback, or a name that an attacker points at this machine would do (DNS rebinding).
            let ours = host.and_then(|host| Origin::parse(&format!("http://{host}")).ok());
            ours.as_ref() == Some(origin)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(public: &PublicOrigin, said: &[(&'static str, &str)]) -> bool {
        let headers = said.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        is_same_origin(public, &headers.collect(), &Uri::from_static("/login"))
    }

    #[test]
    fn whatever_a_browser_says_must_say_the_same() {
        let public = PublicOrigin::Named(Origin::parse("https://app.example.com").unwrap());
        let ok = |said: &[_]| assert!(check(&public, said), "{said:?}");
        let no = |said: &[_]| assert!(!check(&public, said), "{said:?}");
        ok(&[("sec-fetch-site", "same-origin")]);
        ok(&[("origin", "https://app.example.com")]);
        ok(&[("origin", "https://APP.example.com:443")]);
        ok(&[("x-requested-with", "curl")]);
        no(&[]);
        no(&[("sec-fetch-site", "cross-site")]);
        no(&[("sec-fetch-site", "same-site")]);
        no(&[("sec-fetch-site", "none")]);
        no(&[("sec-fetch-site", "same-origin"), ("origin", "https://evil.example")]);
        no(&[("sec-fetch-site", "cross-site"), ("x-requested-with", "curl")]);
        no(&[("origin", "null"), ("x-requested-with", "curl")]);
        no(&[("origin", "http://app.example.com")]);
        no(&[("origin", "https://app.example.com.evil.example")]);
        no(&[("origin", "https://app.example.com:8443")]);
    }

    #[test]
    fn on_loopback_the_origin_is_that_of_the_host_header() {
        let check = |said: &[_]| check(&PublicOrigin::Loopback, said);
        assert!(check(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]));
        assert!(check(&[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:8080")]));
        assert!(!check(&[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:9090")]));
        assert!(!check(&[("host", "rebound.example:8080"), ("origin", "http://rebound.example:8080")]));
        assert!(!check(&[("origin", "http://127.0.0.1:8080")]));
    }
}
