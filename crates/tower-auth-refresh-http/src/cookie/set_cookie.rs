//! The rules of RFC 6265 for the one cookie that a [`RefreshCookie`] names.

use std::time::{Duration, SystemTime};

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use tower_auth_refresh::{RefreshToken, Tokens};

use crate::app::{secret_header, unsendable};
use crate::endpoint::Endpoint;
use crate::error::{AuthServerError, Verdict};
use crate::fields::Granted;

/// The member of [`Tokens`] that the cookie's attributes are kept in.
const ATTRIBUTES: &str = "refresh_cookie";

/// The rules of RFC 6265 §5, for the one cookie of this name.
#[derive(Clone, Debug)]
pub(crate) struct RefreshCookie {
    name: String,
}

/// What an answer does to the cookie.
pub(crate) enum Found {
    Nothing,
    Deleted,
    Set(String, Attributes),
}

/// Where a cookie may go, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    domain: String,
    /// To the host `domain` alone, and to none below it.
    host_only: bool,
    path: String,
    secure: bool,
    /// Seconds since 1970; `None`: for as long as the session lasts.
    expires: Option<u64>,
}

impl RefreshCookie {
    pub(crate) fn named(name: String) -> Self {
        Self { name }
    }

    /// The `Cookie` header, if the cookie may be sent to this endpoint now.
    pub(crate) fn header(
        &self,
        tokens: &Tokens,
        refresh: &RefreshToken,
        endpoint: &Endpoint,
    ) -> Result<HeaderValue, AuthServerError> {
        if let Some(kept) = Attributes::kept(tokens) {
            if !kept.cover(endpoint) {
                return Err(unsendable("the refresh cookie is for another endpoint"));
            }
            if kept.expires.is_some_and(|at| at <= unix_time()) {
                return Err(AuthServerError::new(Verdict::Rejected, "the refresh cookie has expired"));
            }
        }
        let value = refresh.expose_secret();
        if value.contains(';') || value.trim() != value {
            return Err(unsendable("the refresh token can't stand in a cookie"));
        }
        secret_header(format!("{}={value}", self.name))
    }

    /// What an answer of the refresh endpoint does to the cookie. `kept` is what is known of the one that was sent.
    pub(super) fn rotated(&self, headers: &HeaderMap, endpoint: &Endpoint, kept: Option<&Attributes>) -> Found {
        self.find(headers, endpoint, kept, |attributes| attributes.cover(endpoint))
    }

    /// What an answer of the login endpoint does to it: the cookie may be for other paths only.
    pub(crate) fn issued(&self, headers: &HeaderMap, endpoint: &Endpoint) -> Found {
        self.find(headers, endpoint, None, |_| true)
    }

    fn find(
        &self,
        headers: &HeaderMap,
        endpoint: &Endpoint,
        kept: Option<&Attributes>,
        is_of_use: impl Fn(&Attributes) -> bool,
    ) -> Found {
        // By what tells cookies of one name apart: a later one takes the place of an earlier one.
        let mut live: Vec<(Attributes, String)> = Vec::new();
        let mut deleted = false;
        for text in headers.get_all(SET_COOKIE).iter().filter_map(|value| value.to_str().ok()) {
            let Ok(cookie) = cookie::Cookie::parse(text) else { continue };
            if cookie.name() != self.name {
                continue;
            }
            let Some(attributes) = Attributes::of(&cookie, endpoint) else { continue };
            live.retain(|(other, _)| !other.is_same_cookie(&attributes));
            if attributes.expires.is_some_and(|at| at <= unix_time()) {
                // Servers also clear cookies that were never set: for other paths, say.
                deleted |= kept.is_none_or(|kept| kept.is_same_cookie(&attributes));
            } else if is_of_use(&attributes) && !cookie.value().is_empty() {
                live.push((attributes, cookie.value().to_owned()));
            }
        }
        match live.into_iter().max_by_key(|(attributes, _)| attributes.path.len()) {
            Some((attributes, value)) => Found::Set(value, attributes),
            None if deleted => Found::Deleted,
            None => Found::Nothing,
        }
    }
}

impl Granted {
    /// Puts the cookie where a refresh token from the body would be.
    pub(crate) fn refresh_cookie(&mut self, found: Found, status: StatusCode) -> Result<(), AuthServerError> {
        self.refresh = None;
        match found {
            Found::Nothing => {}
            Found::Deleted => return Err(deleted(status)),
            Found::Set(value, attributes) => {
                self.refresh = Some(RefreshToken::new(value).map_err(|invalid| {
                    AuthServerError::new(Verdict::InDoubt, "the answer sets a malformed refresh cookie")
                        .status_is(status)
                        .caused_by(invalid)
                })?);
                self.extra.insert(ATTRIBUTES.to_owned(), attributes.to_json());
            }
        }
        Ok(())
    }
}

pub(super) fn deleted(status: StatusCode) -> AuthServerError {
    AuthServerError::new(Verdict::Rejected, "the server deleted the refresh cookie").status_is(status)
}

impl Attributes {
    /// What a `Set-Cookie` says (RFC 6265 §5.2, §5.3); `None` if this endpoint may not set it.
    fn of(cookie: &cookie::Cookie<'_>, endpoint: &Endpoint) -> Option<Self> {
        let host = endpoint.host().to_ascii_lowercase();
        let domain = cookie.domain().map(|domain| domain.trim_start_matches('.').to_ascii_lowercase());
        let (domain, host_only) = match domain.filter(|domain| !domain.is_empty()) {
            None => (host, true),
            // A single label is a public suffix, whoever's list one has.
            Some(domain) if domain_matches(&host, &domain) && (domain == host || domain.contains('.')) => {
                (domain, false)
            }
            Some(_) => return None,
        };
        let path = match cookie.path() {
            Some(path) if path.starts_with('/') => path.to_owned(),
            _ => default_path(endpoint.path()).to_owned(),
        };
        let secure = cookie.secure().unwrap_or(false);
        if secure && !endpoint.is_private() {
            return None;
        }
        let name = cookie.name();
        let has_prefix =
            |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        if (has_prefix("__Secure-") && !secure) || (has_prefix("__Host-") && !(secure && host_only && path == "/")) {
            return None;
        }
        let expires = match cookie.max_age() {
            Some(age) => Some(unix_time().saturating_add(u64::try_from(age.whole_seconds()).unwrap_or(0))),
            None => cookie.expires_datetime().map(|at| u64::try_from(at.unix_timestamp()).unwrap_or(0)),
        };
        Some(Self { domain, host_only, path, secure, expires })
    }

    fn is_same_cookie(&self, other: &Self) -> bool {
        (&self.domain, self.host_only, &self.path) == (&other.domain, other.host_only, &other.path)
    }

    /// Whether the cookie may be sent to this endpoint, as long as it lasts.
    fn cover(&self, endpoint: &Endpoint) -> bool {
        let host = endpoint.host().to_ascii_lowercase();
        (if self.host_only { host == self.domain } else { domain_matches(&host, &self.domain) })
            && path_matches(endpoint.path(), &self.path)
            && (!self.secure || endpoint.is_private())
    }

    /// What was kept with the tokens. Members of that name that aren't ours count as nothing known.
    pub(super) fn kept(tokens: &Tokens) -> Option<Self> {
        let kept = tokens.extra(ATTRIBUTES)?;
        Some(Self {
            domain: kept.get("domain")?.as_str()?.to_owned(),
            host_only: kept.get("host_only")?.as_bool()?,
            path: kept.get("path")?.as_str()?.to_owned(),
            secure: kept.get("secure")?.as_bool()?,
            expires: kept.get("expires").and_then(Value::as_u64),
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "domain": self.domain,
            "host_only": self.host_only,
            "path": self.path,
            "secure": self.secure,
            "expires": self.expires,
        })
    }
}

/// RFC 6265 §5.1.3.
fn domain_matches(host: &str, domain: &str) -> bool {
    let is_address = host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok();
    host == domain || (!is_address && host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')))
}

/// RFC 6265 §5.1.4.
fn path_matches(path: &str, of_cookie: &str) -> bool {
    path.strip_prefix(of_cookie)
        .is_some_and(|rest| rest.is_empty() || of_cookie.ends_with('/') || rest.starts_with('/'))
}

/// RFC 6265 §5.1.4.
fn default_path(path: &str) -> &str {
    match path.rfind('/') {
        None | Some(0) => "/",
        Some(last) => &path[..last],
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    const URL: &str = "https://app.example.com/auth/refresh";

    fn find(url: &str, kept: Option<&Attributes>, set: &[&str]) -> Found {
        let headers = set.iter().map(|text| (SET_COOKIE, text.parse().unwrap())).collect();
        RefreshCookie::named("rt".to_owned()).rotated(&headers, &Endpoint::parse(url, true).unwrap(), kept)
    }

    fn value(set: &[&str]) -> Option<String> {
        match find(URL, None, set) {
            Found::Set(value, _) => Some(value),
            Found::Deleted => Some("deleted".to_owned()),
            Found::Nothing => None,
        }
    }

    fn attributes(set: &str) -> Attributes {
        let Found::Set(_, attributes) = find(URL, None, &[set]) else { panic!("not set: {set}") };
        attributes
    }

    #[test]
    fn domain_and_path_decide_whether_a_cookie_is_ours() {
        for ours in [
            "rt=v",
            "rt=v; Domain=app.example.com",
            "rt=v; domain=.Example.COM",
            "rt=v; Path=/",
            "rt=v; Path=/auth",
            "rt=v; Path=/auth/",
            "rt=v; path=/auth/refresh",
            "rt=v; Path=relative",
            "other=x; Path=/, rt=v",
        ] {
            let expected = if ours.starts_with("other") { None } else { Some("v".to_owned()) };
            assert_eq!(value(&[ours]), expected, "{ours}");
        }
        for not in [
            "rt=v; Domain=example.org",
            "rt=v; Domain=com",
            "rt=v; Domain=p.example.com",
            "rt=v; Domain=x.app.example.com",
            "rt=v; Path=/aut",
            "rt=v; Path=/auth/refresh/more",
            "rt=v; Path=/api",
            "RT=v",
            "rt",
            "=v",
            "rt=",
        ] {
            assert_eq!(value(&[not]), None, "{not}");
        }
        assert!(matches!(find("https://10.1.2.3/r", None, &["rt=v; Domain=2.3"]), Found::Nothing));
    }

    #[test]
    fn a_cookie_without_attributes_stays_with_this_host_and_directory() {
        let expected = Attributes {
            domain: "app.example.com".to_owned(),
            host_only: true,
            path: "/auth".to_owned(),
            secure: false,
            expires: None,
        };
        assert_eq!(attributes("rt=v"), expected);
        let tokens = Tokens::default().with_extra(Map::from_iter([(ATTRIBUTES.to_owned(), expected.to_json())]));
        assert_eq!(Attributes::kept(&tokens), Some(expected));
    }

    #[test]
    fn of_several_the_last_of_one_identity_and_the_longest_path_wins() {
        assert_eq!(value(&["rt=1; Path=/", "rt=2; Path=/"]).as_deref(), Some("2"));
        assert_eq!(value(&["rt=1; Path=/auth", "rt=2; Path=/"]).as_deref(), Some("1"));
        assert_eq!(value(&["rt=; Path=/; Max-Age=0", "rt=2; Path=/auth"]).as_deref(), Some("2"));
        assert_eq!(value(&["rt=2; Path=/auth", "rt=; Path=/; Max-Age=0"]).as_deref(), Some("2"));
        assert_eq!(value(&["rt=2; Path=/auth", "rt=; Path=/auth; Max-Age=0"]).as_deref(), Some("deleted"));
    }

    #[test]
    fn a_cookie_set_with_an_expiry_in_the_past_is_deleted() {
        for deletion in [
            "rt=; Max-Age=0",
            "rt=x; Max-Age=-1",
            "rt=; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
            "rt=; expires=Thu, 01-Jan-1970 00:00:00 GMT",
            "rt=; Max-Age=0; Expires=Fri, 31 Dec 2100 23:59:59 GMT",
        ] {
            assert_eq!(value(&[deletion]).as_deref(), Some("deleted"), "{deletion}");
        }
        assert_eq!(value(&["rt=v; Max-Age=9; Expires=Thu, 01 Jan 1970 00:00:00 GMT"]).as_deref(), Some("v"));
        assert_eq!(value(&["rt=v; Max-Age=99999999999999999999999"]).as_deref(), Some("v"));
        assert!(attributes("rt=v; Max-Age=60").expires.unwrap() >= unix_time() + 59);
    }

    #[test]
    fn clearing_another_cookie_of_the_name_deletes_nothing() {
        let kept = attributes("rt=v; Path=/auth");
        assert!(matches!(find(URL, Some(&kept), &["rt=; Path=/; Max-Age=0"]), Found::Nothing));
        assert!(matches!(find(URL, Some(&kept), &["rt=; Path=/auth; Max-Age=0"]), Found::Deleted));
    }

    #[test]
    fn a_secure_cookie_stays_off_plain_http_and_prefixes_are_checked() {
        assert!(matches!(find("http://app.example.com/", None, &["rt=v; Secure"]), Found::Nothing));
        assert!(matches!(find("http://app.example.com/", None, &["rt=v"]), Found::Set(..)));
        assert!(matches!(find("http://127.0.0.1:80/", None, &["rt=v; Secure"]), Found::Set(..)));
        assert!(attributes("rt=v; Secure").secure);

        let host = RefreshCookie::named("__Host-rt".to_owned());
        let endpoint = Endpoint::parse(URL, false).unwrap();
        let found = |text: &str| {
            let headers = HeaderMap::from_iter([(SET_COOKIE, text.parse().unwrap())]);
            matches!(host.rotated(&headers, &endpoint, None), Found::Set(..))
        };
        assert!(found("__Host-rt=v; Secure; Path=/"));
        assert!(!found("__Host-rt=v; Path=/"));
        assert!(!found("__Host-rt=v; Secure; Path=/auth"));
        assert!(!found("__Host-rt=v; Secure; Path=/; Domain=app.example.com"));
    }

    #[test]
    fn the_cookie_is_sent_where_its_attributes_allow_and_while_it_lasts() {
        let endpoint = |url| Endpoint::parse(url, true).unwrap();
        let cookie = RefreshCookie::named("rt".to_owned());
        let sent = |set: &str, url| {
            let tokens = Tokens::from_refresh_token(RefreshToken::new("v").unwrap())
                .with_extra(Map::from_iter([(ATTRIBUTES.to_owned(), attributes(set).to_json())]));
            cookie.header(&tokens, tokens.refresh_token().unwrap(), &endpoint(url)).map(|header| {
                assert!(header.is_sensitive());
                header.to_str().unwrap().to_owned()
            })
        };
        assert_eq!(sent("rt=v", URL).unwrap(), "rt=v");
        assert_eq!(sent("rt=v; Domain=example.com", "https://b.example.com/auth/x").unwrap(), "rt=v");
        assert!(sent("rt=v", "https://b.example.com/auth/x").unwrap_err().is_misconfigured());
        assert!(sent("rt=v", "https://app.example.com/other").unwrap_err().is_misconfigured());
        assert!(sent("rt=v; Secure", "http://app.example.com/auth/x").unwrap_err().is_misconfigured());

        let mut expired = attributes("rt=v; Max-Age=60");
        expired.expires = Some(unix_time() - 1);
        let tokens = Tokens::from_refresh_token(RefreshToken::new("v").unwrap())
            .with_extra(Map::from_iter([(ATTRIBUTES.to_owned(), expired.to_json())]));
        let error = cookie.header(&tokens, tokens.refresh_token().unwrap(), &endpoint(URL)).unwrap_err();
        assert!(error.is_rejected());

        for injected in ["v; admin=1", " v"] {
            let tokens = Tokens::from_refresh_token(RefreshToken::new(injected).unwrap());
            let error = cookie.header(&tokens, tokens.refresh_token().unwrap(), &endpoint(URL)).unwrap_err();
            assert!(error.is_misconfigured());
        }
    }
}
