//! [`RefreshReport`]: what happened to a response, for those who look.

use std::fmt;

use crate::refresh::NotRefreshed;
use crate::replay::NotReplayable;

/// What the middleware did about a challenged request, or why it did nothing: in the response's extensions.
///
/// A response that was not challenged has none.
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
    /// This is the answer to the replay: the request was challenged, and sent again with a newer token.
    Replayed,
    /// This is the answer to the replay, and it is a challenge again: the API refuses the newer token too.
    ReplayRefused,
    /// The request could not be sent again. The session refreshes all the same, for the requests to come.
    NotReplayable(NotReplayable),
    /// There was no newer token to send it with.
    NotRefreshed(NotRefreshed),
    /// The API wants a stronger authentication than a refresh can buy (RFC 9470): the user must sign in again.
    StepUp,
}

impl RefreshReport {
    /// The name that traces use.
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
            Self::Replayed => f.write_str("the request was sent again with a newer token"),
            Self::ReplayRefused => f.write_str("the request was sent again, and refused again"),
            Self::NotReplayable(why) => why.fmt(f),
            Self::NotRefreshed(why) => why.fmt(f),
            Self::StepUp => f.write_str("the API wants a stronger authentication"),
        }
    }
}
