//! `/api/…`: a user's calls, passed to the upstream with his access token, streamed both ways.

mod body;
mod headers;
mod outcome;
mod path;
mod patience;
mod pump;
mod upstream;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Method, Version};
use http_body::Body as _;
use tower::ServiceExt;
use tower_auth_refresh::{Session, SessionState};

use self::body::UploadBody;
use self::pump::pumped;
use self::upstream::NoToken;
pub(crate) use self::upstream::{HttpsClient, UpstreamClient, client, client_without_refresh, https};
use crate::app::App;
use crate::cookie::SessionId;
use crate::problem::{Kind, Problem, TRY_AGAIN};
use crate::server::Peer;

/// Handles a request for the API.
pub(crate) async fn proxy(State(app): State<App>, request: Request) -> Response {
    match Call::admit(&app, request).await {
        Ok(call) => call.make(&app).await,
        Err(response) => response,
    }
}

/// A call that may be made.
struct Call {
    id: SessionId,
    session: Session,
    head: Parts,
    body: Body,
}

impl Call {
    /// Whether a request is one to be passed on; else the answer to it.
    async fn admit(app: &App, request: Request) -> Result<Self, Response> {
        let (head, body) = request.into_parts();
        if head.method == Method::CONNECT || asks_to_upgrade(&head.headers) {
            return Err(Kind::UpgradeRefused.into_response());
        }
        if head.method == Method::TRACE {
            // Its answer would show the token to the browser (RFC 9110 §9.3.8).
            return Err(
                ([(ALLOW, "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE")], Kind::MethodNotAllowed).into_response()
            );
        }
        if !path::is_plain(head.uri.path()) {
            return Err(Kind::MalformedRequest.into_response());
        }
        let Some(id) = app.cookie.read(&head.headers) else {
            return Err(Kind::SignInFirst.into_response());
        };
        let session = match app.sessions.get(&id).await {
            Ok(Some(session)) => session,
            // The cookie stays: a late request may bring one that the browser has replaced by a new login's.
            Ok(None) => return Err(Kind::SignInFirst.into_response()),
            Err(error) => return Err(Problem::from(error).into_response()),
        };
        match session.state() {
            SessionState::Ended => {
                drop(session);
                return Err(end(app, id).await);
            }
            SessionState::SignedOut => return Err(Kind::SignInFirst.into_response()),
            _ => {}
        }
        if body.size_hint().lower() > app.body_limit {
            return Err(Kind::BodyTooLarge.into_response());
        }
        Ok(Self { id, session, head, body })
    }

    /// Makes it, and answers with whatever comes of it.
    async fn make(self, app: &App) -> Response {
        let Self { id, session, mut head, body } = self;
        let Some(uri) = path::at_upstream(&app.upstream.uri, &head.uri) else {
            return Kind::MalformedRequest.into_response();
        };
        let peer = head.extensions.remove::<Peer>();
        headers::to_upstream(&mut head, peer, &app.public);
        head.uri = uri;
        // The connections on either side are each other's business no more than their versions are.
        let version = std::mem::replace(&mut head.version, Version::HTTP_11);
        head.extensions.clear();
        head.extensions.insert(session.clone());
        let (body, fate) = UploadBody::new(body, app.body_limit, app.client_timeout);

        match app.client.clone().oneshot(Request::from_parts(head, body)).await {
            Ok(response) => {
                // Nobody holds it any more: should it have ended, it is forgotten at once.
                drop(session);
                let shares_connection = version == Version::HTTP_2;
                let response =
                    response.map(|body| if shares_connection { pumped(body, app.client_timeout) } else { body });
                outcome::answer(app, id, response, &fate).await
            }
            Err(error) if error.is::<NoToken>() => match session.state() {
                SessionState::Ended => {
                    drop(session);
                    end(app, id).await
                }
                SessionState::SignedOut => Kind::SignInFirst.into_response(),
                _ => Problem::from(Kind::RefreshFailed).retry_after(TRY_AGAIN).into_response(),
            },
            Err(error) => outcome::failure(&*error, &fate).into_response(),
        }
    }
}

/// Whether a request asks for another protocol (RFC 9110 §7.8). `h2c` may be overlooked: the answer is as good.
fn asks_to_upgrade(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(UPGRADE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    protocols.any(|protocol| !protocol.trim_ascii().eq_ignore_ascii_case(b"h2c"))
}

/// The authorization server ended the session: the gateway and the browser forget it.
async fn end(app: &App, id: SessionId) -> Response {
    app.sign_out(id).await;
    let mut response = Kind::SessionEnded.into_response();
    app.cookie.clear(response.headers_mut());
    response
}
