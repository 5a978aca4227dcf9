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
    /// Whether it says when its tokens expire.
    tells: bool,
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
        let (rotation, grace, lifetime) = (plan.rotation, plan.grace, plan.access_lifetime);
        Self { families: Vec::new(), rotation, grace, lifetime, tells: plan.early.is_some() }
    }

    pub fn family(&self, id: usize) -> &Family {
        &self.families[id]
    }

    pub fn sign_in(&mut self, user: usize, now: Duration) -> Tokens {
        let expiries = vec![now + self.lifetime];
        self.families.push(Family { user, expiries, refresh: 1, superseded_at: Duration::ZERO, ended: None });
        self.issued(self.families.len() - 1, now)
    }

    /// The newest tokens, as they are issued.
    fn issued(&self, family: usize, now: Duration) -> Tokens {
        let expiry = self.families[family].expiries.last().expect("one at least");
        let tokens = self.newest(family);
        if self.tells { tokens.with_expires_in(expiry.saturating_sub(now)) } else { tokens }
    }

    /// When an access token expires.
    pub fn expiry(&self, access: Token) -> Duration {
        self.families[access.family].expiries[access.number - 1]
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
                return Ok(self.issued(token.family, now));
            }
            family.ended = Some("reused");
            return Err("reused");
        }
        family.expiries.push(now + lifetime);
        if rotation != Rotation::Reusable {
            family.refresh += 1;
            family.superseded_at = now;
        }
        Ok(self.issued(token.family, now))
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

/// `POST /auth/refresh`, of JSON or a form.
pub async fn refresh(world: Arc<World>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let Ok(body) = request.into_body().collect().await else {
        return answer(StatusCode::BAD_REQUEST, &json!({}));
    };
    let body = body.to_bytes();
    let body: Value = if world.plan.oauth {
        // Nothing in it needs to be escaped.
        let form = std::str::from_utf8(&body).unwrap().split('&').map(|pair| pair.split_once('=').unwrap());
        form.map(|(name, value)| (name.to_owned(), value.into())).collect::<serde_json::Map<_, _>>().into()
    } else {
        serde_json::from_slice(&body).unwrap()
    };
    let token = Token::read(body["refresh_token"].as_str().unwrap()).unwrap();
    let ticket = Ticket::read(body["ticket"].as_str().unwrap());
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
                state.judge.note(now, format_args!("auth: 503 to call {ticket}"));
                let mut later = answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": "temporarily_unavailable"}));
                later.headers_mut().insert(RETRY_AFTER, http::HeaderValue::from_static("1"));
                return later;
            }
            Some(1) => {
                state.judge.note(now, format_args!("auth: 500 to call {ticket}, nothing done"));
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
        Err(_) if world.plan.oauth => answer(StatusCode::BAD_REQUEST, &json!({"error": "invalid_grant"})),
        Err(_) => answer(StatusCode::UNAUTHORIZED, &json!({"error": "invalid_grant"})),
        Ok(tokens) => {
            let access = tokens.access_token().unwrap().expose_secret();
            let refresh = tokens.refresh_token().unwrap().expose_secret();
            let lifetime =
                tokens.expires_at().map(|_| world.lifetime(crate::store::access_token(&tokens)).as_secs_f64());
            let granted = json!({
                "access_token": access, "refresh_token": refresh, "token_type": "Bearer", "expires_in": lifetime,
            });
            answer(StatusCode::OK, &granted)
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
    /// How long an access token has yet to live.
    fn lifetime(&self, access: Token) -> Duration {
        let now = self.now();
        self.state().authority.expiry(access).saturating_sub(now)
    }

    /// How long a host takes to think.
    pub fn pause(&self, range: std::ops::Range<u64>) -> Duration {
        millis(&mut self.state().rng, range)
    }
}
