//! The authorization server and API of the experiments: [`Tokens`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;

/// The number of concurrent callers.
pub const CALLERS: usize = 200;

/// The duration of a refresh.
pub const REFRESH: Duration = Duration::from_millis(20);

/// The time over which the API spreads its responses.
const STAGGER: Duration = Duration::from_millis(60);

/// An authorization server that issues tokens, and an API that checks them.
pub struct Tokens {
    always: Option<&'static str>,
    issued: AtomicUsize,
    /// The number of the last revoked token: tokens up to it are refused.
    revoked: AtomicUsize,
    calls: AtomicUsize,
}

impl Tokens {
    /// Creates a server that has issued no tokens.
    #[must_use]
    pub fn new() -> Self {
        let zero = || AtomicUsize::new(0);
        Self { always: None, issued: zero(), revoked: zero(), calls: zero() }
    }

    /// Creates a server that always issues the same token, without a delay.
    #[must_use]
    pub fn always(token: &'static str) -> Self {
        Self { always: Some(token), ..Self::new() }
    }

    /// Issues a token, after the duration of a refresh.
    pub async fn issue(&self) -> String {
        let n = self.issued.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(token) = self.always {
            return token.into();
        }
        tokio::time::sleep(REFRESH).await;
        format!("a{n}")
    }

    /// Revokes all tokens that have been issued.
    pub fn revoke(&self) {
        self.revoked.store(self.issued.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Returns the number of tokens that have been issued.
    #[must_use]
    pub fn issued(&self) -> usize {
        self.issued.load(Ordering::SeqCst)
    }

    /// Returns the API's status for a request with this token. Each call waits a little longer than the one before.
    pub async fn status(&self, token: Option<&str>) -> StatusCode {
        let nth = self.calls.fetch_add(1, Ordering::SeqCst) % CALLERS;
        let number = token.and_then(|token| token.strip_prefix("Bearer a")?.parse::<usize>().ok());
        let valid = number.is_some_and(|number| number > self.revoked.load(Ordering::SeqCst));
        #[expect(clippy::cast_possible_truncation, reason = "200 callers")]
        let wait = STAGGER * nth as u32 / CALLERS as u32;
        tokio::time::sleep(wait).await;
        if valid { StatusCode::OK } else { StatusCode::UNAUTHORIZED }
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self::new()
    }
}
