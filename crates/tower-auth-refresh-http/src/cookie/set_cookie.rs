//! One cookie by the rules of RFC 6265 §5: its attributes, and what an answer does to it.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::SET_COOKIE;
use serde_json::{Map, Value, json};

use crate::endpoint::Endpoint;

/// The effect of an answer on one cookie.
#[derive(Debug)]
pub(crate) enum CookieChange {
    None,
    Deleted,
    Set(String, Attributes),
}

/// The hosts and paths that a cookie may be sent to, and its expiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    domain: String,
    /// Only for the host `domain` itself, and for none below it.
    host_only: bool,
    path: String,
    secure: bool,
    /// Seconds since 1970; `None`: for as long as the session lasts.
    expires: Option<u64>,
}

/// Finds the effect of an answer on the cookie `name`.
///
/// `known` are the attributes of the cookie that is held, if they are known. `of_use` tells a cookie that is wanted
/// from one of the same name for other endpoints.
pub(super) fn find(
    name: &str,
    headers: &HeaderMap,
    endpoint: &Endpoint,
    known: Option<&Attributes>,
    of_use: impl Fn(&Attributes) -> bool,
) -> CookieChange {
    // Cookies of one name differ by domain and path; a later one replaces an earlier one.
    let mut live: Vec<(Attributes, String)> = Vec::new();
    let mut deleted = false;
    for text in headers.get_all(SET_COOKIE).iter().filter_map(|value| value.to_str().ok()) {
        let Ok(cookie) = cookie::Cookie::parse(text) else { continue };
        if cookie.name() != name {
            continue;
        }
        let Some(attributes) = Attributes::of(&cookie, endpoint) else { continue };
        live.retain(|(other, _)| !other.is_same_cookie(&attributes));
        if attributes.has_expired() {
            // Servers also clear cookies that were never set: for other paths, for example.
            deleted |= match known {
                Some(known) => known.is_same_cookie(&attributes),
                None => of_use(&attributes),
            };
        } else if of_use(&attributes) && !cookie.value().is_empty() {
            live.push((attributes, cookie.value().to_owned()));
        }
    }
    match live.into_iter().max_by_key(|(attributes, _)| attributes.path.len()) {
        Some((attributes, value)) => CookieChange::Set(value, attributes),
        None if deleted => CookieChange::Deleted,
        None => CookieChange::None,
    }
}

impl Attributes {
    /// The attributes of a `Set-Cookie` (RFC 6265 §5.2, §5.3); `None` if this endpoint may not set the cookie.
    fn of(cookie: &cookie::Cookie<'_>, endpoint: &Endpoint) -> Option<Self> {
        let host = endpoint.host().to_ascii_lowercase();
        let domain = cookie.domain().map(|domain| domain.trim_start_matches('.').to_ascii_lowercase());
        let (domain, host_only) = match domain.filter(|domain| !domain.is_empty()) {
            None => (host, true),
            // A single label is a public suffix in every list of them.
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

    /// Returns `true` if the cookie may be sent to this endpoint, as long as it lasts.
    pub(super) fn cover(&self, endpoint: &Endpoint) -> bool {
        let host = endpoint.host().to_ascii_lowercase();
        (if self.host_only { host == self.domain } else { domain_matches(&host, &self.domain) })
            && path_matches(endpoint.path(), &self.path)
            && (!self.secure || endpoint.is_private())
    }

    pub(super) fn has_expired(&self) -> bool {
        self.expires.is_some_and(|at| at <= unix_time())
    }

    pub(super) fn expiry(&self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.expires?))
    }

    /// Reads what [`to_json`](Self::to_json) wrote. Other members mean that nothing is known.
    pub(super) fn from_json(json: &Value) -> Option<Self> {
        Some(Self {
            domain: json.get("domain")?.as_str()?.to_owned(),
            host_only: json.get("host_only")?.as_bool()?,
            path: json.get("path")?.as_str()?.to_owned(),
            secure: json.get("secure")?.as_bool()?,
            expires: json.get("expires").and_then(Value::as_u64),
        })
    }

    pub(super) fn to_json(&self) -> Map<String, Value> {
        let members = json!({
            "domain": self.domain,
            "host_only": self.host_only,
            "path": self.path,
            "secure": self.secure,
            "expires": self.expires,
        });
        members.as_object().cloned().unwrap_or_default()
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
    use super::*;

    const URL: &str = "https://app.example.com/auth/refresh";

    fn found(url: &str, known: Option<&Attributes>, set: &[&str]) -> CookieChange {
        let headers = set.iter().map(|text| (SET_COOKIE, text.parse().unwrap())).collect();
        let endpoint = Endpoint::parse(url, true).unwrap();
        find("rt", &headers, &endpoint, known, |attributes| attributes.cover(&endpoint))
    }

    fn value(set: &[&str]) -> Option<String> {
        match found(URL, None, set) {
            CookieChange::Set(value, _) => Some(value),
            CookieChange::Deleted => Some("deleted".to_owned()),
            CookieChange::None => None,
        }
    }

    fn attributes(set: &str) -> Attributes {
        let CookieChange::Set(_, attributes) = found(URL, None, &[set]) else { panic!("not set: {set}") };
        attributes
    }

    #[test]
    fn domain_and_path_decide_whether_a_cookie_is_for_this_endpoint() {
        for accepted in [
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
            let expected = if accepted.starts_with("other") { None } else { Some("v".to_owned()) };
            assert_eq!(value(&[accepted]), expected, "{accepted}");
        }
        for ignored in [
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
            assert_eq!(value(&[ignored]), None, "{ignored}");
        }
        assert!(matches!(found("https://10.1.2.3/r", None, &["rt=v; Domain=2.3"]), CookieChange::None));
    }

    #[test]
    fn a_cookie_with_a_domain_is_for_all_its_hosts() {
        let of = |set| attributes(set).cover(&Endpoint::parse("https://www.example.com/auth", false).unwrap());
        assert!(of("rt=v; Domain=example.com"));
        assert!(!of("rt=v; Domain=app.example.com") && !of("rt=v; Domain=") && !of("rt=v"));
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
        assert_eq!(Attributes::from_json(&Value::Object(expected.to_json())), Some(expected));
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
    fn clearing_another_cookie_of_the_same_name_deletes_nothing() {
        let known = attributes("rt=v; Path=/auth");
        assert!(matches!(found(URL, Some(&known), &["rt=; Path=/; Max-Age=0"]), CookieChange::None));
        assert!(matches!(found(URL, Some(&known), &["rt=; Path=/auth; Max-Age=0"]), CookieChange::Deleted));
        // Without known attributes, a cookie for other endpoints can't be the one that is held.
        assert!(matches!(found(URL, None, &["rt=; Path=/other; Max-Age=0"]), CookieChange::None));
        assert!(matches!(found(URL, None, &["rt=; Path=/; Max-Age=0"]), CookieChange::Deleted));
    }

    #[test]
    fn a_secure_cookie_stays_off_plain_http_and_prefixes_are_checked() {
        assert!(matches!(found("http://app.example.com/", None, &["rt=v; Secure"]), CookieChange::None));
        assert!(matches!(found("http://app.example.com/", None, &["rt=v"]), CookieChange::Set(..)));
        assert!(matches!(found("http://127.0.0.1:80/", None, &["rt=v; Secure"]), CookieChange::Set(..)));
        assert!(attributes("rt=v; Secure").secure);

        let endpoint = Endpoint::parse(URL, false).unwrap();
        let is_set = |name, text: &str| {
            let headers = HeaderMap::from_iter([(SET_COOKIE, text.parse().unwrap())]);
            matches!(find(name, &headers, &endpoint, None, |_| true), CookieChange::Set(..))
        };
        assert!(is_set("__Secure-rt", "__Secure-rt=v; Secure"));
        assert!(!is_set("__Secure-rt", "__Secure-rt=v"));
        let found = |text| is_set("__Host-rt", text);
        assert!(found("__Host-rt=v; Secure; Path=/"));
        assert!(!found("__Host-rt=v; Path=/"));
        assert!(!found("__Host-rt=v; Secure; Path=/auth"));
        assert!(!found("__Host-rt=v; Secure; Path=/; Domain=app.example.com"));
    }
}
