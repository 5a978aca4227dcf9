//! The authorization server, whose records survive a crash like a database, and the APIs that check its tokens.

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

use crate::net::forever;
use crate::oracle::Ticket;
use crate::plan::{CrashPoint, Plan, millis};
use crate::simulation::Environment;

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

    /// Reads the token of a request.
    pub fn bearer(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(AUTHORIZATION)?.to_str().unwrap();
        Some(Self::read(value.strip_prefix("Bearer ").unwrap()).unwrap())
    }
}

/// The authorization server's records on disk.
pub struct Authority {
    families: Vec<Family>,
    rotation: Rotation,
    grace: Duration,
    lifetime: Duration,
    /// Responses carry `expires_in`.
    sends_expiry: bool,
}

/// One sign-in and the tokens that descend from it.
pub struct Family {
    pub user: usize,
    /// The expiry of each access token, the newest last.
    expiries: Vec<Duration>,
    /// The refresh token in force.
    pub refresh: usize,
    superseded_at: Duration,
    pub ended: Option<&'static str>,
}

impl Authority {
    pub fn new(plan: &Plan) -> Self {
        let (rotation, grace, lifetime) = (plan.rotation, plan.grace, plan.access_lifetime);
        Self { families: Vec::new(), rotation, grace, lifetime, sends_expiry: plan.early.is_some() }
    }

    pub fn family(&self, id: usize) -> &Family {
        &self.families[id]
    }

    pub fn sign_in(&mut self, user: usize, now: Duration) -> Tokens {
        let expiries = vec![now + self.lifetime];
        self.families.push(Family { user, expiries, refresh: 1, superseded_at: Duration::ZERO, ended: None });
        self.issued(self.families.len() - 1, now)
    }

    /// Returns the newest tokens, with their expiry if it is sent.
    fn issued(&self, family: usize, now: Duration) -> Tokens {
        let expiry = self.families[family].expiries.last().expect("at least one access token");
        let tokens = self.newest(family);
        if self.sends_expiry { tokens.with_expires_in(expiry.saturating_sub(now)) } else { tokens }
    }

    /// Returns the expiry of an access token.
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

    /// Exchanges a refresh token for new tokens.
    fn refresh(&mut self, token: Token, now: Duration) -> Result<Tokens, &'static str> {
        let (rotation, grace, lifetime) = (self.rotation, self.grace, self.lifetime);
        let family = self.families.get_mut(token.family).ok_or("unknown")?;
        if let Some(reason) = family.ended {
            return Err(reason);
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

/// Serves `POST /auth/refresh`, with JSON or a form.
pub async fn refresh(env: Arc<Environment>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let Ok(body) = request.into_body().collect().await else {
        return answer(StatusCode::BAD_REQUEST, &json!({}));
    };
    let body = body.to_bytes();
    let body: Value = if env.plan.oauth {
        // No value in the form needs escaping.
        let form = std::str::from_utf8(&body).unwrap().split('&').map(|pair| pair.split_once('=').unwrap());
        form.map(|(name, value)| (name.to_owned(), value.into())).collect::<serde_json::Map<_, _>>().into()
    } else {
        serde_json::from_slice(&body).unwrap()
    };
    let token = Token::read(body["refresh_token"].as_str().unwrap()).unwrap();
    let ticket = Ticket::read(body["ticket"].as_str().unwrap());
    sleep(env.pause(0..30)).await;
    if env.crashes_at(CrashPoint::AuthBeforeRotation, "auth") {
        return forever().await;
    }
    let (outcome, fault) = {
        let now = env.now();
        let mut state = env.state();
        let fault = state.faulty(env.plan.auth_faults).then(|| state.rng.u8(0..3));
        match fault {
            Some(0) => {
                state.oracle.note(now, format_args!("auth: 503 to call {ticket}"));
                let mut later = answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": "temporarily_unavailable"}));
                later.headers_mut().insert(RETRY_AFTER, http::HeaderValue::from_static("1"));
                return later;
            }
            Some(1) => {
                state.oracle.note(now, format_args!("auth: 500 to call {ticket}, nothing done"));
                return answer(StatusCode::INTERNAL_SERVER_ERROR, &json!({}));
            }
            _ => {}
        }
        let reused = state.authority.is_superseded(token);
        let outcome = state.authority.refresh(token, now);
        state.oracle.call_processed(now, ticket, token, reused, outcome.as_ref().err().copied());
        (outcome, fault)
    };
    if env.crashes_at(CrashPoint::AuthAfterRotation, "auth") {
        return forever().await;
    }
    sleep(env.pause(0..30)).await;
    match outcome {
        _ if fault.is_some() => answer(StatusCode::INTERNAL_SERVER_ERROR, &json!({})),
        Err(_) if env.plan.oauth => answer(StatusCode::BAD_REQUEST, &json!({"error": "invalid_grant"})),
        Err(_) => answer(StatusCode::UNAUTHORIZED, &json!({"error": "invalid_grant"})),
        Ok(tokens) => {
            let access = tokens.access_token().unwrap().expose_secret();
            let refresh = tokens.refresh_token().unwrap().expose_secret();
            let lifetime = tokens.expires_at().map(|_| env.lifetime(crate::store::access_token(&tokens)).as_secs_f64());
            let granted = json!({
                "access_token": access, "refresh_token": refresh, "token_type": "Bearer", "expires_in": lifetime,
            });
            answer(StatusCode::OK, &granted)
        }
    }
}

/// Serves every request to an API.
pub async fn api(env: Arc<Environment>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return answer(StatusCode::BAD_REQUEST, &json!({}));
    };
    sleep(env.pause(0..40)).await;
    let id = head.headers["x-request"].to_str().unwrap().parse().unwrap();
    let token = Token::bearer(&head.headers);
    let verdict = {
        let now = env.now();
        let mut state = env.state();
        let verdict = token.ok_or("no token").and_then(|token| state.authority.accepts(token, now));
        state.oracle.request_arrived(now, id, token, &body.to_bytes(), verdict);
        verdict
    };
    sleep(env.pause(0..40)).await;
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

impl Environment {
    /// Returns the remaining lifetime of an access token.
    fn lifetime(&self, access: Token) -> Duration {
        let now = self.now();
        self.state().authority.expiry(access).saturating_sub(now)
    }

    /// Draws a processing time in milliseconds.
    pub fn pause(&self, range: std::ops::Range<u64>) -> Duration {
        millis(&mut self.state().rng, range)
    }
}
