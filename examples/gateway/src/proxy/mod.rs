//! `/api/…`: proxies calls to the upstream with the user's access token, streamed both ways.

mod body;
mod early_answer;
mod headers;
mod outcome;
mod path;
mod send_again;
mod slow_client;
mod stall_timeout;
mod upstream;

use std::net::SocketAddr;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Method, Version};
use http_body::Body as _;
use hyper_util::client::legacy::connect::HttpInfo;
use tower_auth_refresh::{Session, SessionState};

use self::body::{AdmittedBody, UploadBody};
pub(crate) use self::headers::CommonHeaders;
use self::slow_client::with_client_timeout;
use self::upstream::NoToken;
pub(crate) use self::upstream::{HttpsClient, UpstreamClient, connector, https};
use crate::app::App;
use crate::client_address::ClientAddress;
use crate::cookie::SessionId;
use crate::fields;
use crate::limits::RequestPermit;
use crate::observation::Observation;
use crate::problem::{DEFAULT_RETRY_AFTER, Kind, Problem};

/// Proxies a request for the API.
pub(crate) async fn proxy(app: &App, request: Request, client: &ClientAddress, observation: &Observation) -> Response {
    match Call::admit(app, request, client, observation).await {
        Ok(call) => call.send(app, client, observation).await,
        Err(response) => response,
    }
}

/// A request that has passed all checks.
struct Call {
    id: SessionId,
    permit: RequestPermit,
    session: Session,
    head: Parts,
    body: Body,
}

impl Call {
    /// Checks a request. A rejected one returns its error response.
    async fn admit(
        app: &App,
        request: Request,
        client: &ClientAddress,
        observation: &Observation,
    ) -> Result<Self, Response> {
        let (head, body) = request.into_parts();
        if head.method == Method::CONNECT || asks_to_upgrade(&head.headers) {
            return Err(Kind::UpgradeRefused.into_response());
        }
        if head.method == Method::TRACE {
            // The response to TRACE would show the access token to the browser (RFC 9110 §9.3.8).
            return Err(
                ([(ALLOW, "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE")], Kind::MethodNotAllowed).into_response()
            );
        }
        if !path::has_no_dot_segments(head.uri.path()) {
            return Err(Kind::MalformedRequest.into_response());
        }
        let Some(id) = app.cookie.read(&head.headers) else {
            return Err(Kind::SignInFirst.into_response());
        };
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
        if body.size_hint().lower() > app.body_limit {
            return Err(Kind::BodyTooLarge.into_response());
        }
        Ok(Self { id, permit, session, head, body })
    }

    /// Sends the request and returns the upstream's response or an error response.
    async fn send(self, app: &App, client: &ClientAddress, observation: &Observation) -> Response {
        let Self { id, permit, session, mut head, body } = self;
        let Some(uri) = path::to_upstream(&app.upstream.uri, &head.uri) else {
            return Kind::MalformedRequest.into_response();
        };
        headers::to_upstream(&mut head, client, &app.common_headers, &app.strip);
        observation.trace().write(&mut head.headers);
        head.uri = uri;
        // The version and the extensions belong to the client's connection.
        let version = std::mem::replace(&mut head.version, Version::HTTP_11);
        head.extensions.clear();
        let (body, upload_failure) = UploadBody::new(body, app);

        let sent = Instant::now();
        let result = app.client.send(session.clone(), Request::from_parts(head, body)).await;
        if let Some(outcome) = outcome::of_call(&result, &upload_failure) {
            observation.upstream(outcome, result.as_ref().ok().and_then(remote_address), sent.elapsed());
        }
        match result {
            Ok(response) => {
                // With its last handle dropped, a session that has ended is removed at once.
                drop(session);
                let is_multiplexed = version == Version::HTTP_2;
                let response = response.map(|body| {
                    if is_multiplexed {
                        Body::new(AdmittedBody::new(with_client_timeout(body, app.client_timeout), permit))
                    } else {
                        Body::new(AdmittedBody::new(body, permit))
                    }
                });
                outcome::response(app, id, response, &upload_failure, observation).await
            }
            Err(error) if error.is::<NoToken>() => match require_active(app, id, session).await {
                Ok(_) => Problem::from(Kind::RefreshFailed).retry_after(DEFAULT_RETRY_AFTER).into_response(),
                Err(response) => response,
            },
            Err(error) => outcome::failure(&*error, &upload_failure, observation).into_response(),
        }
    }
}

/// Returns the session, or the 401 that says that the session is over.
async fn require_active(app: &App, id: SessionId, session: Session) -> Result<Session, Response> {
    match session.state() {
        SessionState::Ended(_) => {
            drop(session);
            Err(end(app, id).await)
        }
        SessionState::SignedOut => Err(Kind::SignInFirst.into_response()),
        _ => Ok(session),
    }
}

/// Returns the address of the server that has responded.
fn remote_address<B>(response: &http::Response<B>) -> Option<SocketAddr> {
    response.extensions().get::<HttpInfo>().map(HttpInfo::remote_addr)
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
