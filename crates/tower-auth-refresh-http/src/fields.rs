//! [`TokenFields`]: the places of the tokens in an answer.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};

use crate::error::{AuthServerError, Kind};
use crate::path::{Path, for_each_string};

/// An expiry further away than this counts as unknown.
const LONGEST_LIFETIME: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// Scheme names that some servers put before the token itself.
const SCHEMES: [&str; 3] = ["bearer", "token", "jwt"];

/// The places of the tokens in a JSON answer.
///
/// A path is a member's name (`accessToken`), several with dots between (`data.access_token`; numbers index into
/// arrays), or a JSON Pointer (RFC 6901: `/data/access_token`), for names that hold dots themselves. Where one token is
/// both the access and the refresh token, give both the same path.
///
/// | value | default | [camel case](Self::camel_case) |
/// | --- | --- | --- |
/// | access token | `access_token` | `accessToken` |
/// | refresh token; absent, `null` or `""`: the old one is kept | `refresh_token` | `refreshToken` |
/// | lifetime in seconds, a number or a string | `expires_in` | `expiresIn` |
/// | time of expiry: seconds or milliseconds since 1970, or RFC 3339 | `expires_at` | `expiresAt` |
///
/// White space around a token is removed, and so is one scheme name before it (`Bearer`, `Token`, `JWT`, or the value
/// of `token_type`). A `token_type` of any other name than `DPoP` or `MAC` (RFC 9449 §5, RFC 6749 §7.1) is accepted:
/// the layer decides under which scheme the token is sent.
///
/// Without a lifetime and a time of expiry, the `exp` of an access token that is a JWT is used. An expiry that makes no
/// sense (past, zero, negative, over ten years away) counts as unknown. It never fails an answer.
///
/// Beside the lifetime, `refresh_in` (or `refreshIn`) is the number of seconds after which the server advises to refresh:
/// see [`Tokens::with_refresh_at`].
///
/// All other members of the answer are kept in the [`Tokens`], except for `token_type`.
///
/// ```
/// use tower_auth_refresh_http::TokenFields;
///
/// // {"data": {"token": "…", "refresh_token": "…", "expires_in": 300}}
/// let fields = TokenFields::default()
///     .access_token("data.token")
///     .refresh_token("data.refresh_token")
///     .expires_in("data.expires_in");
/// # let _ = fields;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFields {
    access_token: Path,
    refresh_token: Path,
    expires_in: Path,
    expires_at: Path,
}

impl TokenFields {
    /// `accessToken`, `refreshToken`, `expiresIn`, `expiresAt`.
    #[must_use]
    pub fn camel_case() -> Self {
        Self {
            access_token: Path::parse("accessToken"),
            refresh_token: Path::parse("refreshToken"),
            expires_in: Path::parse("expiresIn"),
            expires_at: Path::parse("expiresAt"),
        }
    }

    /// Sets the path of the access token. Default: `access_token`.
    #[must_use]
    pub fn access_token(mut self, path: &str) -> Self {
        self.access_token = Path::parse(path);
        self
    }

    /// Sets the path of the refresh token. Default: `refresh_token`.
    #[must_use]
    pub fn refresh_token(mut self, path: &str) -> Self {
        self.refresh_token = Path::parse(path);
        self
    }

    /// Sets the path of the lifetime in seconds. Default: `expires_in`.
    #[must_use]
    pub fn expires_in(mut self, path: &str) -> Self {
        self.expires_in = Path::parse(path);
        self
    }

    /// Sets the path of the time of expiry. Default: `expires_at`.
    #[must_use]
    pub fn expires_at(mut self, path: &str) -> Self {
        self.expires_at = Path::parse(path);
        self
    }

    /// Takes the values out of an answer. The members that are left are the extra ones.
    pub(crate) fn take(&self, mut answer: Value) -> Values {
        let is_object = answer.is_object();
        let token_types =
            ["token_type", "tokenType"].map(|name| self.access_token.sibling(name).take(&mut answer)).into_iter();
        let token_types = token_types.flatten().filter_map(|name| Some(name.as_str()?.trim().to_owned())).collect();
        let access = self.access_token.take(&mut answer);
        let refresh = if self.refresh_token == self.access_token {
            Refresh::SameAsAccess
        } else {
            Refresh::Value(self.refresh_token.take(&mut answer))
        };
        let refresh_in = ["refresh_in", "refreshIn"].map(|name| self.expires_in.sibling(name).take(&mut answer));
        let refresh_in = refresh_in.into_iter().flatten().next();
        let expires_in = self.expires_in.take(&mut answer);
        let expires_at = self.expires_at.take(&mut answer);
        let extra = match answer {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        Values {
            is_object,
            token_types,
            access,
            refresh,
            expires_in,
            refresh_in,
            expires_at,
            access_expiry: None,
            extra,
        }
    }

    /// The refresh token that a success issued, however unreadable the rest of the answer is.
    ///
    /// If neither token is found at its path, a single refresh token anywhere else counts: the paths are wrong then,
    /// and to lose the token would sign the user out.
    pub(crate) fn issued_refresh_token(&self, text: &[u8]) -> Option<RefreshToken> {
        let (mut found, mut access, mut elsewhere) = (None, false, Vec::new());
        for_each_string(text, |place, string| {
            access |= place.is(&self.access_token) && !string.is_empty();
            if place.is(&self.refresh_token) {
                found = Some(string);
            } else if place.name().is_some_and(is_named_refresh_token) && !string.trim().is_empty() {
                elsewhere.push(string);
            }
        });
        let found = found.filter(|token| !token.trim().is_empty()).or_else(|| {
            elsewhere.dedup();
            if access || elsewhere.len() != 1 { None } else { elsewhere.pop() }
        })?;
        RefreshToken::new(bare(&found, &[])).ok()
    }
}

impl Default for TokenFields {
    fn default() -> Self {
        Self {
            access_token: Path::parse("access_token"),
            refresh_token: Path::parse("refresh_token"),
            expires_in: Path::parse("expires_in"),
            expires_at: Path::parse("expires_at"),
        }
    }
}

/// The values of one answer, unchecked.
pub(crate) struct Values {
    is_object: bool,
    token_types: Vec<String>,
    access: Option<Value>,
    refresh: Refresh,
    expires_in: Option<Value>,
    refresh_in: Option<Value>,
    expires_at: Option<Value>,
    /// The expiry of the cookie that held the access token.
    access_expiry: Option<SystemTime>,
    extra: Map<String, Value>,
}

enum Refresh {
    SameAsAccess,
    Value(Option<Value>),
}

/// The tokens of one answer, checked.
pub(crate) struct Granted {
    pub(crate) access: AccessToken,
    pub(crate) refresh: Option<RefreshToken>,
    pub(crate) expiry: Option<SystemTime>,
    pub(crate) refresh_at: Option<SystemTime>,
    pub(crate) extra: Map<String, Value>,
}

impl Values {
    /// Uses an access token that was found outside the body.
    pub(crate) fn set_access(&mut self, token: String, expiry: Option<SystemTime>) {
        self.access = Some(Value::String(token));
        self.access_expiry = expiry;
    }

    /// Uses a refresh token that was found outside the body, or none.
    pub(crate) fn set_refresh(&mut self, token: Option<String>) {
        self.refresh = Refresh::Value(token.map(Value::String));
    }

    pub(crate) fn check(self) -> Result<Granted, AuthServerError> {
        let malformed = |problem| AuthServerError::new(Kind::InDoubt, problem);
        let bound = |name: &String| name.eq_ignore_ascii_case("dpop") || name.eq_ignore_ascii_case("mac");
        if self.token_types.iter().any(bound) {
            return Err(malformed("the answer holds a token of type DPoP or MAC, which is not supported"));
        }
        let text = match &self.access {
            Some(Value::String(token)) if !token.is_empty() => bare(token, &self.token_types),
            Some(Value::Null | Value::String(_)) | None if self.is_object => {
                return Err(AuthServerError::misconfigured("the answer holds no access token at the configured path"));
            }
            Some(Value::Null | Value::String(_)) | None => return Err(malformed("the answer is not a JSON object")),
            Some(_) => return Err(malformed("the answer holds a malformed access token")),
        };
        let access = AccessToken::new(text)
            .map_err(|invalid| malformed("the answer holds a malformed access token").with_source(invalid))?;
        let refresh = match &self.refresh {
            Refresh::SameAsAccess => Some(text),
            Refresh::Value(Some(Value::String(token))) if !token.trim().is_empty() => {
                Some(bare(token, &self.token_types))
            }
            Refresh::Value(Some(Value::Null | Value::String(_)) | None) => None,
            Refresh::Value(Some(_)) => return Err(malformed("the answer holds a malformed refresh token")),
        };
        let refresh = refresh
            .map(RefreshToken::new)
            .transpose()
            .map_err(|invalid| malformed("the answer holds a malformed refresh token").with_source(invalid))?;

        let now = SystemTime::now();
        let expiry = self
            .expires_in
            .and_then(|value| now.checked_add(seconds(&value)?))
            .or_else(|| point_in_time(&self.expires_at?))
            .or_else(|| jwt_expiry(access.expose_secret()))
            .or(self.access_expiry)
            .filter(|at| at.duration_since(now).is_ok_and(|left| !left.is_zero() && left <= LONGEST_LIFETIME));
        let refresh_at = self.refresh_in.and_then(|value| now.checked_add(seconds(&value)?));
        let refresh_at = refresh_at.filter(|at| expiry.is_none_or(|expiry| *at < expiry));
        Ok(Granted { access, refresh, expiry, refresh_at, extra: self.extra })
    }
}

impl Granted {
    pub(crate) fn into_tokens(self) -> Tokens {
        let tokens = match self.refresh {
            Some(refresh) => Tokens::new(self.access, refresh),
            None => Tokens::from_access_token(self.access),
        };
        let tokens = match self.expiry {
            Some(at) => tokens.with_expires_at(at),
            None => tokens,
        };
        let tokens = match self.refresh_at {
            Some(at) => tokens.with_refresh_at(at),
            None => tokens,
        };
        tokens.with_extra(self.extra)
    }
}

/// Removes white space around a token, and one scheme name before it.
fn bare<'a>(token: &'a str, token_types: &[String]) -> &'a str {
    let token = token.trim();
    let is_scheme = |word: &str| {
        SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme))
            || token_types.iter().any(|name| word.eq_ignore_ascii_case(name))
    };
    match token.split_once(char::is_whitespace) {
        Some((word, rest)) if is_scheme(word) => rest.trim_start(),
        _ => token,
    }
}

/// Matches `refresh_token`, `refreshToken`, `refresh-token` and the like.
fn is_named_refresh_token(name: &str) -> bool {
    let letters = name.bytes().filter(|byte| !matches!(byte, b'_' | b'-'));
    letters.map(|byte| byte.to_ascii_lowercase()).eq(*b"refreshtoken")
}

/// A positive number of seconds, whole or not, as a number or a string.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero())
}

/// Seconds since 1970, milliseconds since 1970, or RFC 3339.
fn point_in_time(value: &Value) -> Option<SystemTime> {
    /// The year 5138 in seconds, March 1973 in milliseconds: the unit is never ambiguous.
    const MILLISECONDS_FROM: Duration = Duration::from_secs(100_000_000_000);

    if let Some(since_1970) = seconds(value) {
        let since_1970 = if since_1970 < MILLISECONDS_FROM { since_1970 } else { since_1970 / 1000 };
        return SystemTime::UNIX_EPOCH.checked_add(since_1970);
    }
    let at = OffsetDateTime::parse(value.as_str()?.trim(), &Rfc3339).ok()?;
    let since_1970 = Duration::from_secs(u64::try_from(at.unix_timestamp()).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since_1970)
}

/// The `exp` of a signed JWT (RFC 7519 §4.1.4).
fn jwt_expiry(token: &str) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(seconds(jwt_claims(token)?.get("exp")?)?)
}

/// The claims of a signed JWT. Its signature is the API's to check: a false claim would deceive only the bearer.
pub(crate) fn jwt_claims(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let (_header, claims, _signature, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(fields: &TokenFields, answer: Value) -> Result<Tokens, AuthServerError> {
        fields.take(answer).check().map(Granted::into_tokens)
    }

    fn lifetime(answer: Value) -> Option<u64> {
        let expiry = read(&TokenFields::default(), answer).unwrap().expires_at()?;
        let left = expiry.duration_since(SystemTime::now()).unwrap();
        Some((left + Duration::from_millis(500)).as_secs())
    }

    fn unix(from_now: u64) -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + from_now
    }

    fn jwt(claims: &Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    #[test]
    fn tokens_are_found_at_their_paths_and_leave_no_copy_behind() {
        let answer = json!({
            "data": {"a.b": [{"token": "a1"}, 7], "refresh": "r1", "tokenType": "BEARER"},
            "meta": {"expires": "300"},
            "user": "u1",
        });
        let fields = TokenFields::default()
            .access_token("/data/a.b/0/token")
            .refresh_token("data.refresh")
            .expires_in("meta.expires");
        let tokens = read(&fields, answer).unwrap();
        assert_eq!(tokens.access_token().unwrap().expose_secret(), "a1");
        assert_eq!(tokens.refresh_token().unwrap().expose_secret(), "r1");
        assert!(tokens.expires_at().is_some());
        assert_eq!(tokens.extra("user"), Some(&json!("u1")));
        assert_eq!(tokens.extra("meta"), None);
        let kept: Vec<_> = tokens.extras().map(|(_, value)| value.to_string()).collect();
        assert!(!kept.concat().contains("a1") && !kept.concat().contains("r1"), "{kept:?}");
    }

    #[test]
    fn the_expiry_is_read_from_a_lifetime_a_time_or_a_jwt() {
        assert_eq!(lifetime(json!({"access_token": "a", "expires_in": 300})), Some(300));
        assert_eq!(lifetime(json!({"access_token": "a", "expires_in": "300"})), Some(300));
        assert_eq!(lifetime(json!({"access_token": "a", "expires_in": 299.9})), Some(300));
        let in_300 = |value: Value| (299..=301).contains(&lifetime(value).unwrap());
        assert!(in_300(json!({"access_token": "a", "expires_at": unix(300)})));
        assert!(in_300(json!({"access_token": "a", "expires_at": unix(300) * 1000})));
        assert!(in_300(json!({"access_token": jwt(&json!({"exp": unix(300)}))})));
        let date = (OffsetDateTime::now_utc() + Duration::from_secs(300)).unix_timestamp();
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(date).unwrap());
        let date = OffsetDateTime::from(date);
        let date = format!(
            "{}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            date.year(),
            u8::from(date.month()),
            date.day(),
            date.hour(),
            date.minute(),
            date.second()
        );
        assert!(in_300(json!({"access_token": "a", "expires_at": date})));
        // A lifetime, which needs no clock but this one, takes precedence over a date by the server's.
        assert_eq!(lifetime(json!({"access_token": "a", "expires_in": 5, "expires_at": unix(300)})), Some(5));
    }

    #[test]
    fn the_expiry_is_found_at_its_path() {
        let fields = TokenFields::default().expires_at("meta.valid_until");
        let at = unix(300);
        let tokens = read(&fields, json!({"access_token": "a", "meta": {"valid_until": at}})).unwrap();
        assert_eq!(tokens.expires_at(), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(at)));
    }

    #[test]
    fn a_lifetime_of_ten_years_at_most_is_known() {
        let ten_years = 10 * 366 * 24 * 60 * 60;
        assert_eq!(lifetime(json!({"access_token": "a", "expires_in": ten_years})), Some(ten_years));
        assert_eq!(lifetime(json!({"access_token": "a", "expires_in": ten_years + 1})), None);
    }

    #[test]
    fn the_time_from_which_a_refresh_is_advised_is_read_and_lies_before_the_expiry() {
        let advised = |answer: Value| {
            let tokens = read(&TokenFields::default(), answer).unwrap();
            assert_eq!(tokens.extras().count(), 0);
            Some((tokens.refresh_at()?.duration_since(SystemTime::now()).unwrap().as_secs_f64()).round())
        };
        assert_eq!(advised(json!({"access_token": "a", "expires_in": 7199, "refresh_in": 3599})), Some(3599.0));
        assert_eq!(advised(json!({"access_token": "a", "expires_in": "7199", "refresh_in": "3599"})), Some(3599.0));
        assert_eq!(advised(json!({"access_token": "a", "expires_in": 7199, "refreshIn": 3599})), Some(3599.0));
        assert_eq!(advised(json!({"access_token": "a", "refresh_in": 3599})), Some(3599.0));
        for value in [json!(7199), json!(0), json!(-1), json!(1e300), json!("soon"), json!(null), json!({})] {
            assert_eq!(advised(json!({"access_token": "a", "expires_in": 7199, "refresh_in": value})), None, "{value}");
        }
    }

    #[test]
    fn an_expiry_that_makes_no_sense_is_unknown_and_fails_no_answer() {
        for value in [
            json!(0),
            json!(-1),
            json!(1e300),
            json!(u64::MAX),
            json!("soon"),
            json!(""),
            json!("NaN"),
            json!("inf"),
            json!(null),
            json!([1]),
            json!({}),
            json!(true),
        ] {
            for name in ["expires_in", "expires_at"] {
                assert_eq!(lifetime(json!({"access_token": "a", name: value})), None, "{name}: {value}");
            }
            assert_eq!(lifetime(json!({"access_token": jwt(&json!({"exp": value}))})), None, "exp: {value}");
        }
        assert_eq!(lifetime(json!({"access_token": "a", "expires_at": 1_000_000_000})), None);
        assert_eq!(lifetime(json!({"access_token": "a", "expires_at": "1994-11-06T08:49:37Z"})), None);
        for token in ["a.b.c", "a..c", "...", "e30.e30.e30", "e30.bnVsbA.e30"] {
            assert_eq!(lifetime(json!({ "access_token": token })), None, "{token}");
        }
    }

    #[test]
    fn a_missing_refresh_token_is_none_and_a_malformed_one_fails() {
        for absent in [json!({"access_token": "a"}), json!({"access_token": "a", "refresh_token": null})] {
            assert_eq!(read(&TokenFields::default(), absent).unwrap().refresh_token(), None);
        }
        for bad in [json!(7), json!("a\nb"), json!({})] {
            let error = read(&TokenFields::default(), json!({"access_token": "a", "refresh_token": bad})).unwrap_err();
            assert!(error.is_in_doubt());
        }
    }

    #[test]
    fn a_token_of_any_type_but_dpop_and_mac_is_taken() {
        for token_type in ["bot", "user", "BearerToken", "JWT", "Bearer ", "bearer", ""] {
            let tokens = read(&TokenFields::default(), json!({"access_token": "a", "token_type": token_type}));
            assert!(tokens.is_ok(), "{token_type}");
        }
        for token_type in ["DPoP", "dpop", "MAC", " mac "] {
            for name in ["token_type", "tokenType"] {
                let error = read(&TokenFields::default(), json!({"access_token": "a", name: token_type})).unwrap_err();
                assert!(error.is_in_doubt(), "{token_type}");
            }
        }
    }

    #[test]
    fn white_space_and_one_scheme_name_around_a_token_are_removed() {
        for (text, expected) in [
            ("a.b.c", "a.b.c"),
            ("  a\n", "a"),
            ("Bearer a", "a"),
            ("bearer\ta\r\n", "a"),
            ("JWT a", "a"),
            ("Token a", "a"),
            ("custom a", "a"),
            ("Bearer", "Bearer"),
        ] {
            let answer = json!({"access_token": text, "refresh_token": text, "token_type": "Custom"});
            let tokens = read(&TokenFields::default(), answer).unwrap();
            assert_eq!(tokens.access_token().unwrap().expose_secret(), expected, "{text:?}");
            assert_eq!(tokens.refresh_token().unwrap().expose_secret(), expected, "{text:?}");
        }
        for malformed in ["Bearer Bearer a", "a b", "a\nb", "DPoP a"] {
            assert!(read(&TokenFields::default(), json!({ "access_token": malformed })).is_err(), "{malformed:?}");
        }
    }

    #[test]
    fn one_token_can_be_both() {
        let fields = TokenFields::default().access_token("token").refresh_token("token");
        let tokens = read(&fields, json!({"token": "Bearer t1", "expires_in": 60})).unwrap();
        assert_eq!(tokens.access_token().unwrap().expose_secret(), "t1");
        assert_eq!(tokens.refresh_token().unwrap().expose_secret(), "t1");
        assert_eq!(tokens.extras().count(), 0);
    }

    #[test]
    fn an_answer_without_an_access_token_at_the_path_is_misconfigured() {
        for answer in [json!({}), json!({"access_token": null}), json!({"access_token": ""}), json!({"token": "a"})] {
            assert!(read(&TokenFields::default(), answer).unwrap_err().is_misconfigured());
        }
        for answer in [json!([]), json!(null), json!("a"), json!({"access_token": 7}), json!({"access_token": ["a"]})] {
            assert!(read(&TokenFields::default(), answer).unwrap_err().is_in_doubt());
        }
    }

    #[test]
    fn an_issued_refresh_token_is_found_however_unreadable_the_rest_is() {
        let found = |text: &str| {
            let token = TokenFields::default().issued_refresh_token(text.as_bytes())?;
            Some(token.expose_secret().to_owned())
        };
        for text in [
            r#"{"access_token":7,"refresh_token":"r2"}"#,
            r#"{"refresh_token":" Bearer r2\n","access_token":"a"#,
            r#"{"access_token":"a2","refresh_token":"r2","refreshToken":"r9"}"#,
            // Not at its path, and the only one.
            r#"{"status":0,"body":{"access_token":"a2","refresh_token":"r2"}}"#,
            r#"{"accessToken":"a2","refreshToken":"r2"}"#,
            r#"[{"Refresh-Token":"r2"}]"#,
            r#"{"a":{"refresh_token":"r2"},"b":{"refreshToken":"r2"}}"#,
        ] {
            assert_eq!(found(text).as_deref(), Some("r2"), "{text}");
        }
        for text in [
            r#"{"access_token":"a2"}"#,
            r#"{"refresh_token":"r2"#,
            r#"{"refresh_token":"r\u00002"}"#,
            r#"{"refresh_token":7}"#,
            r#"{"a":{"refresh_token":"r2"},"b":{"refresh_token":"r3"}}"#,
            // The access token is at its path, so that the paths are right, and the other token is another one's.
            r#"{"access_token":"a2","user":{"refresh_token":"r2"}}"#,
            "<input name=\"refresh_token\" value=\"r2\">",
        ] {
            assert_eq!(found(text), None, "{text}");
        }
    }
}
