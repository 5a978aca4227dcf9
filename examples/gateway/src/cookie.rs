//! The session cookie: a random number, and all that a browser ever learns of its session.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cookie::{Cookie, SameSite};
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};

/// The number of a session: whoever knows it is the user.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionId([u8; 16]);

impl SessionId {
    /// 128 bits from the operating system.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    fn parse(text: &str) -> Option<Self> {
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

/// How the cookie is called and set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionCookie {
    secure: bool,
}

impl SessionCookie {
    /// Over TLS the name begins with `__Host-`: then no other host and no plain HTTP page can have set it. Browsers take
    /// such a cookie from no plain HTTP origin, loopback included.
    pub(crate) fn new(secure: bool) -> Self {
        Self { secure }
    }

    pub(crate) fn name(self) -> &'static str {
        if self.secure { "__Host-session" } else { "session" }
    }

    /// The session that a request belongs to, if it says one.
    pub(crate) fn read(self, headers: &HeaderMap) -> Option<SessionId> {
        let values = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let cookies = values.flat_map(Cookie::split_parse).filter_map(Result::ok);
        let mut ids = cookies.filter(|cookie| cookie.name() == self.name());
        ids.find_map(|cookie| SessionId::parse(cookie.value()))
    }

    /// Gives a browser its session.
    pub(crate) fn set(self, headers: &mut HeaderMap, id: SessionId) {
        write(headers, &self.cookie(URL_SAFE_NO_PAD.encode(id.0)));
    }

    /// What a browser sends back.
    pub(crate) fn pair(self, id: SessionId) -> String {
        format!("{}={}", self.name(), URL_SAFE_NO_PAD.encode(id.0))
    }

    /// Makes a browser forget it.
    pub(crate) fn clear(self, headers: &mut HeaderMap) {
        let mut cookie = self.cookie(String::new());
        cookie.make_removal();
        write(headers, &cookie);
    }

    /// Whether a `Set-Cookie` of an upstream's would overwrite it, or be sent back as if it were it: a nameless one is,
    /// as its value alone.
    pub(crate) fn is_named_in(self, set_cookie: &HeaderValue) -> bool {
        let mut names = set_cookie.as_bytes().split(|byte| matches!(byte, b'=' | b';')).map(<[u8]>::trim_ascii);
        names.find(|name| !name.is_empty()) == Some(self.name().as_bytes())
    }

    fn cookie(self, value: String) -> Cookie<'static> {
        let cookie = Cookie::build((self.name(), value)).path("/").http_only(true);
        cookie.secure(self.secure).same_site(SameSite::Strict).build()
    }
}

fn write(headers: &mut HeaderMap, cookie: &Cookie<'static>) {
    // Name, value and attributes are all of this file's making: visible ASCII.
    if let Ok(mut value) = HeaderValue::try_from(cookie.to_string()) {
        value.set_sensitive(true);
        headers.append(SET_COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read_back_among_others() {
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
        assert!(cookie.is_named_in(&set.parse().unwrap()));
        assert!(!cookie.is_named_in(&HeaderValue::from_static("theme=dark")));
        // One without a name is sent back as its value alone.
        for nameless in ["=__Host-session=x", " = __Host-session=x; Path=/", "==__Host-session=x"] {
            assert!(cookie.is_named_in(&HeaderValue::from_static(nameless)), "{nameless}");
        }
    }

    /// Another server on this machine may have set one of the same name: on loopback ports share their cookies.
    #[test]
    fn what_is_no_session_does_not_hide_one() {
        let (cookie, id) = (SessionCookie::new(false), SessionId([7; 16]));
        let headers = HeaderMap::from_iter([(COOKIE, format!("session=theirs; {}", cookie.pair(id)).parse().unwrap())]);
        assert_eq!(cookie.read(&headers), Some(id));
    }

    #[test]
    fn what_is_no_session_is_none() {
        let cookie = SessionCookie::new(false);
        for value in ["session=", "session=abc", "session=%00", "", "session", &format!("session={}", "A".repeat(4000))]
        {
            let headers = HeaderMap::from_iter([(COOKIE, value.parse().unwrap())]);
            assert_eq!(cookie.read(&headers), None, "{value:?}");
        }
    }
}
