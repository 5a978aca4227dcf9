//! `/api/…`: proxies calls to the upstream with the user's access token, streamed both ways.

mod body;
mod early_answer;
mod headers;
mod outcome;
mod path;
mod pieces;
mod pool;
mod send_again;
mod stall_timeout;
mod upstream;

use std::convert::identity;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::TryFutureExt;
use http::header::{ALLOW, UPGRADE};
use http::{HeaderMap, Method, Version};
use http_body::Body as _;
use tower_auth_refresh::{Session, SessionState};

use self::body::{AdmittedBody, UploadBody, UploadFailure};
pub(crate) use self::headers::CommonHeaders;
use self::pieces::Pieces;
use self::upstream::NoToken;
pub(crate) use self::upstream::{HttpsClient, UpstreamClient, connector, https};
use crate::app::App;
use crate::client_address::ClientAddress;
use crate::cookie::SessionId;
use crate::fields;
use crate::observation::Observation;
use crate::problem::{DEFAULT_RETRY_AFTER, Kind, Problem};

/// Proxies a request for the API.
pub(crate) fn proxy(
    app: &App,
    request: Box<Request>,
    client: &ClientAddress,
    observation: &Observation,
) -> impl Future<Output = Response> {
    call(app, request, client, observation).unwrap_or_else(identity)
}

/// Checks a request, sends it to the upstream, and returns the response; or an error response of the gateway's own.
async fn call(
    app: &App,
    request: Box<Request>,
    client: &ClientAddress,
    observation: &Observation,
) -> Result<Response, Response> {
    let id = check(app, &request)?;
    // Before the look-up: that of a session that isn't in memory is a read of the store, and any cookie names one.
    let permit = match app.requests.admit(id, client.ip()) {
        Ok(permit) => permit,
        Err(exceeded) => {
            observation.session(id, || None);
            return Err(Problem::from(exceeded).into_response());
        }
    };
    let (session, permit) = match app.look_up(id, permit).await {
        Ok(Some(found)) => found,
        // The cookie is not cleared: a late request may carry an old cookie that a new login has replaced since.
        Ok(None) => return Err(Kind::SignInFirst.into_response()),
        Err(error) => return Err(Problem::from(error).into_response()),
    };
    observation.session(id, || Some(session.tokens()));
    let session = require_active(app, id, session).await?;
    if request.body().size_hint().lower() > app.body_limit {
        return Err(Kind::BodyTooLarge.into_response());
    }
    let is_multiplexed = request.version() == Version::HTTP_2;
    let (request, upload_failure) = to_upstream(app, request, client, observation)?;

    let sent = Instant::now();
    let result = app.client.send(session.clone(), request).await;
    if let Some(outcome) = outcome::of_call(&result, &upload_failure) {
        observation.upstream(
            outcome,
            result.as_ref().ok().and_then(|response| response.body().address()),
            sent.elapsed(),
        );
    }
    match result {
        Ok(response) => {
            // With its last handle dropped, a session that has ended is removed at once.
            drop(session);
            let response = response.map(|body| {
                if is_multiplexed {
                    Body::new(AdmittedBody::new(Pieces::new(body), permit))
                } else {
                    Body::new(AdmittedBody::new(body, permit))
                }
            });
            Ok(outcome::response(app, id, response, &upload_failure, observation).await)
        }
        Err(error) if error.is::<NoToken>() => {
            require_active(app, id, session).await?;
            Err(Problem::from(Kind::RefreshFailed).retry_after(DEFAULT_RETRY_AFTER).into_response())
        }
        Err(error) => Err(outcome::failure(&*error, &upload_failure, observation).into_response()),
    }
}

/// Checks the head of a request, and returns its session's number.
#[expect(clippy::result_large_err, reason = "it is the response")]
fn check(app: &App, request: &Request) -> Result<SessionId, Response> {
    if *request.method() == Method::CONNECT || asks_to_upgrade(request.headers()) {
        return Err(Kind::UpgradeRefused.into_response());
    }
    if *request.method() == Method::TRACE {
        // The response to TRACE would show the access token to the browser (RFC 9110 §9.3.8).
        return Err(([(ALLOW, "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE")], Kind::MethodNotAllowed).into_response());
    }
    if !path::has_no_dot_segments(request.uri().path()) {
        return Err(Kind::MalformedRequest.into_response());
    }
    app.cookie.read(request.headers()).ok_or_else(|| Kind::SignInFirst.into_response())
}

/// Rewrites a request for the upstream.
#[expect(clippy::result_large_err, reason = "it is the response")]
fn to_upstream(
    app: &App,
    mut request: Box<Request>,
    client: &ClientAddress,
    observation: &Observation,
) -> Result<(Request<UploadBody>, UploadFailure), Response> {
    let Some(uri) = path::to_upstream(&app.upstream.uri, request.uri()) else {
        return Err(Kind::MalformedRequest.into_response());
    };
    headers::to_upstream(&mut request, client, &app.common_headers, &app.strip);
    observation.trace().write(request.headers_mut());
    *request.uri_mut() = uri;
    // The version and the extensions belong to the client's connection.
    *request.version_mut() = Version::HTTP_11;
    request.extensions_mut().clear();
    let (body, upload_failure) = UploadBody::new(std::mem::take(request.body_mut()), app);
    Ok((request.map(|_| body), upload_failure))
}

/// Returns the session, or the 401 that says that the session is over.
async fn require_active(app: &App, id: SessionId, session: Session) -> Result<Session, Response> {
    match session.state() {
        SessionState::Ended(_) => {
            drop(session);
            Err(Box::pin(end(app, id)).await)
        }
        SessionState::SignedOut => Err(Kind::SignInFirst.into_response()),
        _ => Ok(session),
    }
}

/// Checks if a request asks for another protocol (RFC 9110 §7.8). `h2c` may be ignored: the response over HTTP/1.1 is
/// equivalent.
fn asks_to_upgrade(headers: &HeaderMap) -> bool {
    fields::list(headers, &UPGRADE).any(|protocol| !protocol.eq_ignore_ascii_case(b"h2c"))
}

/// Removes a session that the authorization server has ended, and clears its cookie.
async fn end(app: &App, id: SessionId) -> Response {
    app.sign_out(id).await;
    let mut response = Kind::SessionEnded.into_response();
    app.cookie.clear(response.headers_mut());
    response
}
