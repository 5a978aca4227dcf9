//! [`CookieNames`]: the cookies of one session, in requests and answers.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};
use tower_auth_refresh::{RefreshToken, Tokens};

use super::set_cookie::{Attributes, CookieChange, find};
use crate::endpoint::Endpoint;
use crate::error::{AuthServerError, Kind};
use crate::fields::Values;
use crate::json_call::{JsonRequest, no_refresh_token, secret_header};

/// The member of [`Tokens`] that holds the attributes of the refresh cookie.
const REFRESH_COOKIE: &str = "refresh_cookie";

/// The member of [`Tokens`] that holds the other cookies, by name.
const KEPT_COOKIES: &str = "kept_cookies";

/// The cookies of one session. Their values are kept with its tokens; there is no jar besides.
#[derive(Clone, Debug, Default)]
pub(crate) struct CookieNames {
    /// `None` if the refresh token is in the body.
    pub(crate) refresh: Option<String>,
    /// `None` if the access token is in the body.
    pub(crate) access: Option<String>,
    /// Further cookies that are sent back.
    kept: Vec<String>,
    /// Headers that repeat the value of a cookie in `kept`.
    headers: Vec<(HeaderName, String)>,
}

/// The cookies of one answer.
#[derive(Default)]
pub(crate) struct ReceivedCookies {
    /// `None` if the refresh token is in the body.
    pub(crate) refresh: Option<CookieChange>,
    access: Option<(String, Option<SystemTime>)>,
    /// All further cookies, if one of them has changed.
    kept: Option<Map<String, Value>>,
}

impl CookieNames {
    pub(crate) fn keep(&mut self, cookie: String) {
        if !self.kept.contains(&cookie) {
            self.kept.push(cookie);
        }
    }

    pub(crate) fn header(&mut self, header: HeaderName, cookie: String) {
        self.keep(cookie.clone());
        self.headers.push((header, cookie));
    }

    /// Adds the `Cookie` header, and those that repeat a cookie.
    ///
    /// # Errors
    ///
    /// If the refresh cookie, or one that a header repeats, is missing, expired or for another endpoint.
    pub(crate) fn apply(
        &self,
        tokens: &Tokens,
        endpoint: &Endpoint,
        request: &mut JsonRequest,
    ) -> Result<(), AuthServerError> {
        let mut pairs = Vec::new();
        if let Some(name) = &self.refresh {
            pairs.push(format!("{name}={}", refresh_cookie(tokens, endpoint)?));
        }
        let kept = kept(tokens);
        let live = |name: &str| {
            let cookie = kept.get(name)?;
            let attributes = Attributes::from_json(cookie);
            let expired = attributes.as_ref().is_some_and(Attributes::has_expired);
            (!expired).then_some((cookie.get("value")?.as_str()?, attributes))
        };
        for name in &self.kept {
            if let Some((value, attributes)) = live(name)
                && attributes.is_none_or(|attributes| attributes.cover(endpoint))
            {
                pairs.push(format!("{name}={value}"));
            }
        }
        for (header, name) in &self.headers {
            let missing =
                || AuthServerError::misconfigured("the session holds no cookie for a header that repeats one");
            let (value, _) = live(name).ok_or_else(missing)?;
            request.header(header.clone(), secret_header(percent_decoded(value).unwrap_or_else(|| value.to_owned()))?);
        }
        if !pairs.is_empty() {
            request.cookie(secret_header(pairs.join("; "))?);
        }
        Ok(())
    }

    /// Reads the answer of the refresh endpoint, which `tokens` were presented to.
    pub(crate) fn rotated(&self, headers: &HeaderMap, endpoint: &Endpoint, tokens: &Tokens) -> ReceivedCookies {
        let known = tokens.extra(REFRESH_COOKIE).and_then(Attributes::from_json);
        let refresh = self
            .refresh
            .as_ref()
            .map(|name| find(name, headers, endpoint, known.as_ref(), |attributes| attributes.cover(endpoint)));
        self.received(refresh, headers, endpoint, kept(tokens))
    }

    /// Reads the answer of the login endpoint, whose refresh cookie may be for other paths only.
    pub(crate) fn issued(&self, headers: &HeaderMap, endpoint: &Endpoint) -> ReceivedCookies {
        let refresh = self.refresh.as_ref().map(|name| find(name, headers, endpoint, None, |_| true));
        self.received(refresh, headers, endpoint, Map::new())
    }

    fn received(
        &self,
        refresh: Option<CookieChange>,
        headers: &HeaderMap,
        endpoint: &Endpoint,
        mut kept: Map<String, Value>,
    ) -> ReceivedCookies {
        let find = |name: &str| find(name, headers, endpoint, None, |_| true);
        let access = self.access.as_ref().and_then(|name| match find(name) {
            CookieChange::Set(value, attributes) => Some((value, attributes.expiry())),
            _ => None,
        });
        let mut changed = false;
        for name in &self.kept {
            match find(name) {
                CookieChange::Set(value, attributes) => {
                    let mut cookie = attributes.to_json();
                    cookie.insert("value".to_owned(), value.into());
                    kept.insert(name.clone(), cookie.into());
                    changed = true;
                }
                CookieChange::Deleted => changed |= kept.remove(name).is_some(),
                CookieChange::None => {}
            }
        }
        ReceivedCookies { refresh, access, kept: changed.then_some(kept) }
    }
}

impl ReceivedCookies {
    /// Puts the cookies where tokens from the body would be. Returns the members to keep with the tokens.
    pub(crate) fn apply(self, values: &mut Values) -> Map<String, Value> {
        let mut members = Map::new();
        if let Some(kept) = self.kept {
            members.insert(KEPT_COOKIES.to_owned(), kept.into());
        }
        if let Some((token, expiry)) = self.access {
            values.set_access(token, expiry);
        }
        match self.refresh {
            None => {}
            Some(CookieChange::None | CookieChange::Deleted) => values.set_refresh(None),
            Some(CookieChange::Set(value, attributes)) => {
                values.set_refresh(Some(value));
                members.insert(REFRESH_COOKIE.to_owned(), attributes.to_json().into());
            }
        }
        members
    }
}

impl CookieChange {
    /// The refresh token that the cookie holds, if it is well-formed.
    pub(crate) fn token(&self) -> Option<RefreshToken> {
        match self {
            Self::Set(value, _) => RefreshToken::new(value.as_str()).ok(),
            Self::None | Self::Deleted => None,
        }
    }
}

/// The value of the refresh cookie, if it may be sent to this endpoint now.
fn refresh_cookie<'a>(tokens: &'a Tokens, endpoint: &Endpoint) -> Result<&'a str, AuthServerError> {
    if let Some(known) = tokens.extra(REFRESH_COOKIE).and_then(Attributes::from_json) {
        if !known.cover(endpoint) {
            return Err(AuthServerError::misconfigured("the refresh cookie is for another endpoint"));
        }
        if known.has_expired() {
            return Err(AuthServerError::new(Kind::Rejected, "the refresh cookie has expired"));
        }
    }
    let value = tokens.refresh_token().ok_or_else(no_refresh_token)?.expose_secret();
    if value.contains(';') || value.trim() != value {
        return Err(AuthServerError::misconfigured("the refresh token holds bytes that no cookie may hold"));
    }
    Ok(value)
}

fn kept(tokens: &Tokens) -> Map<String, Value> {
    tokens.extra(KEPT_COOKIES).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Undoes percent-encoding, as the scripts of web apps do before they repeat a cookie in a header.
fn percent_decoded(value: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                decoded.push(digit(*high)? << 4 | digit(*low)?);
                after
            }
            (b'%', _) => return None,
            (byte, after) => {
                decoded.push(*byte);
                after
            }
        };
    }
    let decoded = String::from_utf8(decoded).ok()?;
    HeaderValue::try_from(&decoded).is_ok().then_some(decoded)
}

#[cfg(test)]
mod tests {
    use http::header::SET_COOKIE;

    use super::*;

    const URL: &str = "https://app.example.com/auth/refresh";

    fn names() -> CookieNames {
        CookieNames { refresh: Some("rt".to_owned()), ..CookieNames::default() }
    }

    fn holding(set: &str) -> Tokens {
        let headers = HeaderMap::from_iter([(SET_COOKIE, set.parse().unwrap())]);
        let received = names().issued(&headers, &Endpoint::parse(URL, true).unwrap());
        let Some(CookieChange::Set(value, attributes)) = received.refresh else { panic!("not set: {set}") };
        let members = Map::from_iter([(REFRESH_COOKIE.to_owned(), attributes.to_json().into())]);
        Tokens::from_refresh_token(RefreshToken::new(value).unwrap()).with_extra(members)
    }

    #[test]
    fn the_cookie_is_sent_where_its_attributes_allow_and_while_it_lasts() {
        let sent = |set: &str, url| {
            let tokens = holding(set);
            refresh_cookie(&tokens, &Endpoint::parse(url, true).unwrap()).map(str::to_owned)
        };
        assert_eq!(sent("rt=v", URL).unwrap(), "v");
        assert_eq!(sent("rt=v; Domain=example.com", "https://b.example.com/auth/x").unwrap(), "v");
        assert!(sent("rt=v", "https://b.example.com/auth/x").unwrap_err().is_misconfigured());
        assert!(sent("rt=v", "https://app.example.com/other").unwrap_err().is_misconfigured());
        assert!(sent("rt=v; Secure", "http://app.example.com/auth/x").unwrap_err().is_misconfigured());

        let tokens = holding("rt=v; Max-Age=60");
        let mut attributes = tokens.extra(REFRESH_COOKIE).unwrap().clone();
        attributes["expires"] = 1.into();
        let expired = tokens.with_extra(Map::from_iter([(REFRESH_COOKIE.to_owned(), attributes)]));
        let endpoint = Endpoint::parse(URL, true).unwrap();
        assert!(refresh_cookie(&expired, &endpoint).unwrap_err().is_rejected());

        for injected in ["v; admin=1", " v"] {
            let tokens = Tokens::from_refresh_token(RefreshToken::new(injected).unwrap());
            assert!(refresh_cookie(&tokens, &endpoint).unwrap_err().is_misconfigured());
        }
    }

    #[test]
    fn a_cookies_value_is_percent_decoded_for_a_header() {
        assert_eq!(percent_decoded("abc-123").as_deref(), Some("abc-123"));
        assert_eq!(percent_decoded("a%7Cb%3d").as_deref(), Some("a|b="));
        for odd in ["%", "%4", "%zz", "a%0d%0ab", "%ff"] {
            assert_eq!(percent_decoded(odd), None, "{odd}");
        }
    }
}
