//! Self-contained tokens: a token carries its kind, family, generation and expiry, under a keyed checksum.
//!
//! The server therefore needs no table of tokens. It recognises an expired or superseded token however old the token
//! is, and a test of any length keeps one small record per sign-in.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

/// The tokens in a response of `/auth/login` or `/auth/refresh`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenPair {
    /// The token for the API, until it expires.
    pub access_token: String,
    /// The token for `/auth/refresh`, for a single use under the default [`Rotation`](crate::Rotation).
    pub refresh_token: String,
    /// The rest of the access token's lifetime in seconds, rounded down.
    pub expires_in: u64,
    /// Always `Bearer`.
    pub token_type: String,
}

/// The content of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) family: u64,
    /// Counted per family and kind, from 1.
    pub(crate) generation: u64,
    /// Microseconds on the kit's clock.
    pub(crate) expires: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Access,
    /// An access token that the API refuses, though the server issued it.
    RefusedAccess,
    Refresh,
}

/// Writes and reads tokens.
pub(crate) struct Mint {
    key: u64,
}

impl Mint {
    pub(crate) fn new() -> Self {
        Self { key: fastrand::u64(..) }
    }

    pub(crate) fn write(&self, token: Token) -> String {
        let Token { kind, family, generation, expires } = token;
        format!("{}_{family:x}_{generation:x}_{expires:x}_{:016x}", kind.prefix(), self.sum(token))
    }

    /// Returns `None` if this kit hasn't issued the token.
    pub(crate) fn read(&self, text: &str) -> Option<Token> {
        let mut parts = text.split('_');
        let kind = Kind::from_prefix(parts.next()?)?;
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        let (family, generation, expires, sum) = (number()?, number()?, number()?, number()?);
        let token = Token { kind, family, generation, expires };
        (parts.next().is_none() && sum == self.sum(token)).then_some(token)
    }

    fn sum(&self, token: Token) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.key, token).hash(&mut hasher);
        hasher.finish()
    }
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Access => "at",
            Self::RefusedAccess => "ax",
            Self::Refresh => "rt",
        }
    }

    fn from_prefix(prefix: &str) -> Option<Self> {
        [Self::Access, Self::RefusedAccess, Self::Refresh].into_iter().find(|kind| kind.prefix() == prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_a_forged_token_is_not() {
        let mint = Mint { key: 7 };
        let token = Token { kind: Kind::Refresh, family: 3, generation: 42, expires: u64::MAX };
        let text = mint.write(token);
        assert_eq!(mint.read(&text), Some(token));
        assert_eq!(mint.read(&text.replacen("rt", "at", 1)), None);
        assert_eq!(mint.read(&text.replacen("_2a_", "_2b_", 1)), None);
        assert_eq!(mint.read(&format!("{text}_1")), None);
        assert_eq!(mint.read("anything"), None);
        assert_eq!(Mint { key: 8 }.read(&text), None);
    }
}
