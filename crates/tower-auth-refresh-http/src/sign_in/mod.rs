//! Signing in: the first tokens of a user, by a browser or by a code on another device.

mod browser;
mod device;
mod error;
#[cfg(feature = "oidc")]
mod id_token;
mod loopback;
mod page;
mod request;
mod setters;

use std::fmt;

use serde_json::{Map, Value};
use tower_auth_refresh::Tokens;

pub use self::browser::{BrowserSignIn, PendingBrowserSignIn};
pub use self::device::{DeviceSignIn, PendingDeviceSignIn};
pub use self::error::{SignInError, SignInErrorKind};

/// A completed sign-in.
///
/// `Debug` shows neither tokens nor claims.
#[non_exhaustive]
pub struct SignedIn {
    /// The tokens, for [`Session::sign_in`](tower_auth_refresh::Session::sign_in).
    ///
    /// Further members of the answer are extras: `scope`, `id_token`, a vendor's own.
    pub tokens: Tokens,
    claims: Map<String, Value>,
}

impl SignedIn {
    /// The user's identifier at the issuer (`sub`), if the scope `openid` was requested.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.claim("sub")?.as_str()
    }

    /// A claim of the validated ID token: `email`, `name`. `None` for all without the scope `openid`.
    #[must_use]
    pub fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.get(name)
    }
}

impl fmt::Debug for SignedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedIn").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}
