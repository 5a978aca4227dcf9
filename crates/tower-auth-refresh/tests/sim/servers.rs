//! The authorization server, whose records outlive a crash as a database would, and the APIs that check its tokens.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::sleep;
use tower_auth_refresh::{AccessToken, RefreshToken, Rotation, Tokens};

use crate::judge::Ticket;
use crate::net::forever;
use crate::plan::{Plan, Trap, millis};
use crate::world::World;

/// The `number`th access or refresh token of a sign-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    pub family: usize,
    pub number: usize,
}

impl Token {
    /// Reads `a.3.1` or `r.3.1`.
    pub fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.').skip(1).map(|part| part.parse().ok());
        Some(Self { family: parts.next()??, number: parts.next()?? })
    }

    /// The one that a request carries.
    pub fn bearer(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(AUTHORIZATION)?.to_str().unwrap();
        Some(Self::read(value.strip_prefix("Bearer ").unwrap()).unwrap())
    }
}

/// What the authorization server has on disk.
pub struct Authority {
    families: Vec<Family>,
    rotation: Rotation,
    grace: Duration,
    lifetime: Duration,
}

/// One sign-in and all that came of it.
pub struct Family {
    pub user: usize,
    /// When each access token expires; the last is the newest.
    expiries: Vec<Duration>,
    /// The refresh token in force.
    pub refresh: usize,
    superseded_at: Duration,
    pub ended: Option<&'static str>,
}

impl Authority {
    pub fn new(plan: &Plan) -> Self {
        Self { families: Vec::new(), rotation: plan.rotation, grace: plan.grace, lifetime: plan.access_lifetime }
    }

    pub fn family(&self, id: usize) -> &Family {
        &self.families[id]
    }

    pub fn sign_in(&mut self, user: usize, now: Duration) -> Tokens {
        let expiries = vec![now + self.lifetime];
        self.families.push(Family { user, expiries, refresh: 1, superseded_at: Duration::ZERO, ended: None });
        self.newest(self.families.len() - 1)
    }

    pub fn newest(&self, family: usize) -> Tokens {
        let record = &self.families[family];
        let access = format!("a.{family}.{}", record.expiries.len());
        let refresh = format!("r.{family}.{}", record.refresh);
        Tokens::new(AccessToken::new(access).unwrap(), RefreshToken::new(refresh).unwrap())
    }

    pub fn is_superseded(&self, token: Token) -> bool {
        token.number < self.families[token.family].refresh
    }

    pub fn revoke(&mut self, user: usize) {
        if let Some(family) = self.families.iter_mut().rfind(|family| family.user == user && family.ended.is_none()) {
            family.ended = Some("revoked");
        }
    }

    pub fn expire_all(&mut self, now: Duration) {
        for family in &mut self.families {
            for expiry in &mut family.expiries {
                *expiry = now.min(*expiry);
            }
        }
    }

    /// Trades a refresh token for new ones.
    fn refresh(&mut self, token: Token, now: Duration) -> Result<Tokens, &'static str> {
        let (rotation, grace, lifetime) = (self.rotation, self.grace, self.lifetime);
        let family = self.families.get_mut(token.family).ok_or("unknown")?;
        if let Some(why) = family.ended {
            return Err(why);
        }
        if token.number < family.refresh {
            let repeated = token.number + 1 == family.refresh && now <= family.superseded_at + grace;
            if matches!(rotation, Rotation::Grace(_)) && repeated {
                return Ok(self.newest(token.family));
            }
            family.ended = Some("reused");
            return Err("reused");
        }
        family.expiries.push(now + lifetime);
        if rotation != Rotation::Reusable {
            family.refresh += 1;
            family.superseded_at = now;
        }
        Ok(self.newest(token.family))
    }

    fn accepts(&self, token: Token, now: Duration) -> Result<(), &'static str> {
        let family = &self.families[token.family];
        match family.expiries.get(token.number - 1) {
            _ if family.ended.is_some() => Err("ended"),
            Some(expiry) if now < *expiry => Ok(()),
            _ => Err("expired"),
        }
    }
}

/// `POST /auth/refresh`.
pub async fn refresh(world: Arc<World>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let Ok(body) = request.into_body().collect().await else {
        return answer(StatusCode::BAD_REQUEST, &json!({}));
    };
    let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
    let token = Token::read(body["refresh_token"].as_str().unwrap()).unwrap();
    let ticket = Ticket::from_json(&body["ticket"]);
    sleep(world.pause(0..30)).await;
    if world.springs(Trap::AuthBeforeRotation, "auth") {
        return forever().await;
    }
    let (outcome, fault) = {
        let now = world.now();
        let mut state = world.state();
        let fault = state.faulty(world.plan.auth_faults).then(|| state.rng.u8(0..3));
        match fault {
            Some(0) => {
                state.judge.note(now, format_args!("auth: 503 to {ticket}"));
                let mut later = answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": "temporarily_unavailable"}));
                later.headers_mut().insert(RETRY_AFTER, http::HeaderValue::from_static("1"));
                return later;
            }
            Some(1) => {
                state.judge.note(now, format_args!("auth: 500 to {ticket}, nothing done"));
                return answer(StatusCode::INTERNAL_SERVER_ERROR, &json!({}));
            }
            _ => {}
        }
        let reused = state.authority.is_superseded(token);
        let outcome = state.authority.refresh(token, now);
        state.judge.exchanged(now, ticket, token, reused, outcome.as_ref().err().copied());
        (outcome, fault)
    };
    if world.springs(Trap::AuthAfterRotation, "auth") {
        return forever().await;
    }
    sleep(world.pause(0..30)).await;
    match outcome {
        _ if fault.is_some() => answer(StatusCode::INTERNAL_SERVER_ERROR, &json!({})),
        Err(_) => answer(StatusCode::UNAUTHORIZED, &json!({"error": "invalid_grant"})),
        Ok(tokens) => {
            let access = tokens.access_token().unwrap().expose_secret();
            let refresh = tokens.refresh_token().unwrap().expose_secret();
            answer(StatusCode::OK, &json!({"access_token": access, "refresh_token": refresh, "token_type": "Bearer"}))
        }
    }
}

/// What the APIs answer to everything.
pub async fn api(world: Arc<World>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return answer(StatusCode::BAD_REQUEST, &json!({}));
    };
    sleep(world.pause(0..40)).await;
    let id = head.headers["x-request"].to_str().unwrap().parse().unwrap();
    let token = Token::bearer(&head.headers);
    let verdict = {
        let now = world.now();
        let mut state = world.state();
        let verdict = token.ok_or("no token").and_then(|token| state.authority.accepts(token, now));
        state.judge.arrived(now, id, token, &body.to_bytes(), verdict);
        verdict
    };
    sleep(world.pause(0..40)).await;
    if verdict.is_ok() {
        return answer(StatusCode::OK, &json!({"request": id}));
    }
    let mut refusal = answer(StatusCode::UNAUTHORIZED, &json!({"error": "invalid_token"}));
    let challenge = http::HeaderValue::from_static(r#"Bearer error="invalid_token""#);
    refusal.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    refusal
}

fn answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response
}

impl World {
    /// How long a host takes to think.
    pub fn pause(&self, range: std::ops::Range<u64>) -> Duration {
        millis(&mut self.state().rng, range)
    }
}
