//! The decision table: the meaning of each answer, as one pure function.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};
use tower::BoxError;
use tower_auth_refresh::RefreshToken;

use crate::answer::Answer;
use crate::challenges::Challenges;
use crate::cookie::{CookieChange, ReceivedCookies};
use crate::decode::{BROKEN_OFF, BodyEnd};
use crate::error::{AuthServerError, ErrorCode, Kind};
use crate::fields::{Granted, TokenFields};
use crate::retry_after::{rate_limit_reset, retry_after};

/// Reads the answers to one kind of call.
#[derive(Clone)]
pub(crate) struct Classifier {
    call: Call,
    fields: TokenFields,
    rejected_when: Option<Arc<RejectedWhen>>,
}

type RejectedWhen = dyn Fn(StatusCode, &Value) -> bool + Send + Sync;

/// A kind of call. They differ in the statuses that are the server's own refusal without an OAuth error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// RFC 6749: none.
    OAuth,
    /// An app's own refresh endpoint: 401.
    Refresh,
    /// An app's own login: 400, 401, 403, 422.
    Login,
}

impl Classifier {
    pub(crate) fn new(call: Call) -> Self {
        Self { call, fields: TokenFields::default(), rejected_when: None }
    }

    pub(crate) fn fields(&mut self, fields: TokenFields) {
        self.fields = fields;
    }

    pub(crate) fn rejected_when(&mut self, predicate: impl Fn(StatusCode, &Value) -> bool + Send + Sync + 'static) {
        self.rejected_when = Some(Arc::new(predicate));
    }

    pub(crate) fn oauth_rules(&mut self) {
        self.call = Call::OAuth;
    }

    /// Returns the tokens of an answer, or its meaning if it has none.
    ///
    /// A refresh token that the answer issues beside a failure, other than the one that was presented, is kept in the
    /// error: the one that was presented may be superseded.
    pub(crate) fn tokens(
        &self,
        answer: Answer,
        cookies: ReceivedCookies,
        presented: Option<&RefreshToken>,
    ) -> Result<Granted, AuthServerError> {
        let issued = match &cookies.refresh {
            Some(change) => change.token(),
            None if answer.status.is_success() => self.fields.issued_refresh_token(&answer.text),
            None => None,
        };
        let issued = issued.filter(|token| Some(token) != presented);
        let parsed = Parsed::from(answer);
        self.check_rejected_when(&parsed)?;
        self.granted(parsed, cookies).map_err(|error| match issued {
            Some(token) => error.with_refresh_token(token),
            None => error,
        })
    }

    /// Returns the members of an answer that is a JSON object.
    pub(crate) fn members(&self, answer: Answer) -> Result<Map<String, Value>, AuthServerError> {
        let parsed = Parsed::from(answer);
        if !parsed.status.is_success() {
            return Err(self.failure(parsed));
        }
        match (parsed.named_error(), &parsed.json) {
            (None, Value::Object(members)) => Ok(members.clone()),
            _ => Err(self.unusable(parsed, misconfigured("the answer is not a JSON object"))),
        }
    }

    /// Returns `Ok` for a success, whatever its body, and for a refusal of the token itself: it is revoked already.
    pub(crate) fn revoked(&self, answer: Answer) -> Result<(), AuthServerError> {
        if answer.status.is_success() {
            return Ok(());
        }
        let error = self.failure(Parsed::from(answer));
        if error.is_rejected() || error.code() == Some("invalid_token") { Ok(()) } else { Err(error) }
    }

    /// As [`revoked`](Self::revoked), and `Ok` for any other answer by which an app shows that the session is over.
    pub(crate) fn signed_out(&self, answer: Answer) -> Result<(), AuthServerError> {
        let page = answer.text.trim_ascii_start().starts_with(b"<");
        let gone = matches!(answer.status.as_u16(), 401 | 403 | 404)
            && !page
            && matches!(answer.end, BodyEnd::Complete)
            && !Challenges::read(&answer.headers).are_a_proxys();
        match self.revoked(answer) {
            // A known code is about the client or the request, not about the token.
            Err(error) if gone && error.code().and_then(kind_of_code).is_none() => Ok(()),
            other => other,
        }
    }

    fn check_rejected_when(&self, parsed: &Parsed) -> Result<(), AuthServerError> {
        match &self.rejected_when {
            Some(predicate) if predicate(parsed.status, &parsed.json) => {
                Err(self.rejected().with_status(parsed.status).with_code(parsed.code()))
            }
            _ => Ok(()),
        }
    }

    fn granted(&self, parsed: Parsed, cookies: ReceivedCookies) -> Result<Granted, AuthServerError> {
        let status = parsed.status;
        let deleted = matches!(cookies.refresh, Some(CookieChange::Deleted));
        if deleted && (status.is_success() || status.is_client_error()) {
            let problem = "the server deleted the refresh cookie";
            return Err(AuthServerError::new(Kind::Rejected, problem).with_status(status));
        }
        if !status.is_success() {
            return Err(self.failure(parsed));
        }
        let known_error = parsed.named_error().and_then(kind_of_code).is_some();
        let mut values = self.fields.take(parsed.json.clone());
        let kept = cookies.apply(&mut values);
        match values.check() {
            Ok(mut granted) if !known_error => {
                granted.extra.extend(kept);
                Ok(granted)
            }
            Ok(_) => Err(self.unusable(parsed, misconfigured("the server answered with an error"))),
            Err(error) => Err(self.unusable(parsed, error)),
        }
    }

    /// The meaning of a success that holds no usable tokens. `error` applies if nothing else is wrong.
    fn unusable(&self, parsed: Parsed, error: AuthServerError) -> AuthServerError {
        let status = parsed.status;
        if let Some(name) = parsed.named_error() {
            let kind = kind_of_code(name).unwrap_or(Kind::Misconfigured);
            return self.by_kind(kind, &parsed.headers).with_status(status).with_code(parsed.code());
        }
        let error = match parsed.body {
            Body::Lost(source) => in_doubt(BROKEN_OFF).with_source(source),
            Body::Unreadable(problem) => in_doubt(problem),
            Body::Empty => in_doubt("the answer is empty"),
            Body::Json => error,
        };
        error.with_status(status)
    }

    /// The meaning of an answer that is no success.
    fn failure(&self, parsed: Parsed) -> AuthServerError {
        let (status, headers) = (parsed.status, &parsed.headers);
        let name = parsed.named_error();
        let kind = name.and_then(kind_of_code);
        let error = match status {
            _ if status.is_redirection() => AuthServerError::redirected(),
            _ if status.is_client_error() && kind == Some(Kind::Rejected) => self.rejected(),
            StatusCode::TOO_MANY_REQUESTS => match retry_after(headers) {
                Some(delay) => unavailable(Some(delay)),
                None => unavailable(rate_limit_reset(headers)).without_retry(),
            },
            StatusCode::SERVICE_UNAVAILABLE if retry_after(headers).is_some() => unavailable(retry_after(headers)),
            _ if kind == Some(Kind::Unavailable) => unavailable(retry_after(headers)),
            _ if !status.is_client_error() => in_doubt("the server failed"),
            // The server's word is lost, and may have been a rejection.
            _ if matches!(parsed.body, Body::Lost(_)) => in_doubt(BROKEN_OFF),
            StatusCode::UNAUTHORIZED if Challenges::read(headers).ask_for_a_sign_in() => self.rejected(),
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED => match kind {
                Some(kind) if !self.is_vague(name, status) => self.by_kind(kind, headers),
                _ if self.is_own_refusal(&parsed) => self.rejected(),
                _ => misconfigured("the server answered with an error"),
            },
            _ if self.is_own_refusal(&parsed) => self.rejected(),
            _ => misconfigured("the server answered with an error"),
        };
        let error = error.with_status(status).with_code(parsed.code());
        match parsed.body {
            Body::Lost(source) => error.with_source(source),
            _ => error,
        }
    }

    /// Returns `true` for an error that doesn't say what is wrong, so that the status decides.
    ///
    /// league/oauth2-server up to 8, and apps built on it, answer 401 `invalid_request` to a dead refresh token.
    fn is_vague(&self, name: Option<&str>, status: StatusCode) -> bool {
        self.call != Call::OAuth
            && status == StatusCode::UNAUTHORIZED
            && name.is_some_and(|name| name.eq_ignore_ascii_case("invalid_request"))
    }

    /// Returns `true` if the failure is the app's own refusal. The page of a proxy or firewall must not end a session.
    fn is_own_refusal(&self, parsed: &Parsed) -> bool {
        let is_object = parsed.json.is_object();
        match (self.call, parsed.status.as_u16()) {
            (Call::Refresh | Call::Login, 401) if is_object => !Challenges::read(&parsed.headers).are_a_proxys(),
            (Call::Refresh | Call::Login, 401) => {
                matches!(parsed.body, Body::Empty) && !Challenges::read(&parsed.headers).are_foreign()
            }
            (Call::Login, 400 | 403 | 422) => is_object,
            _ => false,
        }
    }

    fn rejected(&self) -> AuthServerError {
        let problem = match self.call {
            Call::OAuth => "the server rejected the grant",
            Call::Refresh => "the server rejected the refresh token",
            Call::Login => "the server rejected the credentials",
        };
        AuthServerError::new(Kind::Rejected, problem)
    }

    fn by_kind(&self, kind: Kind, headers: &HeaderMap) -> AuthServerError {
        match kind {
            Kind::Rejected => self.rejected(),
            Kind::Misconfigured => misconfigured("the server answered with an error"),
            Kind::Unavailable => unavailable(retry_after(headers)),
            Kind::InDoubt => in_doubt("the server answered with an error"),
        }
    }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Classifier").field("call", &self.call).finish_non_exhaustive()
    }
}

/// An answer whose body has been parsed.
struct Parsed {
    status: StatusCode,
    headers: HeaderMap,
    /// `null` unless the body is JSON.
    json: Value,
    body: Body,
}

enum Body {
    Json,
    Empty,
    Unreadable(&'static str),
    Lost(BoxError),
}

impl From<Answer> for Parsed {
    fn from(answer: Answer) -> Self {
        let Answer { status, headers, text, end } = answer;
        let (json, body) = match (end.problem(), end) {
            (None, _) if text.trim_ascii().is_empty() => (Value::Null, Body::Empty),
            (None, _) => match parse_json(&text) {
                Some(json) => (json, Body::Json),
                None => (Value::Null, Body::Unreadable("the answer is not JSON")),
            },
            (Some(_), BodyEnd::BrokenOff(error)) => (Value::Null, Body::Lost(error)),
            (Some(problem), _) => (Value::Null, Body::Unreadable(problem)),
        };
        Self { status, headers, json, body }
    }
}

impl Parsed {
    fn named_error(&self) -> Option<&str> {
        self.json.get("error").and_then(named_error)
    }

    /// The error code, if it can be shown.
    fn code(&self) -> Option<ErrorCode> {
        self.named_error().and_then(ErrorCode::parse)
    }
}

/// Parses JSON, in which bytes that aren't UTF-8 cost only the strings that hold them.
fn parse_json(text: &[u8]) -> Option<Value> {
    serde_json::from_slice(text).or_else(|_| serde_json::from_str(&String::from_utf8_lossy(text))).ok()
}

fn in_doubt(problem: &'static str) -> AuthServerError {
    AuthServerError::new(Kind::InDoubt, problem)
}

fn misconfigured(problem: &'static str) -> AuthServerError {
    AuthServerError::misconfigured(problem)
}

fn unavailable(retry_after: Option<Duration>) -> AuthServerError {
    AuthServerError::new(Kind::Unavailable, "the server asked to be called later").with_retry_after(retry_after)
}

/// An `error` member that names an error. An empty object, `null` and `""` don't, and occur in successes.
fn named_error(error: &Value) -> Option<&str> {
    match error {
        Value::String(name) if !name.is_empty() => Some(name),
        // `{"error": {"code": …}}`
        Value::Object(members) if !members.is_empty() => {
            Some(["code", "error", "type"].into_iter().find_map(|name| members.get(name)?.as_str()).unwrap_or("?"))
        }
        _ => None,
    }
}

/// The meaning of an error code by itself.
///
/// The codes are those of RFC 6749 §5.2, RFC 8628 §3.5, RFC 8707 §2, RFC 9470 §3 and OpenID Connect Core §3.1.2.6, and
/// two that large providers use in place of `invalid_grant`.
fn kind_of_code(code: &str) -> Option<Kind> {
    Some(match &*code.to_ascii_lowercase() {
        "invalid_grant"
        | "bad_refresh_token"
        | "invalid_refresh_token"
        | "login_required"
        | "interaction_required"
        | "consent_required"
        | "insufficient_user_authentication" => Kind::Rejected,
        "invalid_client"
        | "unauthorized_client"
        | "unsupported_grant_type"
        | "invalid_request"
        | "invalid_scope"
        | "invalid_target" => Kind::Misconfigured,
        "temporarily_unavailable" | "slow_down" => Kind::Unavailable,
        "server_error" => Kind::InDoubt,
        _ => return None,
    })
}
