//! [`Endpoint`]: a URL that secrets may be sent to, checked once, on construction.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use http::Uri;
use tower_auth_refresh::Origin;

/// A URL that secrets may be sent to. `Debug` shows its [`name`](Self::name).
#[derive(Clone)]
pub(crate) struct Endpoint {
    uri: Uri,
    /// Scheme, host and path, for messages.
    name: Arc<str>,
    loopback: bool,
}

impl Endpoint {
    pub(crate) fn parse(url: &str, plain_http: bool) -> Result<Self, InvalidEndpoint> {
        // `Uri` drops a fragment silently, and RFC 6749 §3.2 forbids it.
        if url.contains('#') {
            return Err(InvalidEndpoint(Problem::Fragment));
        }
        let uri = Uri::try_from(url).map_err(|_| InvalidEndpoint(Problem::NotAUrl))?;
        let authority = uri.authority().ok_or(InvalidEndpoint(Problem::NotAUrl))?;
        if authority.as_str().contains('@') {
            return Err(InvalidEndpoint(Problem::UserInfo));
        }
        if authority.host().is_empty() {
            return Err(InvalidEndpoint(Problem::NotAUrl));
        }
        let scheme = uri.scheme_str().unwrap_or_default();
        let origin = Origin::parse_allowing_http(&format!("{scheme}://{authority}"));
        let loopback = origin.is_ok_and(|origin| origin.is_loopback());
        match scheme {
            "https" => {}
            "http" if loopback || plain_http => {}
            "http" => return Err(InvalidEndpoint(Problem::PlainHttp)),
            _ => return Err(InvalidEndpoint(Problem::Scheme)),
        }
        let name = format!("{scheme}://{authority}{}", uri.path()).into();
        Ok(Self { uri, name, loopback })
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Scheme, host and path. The query and user information can hold secrets and are left out.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }

    pub(crate) fn path(&self) -> &str {
        self.uri.path()
    }

    /// Returns `true` for a transport that a `Secure` cookie may use: HTTPS, or loopback.
    pub(crate) fn is_private(&self) -> bool {
        self.loopback || self.uri.scheme_str() == Some("https")
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.name).finish()
    }
}

/// A URL that no secret may be sent to.
///
/// The URL isn't `https://` (and neither on loopback nor allowed by
/// [`AuthClient::allow_plain_http`](crate::AuthClient::allow_plain_http)), isn't absolute, or holds a fragment or user
/// information. The message doesn't repeat the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidEndpoint(Problem);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    NotAUrl,
    Fragment,
    UserInfo,
    PlainHttp,
    Scheme,
}

impl fmt::Display for InvalidEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Problem::NotAUrl => "the endpoint is not an absolute URL",
            Problem::Fragment => "the endpoint's URL has a fragment",
            Problem::UserInfo => "the endpoint's URL has a user name or password",
            Problem::PlainHttp => "the endpoint is http:// and not on loopback: tokens could be read in transit",
            Problem::Scheme => "the endpoint's URL is neither https:// nor http://",
        })
    }
}

impl Error for InvalidEndpoint {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_refused_unless_on_loopback_or_explicitly_allowed() {
        let refused = |url| Endpoint::parse(url, false).map(|_| ()).unwrap_err().0;
        for url in [
            "https://example.com/t",
            "http://127.0.0.1:8080/t",
            "http://[::1]/t",
            "http://LOCALHOST:1/",
            "http://a.localhost/",
        ] {
            assert!(Endpoint::parse(url, false).is_ok(), "{url}");
        }
        for url in [
            "http://example.com/t",
            "http://localhost.example.com/",
            "http://127.0.0.1.example.com/",
            "http://128.0.0.1/",
            "http://[::2]/",
            "http://10.0.0.1/",
        ] {
            assert_eq!(refused(url), Problem::PlainHttp, "{url}");
            assert!(Endpoint::parse(url, true).is_ok(), "{url}");
        }
    }

    #[test]
    fn relative_urls_and_urls_with_a_fragment_or_user_info_are_refused() {
        let refused = |url| Endpoint::parse(url, true).map(|_| ()).unwrap_err().0;
        assert_eq!(refused("/auth/refresh"), Problem::NotAUrl);
        assert_eq!(refused(""), Problem::NotAUrl);
        assert_eq!(refused("https://"), Problem::NotAUrl);
        assert_eq!(refused("ftp://example.com/"), Problem::Scheme);
        assert_eq!(refused("https://a:b@example.com/"), Problem::UserInfo);
        assert_eq!(refused("https://example.com@evil.example/"), Problem::UserInfo);
        assert_eq!(refused("https://example.com/#x"), Problem::Fragment);
    }

    #[test]
    fn the_name_of_an_endpoint_has_no_query() {
        let name = |url| Endpoint::parse(url, false).unwrap().name().to_string();
        assert_eq!(name("https://auth.example.com:8443/a/token?key=s3cret"), "https://auth.example.com:8443/a/token");
        assert_eq!(name("https://auth.example.com"), "https://auth.example.com/");
    }
}
