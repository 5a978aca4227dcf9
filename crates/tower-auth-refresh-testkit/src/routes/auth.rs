//! `/auth/login` and `/auth/refresh`, and the refresh of `/oauth/token`.

use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use crate::answer::Answer;
use crate::exchange::Exchange;
use crate::families::Grant;
use crate::log::Violation;
use crate::successor::Successor;
use crate::token::Token;

#[derive(Deserialize)]
pub(crate) struct Credentials {
    #[serde(alias = "user", alias = "email")]
    username: String,
    password: String,
}

impl Credentials {
    pub(super) fn username(&self) -> &str {
        &self.username
    }
}

pub(super) fn login(credentials: &Credentials, exchange: &mut Exchange) -> Answer {
    let now = exchange.kit.now();
    let state = &mut *exchange.kit.state();
    if !state.settings.admits(&credentials.username, &credentials.password) {
        return Answer::error(StatusCode::UNAUTHORIZED, "invalid_credentials");
    }
    Answer::json(StatusCode::OK, state.families.sign_in(&credentials.username, &state.settings, now))
}

pub(super) fn refresh(token: Token, grant: Grant, refusal: StatusCode, exchange: &mut Exchange) -> Answer {
    let at = exchange.kit.elapsed();
    let now = exchange.kit.now();
    let refreshed = {
        let state = &mut *exchange.kit.state();
        let refreshed = state.families.refresh(token, grant, &state.settings, now);
        if let Some(user) = state.families.user(token).cloned() {
            match &refreshed.reuse {
                Some(reuse) if reuse.is_allowed => state.journal.reuse_allowed(&user),
                Some(reuse) => {
                    let user = user.clone();
                    state.journal.violated(Violation {
                        at,
                        user,
                        generation: token.generation,
                        current: reuse.current,
                    });
                }
                None => {}
            }
            if refreshed.outcome.is_ok() {
                state.journal.granted(&user);
            }
        }
        refreshed
    };
    if let Some(note) = refreshed.note {
        exchange.note(note);
    }
    match refreshed.outcome {
        Err(_) => Answer::error(refusal, "invalid_grant"),
        Ok(pair) => {
            let mut answer = json!(pair);
            if let (Grant::KeepRefreshToken, Some(members)) = (grant, answer.as_object_mut()) {
                members.remove("refresh_token");
            }
            let answer = Answer::json(StatusCode::OK, answer);
            if refreshed.rotated { answer.with_successor(Successor::of(token, &exchange.kit)) } else { answer }
        }
    }
}
