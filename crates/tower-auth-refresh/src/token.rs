//! The secrets: [`AccessToken`], [`RefreshToken`], and the [`Tokens`] that an authorization server issues together.
//!
//! The constructor checks a token, so that it fits into a header without another check. `Debug` shows no byte of the
//! token, and there is no `Display`; its memory is wiped when the last clone is dropped. Copies for the wire (header
//! values, request bodies) belong to the HTTP stack and can't be wiped.
//!
//! ```
//! use std::time::Duration;
//! use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};
//!
//! let tokens = Tokens::new(AccessToken::new("eyJhbGciOi")?, RefreshToken::new("8xLOxBtZp8")?)
//!     .with_expires_in(Duration::from_secs(300));
//! assert!(!format!("{tokens:?}").contains("eyJhbGciOi"));
//!
//! assert!(AccessToken::new("two\r\nlines").is_err());
//! # Ok::<(), tower_auth_refresh::InvalidToken>(())
//! ```

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use serde_json::{Map, Value};
use zeroize::{Zeroize, Zeroizing};

/// A longer lifetime is implausible and counts as unknown.
const LONGEST_LIFETIME: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// The short-lived token that a request carries.
///
/// Cloning is cheap: clones share one wiped-on-drop allocation.
#[derive(Clone)]
pub struct AccessToken(Arc<Zeroizing<Box<str>>>);

/// The long-lived token that is exchanged for new [`Tokens`].
///
/// Cloning is cheap: clones share one wiped-on-drop allocation.
#[derive(Clone)]
pub struct RefreshToken(Arc<Zeroizing<Box<str>>>);

impl AccessToken {
    /// Creates an access token from its text.
    ///
    /// # Errors
    ///
    /// [`InvalidToken`] if the text is empty or has bytes other than visible ASCII, which a header can't hold. (RFC
    /// 6750 §2.1 allows fewer bytes, but servers use more.)
    pub fn new(token: impl Into<String>) -> Result<Self, InvalidToken> {
        Self::from_text(Cow::Owned(token.into()))
    }

    /// As [`new`](Self::new), without a copy of a text that is borrowed.
    pub(crate) fn from_text(token: Cow<'_, str>) -> Result<Self, InvalidToken> {
        checked("access token", token, b'!'..=b'~').map(Self)
    }

    /// Returns the text of the token. The caller must keep it secret.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        &self.0
    }

    /// Returns `Bearer` and the token, as the value of an `Authorization` header (RFC 6750 §2.1).
    ///
    /// It is marked as sensitive, so that `Debug` doesn't show it.
    ///
    /// # Panics
    ///
    /// Never: the constructor has checked the token.
    #[must_use]
    pub fn bearer(&self) -> HeaderValue {
        let text = Zeroizing::new([b"Bearer ", self.expose_secret().as_bytes()].concat());
        let mut value = HeaderValue::from_bytes(&text).expect("the token is visible ASCII");
        value.set_sensitive(true);
        value
    }
}

impl RefreshToken {
    /// Creates a refresh token from its text.
    ///
    /// # Errors
    ///
    /// [`InvalidToken`] if the text is empty or has bytes other than printable ASCII (RFC 6749, appendix A.17).
    pub fn new(token: impl Into<String>) -> Result<Self, InvalidToken> {
        Self::from_text(Cow::Owned(token.into()))
    }

    /// As [`new`](Self::new), without a copy of a text that is borrowed.
    pub(crate) fn from_text(token: Cow<'_, str>) -> Result<Self, InvalidToken> {
        checked("refresh token", token, b' '..=b'~').map(Self)
    }

    /// Returns the text of the token. The caller must keep it secret.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

// Not `Hash`: hashes of secrets end up in tables and logs.
macro_rules! secret {
    ($token:ident) => {
        impl PartialEq for $token {
            fn eq(&self, other: &Self) -> bool {
                self.expose_secret() == other.expose_secret()
            }
        }

        impl Eq for $token {}

        impl TryFrom<String> for $token {
            type Error = InvalidToken;

            fn try_from(token: String) -> Result<Self, InvalidToken> {
                Self::new(token)
            }
        }

        impl TryFrom<&str> for $token {
            type Error = InvalidToken;

            fn try_from(token: &str) -> Result<Self, InvalidToken> {
                Self::new(token)
            }
        }

        impl FromStr for $token {
            type Err = InvalidToken;

            fn from_str(token: &str) -> Result<Self, InvalidToken> {
                Self::new(token)
            }
        }

        impl fmt::Debug for $token {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($token), "([redacted])"))
            }
        }
    };
}

secret!(AccessToken);
secret!(RefreshToken);

/// Checks a token and copies it. The text is wiped if it is owned, whether or not it is refused.
fn checked(
    what: &'static str,
    token: Cow<'_, str>,
    allowed: RangeInclusive<u8>,
) -> Result<Arc<Zeroizing<Box<str>>>, InvalidToken> {
    let bytes = token.as_bytes();
    let refused = |byte: &u8| !allowed.contains(byte);
    // All bytes are looked at, many at a time: few tokens are refused.
    let is_refused = bytes.is_empty() || bytes.iter().fold(false, |found, byte| found | refused(byte));
    let checked = if is_refused {
        Err(InvalidToken { what, at: bytes.iter().position(refused) })
    } else {
        // Copied into an allocation of its exact size: shrinking the string could leave a copy that isn't wiped.
        Ok(Arc::new(Zeroizing::new((*token).into())))
    };
    if let Cow::Owned(text) = token {
        wipe(text);
    }
    checked
}

/// Wipes the whole allocation of a text at once: `Zeroize` of a `String` writes its bytes one by one.
fn wipe(text: String) {
    let mut bytes = text.into_bytes();
    bytes.clear();
    bytes.zeroize();
}

/// The tokens that an authorization server issues and a session holds.
///
/// Any part may be missing: a session may start from a stored refresh token alone, and a server may omit the refresh
/// token from an answer (the session then keeps its refresh token).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    access: Option<AccessToken>,
    refresh: Option<RefreshToken>,
    expires_at: Option<SystemTime>,
    further: Option<Arc<Further>>,
}

/// The parts that few tokens have, in an allocation of their own, so that a session without them stays small.
#[derive(Clone, Default, PartialEq, Eq)]
struct Further {
    refresh_at: Option<SystemTime>,
    extra: Map<String, Value>,
}

impl Tokens {
    /// Creates tokens from an access token and the refresh token to renew it with.
    #[must_use]
    pub fn new(access: AccessToken, refresh: RefreshToken) -> Self {
        Self { access: Some(access), refresh: Some(refresh), ..Self::default() }
    }

    /// Creates tokens from an access token alone.
    ///
    /// The answer to client credentials, and of servers whose refresh token stays valid.
    #[must_use]
    pub fn from_access_token(access: AccessToken) -> Self {
        Self { access: Some(access), ..Self::default() }
    }

    /// Creates tokens from a refresh token alone.
    ///
    /// The session gets its first access token when a request needs one.
    #[must_use]
    pub fn from_refresh_token(refresh: RefreshToken) -> Self {
        Self { refresh: Some(refresh), ..Self::default() }
    }

    #[cfg(feature = "serde")]
    pub(crate) fn from_parts(
        access: Option<AccessToken>,
        refresh: Option<RefreshToken>,
        expires_at: Option<SystemTime>,
    ) -> Self {
        Self { access, refresh, expires_at, ..Self::default() }
    }

    /// Sets the lifetime of the access token (`expires_in`, RFC 6749 §5.1).
    ///
    /// It counts from now. Zero and more than ten years count as unknown. Default: unknown.
    ///
    /// The expiry serves to refresh early, to hand out a [credential](crate::Session::credential) that has not expired, and
    /// to decide whether tokens that another process has stored are worth adopting. Otherwise the API decides whether a
    /// token has expired.
    #[must_use]
    pub fn with_expires_in(self, lifetime: Duration) -> Self {
        let believed = !lifetime.is_zero() && lifetime <= LONGEST_LIFETIME;
        let expires_at = believed.then(|| SystemTime::now().checked_add(lifetime)).flatten();
        Self { expires_at, ..self }
    }

    /// Sets the expiry of the access token, by the wall clock. Default: unknown.
    #[must_use]
    pub fn with_expires_at(self, at: SystemTime) -> Self {
        Self { expires_at: Some(at), ..self }
    }

    /// Sets the time from which the server advises to refresh, before the expiry (Microsoft's `refresh_in`). Default: none.
    ///
    /// A session with [`refresh_early`](crate::SessionBuilder::refresh_early) and a known expiry refreshes from then on, if
    /// its own window doesn't begin earlier. A session without early refreshes ignores the advice.
    #[must_use]
    pub fn with_refresh_at(self, at: SystemTime) -> Self {
        let extra = self.further.as_ref().map(|further| further.extra.clone()).unwrap_or_default();
        Self { further: Further { refresh_at: Some(at), extra }.shared(), ..self }
    }

    /// Adds further members of the server's answer (`scope`, `id_token`, …).
    ///
    /// They are kept and stored unchanged. `Debug` shows their names only; they are not wiped on drop.
    #[must_use]
    pub fn with_extra(self, members: Map<String, Value>) -> Self {
        Self { further: Further { refresh_at: self.refresh_at(), extra: members }.shared(), ..self }
    }

    /// Returns `true` if there is neither an access token nor a refresh token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.access.is_none() && self.refresh.is_none()
    }

    /// Returns the access token, if there is one.
    #[must_use]
    pub fn access_token(&self) -> Option<&AccessToken> {
        self.access.as_ref()
    }

    /// Returns the refresh token, if there is one.
    #[must_use]
    pub fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh.as_ref()
    }

    /// Returns the expiry of the access token, if it is known.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// Returns the time from which the server advises to refresh.
    #[must_use]
    pub fn refresh_at(&self) -> Option<SystemTime> {
        self.further.as_ref()?.refresh_at
    }

    /// Returns a further member of the server's answer.
    #[must_use]
    pub fn extra(&self, name: &str) -> Option<&Value> {
        self.further.as_ref()?.extra.get(name)
    }

    /// Returns all further members of the server's answer.
    pub fn extras(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.further.iter().flat_map(|further| further.extra.iter()).map(|(name, value)| (name.as_str(), value))
    }

    /// Returns `true` if these tokens and the others have their access token or their refresh token in common.
    pub(crate) fn share_a_token_with(&self, others: &Self) -> bool {
        self.access.is_some() && self.access == others.access
            || self.refresh.is_some() && self.refresh == others.refresh
    }

    /// Discards an expiry that is already past: one of the two clocks is wrong.
    pub(crate) fn unless_expired_at(self, now: SystemTime) -> Self {
        Self { expires_at: self.expires_at.filter(|at| *at > now), ..self }
    }

    /// These tokens, with another refresh token.
    pub(crate) fn with_refresh_token(self, refresh: RefreshToken) -> Self {
        Self { refresh: Some(refresh), ..self }
    }

    /// These tokens, completed with what the answer left out: RFC 6749 §6 lets a server omit the refresh token when
    /// the old one stays good.
    pub(crate) fn completed_from(mut self, previous: &Self) -> Self {
        if self.refresh.is_none() {
            self.refresh.clone_from(&previous.refresh);
        }
        self.further = match (self.further.take(), &previous.further) {
            (None, Some(old)) if old.refresh_at.is_none() => Some(Arc::clone(old)),
            (new, None) => new,
            (new, Some(old)) => {
                let mut further = Further { refresh_at: None, extra: old.extra.clone() };
                if let Some(new) = new {
                    further.refresh_at = new.refresh_at;
                    further.extra.extend(new.extra.clone());
                }
                further.shared()
            }
        };
        self
    }
}

impl Further {
    fn shared(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("access", &self.access)
            .field("refresh", &self.refresh)
            .field("expires_at", &self.expires_at)
            .field("further", &self.further)
            .finish()
    }
}

impl fmt::Debug for Further {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Further")
            .field("refresh_at", &self.refresh_at)
            .field("extra", &self.extra.keys().collect::<Vec<_>>())
            .finish()
    }
}

/// The error of a text that isn't a token.
///
/// The text is empty or has a byte that a token must not have. The message has the kind of token and the position, never a byte of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InvalidToken {
    what: &'static str,
    at: Option<usize>,
}

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            None => write!(f, "the {} is empty", self.what),
            Some(at) => write!(f, "the {} holds a byte that is not printable ASCII, at position {at}", self.what),
        }
    }
}

impl Error for InvalidToken {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constructors_refuse_control_bytes_spaces_and_non_ascii() {
        for bad in ["", "a\rb", "a\nb", "a\0b", "a\u{7f}", "tök", "a b"] {
            assert!(AccessToken::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a\rb", "a\nb", "a\0b", "tök"] {
            assert!(RefreshToken::new(bad).is_err(), "{bad:?}");
        }
        assert!("a b".parse::<AccessToken>().is_err() && "a b".parse::<RefreshToken>().is_ok());
        assert_eq!(AccessToken::try_from("a".to_owned()), AccessToken::try_from("a"));
        let error = AccessToken::new("secret\r\n").unwrap_err();
        assert_eq!(error.to_string(), "the access token holds a byte that is not printable ASCII, at position 6");
    }

    #[test]
    fn members_that_an_answer_omits_are_kept() {
        let members = |text: &str| serde_json::from_str(text).unwrap();
        let old = Tokens::new(AccessToken::new("a1").unwrap(), RefreshToken::new("r1").unwrap())
            .with_extra(members(r#"{"scope":"read","id_token":"x"}"#));
        let new =
            Tokens::from_access_token(AccessToken::new("a2").unwrap()).with_extra(members(r#"{"scope":"write"}"#));
        // The times are those of the old access token.
        let old = old.with_expires_at(SystemTime::UNIX_EPOCH).with_refresh_at(SystemTime::UNIX_EPOCH);
        let new = new.completed_from(&old);
        assert_eq!((new.expires_at(), new.refresh_at()), (None, None));
        assert_eq!(new.refresh_token(), old.refresh_token());
        assert_eq!(new.access_token().unwrap().expose_secret(), "a2");
        assert_eq!(new.extra("scope"), Some(&Value::from("write")));
        assert_eq!(new.extra("id_token"), Some(&Value::from("x")));
    }

    #[test]
    fn the_time_to_refresh_and_the_members_are_set_in_any_order_and_leave_each_other_alone() {
        let at = SystemTime::UNIX_EPOCH;
        let members: Map<String, Value> = serde_json::from_str(r#"{"scope":"read"}"#).unwrap();
        let tokens = Tokens::default().with_refresh_at(at).with_extra(members.clone());
        assert_eq!(tokens, Tokens::default().with_extra(members).with_refresh_at(at));
        assert_eq!((tokens.refresh_at(), tokens.extra("scope")), (Some(at), Some(&Value::from("read"))));
        let without = tokens.with_extra(Map::new());
        assert_eq!((without.refresh_at(), without.extras().count()), (Some(at), 0));
        // Tokens that are completed take the members, not the time.
        assert_eq!(Tokens::default().completed_from(&without), Tokens::default());
    }

    #[test]
    fn a_lifetime_of_zero_or_centuries_is_unknown() {
        let tokens = Tokens::default();
        assert_eq!(tokens.clone().with_expires_in(Duration::ZERO).expires_at(), None);
        assert_eq!(tokens.clone().with_expires_in(Duration::MAX).expires_at(), None);
        assert!(tokens.clone().with_expires_in(Duration::from_secs(1)).expires_at().is_some());
        let decade = Duration::from_secs(10 * 366 * 24 * 60 * 60);
        assert!(tokens.clone().with_expires_in(decade).expires_at().is_some());
        assert_eq!(tokens.with_expires_in(decade + Duration::from_secs(1)).expires_at(), None);
    }

    #[test]
    fn tokens_have_one_in_common_if_either_is_the_same() {
        let of = |access, refresh| Tokens::new(AccessToken::new(access).unwrap(), RefreshToken::new(refresh).unwrap());
        let ours = of("a1", "r1");
        assert!(ours.share_a_token_with(&of("a1", "r2")) && ours.share_a_token_with(&of("a2", "r1")));
        assert!(!ours.share_a_token_with(&of("a2", "r2")));
        assert!(!Tokens::default().share_a_token_with(&Tokens::default()));
    }

    #[test]
    fn an_expiry_is_past_from_its_moment_on() {
        let now = SystemTime::now();
        let tokens = |at| Tokens::default().with_expires_at(at).unless_expired_at(now);
        assert_eq!(tokens(now).expires_at(), None);
        assert!(tokens(now + Duration::from_nanos(1)).expires_at().is_some());
    }
}
