//! Maps the outcome of a call to the client's response.

use std::error::Error;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{StatusCode, Version};
use tower::BoxError;
use tower_auth_refresh::{NotRefreshed, RefreshError, RefreshErrorKind, RefreshReport};

use super::body::UploadFailure;
use super::pool::Failed;
use super::stall_timeout::UpstreamStalled;
use super::upstream::NoToken;
use super::{end, headers};
use crate::app::App;
use crate::cookie::SessionId;
use crate::metrics::UpstreamOutcome;
use crate::observation::Observation;
use crate::problem::{DEFAULT_RETRY_AFTER, Kind, Problem, chain};

/// Returns the outcome of a call for the metrics; `None` if it was not sent.
pub(super) fn of_call<B>(
    result: &Result<http::Response<B>, BoxError>,
    upload_failure: &UploadFailure,
) -> Option<UpstreamOutcome> {
    let error = match result {
        Ok(response) => return Some(UpstreamOutcome::Responded(response.status())),
        Err(error) => &**error,
    };
    if error.is::<NoToken>() {
        None
    } else if upload_failure.problem().is_some() {
        Some(UpstreamOutcome::UploadFailed)
    } else if error.is::<UpstreamStalled>() {
        Some(UpstreamOutcome::TimedOut)
    } else if error.downcast_ref().is_some_and(Failed::is_connect) {
        Some(UpstreamOutcome::ConnectFailed)
    } else {
        Some(UpstreamOutcome::Failed)
    }
}

/// Passes the upstream's response on, or replaces a 401 that only concerns the gateway's token.
pub(super) async fn response(
    app: &App,
    id: SessionId,
    mut response: Response,
    upload_failure: &UploadFailure,
    observation: &Observation,
) -> Response {
    if let Some(problem @ Kind::BodyTooLarge) = upload_failure.problem() {
        // The upstream has responded to a truncated body.
        return problem.into_response();
    }
    let report = response.extensions_mut().remove::<RefreshReport>();
    if let Some(report) = &report {
        observation.refresh(app.metrics.count_report(report));
    }
    match report {
        Some(RefreshReport::NotRefreshed(reason)) => {
            // In a box, so that other requests take no room for it.
            return Box::pin(not_refreshed(app, id, &reason, observation)).await;
        }
        // A refresh has been started for the client's next attempt.
        Some(RefreshReport::NotReplayable(_)) => {
            return Problem::from(Kind::SendAgain).retry_after(DEFAULT_RETRY_AFTER).into_response();
        }
        _ => {}
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // The gateway forwards no `Upgrade` header.
        return Kind::UpstreamFailed.into_response();
    }
    // The version belongs to the upstream's connection. Over HTTP/1.0, a response may end with its connection, and one
    // that is cut off would look complete.
    *response.version_mut() = Version::HTTP_11;
    headers::to_client(response.headers_mut(), &app.upstream.uri, app.cookie);
    response
}

/// Maps a 401 for which no newer token was available.
async fn not_refreshed(app: &App, id: SessionId, reason: &NotRefreshed, observation: &Observation) -> Response {
    match reason {
        NotRefreshed::Ended(_) | NotRefreshed::NoRefreshToken => end(app, id).await,
        NotRefreshed::SignedOut | NotRefreshed::SessionChanged => {
            // The logout or login has cleared or replaced the cookie. Clearing it here could end the new session.
            Kind::SignInFirst.into_response()
        }
        NotRefreshed::Failed(error) | NotRefreshed::CoolingDown(error) => {
            tracing::warn!(request.id = observation.trace().request_id(), error = %chain(&**error), "refresh failed");
            Problem::from(Kind::RefreshFailed)
                .retry_after(retry_after(error).unwrap_or(DEFAULT_RETRY_AFTER))
                .into_response()
        }
        _ => Kind::UpstreamRefusesTokens.into_response(),
    }
}

fn retry_after(error: &RefreshError) -> Option<Duration> {
    (error.kind() == RefreshErrorKind::Unavailable).then(|| error.retry_after()).flatten()
}

/// Maps a call without a response.
pub(super) fn failure(
    error: &(dyn Error + 'static),
    upload_failure: &UploadFailure,
    observation: &Observation,
) -> Problem {
    if let Some(problem) = upload_failure.problem() {
        return problem.into();
    }
    let id = observation.trace().request_id();
    tracing::warn!(request.id = id, error = %chain(error), "call to the upstream failed");
    if error.is::<UpstreamStalled>() { Kind::UpstreamTooSlow.into() } else { Kind::UpstreamFailed.into() }
}
