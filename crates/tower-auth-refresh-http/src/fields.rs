//! Where tokens stand in an answer: [`TokenFields`].

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};

use crate::error::{AuthServerError, Verdict};

/// An expiry further away than this is taken for "unknown".
const LONGEST_LIFETIME: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// Where the tokens stand in a JSON answer.
///
/// A path is a member's name (`accessToken`), several with dots between (`data.access_token`; numbers index into
/// arrays), or a JSON Pointer (RFC 6901: `/data/access_token`), for names that hold dots themselves.
///
/// | what | default | [camel case](Self::camel_case) |
/// | --- | --- | --- |
/// | access token | `access_token` | `accessToken` |
/// | refresh token; absent, `null` or `""`: the old one is kept | `refresh_token` | `refreshToken` |
/// | lifetime in seconds, a number or a string | `expires_in` | `expiresIn` |
/// | time of expiry: seconds or milliseconds since 1970, or RFC 3339 | `expires_at` | `expiresAt` |
///
/// Without a lifetime and a time of expiry, an access token that is a JWT is asked for its `exp`. An expiry that makes
/// no sense (past, zero, negative, ten years off) counts as unknown; it never fails an answer, since only refreshing
/// early looks at it.
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

/// The tokens of one answer, taken apart.
pub(crate) struct Granted {
    pub(crate) access: AccessToken,
    pub(crate) refresh: Option<RefreshToken>,
    pub(crate) expiry: Option<SystemTime>,
    pub(crate) extra: Map<String, Value>,
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

    /// The path of the access token. Default: `access_token`.
    #[must_use]
    pub fn access_token(mut self, path: &str) -> Self {
        self.access_token = Path::parse(path);
        self
    }

    /// The path of the refresh token. Default: `refresh_token`.
    #[must_use]
    pub fn refresh_token(mut self, path: &str) -> Self {
        self.refresh_token = Path::parse(path);
        self
    }

    /// The path of the lifetime in seconds. Default: `expires_in`.
    #[must_use]
    pub fn expires_in(mut self, path: &str) -> Self {
        self.expires_in = Path::parse(path);
        self
    }

    /// The path of the time of expiry. Default: `expires_at`.
    #[must_use]
    pub fn expires_at(mut self, path: &str) -> Self {
        self.expires_at = Path::parse(path);
        self
    }

    /// Takes the tokens out of an answer of this status.
    pub(crate) fn read(&self, members: Map<String, Value>, status: StatusCode) -> Result<Granted, AuthServerError> {
        let malformed = |what| AuthServerError::new(Verdict::InDoubt, what).status_is(status);
        let mut answer = Value::Object(members);

        let token_type = ["token_type", "tokenType"].map(|name| self.access_token.sibling(name).take(&mut answer));
        let other_type = |value: &Value| value.as_str().is_some_and(|name| !name.eq_ignore_ascii_case("bearer"));
        if token_type.iter().flatten().any(other_type) {
            return Err(malformed("the answer holds a token of another type than Bearer"));
        }

        let access = match self.access_token.take(&mut answer) {
            Some(Value::String(token)) if !token.is_empty() => AccessToken::new(token)
                .map_err(|invalid| malformed("the answer holds a malformed access token").caused_by(invalid))?,
            Some(Value::Null | Value::String(_)) | None => {
                return Err(malformed("the answer holds no access token"));
            }
            Some(_) => return Err(malformed("the answer holds a malformed access token")),
        };
        let refresh = match self.refresh_token.take(&mut answer) {
            Some(Value::String(token)) if !token.is_empty() => Some(
                RefreshToken::new(token)
                    .map_err(|invalid| malformed("the answer holds a malformed refresh token").caused_by(invalid))?,
            ),
            Some(Value::Null | Value::String(_)) | None => None,
            Some(_) => return Err(malformed("the answer holds a malformed refresh token")),
        };

        let now = SystemTime::now();
        let expires_in = self.expires_in.take(&mut answer);
        let expires_at = self.expires_at.take(&mut answer);
        let expiry = expires_in
            .and_then(|value| now.checked_add(seconds(&value)?))
            .or_else(|| point_in_time(&expires_at?))
            .or_else(|| jwt_expiry(access.expose_secret()))
            .filter(|at| at.duration_since(now).is_ok_and(|left| !left.is_zero() && left <= LONGEST_LIFETIME));

        let extra = match answer {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        Ok(Granted { access, refresh, expiry, extra })
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
        tokens.with_extra(self.extra)
    }
}

/// The names that lead to a value, from the outside in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Path(Vec<String>);

impl Path {
    fn parse(path: &str) -> Self {
        Self(match path.strip_prefix('/') {
            Some(pointer) => pointer.split('/').map(|name| name.replace("~1", "/").replace("~0", "~")).collect(),
            None => path.split('.').map(str::to_owned).collect(),
        })
    }

    fn sibling(&self, name: &str) -> Self {
        let mut names = self.0.clone();
        names.pop();
        names.push(name.to_owned());
        Self(names)
    }

    /// Takes the value out: a secret isn't to stay behind among the members that are kept. Objects that are left
    /// empty go with it.
    fn take(&self, value: &mut Value) -> Option<Value> {
        fn take(names: &[String], value: &mut Value) -> Option<Value> {
            let (name, rest) = names.split_first()?;
            match value {
                Value::Object(members) if rest.is_empty() => members.remove(name),
                Value::Object(members) => {
                    let inner = members.get_mut(name)?;
                    let taken = take(rest, inner);
                    if taken.is_some() && inner.as_object().is_some_and(Map::is_empty) {
                        members.remove(name);
                    }
                    taken
                }
                Value::Array(items) => {
                    let item = items.get_mut(name.parse::<usize>().ok()?)?;
                    if rest.is_empty() { Some(item.take()) } else { take(rest, item) }
                }
                _ => None,
            }
        }
        take(&self.0, value)
    }
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
    /// The year 5138 in seconds, March 1973 in milliseconds: no doubt which is meant.
    const MILLISECONDS_FROM: Duration = Duration::from_secs(100_000_000_000);

    if let Some(since_1970) = seconds(value) {
        let since_1970 = if since_1970 < MILLISECONDS_FROM { since_1970 } else { since_1970 / 1000 };
        return SystemTime::UNIX_EPOCH.checked_add(since_1970);
    }
    let at = OffsetDateTime::parse(value.as_str()?.trim(), &Rfc3339).ok()?;
    let since_1970 = Duration::from_secs(u64::try_from(at.unix_timestamp()).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since_1970)
}

/// The `exp` of a signed JWT (RFC 7519 §4.1.4). Its signature is the API's to check: only its own bearer would be
/// deceived.
fn jwt_expiry(token: &str) -> Option<SystemTime> {
    let mut parts = token.split('.');
    let (_header, claims, _signature, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(seconds(claims.get("exp")?)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(fields: &TokenFields, answer: Value) -> Result<Tokens, AuthServerError> {
        let Value::Object(members) = answer else { panic!("not an object") };
        fields.read(members, StatusCode::OK).map(Granted::into_tokens)
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
    fn tokens_are_found_where_the_paths_say_and_leave_no_copy_behind() {
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
    fn the_expiry_is_read_from_whatever_there_is() {
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
        // A lifetime by our own clock goes before a date by the server's.
        assert_eq!(lifetime(json!({"access_token": "a", "expires_in": 5, "expires_at": unix(300)})), Some(5));
    }

    #[test]
    fn an_expiry_that_makes_no_sense_is_unknown_and_fails_nothing() {
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
}
