//! The routes: [`Call`], a request that has been read, and its ordinary answer.

mod api;
mod auth;
mod oauth;

use bytes::{Buf, Bytes};
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::api::Bearer;
use self::auth::Credentials;
use self::oauth::OAuthCall;
use crate::TestKit;
use crate::answer::Answer;
use crate::body::{BoxError, Inspected};
use crate::exchange::Exchange;
use crate::families::Grant;
use crate::faults::Route;
use crate::settings::UnreadBody;
use crate::token::{Kind, Token};

/// The longest body that the `/auth/…` and `/oauth/…` routes read, far more than credentials need.
const AUTH_BODY_LIMIT: usize = 64 * 1024;

/// A request, read as far as needed to know its user.
pub(crate) enum Call<B> {
    Login(Credentials),
    /// `None` if the token isn't a refresh token of this kit.
    Refresh(Option<Token>),
    Logout(Option<Token>),
    OAuth(OAuthCall),
    Api(Parts, Bearer, B),
    /// A request that the route can't serve: the answer, and the body if it is unread.
    Invalid(Answer, Option<B>),
}

#[derive(Deserialize)]
struct PresentedToken {
    refresh_token: String,
}

impl<B> Call<B>
where
    B: Body<Data: Buf, Error: Into<BoxError>> + Send + 'static,
{
    pub(crate) async fn read(exchange: &mut Exchange, request: Request<B>) -> Self {
        let (head, body) = request.into_parts();
        match exchange.route {
            Route::Api => {
                let bearer = Bearer::read(&head.headers, &exchange.kit);
                if let Bearer::Token(token) = bearer {
                    exchange.set_token(token);
                }
                return Self::Api(head, bearer, body);
            }
            Route::SignIn => return Self::OAuth(OAuthCall::read(&head, body, exchange).await),
            Route::Other => return Self::Invalid(Answer::error(StatusCode::NOT_FOUND, "not_found"), Some(body)),
            Route::Login | Route::Refresh | Route::Logout if head.method != Method::POST => {
                return Self::Invalid(Answer::empty(StatusCode::METHOD_NOT_ALLOWED), Some(body));
            }
            Route::Login | Route::Refresh | Route::Logout => {}
        }
        let call = if exchange.route == Route::Login {
            json(body).await.map(|credentials: Credentials| {
                exchange.set_user(credentials.username());
                Self::Login(credentials)
            })
        } else {
            json(body).await.map(|PresentedToken { refresh_token }| {
                let token = exchange.kit.state().families.read(&refresh_token);
                let token = token.filter(|token| token.kind == Kind::Refresh);
                if let Some(token) = token {
                    exchange.set_token(token);
                }
                if exchange.route == Route::Refresh { Self::Refresh(token) } else { Self::Logout(token) }
            })
        };
        call.unwrap_or_else(|| Self::Invalid(Answer::error(StatusCode::BAD_REQUEST, "invalid_request"), None))
    }

    pub(crate) async fn process(self, exchange: &mut Exchange, grant: Grant) -> Answer {
        match self {
            Self::Login(credentials) => auth::login(&credentials, exchange),
            Self::Refresh(Some(token)) => auth::refresh(token, grant, StatusCode::UNAUTHORIZED, exchange),
            Self::Refresh(None) => {
                exchange.note("unknown");
                Answer::error(StatusCode::UNAUTHORIZED, "invalid_grant")
            }
            Self::Logout(token) => {
                if let Some(token) = token {
                    exchange.kit.state().families.end(token.family);
                }
                Answer::empty(StatusCode::NO_CONTENT)
            }
            // RFC 6749 §5.2
            Self::OAuth(OAuthCall::Refresh(Some(token))) => {
                auth::refresh(token, grant, StatusCode::BAD_REQUEST, exchange)
            }
            Self::OAuth(call) => oauth::answer(call, exchange),
            Self::Api(head, bearer, body) => match api::refusal(bearer, exchange) {
                None => api::answer(head, body, exchange).await,
                Some(refusal) => {
                    discard(body, &exchange.kit);
                    refusal
                }
            },
            Self::Invalid(answer, body) => {
                if let Some(body) = body {
                    discard(body, &exchange.kit);
                }
                answer
            }
        }
    }

    /// Discards the request without processing it.
    pub(crate) fn discard(self, kit: &TestKit) {
        if let Self::Api(_, _, body) | Self::Invalid(_, Some(body)) = self {
            discard(body, kit);
        }
    }
}

/// Treats an unread body as [`Settings::unread_body`](crate::Settings::unread_body) says.
fn discard<B>(body: B, kit: &TestKit)
where
    B: Body<Data: Buf, Error: Into<BoxError>> + Send + 'static,
{
    if body.is_end_stream() {
        return;
    }
    let unread_body = kit.state().settings.unread_body;
    match unread_body {
        UnreadBody::Dropped => drop(body),
        UnreadBody::Held => kit.state().keep_unread(Box::new(body)),
        UnreadBody::Read => {
            let mut body = Inspected::new(body, &HeaderMap::new(), kit, false);
            tokio::spawn(async move { body.drain().await });
        }
    }
}

async fn json<T, B>(body: B) -> Option<T>
where
    T: DeserializeOwned,
    B: Body<Data: Buf, Error: Into<BoxError>>,
{
    serde_json::from_slice(&auth_body(body).await?).ok()
}

async fn auth_body<B>(body: B) -> Option<Bytes>
where
    B: Body<Data: Buf, Error: Into<BoxError>>,
{
    Some(Limited::new(body, AUTH_BODY_LIMIT).collect().await.ok()?.to_bytes())
}
