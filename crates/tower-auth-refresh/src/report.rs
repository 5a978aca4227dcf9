//! [`RefreshReport`]: the outcome of a challenge, in the extensions of the response.

use std::fmt;

use crate::refresh::NotRefreshed;
use crate::replay::NotReplayable;

/// The outcome of a challenge, in the extensions of the response.
///
/// A response to a request that was not challenged has no report.
///
/// ```
/// use http::{Response, StatusCode};
/// use tower_auth_refresh::{NotRefreshed, RefreshReport};
///
/// fn must_sign_in<B>(response: &Response<B>) -> bool {
///     matches!(
///         response.extensions().get(),
///         Some(RefreshReport::NotRefreshed(NotRefreshed::Ended(_) | NotRefreshed::SignedOut) | RefreshReport::StepUp)
///     )
/// }
/// # assert!(!must_sign_in(&Response::new(())));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RefreshReport {
    /// The request was replayed with a newer token; this is the response to the replay.
    Replayed,
    /// The request was replayed with a newer token, and the API refuses that token too.
    ReplayRefused,
    /// The request could not be replayed. The session refreshes nonetheless, for later requests.
    NotReplayable(NotReplayable),
    /// There was no newer token for a replay.
    NotRefreshed(NotRefreshed),
    /// The API requires a stronger authentication of the user than a refresh provides (RFC 9470).
    ///
    /// The user must sign in again.
    StepUp,
}

impl RefreshReport {
    /// Returns the name of the outcome in traces.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::ReplayRefused => "replay_refused",
            Self::NotReplayable(_) => "not_replayable",
            Self::NotRefreshed(why) => why.as_str(),
            Self::StepUp => "step_up",
        }
    }
}

impl fmt::Display for RefreshReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replayed => f.write_str("the request was replayed with a newer token"),
            Self::ReplayRefused => f.write_str("the API refused the newer token of the replay too"),
            Self::NotReplayable(why) => why.fmt(f),
            Self::NotRefreshed(why) => why.fmt(f),
            Self::StepUp => f.write_str("the API requires a stronger authentication of the user"),
        }
    }
}
