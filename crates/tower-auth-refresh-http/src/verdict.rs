//! What an answer means: the decision table, as one pure function.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{DATE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};

use crate::answer::{Answer, AnswerBody};
use crate::error::{AuthServerError, ErrorCode, Verdict};

/// No server is obeyed for longer than this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// Reads answers for one kind of call.
#[derive(Clone)]
pub(crate) struct Judge {
    call: Call,
    rejected_when: Option<Arc<RejectedWhen>>,
}

type RejectedWhen = dyn Fn(StatusCode, &Value) -> bool + Send + Sync;

/// What kind of call it is: they differ in which statuses are the server's own "no" without an OAuth error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// RFC 6749: none.
    OAuth,
    /// An app's own refresh endpoint: 401.
    Refresh,
    /// An app's own login: 400, 401, 403, 422.
    Login,
}

impl Judge {
    pub(crate) fn new(call: Call) -> Self {
        Self { call, rejected_when: None }
    }

    pub(crate) fn rejected_when(mut self, says: impl Fn(StatusCode, &Value) -> bool + Send + Sync + 'static) -> Self {
        self.rejected_when = Some(Arc::new(says));
        self
    }

    /// The members of a successful answer, or what else the answer means.
    pub(crate) fn judge(&self, answer: Answer) -> Result<Map<String, Value>, AuthServerError> {
        let Answer { status, headers, body } = answer;
        let (json, body) = match body {
            AnswerBody::Whole(text) if text.trim_ascii().is_empty() => (Value::Null, Body::Empty),
            AnswerBody::Whole(text) => match serde_json::from_slice(&text) {
                Ok(json) => (json, Body::Json),
                Err(_) => (Value::Null, Body::Unreadable("the answer is not JSON")),
            },
            AnswerBody::TooLong => (Value::Null, Body::Unreadable("the answer is longer than the limit")),
            AnswerBody::Encoded => (Value::Null, Body::Unreadable("the answer is encoded, and was not decoded")),
            AnswerBody::BrokenOff(error) => (Value::Null, Body::Lost(error)),
        };
        if self.rejected_when.as_ref().is_some_and(|says| says(status, &json)) {
            return Err(refused(status).code_is(code(&json)));
        }
        if !status.is_success() {
            return Err(self.failure(status, &headers, &json, body));
        }
        match body {
            Body::Lost(error) => Err(in_doubt("the answer broke off", status).caused_by(error)),
            Body::Unreadable(what) => Err(in_doubt(what, status)),
            Body::Empty => Err(in_doubt("the answer is empty", status)),
            Body::Json => match json {
                Value::Object(members) => match members.get("error").and_then(named_error) {
                    Some(error) => Err(by_code(error, &headers)
                        .unwrap_or_else(|| misconfigured("the server answered with an error"))
                        .status_is(status)
                        .code_is(ErrorCode::parse(error))),
                    None => Ok(members),
                },
                _ => Err(in_doubt("the answer is not a JSON object", status)),
            },
        }
    }

    /// Nothing but success is asked for: a revocation, a logout. Success needs no body, so none is looked at.
    pub(crate) fn acknowledged(&self, answer: Answer) -> Result<(), AuthServerError> {
        if answer.status.is_success() { Ok(()) } else { self.judge(answer).map(drop) }
    }

    fn failure(&self, status: StatusCode, headers: &HeaderMap, json: &Value, body: Body) -> AuthServerError {
        let error = json.get("error").and_then(named_error);
        let by_code = error.and_then(|error| by_code(error, headers));
        let later = by_code.as_ref().is_some_and(AuthServerError::is_unavailable);
        let retry_after = retry_after(headers);
        let judged = match status {
            _ if status.is_redirection() => misconfigured("the answer is a redirect, which is never followed"),
            StatusCode::TOO_MANY_REQUESTS => unavailable(retry_after),
            StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => unavailable(retry_after),
            _ if later => unavailable(retry_after),
            _ if !status.is_client_error() => in_doubt("the server failed", status),
            // What the server wanted to say is lost, and it may have been a "no".
            _ if matches!(body, Body::Lost(_)) => in_doubt("the answer broke off", status),
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED if by_code.is_some() => {
                by_code.unwrap_or_else(|| refused(status))
            }
            StatusCode::UNAUTHORIZED if is_step_up(headers) => refused(status),
            _ if self.is_own_word(status, headers, json, &body) => refused(status),
            _ => misconfigured("the server answered with an error"),
        };
        let judged = judged.status_is(status).code_is(error.and_then(ErrorCode::parse));
        match body {
            Body::Lost(error) => judged.caused_by(error),
            _ => judged,
        }
    }

    /// Whether this failure is the app's own "no". A proxy's or a firewall's page must not sign a user out.
    fn is_own_word(&self, status: StatusCode, headers: &HeaderMap, json: &Value, body: &Body) -> bool {
        let readable = matches!(body, Body::Empty) || json.is_object();
        match (self.call, status.as_u16()) {
            (Call::Refresh | Call::Login, 401) => readable && !is_foreign(headers),
            (Call::Login, 400 | 403 | 422) => json.is_object(),
            _ => false,
        }
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").field("call", &self.call).finish_non_exhaustive()
    }
}

enum Body {
    Json,
    Empty,
    Unreadable(&'static str),
    Lost(tower::BoxError),
}

fn refused(status: StatusCode) -> AuthServerError {
    AuthServerError::new(Verdict::Rejected, "the server refused").status_is(status)
}

fn in_doubt(what: &'static str, status: StatusCode) -> AuthServerError {
    AuthServerError::new(Verdict::InDoubt, what).status_is(status)
}

fn misconfigured(what: &'static str) -> AuthServerError {
    AuthServerError::new(Verdict::Misconfigured, what)
}

fn unavailable(retry_after: Option<Duration>) -> AuthServerError {
    AuthServerError::new(Verdict::Unavailable { retry_after }, "the server asks to be called later")
}

/// The OAuth error code of an answer, if there is one fit to be repeated.
fn code(json: &Value) -> Option<ErrorCode> {
    json.get("error").and_then(named_error).and_then(ErrorCode::parse)
}

/// An `error` member that says something. Objects, `null` and `""` don't name an error; answers without one are full
/// of them.
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

/// What an error code means by itself (RFC 6749 §5.2, RFC 8628 §3.5, RFC 9470 §3, OpenID Connect Core §3.1.2.6, and two
/// that large providers use in place of `invalid_grant`).
fn by_code(error: &str, headers: &HeaderMap) -> Option<AuthServerError> {
    let verdict = match error {
        "invalid_grant"
        | "bad_refresh_token"
        | "invalid_refresh_token"
        | "login_required"
        | "interaction_required"
        | "consent_required"
        | "insufficient_user_authentication" => Verdict::Rejected,
        "invalid_client"
        | "unauthorized_client"
        | "unsupported_grant_type"
        | "invalid_request"
        | "invalid_scope"
        | "invalid_target" => Verdict::Misconfigured,
        "temporarily_unavailable" | "slow_down" => Verdict::Unavailable { retry_after: retry_after(headers) },
        "server_error" => Verdict::InDoubt,
        _ => return None,
    };
    Some(AuthServerError::new(
        verdict,
        match verdict {
            Verdict::Rejected => "the server refused",
            Verdict::Unavailable { .. } => "the server asks to be called later",
            _ => "the server answered with an error",
        },
    ))
}

/// `Retry-After` in seconds or as a date (RFC 9110 §10.2.3), clamped; `None` if it says nothing readable. A date counts
/// from that of the answer itself, if it has one: the server's clock may not be ours.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let delay = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a very long time.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let at = httpdate::parse_http_date(text).ok()?;
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        at.duration_since(date.unwrap_or_else(SystemTime::now)).unwrap_or(Duration::ZERO)
    };
    Some(delay.min(LONGEST_RETRY_AFTER))
}

/// Whether a 401 challenges with schemes that have nothing to do with tokens (Basic, Negotiate…), and with no other: a
/// proxy's word, not the app's.
fn is_foreign(headers: &HeaderMap) -> bool {
    let mut challenges = challenges(headers).peekable();
    challenges.peek().is_some() && challenges.all(|challenge| !challenge.bearer)
}

/// Whether a 401 asks for a stronger or fresher sign-in (RFC 9470 §3).
fn is_step_up(headers: &HeaderMap) -> bool {
    challenges(headers).any(|challenge| challenge.bearer && challenge.step_up)
}

struct Challenge {
    /// `Bearer` or `DPoP`.
    bearer: bool,
    step_up: bool,
}

fn challenges(headers: &HeaderMap) -> impl Iterator<Item = Challenge> {
    headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| {
        let token_scheme = |scheme: &str| scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("dpop");
        match http_auth::parse_challenges(value) {
            Ok(challenges) => challenges
                .iter()
                .map(|challenge| Challenge {
                    bearer: token_scheme(challenge.scheme),
                    step_up: challenge.params.iter().any(|(name, value)| {
                        name.eq_ignore_ascii_case("error") && value.to_unescaped() == "insufficient_user_authentication"
                    }),
                })
                .collect(),
            // One bad challenge spoils the whole value for the parser: `Negotiate abc==, Bearer …`.
            Err(_) => value
                .split(',')
                .filter_map(|part| part.split_ascii_whitespace().next())
                .filter(|word| !word.contains('='))
                .map(|scheme| Challenge { bearer: token_scheme(scheme), step_up: false })
                .collect::<Vec<_>>(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry_after_of(value: &str) -> Option<u64> {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        retry_after(&headers).map(|delay| delay.as_secs())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_clamped() {
        assert_eq!(retry_after_of("0"), Some(0));
        assert_eq!(retry_after_of(" 7 "), Some(7));
        assert_eq!(retry_after_of("99999999999999999999999"), Some(3600));
        assert_eq!(retry_after_of("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        assert_eq!(retry_after_of("Fri, 31 Dec 9999 23:59:59 GMT"), Some(3600));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!((98..=100).contains(&retry_after_of(&soon).unwrap()));
        for unreadable in ["", "-1", "1.5", "soon", "7s"] {
            assert_eq!(retry_after_of(unreadable), None, "{unreadable:?}");
        }
    }

    #[test]
    fn a_date_to_retry_after_counts_from_that_of_the_answer() {
        let day = Duration::from_secs(24 * 60 * 60);
        for clock in [SystemTime::now() - day, SystemTime::now() + day] {
            let later = |seconds| httpdate::fmt_http_date(clock + Duration::from_secs(seconds)).parse().unwrap();
            let headers = HeaderMap::from_iter([(DATE, later(0)), (RETRY_AFTER, later(7))]);
            assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        }
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100)).parse().unwrap();
        let headers = HeaderMap::from_iter([(DATE, "yesterday".parse().unwrap()), (RETRY_AFTER, soon)]);
        assert!((98..=100).contains(&retry_after(&headers).unwrap().as_secs()));
    }

    fn foreign(values: &[&str]) -> bool {
        is_foreign(&values.iter().map(|value| (WWW_AUTHENTICATE, value.parse().unwrap())).collect())
    }

    #[test]
    fn a_401_is_foreign_if_it_challenges_with_other_schemes_only() {
        assert!(foreign(&["Basic realm=\"x\""]));
        assert!(foreign(&["Negotiate", "NTLM"]));
        assert!(foreign(&["Basic realm=\"a, Bearer b\""]));
        assert!(!foreign(&[]));
        assert!(!foreign(&["Bearer"]));
        assert!(!foreign(&["Basic realm=\"x\", bearer realm=\"y\""]));
        assert!(!foreign(&["Basic realm=\"x\"", "Bearer error=\"invalid_token\""]));
        assert!(!foreign(&["Negotiate abc==, Bearer realm=\"y\""]));
    }
}
