//! The session cookie: a random number, the only session data that a browser receives.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cookie::{Cookie, SameSite};
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};

use crate::fields;

/// A session's secret number: a bearer credential.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionId([u8; 16]);

impl SessionId {
    /// Generates 128 random bits with the operating system's generator.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Returns the number, from which the key of the session's record is derived.
    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; 16];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (length == bytes.len()).then_some(Self(bytes))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId([redacted])")
    }
}

/// The name and attributes of the session cookie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionCookie {
    secure: bool,
}

impl SessionCookie {
    /// Over TLS the name begins with `__Host-`: no other host and no plain HTTP page can set such a cookie. Browsers
    /// reject the prefix on plain HTTP, loopback included.
    pub(crate) fn new(secure: bool) -> Self {
        Self { secure }
    }

    pub(crate) fn name(self) -> &'static str {
        if self.secure { "__Host-session" } else { "session" }
    }

    /// Returns the first valid session number in a request's cookies.
    pub(crate) fn read(self, headers: &HeaderMap) -> Option<SessionId> {
        let pairs = headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
        let mut values = pairs.filter_map(|pair| {
            let (name, value) = fields::split_once(pair, b'=')?;
            (name == self.name().as_bytes()).then_some(value)
        });
        values.find_map(SessionId::parse)
    }

    /// Appends the `Set-Cookie` header for a session.
    pub(crate) fn set(self, headers: &mut HeaderMap, id: SessionId) {
        write(headers, &self.cookie(URL_SAFE_NO_PAD.encode(id.0)));
    }

    /// Returns the `name=value` pair that a browser sends back.
    pub(crate) fn pair(self, id: SessionId) -> String {
        format!("{}={}", self.name(), URL_SAFE_NO_PAD.encode(id.0))
    }

    /// Appends the `Set-Cookie` header that removes the cookie.
    pub(crate) fn clear(self, headers: &mut HeaderMap) {
        let mut cookie = self.cookie(String::new());
        cookie.make_removal();
        write(headers, &cookie);
    }

    /// Checks if an upstream's `Set-Cookie` would overwrite or imitate the session cookie.
    ///
    /// Browsers send a cookie without a name as its value alone: `=session=x` comes back as `session=x`.
    pub(crate) fn is_set_by(self, set_cookie: &HeaderValue) -> bool {
        let mut names = set_cookie.as_bytes().split(|byte| matches!(byte, b'=' | b';')).map(fields::trim);
        names.find(|name| !name.is_empty()) == Some(self.name().as_bytes())
    }

    fn cookie(self, value: String) -> Cookie<'static> {
        let cookie = Cookie::build((self.name(), value)).path("/").http_only(true);
        cookie.secure(self.secure).same_site(SameSite::Strict).build()
    }
}

fn write(headers: &mut HeaderMap, cookie: &Cookie<'static>) {
    // Name, value and attributes come from this file and are visible ASCII.
    if let Ok(mut value) = HeaderValue::try_from(cookie.to_string()) {
        value.set_sensitive(true);
        headers.append(SET_COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_cookie_is_read_back_among_other_cookies() {
        let id = SessionId::random().unwrap();
        let cookie = SessionCookie::new(true);
        let mut set = HeaderMap::new();
        cookie.set(&mut set, id);
        let set = set[SET_COOKIE].to_str().unwrap();
        for attribute in ["__Host-session=", "; HttpOnly", "; Secure", "; SameSite=Strict", "; Path=/"] {
            assert!(set.contains(attribute), "{set}");
        }
        let pair = set.split(';').next().unwrap();
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "a=b; session=other; broken".parse().unwrap());
        headers.append(COOKIE, pair.parse().unwrap());
        assert_eq!(cookie.read(&headers), Some(id));
        assert!(cookie.is_set_by(&set.parse().unwrap()));
        assert!(!cookie.is_set_by(&HeaderValue::from_static("theme=dark")));
        // Browsers send a cookie without a name as its value alone.
        for nameless in ["=__Host-session=x", " = __Host-session=x; Path=/", "==__Host-session=x"] {
            assert!(cookie.is_set_by(&HeaderValue::from_static(nameless)), "{nameless}");
        }
    }

    /// Cookies are shared by all ports of a host: another server on loopback may set one of the same name.
    #[test]
    fn an_invalid_session_cookie_does_not_hide_a_valid_one() {
        let (cookie, id) = (SessionCookie::new(false), SessionId([7; 16]));
        let headers = HeaderMap::from_iter([(COOKIE, format!("session=theirs; {}", cookie.pair(id)).parse().unwrap())]);
        assert_eq!(cookie.read(&headers), Some(id));
    }

    /// Any script of the host can set such a cookie.
    #[test]
    fn a_cookie_of_other_bytes_does_not_hide_the_session() {
        let (cookie, id) = (SessionCookie::new(true), SessionId([7; 16]));
        let pair = cookie.pair(id);
        for other in [&b"name=Zo\xc3\xa9"[..], b"name=\xe9", b"\xff\xfe", b"\xc3=\xa9", b"a=\"b", b"=", b"", b"a=%ff\t"]
        {
            for value in [
                [other, b"; ", pair.as_bytes()].concat(),
                [pair.as_bytes(), b"; ", other].concat(),
                [other, b";\t", pair.as_bytes(), b"\t ;", other].concat(),
            ] {
                let value = HeaderValue::from_bytes(&value).unwrap();
                assert_eq!(cookie.read(&HeaderMap::from_iter([(COOKIE, value.clone())])), Some(id), "{value:?}");
            }
        }
    }

    /// A browser doesn't take such a name for one with the prefix `__Host-`, and lets other hosts set it.
    #[test]
    fn a_name_with_other_white_space_is_another_cookie() {
        let (cookie, id) = (SessionCookie::new(true), SessionId([7; 16]));
        for space in ["\u{a0}", "\u{2003}", "\u{85}", "\u{feff}"] {
            for value in [format!("{space}{}", cookie.pair(id)), cookie.pair(id).replace('=', &format!("{space}="))] {
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                assert_eq!(cookie.read(&HeaderMap::from_iter([(COOKIE, value.clone())])), None, "{value:?}");
                assert!(!cookie.is_set_by(&value));
            }
        }
    }

    #[test]
    fn an_invalid_session_cookie_is_ignored() {
        let cookie = SessionCookie::new(false);
        for value in ["session=", "session=abc", "session=%00", "", "session", &format!("session={}", "A".repeat(4000))]
        {
            let headers = HeaderMap::from_iter([(COOKIE, value.parse().unwrap())]);
            assert_eq!(cookie.read(&headers), None, "{value:?}");
        }
    }
}
