//! What the client hears: the upstream's answer, or what became of the call instead.

use std::error::Error;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use tower_auth_refresh::{NotRefreshed, RefreshError, RefreshErrorKind, RefreshReport};

use super::body::{BoxBody, Fate};
use super::patience::Silent;
use super::{end, headers};
use crate::app::App;
use crate::cookie::SessionId;
use crate::problem::{Kind, Problem, TRY_AGAIN};

/// The upstream answered. Its answer passes, a 401 that says nothing about the user aside.
pub(super) async fn answer(app: &App, id: SessionId, mut response: http::Response<BoxBody>, fate: &Fate) -> Response {
    if let Some(problem @ Kind::BodyTooLarge) = fate.problem() {
        // It answered what it took for a body cut short.
        return problem.into_response();
    }
    let report = response.extensions_mut().remove::<RefreshReport>();
    if let Some(report) = &report {
        app.metrics.reported(report);
    }
    match report {
        Some(RefreshReport::NotRefreshed(why)) => return not_refreshed(app, id, &why).await,
        // The refresh is under way, for the next attempt.
        Some(RefreshReport::NotReplayable(_)) => {
            return Problem::from(Kind::SendAgain).retry_after(TRY_AGAIN).into_response();
        }
        _ => {}
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked for it.
        return Kind::UpstreamFailed.into_response();
    }
    headers::to_client(response.headers_mut(), &app.upstream.uri, app.cookie);
    response.map(Body::new)
}

/// The API refused the token, and there was no newer one.
async fn not_refreshed(app: &App, id: SessionId, why: &NotRefreshed) -> Response {
    match why {
        NotRefreshed::Ended(_) | NotRefreshed::NoRefreshToken => end(app, id).await,
        NotRefreshed::SignedOut | NotRefreshed::SessionChanged => {
            // The answer to that has cleared the cookie, or set a new one: to clear it now might end the session that he
            // has since.
            Kind::SignInFirst.into_response()
        }
        NotRefreshed::Failed(error) | NotRefreshed::CoolingDown(error) => {
            tracing::warn!(error = %chain(&**error), "a refresh failed");
            Problem::from(Kind::RefreshFailed).retry_after(asked_for(error).unwrap_or(TRY_AGAIN)).into_response()
        }
        _ => Kind::UpstreamRefusesTokens.into_response(),
    }
}

fn asked_for(error: &RefreshError) -> Option<Duration> {
    error.retry_after().filter(|_| error.kind() == RefreshErrorKind::Unavailable)
}

/// The upstream did not answer.
pub(super) fn failure(error: &(dyn Error + 'static), fate: &Fate) -> Problem {
    if let Some(problem) = fate.problem() {
        return problem.into();
    }
    tracing::warn!(error = %chain(error), "the upstream failed");
    if error.is::<Silent>() { Kind::UpstreamTooSlow.into() } else { Kind::UpstreamFailed.into() }
}

/// An error with its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
