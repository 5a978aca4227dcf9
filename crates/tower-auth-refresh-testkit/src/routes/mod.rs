//! The routes: what is asked ([`Call`]), and what the servers answer when nothing goes wrong.

mod api;
mod auth;

use bytes::Buf;
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::api::Bearer;
use self::auth::Credentials;
use crate::TestKit;
use crate::answer::Answer;
use crate::body::{BoxError, Inspected};
use crate::exchange::Exchange;
use crate::families::Grant;
use crate::faults::Route;
use crate::settings::UnreadBody;
use crate::token::{Kind, Token};

/// More than any credentials need.
const AUTH_BODY_LIMIT: usize = 64 * 1024;

/// A request, read as far as is needed to say who sends it.
pub(crate) enum Call<B> {
    Login(Credentials),
    /// `None`: not a refresh token of this kit.
    Refresh(Option<Token>),
    Logout(Option<Token>),
    Api(Parts, Bearer, B),
    /// Not what a route can be asked.
    Wrong(Answer, Option<B>),
}

#[derive(Deserialize)]
struct Presented {
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
                    exchange.carries(token);
                }
                return Self::Api(head, bearer, body);
            }
            Route::Other => return Self::Wrong(Answer::error(StatusCode::NOT_FOUND, "not_found"), Some(body)),
            Route::Login | Route::Refresh | Route::Logout if head.method != Method::POST => {
                return Self::Wrong(Answer::empty(StatusCode::METHOD_NOT_ALLOWED), Some(body));
            }
            Route::Login | Route::Refresh | Route::Logout => {}
        }
        let call = if exchange.route == Route::Login {
            json(body).await.map(|credentials: Credentials| {
                exchange.is_by(credentials.username());
                Self::Login(credentials)
            })
        } else {
            json(body).await.map(|Presented { refresh_token }| {
                let token = exchange.kit.state().families.read(&refresh_token);
                let token = token.filter(|token| token.kind == Kind::Refresh);
                if let Some(token) = token {
                    exchange.carries(token);
                }
                if exchange.route == Route::Refresh { Self::Refresh(token) } else { Self::Logout(token) }
            })
        };
        call.unwrap_or_else(|| Self::Wrong(Answer::error(StatusCode::BAD_REQUEST, "invalid_request"), None))
    }

    pub(crate) async fn process(self, exchange: &mut Exchange, grant: Grant) -> Answer {
        match self {
            Self::Login(credentials) => auth::login(&credentials, exchange),
            Self::Refresh(Some(token)) => auth::refresh(token, grant, exchange),
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
            Self::Api(head, bearer, body) => match api::refusal(bearer, exchange) {
                None => api::answer(head, body, exchange).await,
                Some(refusal) => {
                    leave(body, &exchange.kit);
                    refusal
                }
            },
            Self::Wrong(answer, body) => {
                if let Some(body) = body {
                    leave(body, &exchange.kit);
                }
                answer
            }
        }
    }

    /// Gives it up unprocessed.
    pub(crate) fn leave(self, kit: &TestKit) {
        if let Self::Api(_, _, body) | Self::Wrong(_, Some(body)) = self {
            leave(body, kit);
        }
    }
}

/// Leaves a body unread, as the settings say.
fn leave<B>(body: B, kit: &TestKit)
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
            tokio::spawn(async move { body.swallow().await });
        }
    }
}

async fn json<T, B>(body: B) -> Option<T>
where
    T: DeserializeOwned,
    B: Body<Data: Buf, Error: Into<BoxError>>,
{
    let bytes = Limited::new(body, AUTH_BODY_LIMIT).collect().await.ok()?.to_bytes();
    serde_json::from_slice(&bytes).ok()
}
