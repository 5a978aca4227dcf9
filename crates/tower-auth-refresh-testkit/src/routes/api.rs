//! `/api/…`, behind the access token.

use std::collections::BTreeMap;

use bytes::Buf;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use serde_json::json;

use crate::TestKit;
use crate::answer::Answer;
use crate::body::{self, BoxError, Inspected};
use crate::exchange::Exchange;
use crate::token::Token;

/// The content of the `Authorization` header.
#[derive(Clone, Copy)]
pub(crate) enum Bearer {
    Missing,
    Unknown,
    Token(Token),
}

impl Bearer {
    pub(super) fn read(headers: &HeaderMap, kit: &TestKit) -> Self {
        let Some(value) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
            return Self::Missing;
        };
        match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                kit.state().families.read(token.trim()).map_or(Self::Unknown, Self::Token)
            }
            _ => Self::Missing,
        }
    }
}

/// Returns the 401 if the API refuses the token.
pub(super) fn refusal(bearer: Bearer, exchange: &mut Exchange) -> Option<Answer> {
    let token = match bearer {
        Bearer::Missing => {
            exchange.note("no token");
            return Some(Answer::unauthorized(false));
        }
        Bearer::Unknown => None,
        Bearer::Token(token) => Some(token),
    };
    let now = exchange.kit.now();
    let checked = {
        let state = &mut *exchange.kit.state();
        let checked = state.families.check(token, now);
        state.journal.counters.generations_challenged += u64::from(checked.first_challenge);
        checked
    };
    let reason = checked.verdict.err()?;
    exchange.note(reason);
    Some(Answer::unauthorized(true))
}

pub(super) async fn answer<B>(head: Parts, body: B, exchange: &Exchange) -> Answer
where
    B: Body<Data: Buf, Error: Into<BoxError>> + Send + 'static,
{
    let route = head.uri.path().trim_start_matches("/api").trim_start_matches('/');
    let mut body = Inspected::new(body, &head.headers, &exchange.kit, route == "upload");
    if route == "echo" {
        let echo = Answer::stream(body.boxed_unsync());
        return match head.headers.get(CONTENT_TYPE) {
            Some(kind) => echo.header(CONTENT_TYPE, kind.clone()),
            None => echo,
        };
    }
    if body.drain().await.is_err() {
        return Answer::error(StatusCode::BAD_REQUEST, "body_cut_short");
    }
    if let Some(length) = route.strip_prefix("bytes/") {
        return match length.parse() {
            Ok(length) => Answer::stream(body::pattern(length)),
            Err(_) => Answer::error(StatusCode::BAD_REQUEST, "not_a_length"),
        };
    }
    let mut answer = json!({
        "user": exchange.user(),
        "generation": exchange.generation(),
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "body_length": body.length(),
    });
    match route {
        "upload" => answer["body_checksum"] = json!(body.checksum().map(|sum| sum.to_string())),
        "headers" => answer["headers"] = json!(without_authorization(&head.headers)),
        _ => {}
    }
    Answer::json(StatusCode::OK, answer)
}

/// Returns all values of all headers but `authorization`.
fn without_authorization(headers: &HeaderMap) -> BTreeMap<&str, Vec<String>> {
    let mut seen = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in headers.iter().filter(|(name, _)| *name != AUTHORIZATION) {
        seen.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    seen
}
