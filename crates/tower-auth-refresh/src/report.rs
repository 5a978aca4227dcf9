//! [`RefreshReport`]: the outcome of a refused request, in the extensions of the response.

use std::error::Error;
use std::fmt;

use crate::challenge::{ChallengeSummary, StepUp};
use crate::refresh::NotRefreshed;
use crate::replay::NotReplayable;

/// The outcome of a refused request, in the extensions of the response.
///
/// These responses have a report:
///
/// - every 401 that reaches the caller, and every other response that the [`ChallengePolicy`] takes for a challenge, also
///   if the request was sent without a token;
/// - every response to a replay;
/// - a 403 that says which rights are missing ([`StepUp`](Self::StepUp)).
///
/// A request that isn't this middleware's business passes untouched, and its response has no report: a request to a
/// foreign origin, with [`SkipAuth`], with a header of the caller's own in the place of the token, or of the session's
/// own refresh call.
///
/// A report is an [`Error`] too, so that a caller can return it:
///
/// ```
/// use http::{Response, StatusCode};
/// use tower_auth_refresh::RefreshReport;
///
/// fn must_sign_in<B>(response: &Response<B>) -> bool {
///     match response.extensions().get() {
///         Some(RefreshReport::NotRefreshed(why)) => why.requires_sign_in(),
///         Some(RefreshReport::StepUp(_)) => true,
///         _ => false,
///     }
/// }
///
/// fn authorized<B>(response: Response<B>) -> Result<Response<B>, Box<dyn std::error::Error + Send + Sync>> {
///     match response.extensions().get::<RefreshReport>() {
///         Some(report) if response.status() == StatusCode::UNAUTHORIZED => Err(report.clone().into()),
///         _ => Ok(response),
///     }
/// }
/// # assert!(!must_sign_in(&Response::new(())) && authorized(Response::new(())).is_ok());
/// ```
///
/// [`ChallengePolicy`]: crate::ChallengePolicy
/// [`SkipAuth`]: crate::SkipAuth
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RefreshReport {
    /// The request was replayed with a newer token; this is the response to the replay.
    Replayed,
    /// The request was replayed with a newer token, and the API refuses that token too.
    ReplayRefused,
    /// The request could not be replayed. The session refreshes nonetheless, for later requests.
    NotReplayable(NotReplayable),
    /// There was no newer token for a replay, or no token at all for the request.
    ///
    /// With [`NotRefreshed::RequestRefused`], the refusal is about the request rather than about the token.
    NotRefreshed(NotRefreshed),
    /// The API requires a stronger authentication of the user (RFC 9470), or more rights (RFC 6750 §3.1), than a refresh
    /// provides.
    ///
    /// The user must sign in again, or authorize more.
    StepUp(StepUp),
    /// The API answered 401 for another reason than an expired token, as far as the challenge policy can tell.
    OtherChallenge(ChallengeSummary),
}

impl RefreshReport {
    /// Returns the name of the outcome in traces.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::ReplayRefused => "replay_refused",
            Self::NotReplayable(_) => "not_replayable",
            Self::NotRefreshed(why) => why.as_str(),
            Self::StepUp(_) => "step_up",
            Self::OtherChallenge(_) => "other_challenge",
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
            Self::StepUp(_) => f.write_str("the API requires a stronger authentication or more rights of the user"),
            Self::OtherChallenge(summary) => {
                write!(f, "the API refused the request for another reason than an expired token ({summary})")
            }
        }
    }
}

impl Error for RefreshReport {
    /// Returns the cause of the reason, whose own message is this error's message.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NotRefreshed(why) => why.source(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::RefreshError;

    #[test]
    fn a_report_is_an_error_with_the_failed_call_as_its_source() {
        let failed = Arc::new(RefreshError::unavailable("connection refused"));
        let report: Box<dyn Error + Send + Sync> =
            RefreshReport::NotRefreshed(NotRefreshed::CoolingDown(failed)).into();
        assert_eq!(report.to_string(), "the session cools down after a failed refresh");
        let source = report.source().unwrap();
        assert_eq!(source.to_string(), "the refresh call is unavailable");
        assert_eq!(source.source().unwrap().to_string(), "connection refused");
        assert!(RefreshReport::NotReplayable(NotReplayable::Head).source().is_none());
    }
}
