//! `/oauth/…` and the metadata: authorization code with PKCE, device grant, refresh and revocation, for any client.

use bytes::Buf;
use form_urlencoded::{Serializer, parse};
use http::header::{HOST, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use http_body::Body;
use serde_json::json;

use super::auth_body;
use crate::answer::Answer;
use crate::body::BoxError;
use crate::exchange::Exchange;
use crate::families::micros;
use crate::sign_ins::{Authorized, Refused};
use crate::token::{Kind, Token, TokenPair};

const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// The user that signs in where a request names none.
const USER: &str = "ada";

/// A request that has been read.
pub(crate) enum OAuthCall {
    Metadata { issuer: String },
    Authorize { issuer: String, params: Params },
    Device { issuer: String, params: Params },
    Verify { params: Params },
    Token { params: Params },
    Refresh(Option<Token>),
    Revoke(Option<Token>),
    Invalid(StatusCode),
}

/// The parameters of a query or a form.
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    fn read(encoded: &[u8]) -> Self {
        Self(parse(encoded).into_owned().collect())
    }

    fn get(&self, name: &str) -> &str {
        self.get_or(name, "")
    }

    fn get_or<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.0.iter().find(|(other, _)| other == name).map_or(default, |(_, value)| value)
    }

    /// The token of a refresh or a revocation, if it is one of this kit that may be presented there.
    fn token(&self, name: &str, is_accepted: impl Fn(Kind) -> bool, exchange: &mut Exchange) -> Option<Token> {
        let token = exchange.kit.state().families.read(self.get(name));
        let token = token.filter(|token| is_accepted(token.kind))?;
        exchange.set_token(token);
        Some(token)
    }
}

impl OAuthCall {
    pub(super) async fn read<B>(head: &Parts, body: B, exchange: &mut Exchange) -> Self
    where
        B: Body<Data: Buf, Error: Into<BoxError>>,
    {
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| head.uri.authority().map(http::uri::Authority::as_str)).unwrap_or("127.0.0.1");
        let issuer = format!("http://{host}");
        let query = || Params::read(head.uri.query().unwrap_or_default().as_bytes());
        match (head.uri.path(), &head.method) {
            ("/.well-known/oauth-authorization-server", &Method::GET) => return Self::Metadata { issuer },
            ("/oauth/authorize", &Method::GET) => return Self::Authorize { issuer, params: query() },
            ("/oauth/verify", &Method::GET) => return Self::Verify { params: query() },
            ("/oauth/device" | "/oauth/revoke" | "/oauth/token", &Method::POST) => {}
            ("/oauth/authorize" | "/oauth/device" | "/oauth/revoke" | "/oauth/token" | "/oauth/verify", _) => {
                return Self::Invalid(StatusCode::METHOD_NOT_ALLOWED);
            }
            _ => return Self::Invalid(StatusCode::NOT_FOUND),
        }
        let Some(form) = auth_body(body).await else { return Self::Invalid(StatusCode::BAD_REQUEST) };
        let params = Params::read(&form);
        match head.uri.path() {
            "/oauth/device" => Self::Device { issuer, params },
            "/oauth/revoke" => Self::Revoke(params.token("token", |_| true, exchange)),
            _ if params.get("grant_type") == "refresh_token" => {
                exchange.become_refresh();
                Self::Refresh(params.token("refresh_token", |kind| kind == Kind::Refresh, exchange))
            }
            _ => Self::Token { params },
        }
    }
}

pub(super) fn answer(call: OAuthCall, exchange: &mut Exchange) -> Answer {
    match call {
        OAuthCall::Metadata { issuer } => metadata(&issuer),
        OAuthCall::Authorize { issuer, params } => authorize(&issuer, &params, exchange),
        OAuthCall::Device { issuer, params } => device(&issuer, &params, exchange),
        OAuthCall::Verify { params } => {
            let user = params.get_or("user", USER);
            if exchange.kit.approve_device(params.get("user_code"), user) {
                Answer::json(StatusCode::OK, json!({ "approved": user }))
            } else {
                Answer::error(StatusCode::NOT_FOUND, "unknown_code")
            }
        }
        OAuthCall::Token { params } => token(&params, exchange),
        OAuthCall::Refresh(_) => Answer::error(StatusCode::BAD_REQUEST, "invalid_grant"),
        OAuthCall::Revoke(token) => {
            if let Some(token) = token {
                exchange.kit.state().families.end(token.family);
            }
            Answer::empty(StatusCode::OK)
        }
        OAuthCall::Invalid(status) => Answer::error(status, "invalid_request"),
    }
}

fn metadata(issuer: &str) -> Answer {
    let metadata = json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/oauth/authorize"),
        "token_endpoint": format!("{issuer}/oauth/token"),
        "device_authorization_endpoint": format!("{issuer}/oauth/device"),
        "revocation_endpoint": format!("{issuer}/oauth/revoke"),
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "refresh_token", DEVICE_GRANT],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none"],
        "authorization_response_iss_parameter_supported": true,
    });
    Answer::json(StatusCode::OK, metadata)
}

/// Redirects at once: there is no page, and no password is asked for.
fn authorize(issuer: &str, params: &Params, exchange: &mut Exchange) -> Answer {
    let redirect_uri = params.get("redirect_uri");
    let is_complete = params.get("response_type") == "code"
        && params.get("code_challenge_method") == "S256"
        && params.get("code_challenge").len() == 43
        && !params.get("client_id").is_empty();
    if !is_complete || redirect_uri.is_empty() || redirect_uri.contains(['?', '#']) {
        return Answer::error(StatusCode::BAD_REQUEST, "invalid_request");
    }
    let user = params.get_or("login_hint", USER);
    exchange.set_user(user);
    let now = exchange.kit.now();
    let mut query = Serializer::new(String::new());
    {
        let state = &mut *exchange.kit.state();
        if state.settings.consent {
            let authorized = Authorized {
                user: user.to_owned(),
                client_id: params.get("client_id").to_owned(),
                redirect_uri: redirect_uri.to_owned(),
                challenge: params.get("code_challenge").to_owned(),
            };
            query.append_pair("code", &state.sign_ins.authorize(authorized, now));
        } else {
            query.append_pair("error", "access_denied");
        }
    }
    query.append_pair("state", params.get("state")).append_pair("iss", issuer);
    match HeaderValue::try_from(format!("{redirect_uri}?{}", query.finish())) {
        Ok(location) => Answer::empty(StatusCode::FOUND).header(LOCATION, location),
        Err(_) => Answer::error(StatusCode::BAD_REQUEST, "invalid_request"),
    }
}

fn device(issuer: &str, params: &Params, exchange: &mut Exchange) -> Answer {
    let now = exchange.kit.now();
    let state = &mut *exchange.kit.state();
    let (interval, lifetime) = (state.settings.device_interval, state.settings.device_lifetime);
    let expires = now.saturating_add(micros(lifetime));
    let (device_code, user_code) = state.sign_ins.begin_device(params.get("client_id"), expires);
    let answer = json!({
        "verification_uri": format!("{issuer}/oauth/verify"),
        "verification_uri_complete": format!("{issuer}/oauth/verify?user_code={user_code}"),
        "device_code": device_code,
        "user_code": user_code,
        "expires_in": lifetime.as_secs(),
        "interval": interval.as_secs(),
    });
    Answer::json(StatusCode::OK, answer)
}

fn token(params: &Params, exchange: &mut Exchange) -> Answer {
    let granted = match params.get("grant_type") {
        "authorization_code" => code_grant(params, exchange),
        DEVICE_GRANT => device_grant(params, exchange),
        _ => Err("unsupported_grant_type".into()),
    };
    match granted {
        Ok((user, pair)) => {
            exchange.set_user(&user);
            Answer::json(StatusCode::OK, pair)
        }
        Err(refused) => {
            exchange.note(refused.code);
            // RFC 6749 §4.1.2: the code may have been stolen, and with it the tokens.
            if let Some(family) = refused.replayed {
                exchange.kit.state().families.end(family);
            }
            Answer::error(StatusCode::BAD_REQUEST, refused.code)
        }
    }
}

fn code_grant(params: &Params, exchange: &Exchange) -> Result<(String, TokenPair), Refused> {
    let now = exchange.kit.now();
    let state = &mut *exchange.kit.state();
    let code = params.get("code");
    let presented = ["client_id", "redirect_uri", "code_verifier"].map(|name| params.get(name));
    let user = state.sign_ins.redeem(code, presented, now)?;
    let pair = state.families.sign_in(&user, &state.settings, now);
    let family = state.families.read(&pair.refresh_token).map(|token| token.family);
    state.sign_ins.redeemed(code, family);
    Ok((user, pair))
}

fn device_grant(params: &Params, exchange: &Exchange) -> Result<(String, TokenPair), Refused> {
    let now = exchange.kit.now();
    let state = &mut *exchange.kit.state();
    let interval = micros(state.settings.device_interval);
    let user = state.sign_ins.poll_device(params.get("device_code"), params.get("client_id"), interval, now)?;
    let pair = state.families.sign_in(&user, &state.settings, now);
    Ok((user, pair))
}
