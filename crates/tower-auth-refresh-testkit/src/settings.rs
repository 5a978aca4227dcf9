//! [`Settings`]: the behaviour of the servers without faults.

use std::collections::HashMap;
use std::time::Duration;

/// The behaviour of the servers, which [`TestKit::configure`](crate::TestKit::configure) changes at any time.
///
/// A new lifetime applies to the tokens that are issued after the change.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// The lifetime of an access token. Default: 60 s.
    pub access_lifetime: Duration,
    /// The lifetime of a refresh token. Default: `None`, unlimited.
    pub refresh_lifetime: Option<Duration>,
    /// The treatment of a used refresh token. Default: [`Rotation::Strict`].
    pub rotation: Rotation,
    /// The passwords by user name.
    ///
    /// Default: empty, which admits every user with any password but `wrong`.
    pub passwords: HashMap<String, String>,
    /// The user's answer to `/oauth/authorize`: `false` denies the sign-in. Default: `true`.
    pub consent: bool,
    /// The least time between two polls for a device code, in whole seconds. Default: 1 s.
    ///
    /// An earlier poll is answered with `slow_down`.
    pub device_interval: Duration,
    /// The lifetime of a device code, in whole seconds. Default: 600 s.
    pub device_lifetime: Duration,
    /// The treatment of an unread request body. Default: [`UnreadBody::Dropped`].
    pub unread_body: UnreadBody,
    /// The number of entries that the log keeps, the newest ones.
    ///
    /// Default: 10,000. With 0 the log keeps no entries, and the counters still count.
    pub log_capacity: usize,
}

/// The treatment of a used refresh token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rotation {
    /// A new token supersedes the used token.
    ///
    /// Presenting the used token again revokes all tokens of the sign-in (RFC 9700 §4.14.2).
    #[default]
    Strict,
    /// As [`Strict`](Self::Strict), with a grace window of this length.
    ///
    /// In the window after the rotation, presenting the superseded token returns its successor again, with a new access
    /// token if the first one has expired.
    Grace(Duration),
    /// The token stays valid: a refresh returns it unchanged.
    Reusable,
}

/// The treatment of a request body that is unread when the response is sent.
///
/// For example, the body of an upload that the API refuses with a 401.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnreadBody {
    /// Drops the body.
    ///
    /// Over HTTP/1, hyper closes the connection unless little is left; over HTTP/2, hyper resets the stream.
    #[default]
    Dropped,
    /// Reads the body to its end.
    Read,
    /// Neither reads nor drops the body, so that the client can't send more.
    ///
    /// The body is held until this setting changes or the kit is dropped.
    Held,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            access_lifetime: Duration::from_secs(60),
            refresh_lifetime: None,
            rotation: Rotation::Strict,
            passwords: HashMap::new(),
            consent: true,
            device_interval: Duration::from_secs(1),
            device_lifetime: Duration::from_secs(600),
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
