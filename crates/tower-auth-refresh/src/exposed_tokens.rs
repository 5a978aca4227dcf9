//! [`ExposedTokens`]: the serialized form of [`Tokens`], in clear.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::token::{AccessToken, RefreshToken, Tokens};

/// [`Tokens`] in the form in which a store writes them: every secret in clear (feature `serde`).
///
/// `Tokens` themselves are not `Serialize`, so that no secret is written by accident. The names of the members are stable.
/// `Debug` shows no secret.
///
/// ```
/// use tower_auth_refresh::{AccessToken, ExposedTokens, RefreshToken, Tokens};
///
/// let tokens = Tokens::new(AccessToken::new("a1")?, RefreshToken::new("r1")?);
/// let text = serde_json::to_string(&ExposedTokens::from(tokens.clone()))?;
/// assert_eq!(text, r#"{"access_token":"a1","refresh_token":"r1"}"#);
///
/// let read: ExposedTokens = serde_json::from_str(&text)?;
/// assert_eq!(Tokens::from(read), tokens);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ExposedTokens(Tokens);

#[derive(Serialize, Deserialize)]
struct Members<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    access_token: Option<Text<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<SystemTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_at: Option<SystemTime>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    extra: Map<String, Value>,
}

/// The text of a token. Borrowed if the format allows it, so that there is no copy to be wiped.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl From<Tokens> for ExposedTokens {
    fn from(tokens: Tokens) -> Self {
        Self(tokens)
    }
}

impl From<ExposedTokens> for Tokens {
    fn from(exposed: ExposedTokens) -> Self {
        exposed.0
    }
}

impl Serialize for ExposedTokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let members = Members {
            access_token: self.0.access_token().map(|token| Text(token.expose_secret().into())),
            refresh_token: self.0.refresh_token().map(|token| Text(token.expose_secret().into())),
            expires_at: self.0.expires_at(),
            refresh_at: self.0.refresh_at(),
            extra: self.0.extras().map(|(name, value)| (name.to_owned(), value.clone())).collect(),
        };
        members.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ExposedTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let members = Members::deserialize(deserializer)?;
        // Both are made before either is refused, since making them wipes texts that are owned.
        let access = members.access_token.map(|text| AccessToken::from_text(text.0));
        let refresh = members.refresh_token.map(|text| RefreshToken::from_text(text.0));
        let tokens = Tokens::from_parts(
            access.transpose().map_err(Error::custom)?,
            refresh.transpose().map_err(Error::custom)?,
            members.expires_at,
        );
        let tokens = tokens.with_extra(members.extra);
        Ok(Self(match members.refresh_at {
            Some(at) => tokens.with_refresh_at(at),
            None => tokens,
        }))
    }
}

impl fmt::Debug for ExposedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExposedTokens").field(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    #[test]
    fn every_part_comes_back_as_it_was_written() {
        let at = UNIX_EPOCH + Duration::new(2_000_000_000, 123_456_789);
        let members = json!({"scope": "read", "nested": {"list": [1, null]}}).as_object().unwrap().clone();
        let both = Tokens::new(AccessToken::new("a").unwrap(), RefreshToken::new("r \"").unwrap());
        for tokens in [
            Tokens::default(),
            Tokens::from_access_token(AccessToken::new("a").unwrap()).with_expires_at(at),
            Tokens::from_refresh_token(RefreshToken::new("r").unwrap()),
            both.with_expires_at(at).with_refresh_at(at - Duration::from_secs(1_800)).with_extra(members),
        ] {
            let text = serde_json::to_vec(&ExposedTokens::from(tokens.clone())).unwrap();
            assert_eq!(Tokens::from(serde_json::from_slice::<ExposedTokens>(&text).unwrap()), tokens);
        }
    }

    #[test]
    fn a_token_that_is_not_one_is_refused_and_not_repeated() {
        let error = serde_json::from_str::<ExposedTokens>(r#"{"access_token":"se cret"}"#).unwrap_err();
        assert!(error.to_string().contains("access token") && !error.to_string().contains("cret\""), "{error}");
    }

    #[test]
    fn debug_shows_no_secret() {
        let tokens = Tokens::from_access_token(AccessToken::new("secret").unwrap());
        let shown = format!("{:?}", ExposedTokens::from(tokens));
        assert!(shown.starts_with("ExposedTokens(Tokens {") && !shown.contains("secret"), "{shown}");
    }
}
