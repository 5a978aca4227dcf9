//! [`Settings`]: how the servers behave when nothing is injected.

use std::collections::HashMap;
use std::time::Duration;

/// How the servers behave, changed at any time with [`TestKit::configure`](crate::TestKit::configure).
///
/// A lifetime applies to the tokens issued from then on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// How long the API takes an access token. Default: 60 s.
    pub access_lifetime: Duration,
    /// How long a refresh token is good for. Default: `None`, for ever.
    pub refresh_lifetime: Option<Duration>,
    /// What becomes of a refresh token that was used. Default: [`Rotation::Strict`].
    pub rotation: Rotation,
    /// Who may sign in, by user name. Default: empty, which lets anybody in whose password isn't `wrong`.
    pub passwords: HashMap<String, String>,
    /// What becomes of a request body that an answer didn't wait for. Default: [`UnreadBody::Dropped`].
    pub unread_body: UnreadBody,
    /// How many entries the log keeps, the newest ones. Default: 10,000. With 0 it keeps none; counters go on.
    pub log_capacity: usize,
}

/// What becomes of a refresh token that was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rotation {
    /// It is superseded by a new one. Whoever presents it again revokes the whole family (RFC 9700 §4.14.2).
    #[default]
    Strict,
    /// As [`Strict`](Self::Strict), but for this long after the rotation it gets the same successors once more.
    Grace(Duration),
    /// It stays good: refreshing returns it unchanged.
    Reusable,
}

/// What becomes of a request body that an answer didn't wait for: a 401 to an upload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnreadBody {
    /// Dropped: over HTTP/1, hyper closes the connection unless little is left; over HTTP/2 it resets the stream.
    #[default]
    Dropped,
    /// Read on to its end.
    Read,
    /// Neither: the client can't go on sending. Until the settings change or the kit is dropped.
    Held,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            access_lifetime: Duration::from_secs(60),
            refresh_lifetime: None,
            rotation: Rotation::Strict,
            passwords: HashMap::new(),
            unread_body: UnreadBody::Dropped,
            log_capacity: 10_000,
        }
    }
}

impl Settings {
    pub(crate) fn admits(&self, user: &str, password: &str) -> bool {
        if self.passwords.is_empty() {
            return password != "wrong";
        }
        self.passwords.get(user).is_some_and(|expected| expected == password)
    }
}
