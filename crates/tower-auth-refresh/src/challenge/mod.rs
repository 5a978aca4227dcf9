//! [`ChallengePolicy`]: the responses that say that the token has expired; and [`Challenge`], the reader of headers.
//!
//! By default a `401 Unauthorized` (RFC 9110 §15.5.2) is a challenge, unless its `WWW-Authenticate` says that a fresh
//! token won't help:
//!
//! ```
//! use http::{HeaderMap, HeaderValue, StatusCode, header::WWW_AUTHENTICATE};
//! use tower_auth_refresh::challenge::ResponseHead;
//! use tower_auth_refresh::ChallengePolicy;
//!
//! let with = |value| HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::from_static(value))]);
//! let expired = with(r#"Bearer realm="api", error="invalid_token""#);
//! let scope = with(r#"Bearer realm="api", error="insufficient_scope""#);
//!
//! let challenge = ChallengePolicy::default();
//! assert!(challenge.matches(&ResponseHead::new(StatusCode::UNAUTHORIZED, &expired)));
//! assert!(challenge.matches(&ResponseHead::new(StatusCode::UNAUTHORIZED, &HeaderMap::new())));
//! assert!(!challenge.matches(&ResponseHead::new(StatusCode::UNAUTHORIZED, &scope)));
//! assert!(!challenge.matches(&ResponseHead::new(StatusCode::FORBIDDEN, &expired)));
//! ```
//!
//! For servers that answer otherwise, the policy is a closure:
//!
//! ```
//! use http::StatusCode;
//! use tower_auth_refresh::ChallengePolicy;
//!
//! let usual = ChallengePolicy::bearer();
//! let challenge = ChallengePolicy::when(move |response| {
//!     let error = response.headers().get("x-error");
//!     usual.matches(response)
//!         || (response.status() == StatusCode::FORBIDDEN && error.is_some_and(|error| error == "token-expired"))
//! });
//! # let _ = challenge;
//! ```
//!
//! If only the body says that the token has expired, [`InspectBodyLayer`](crate::inspect::InspectBodyLayer) reads a bounded part
//! of it.

use std::fmt;
use std::sync::Arc;

use http::header::HeaderName;
use http::status::StatusCode;

pub use self::header::Challenge;
pub use self::response::ResponseHead;
pub(crate) use self::response::{SentToken, TokenExpired};
pub use self::summary::{ChallengeSummary, StepUp};

mod header;
mod response;
mod summary;

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Decides which responses are challenges: the access token has expired.
///
/// The default is [`bearer`](Self::bearer). A challenge makes the session refresh and the layer replay the request; any
/// other response passes.
///
/// If the token is sent under another scheme (`DPoP`, `Token`…), challenges of that scheme count like those of
/// `Bearer`.
#[derive(Clone, Debug, Default)]
pub struct ChallengePolicy(Rule);

#[derive(Clone, Default)]
enum Rule {
    /// A 401, unless the server says that a fresh token won't help.
    #[default]
    Bearer,
    /// A 401 with `invalid_token`.
    StrictBearer,
    /// Like `Bearer`, and the gRPC status in a response's headers.
    Grpc,
    /// Like `Bearer`, and the mark of an inspected body.
    Inspected,
    /// The decision of the app's closure.
    When(Arc<IsChallenge>),
}

type IsChallenge = dyn Fn(&ResponseHead<'_>) -> bool + Send + Sync;

impl ChallengePolicy {
    /// Takes a 401 for a challenge unless the server says otherwise (the default).
    ///
    /// - `Bearer` with `error="invalid_token"` (RFC 6750 §3.1) counts. A blank instead of the underscore and single
    ///   quotes around the code are forgiven.
    /// - `Bearer` without an `error` counts. RFC 6750 has it for requests without a token, but many servers send it
    ///   when a token has expired.
    /// - A 401 without a challenge counts for the same reason, against RFC 9110 §11.6.1.
    /// - `Bearer` with any other `error` passes, and so does a 401 that offers other schemes only (`Basic`,
    ///   `Negotiate`…).
    ///
    /// If a response has several challenges, `invalid_token` prevails over other errors, and those prevail over a
    /// `Bearer` without an error.
    #[must_use]
    pub fn bearer() -> Self {
        Self(Rule::Bearer)
    }

    /// Takes only a 401 with `Bearer error="invalid_token"` for a challenge.
    ///
    /// For servers that are known to follow RFC 6750 §3.1.
    #[must_use]
    pub fn strict_bearer() -> Self {
        Self(Rule::StrictBearer)
    }

    /// Like [`bearer`](Self::bearer), and takes gRPC status 16 for a challenge.
    ///
    /// The status (`UNAUTHENTICATED`) counts in a Trailers-Only response, which has `grpc-status` among its headers. In
    /// trailers after a body it passes: by then the caller has the response.
    #[must_use]
    pub fn grpc() -> Self {
        Self(Rule::Grpc)
    }

    /// Like [`bearer`](Self::bearer), and takes a response that an [`InspectBodyLayer`](crate::inspect::InspectBodyLayer) inside
    /// this middleware has marked for a challenge.
    ///
    /// Within a policy by [`when`](Self::when), [`matches`](Self::matches) of this policy reads the mark.
    #[must_use]
    pub fn inspected() -> Self {
        Self(Rule::Inspected)
    }

    /// Lets `is_challenge` alone decide.
    ///
    /// The closure is called for every response to a request to which the layer attaches a token, or would attach one if
    /// the session had one. It should be quick. [`ResponseHead`] has the status, the headers and the token that the
    /// request carried.
    #[must_use]
    pub fn when(is_challenge: impl Fn(&ResponseHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self(Rule::When(Arc::new(is_challenge)))
    }

    /// Returns `true` if the response is a challenge.
    #[must_use]
    pub fn matches(&self, response: &ResponseHead<'_>) -> bool {
        self.judge(*response, || response.sent) == Verdict::Expired
    }

    /// Judges a response. `sent` returns the token that the request carried; it is called only if the policy reads it.
    #[inline]
    pub(crate) fn judge(&self, response: ResponseHead<'_>, sent: impl FnOnce() -> Option<SentToken>) -> Verdict {
        // The usual case, in few instructions.
        let is_refusal = matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        if matches!(self.0, Rule::Bearer | Rule::StrictBearer) && !is_refusal {
            return Verdict::Pass;
        }
        self.judge_closely(response, sent)
    }

    #[inline(never)]
    fn judge_closely(&self, response: ResponseHead<'_>, sent: impl FnOnce() -> Option<SentToken>) -> Verdict {
        let status = response.status();
        match &self.0 {
            Rule::When(is_challenge) if is_challenge(&ResponseHead { sent: sent(), ..response }) => Verdict::Expired,
            Rule::Inspected if response.extension::<TokenExpired>().is_some() => Verdict::Expired,
            Rule::Grpc if status == StatusCode::OK => match response.headers().get(&GRPC_STATUS) {
                Some(code) if code == "16" => Verdict::Expired,
                _ => Verdict::Pass,
            },
            rule if status == StatusCode::UNAUTHORIZED => rule.judge(Finding::strongest(&response)),
            // A server that requires more rights says so by RFC 6750 §3.1.
            _ if status == StatusCode::FORBIDDEN => match Finding::strongest(&response) {
                Finding::StepUp => Verdict::StepUp,
                _ => Verdict::Pass,
            },
            _ => Verdict::Pass,
        }
    }

    #[cfg(test)]
    fn read(&self, status: StatusCode, headers: &http::HeaderMap, scheme: &str) -> Verdict {
        self.judge(ResponseHead { scheme, ..ResponseHead::new(status, headers) }, || None)
    }
}

/// The meaning of a response for the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The response says nothing about the token and passes.
    Pass,
    /// The token has expired: a fresh one may be accepted.
    Expired,
    /// The server requires a stronger authentication of the user (RFC 9470 §3) or more rights (RFC 6750 §3.1): a fresh
    /// token of the same authorization won't be accepted.
    StepUp,
    /// A 401 for another reason.
    Other,
}

impl Rule {
    /// Judges a 401.
    fn judge(&self, finding: Finding) -> Verdict {
        match finding {
            Finding::StepUp => Verdict::StepUp,
            // The closure has decided.
            _ if matches!(self, Self::When(_)) => Verdict::Other,
            Finding::InvalidToken => Verdict::Expired,
            Finding::Bare | Finding::Nothing if !matches!(self, Self::StrictBearer) => Verdict::Expired,
            Finding::OtherError | Finding::Bare | Finding::Foreign | Finding::Nothing => Verdict::Other,
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bearer => "Bearer",
            Self::StrictBearer => "StrictBearer",
            Self::Grpc => "Grpc",
            Self::Inspected => "Inspected",
            Self::When(_) => "When(..)",
        })
    }
}

/// The meaning of a challenge, weakest first. Of several challenges, the strongest decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Finding {
    /// There is no challenge, or none that can be read.
    Nothing,
    /// A challenge of a scheme other than the token's.
    Foreign,
    /// A challenge of the token's scheme, without an error.
    Bare,
    /// A challenge of the token's scheme, with an error that isn't about the token's age. It says more than the bare
    /// challenge that a server offers beside it: `Bearer, DPoP error="use_dpop_nonce"` (RFC 9449 §9).
    OtherError,
    /// A challenge of the token's scheme that requires another authentication of the user, or more rights.
    StepUp,
    /// A challenge of the token's scheme that refuses the token itself. Stronger than a step-up: whatever the other
    /// challenges require, this token is dead. If the authentication behind the fresh token is too weak, the response
    /// to the replay says so alone.
    InvalidToken,
}

impl Finding {
    #[cold]
    fn strongest(response: &ResponseHead<'_>) -> Self {
        let challenges = Challenge::all(response.headers());
        challenges.map(|challenge| Self::of(&challenge, response.scheme)).max().unwrap_or(Self::Nothing)
    }

    fn of(challenge: &Challenge<'_>, scheme: &str) -> Self {
        if challenge.is_scheme("Bearer") || challenge.is_scheme(scheme) {
            challenge.errors().map(|code| Self::of_error(&code)).fold(Self::Bare, Ord::max)
        } else {
            Self::Foreign
        }
    }

    fn of_error(code: &str) -> Self {
        // Some servers write blanks in the code (`"invalid token"`) or single quotes around it.
        let code = code.trim_matches([' ', '\'']);
        let is = |known: &str| {
            let plain = |byte| if byte == b' ' { b'_' } else { byte };
            code.bytes().map(plain).eq(known.bytes())
        };
        if is("invalid_token") {
            Self::InvalidToken
        } else if is("insufficient_user_authentication") || is("insufficient_scope") || is("insufficient_claims") {
            // The last is Microsoft's "claims challenge": the next token must carry the claims that the challenge
            // names, and only the app can request them.
            Self::StepUp
        } else {
            Self::OtherError
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use http::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
    use proptest::prelude::*;

    use super::*;
    use Verdict::{Expired, Other, Pass, StepUp};

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (WWW_AUTHENTICATE, HeaderValue::from_bytes(value.as_bytes()).unwrap())).collect()
    }

    fn lenient(values: &[&str]) -> Verdict {
        ChallengePolicy::bearer().read(StatusCode::UNAUTHORIZED, &headers(values), "Bearer")
    }

    fn strict(values: &[&str]) -> Verdict {
        ChallengePolicy::strict_bearer().read(StatusCode::UNAUTHORIZED, &headers(values), "Bearer")
    }

    #[test]
    fn real_servers_that_send_invalid_token_are_understood() {
        for (server, value) in [
            (
                "oidc-provider",
                r#"Bearer realm="http://127.0.0.1:3000", error="invalid_token", error_description="invalid token provided""#,
            ),
            ("Keycloak", r#"Bearer realm="demo", error="invalid_token", error_description="Token is not active""#),
            (
                "Spring Security",
                r#"Bearer error="invalid_token", error_description="Jwt expired at 2024-01-01T00:00:00Z", error_uri="https://tools.ietf.org/html/rfc6750#section-3.1""#,
            ),
            (
                "ASP.NET Core",
                r#"Bearer error="invalid_token", error_description="The token expired at '01/01/2024 00:00:00'""#,
            ),
            (
                "Doorkeeper",
                r#"Bearer realm="Doorkeeper", error="invalid_token", error_description="The access token expired""#,
            ),
            ("Google", r#"Bearer realm="https://accounts.google.com/", error="invalid_token""#),
            (
                "Docker registry",
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push",error="invalid_token""#,
            ),
            (
                "Amazon API Gateway, JWT authorizer",
                r#"Bearer scope="" error="invalid_token" error_description="the token has expired""#,
            ),
            ("oauthlib", r#"Bearer, error="invalid_token", error_description="The access token is expired""#),
        ] {
            assert_eq!((lenient(&[value]), strict(&[value])), (Expired, Expired), "{server}");
        }
    }

    #[test]
    fn real_servers_that_send_no_error_count_unless_strict() {
        for (server, values) in [
            ("GitHub, Kubernetes, Amazon API Gateway", &[][..]),
            ("Spring Security, no token", &["Bearer"]),
            (
                "oidc-provider, no token",
                &[
                    r#"Bearer realm="http://127.0.0.1:3000""#,
                    r#"DPoP realm="http://127.0.0.1:3000", algs="ES256 EdDSA""#,
                ],
            ),
            (
                "oidc-provider, no token, behind a proxy that joins headers",
                &[r#"Bearer realm="http://127.0.0.1:3000", DPoP realm="http://127.0.0.1:3000", algs="ES256 EdDSA""#],
            ),
            (
                "Microsoft Graph",
                &[r#"Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize""#],
            ),
            ("SharePoint", &["NTLM", r#"Bearer realm="x",client_id="y",trusted_issuers="z@*""#]),
            (
                "a protected resource with metadata (RFC 9728 §5.1)",
                &[r#"Bearer resource_metadata="https://r.example/.well-known/oauth-protected-resource""#],
            ),
        ] {
            assert_eq!((lenient(values), strict(values)), (Expired, Other), "{server}");
        }
    }

    #[test]
    fn a_challenge_that_requires_the_user_or_the_app_is_a_step_up() {
        for value in [
            // RFC 9470 §3.
            r#"Bearer error="insufficient_user_authentication", error_description="A different authentication level is required", acr_values="myACR""#,
            // Microsoft's claims challenge.
            r#"Bearer authorization_uri="https://login.windows.net/common/oauth2/authorize", error="insufficient_claims", claims="eyJhY2Nlc3NfdG9rZW4iOnt9fQ==""#,
            // RFC 6750 §3.1, which has it with a 403.
            r#"Bearer realm="api", error="insufficient_scope", scope="read write""#,
        ] {
            assert_eq!((lenient(&[value]), strict(&[value])), (StepUp, StepUp), "{value}");
            let forbidden = |policy: ChallengePolicy| policy.read(StatusCode::FORBIDDEN, &headers(&[value]), "Bearer");
            assert_eq!(forbidden(ChallengePolicy::bearer()), StepUp, "{value}");
            assert_eq!(forbidden(ChallengePolicy::when(|_| false)), StepUp, "{value}");
            assert_eq!(forbidden(ChallengePolicy::when(|_| true)), Expired, "{value}");
        }
    }

    #[test]
    fn names_are_case_insensitive_and_values_may_be_unquoted_or_escaped() {
        for value in [
            "bearer ERROR=invalid_token",
            "BEARER Error = \"invalid_token\"",
            r#"Bearer error="invalid\_token""#,
            r#"Bearer  error="invalid_token""#,
            "Bearer\terror=\"invalid_token\"",
            "Bearer realm=https://api.example.com/?a=b, error=invalid_token",
            "Bearer error=invalid_token, error_description=The token expired, sorry",
            "Bearer error=\"invalid_token",
            "Bearer realm=\"bücher\", error=\"invalid_token\"",
            ", ,Bearer error=invalid_token,",
        ] {
            assert_eq!(strict(&[value]), Expired, "{value}");
        }
    }

    #[test]
    fn blanks_in_the_error_code_and_single_quotes_are_forgiven() {
        for value in [
            r#"Bearer error="invalid token""#,
            r#"Bearer realm="api", error=" invalid_token ", error_description="expired""#,
            "Bearer error='invalid_token'",
            "Bearer error='invalid_token', error_description='expired'",
            r#"Bearer error="'invalid token'""#,
        ] {
            assert_eq!((lenient(&[value]), strict(&[value])), (Expired, Expired), "{value}");
        }
        assert_eq!(lenient(&[r#"Bearer error="insufficient user authentication""#]), StepUp);
        assert_eq!(lenient(&["Bearer error='insufficient_scope'"]), StepUp);
        for value in [
            r#"Bearer error="invalid  token""#,
            r#"Bearer error="invalidtoken""#,
            r#"Bearer error="in valid_token""#,
            r#"Bearer error="invalid'token""#,
            r#"Bearer error="''""#,
            r#"DPoP error="invalid token""#,
            "DPoP error='invalid_token'",
        ] {
            assert_eq!((lenient(&[value]), strict(&[value])), (Other, Other), "{value}");
        }
    }

    #[test]
    fn a_foreign_scheme_passes() {
        for value in [
            r#"Basic realm="kubernetes-master""#,
            "Negotiate",
            "Negotiate YIIJvwYGKwYBBQ==",
            r#"Digest realm="x", qop="auth,auth-int", nonce="n", error="invalid_token""#,
            "Bearerish error=\"invalid_token\"",
            "invalid_token",
        ] {
            assert_eq!(lenient(&[value]), Other, "{value}");
            assert_eq!(strict(&[value]), Other, "{value}");
        }
    }

    #[test]
    fn bearer_within_the_parameters_of_another_scheme_is_not_a_challenge() {
        for value in [
            r#"Basic realm="Bearer error=\"invalid_token\"""#,
            r#"Basic realm=", Bearer error=invalid_token, ""#,
            // Outside the grammar.
            r#"Negotiate abc==, Basic realm="Bearer error=\"invalid_token\"""#,
            r#"Negotiate abc==, Basic realm=", Bearer error=\"invalid_token\", ""#,
            r#"Negotiate abc==, Basic realm="\\\", Bearer error=invalid_token""#,
            r#"Basic realm="x" Bearer error="invalid_token""#,
            r#"Basic realm=x", Bearer error=invalid_token"#,
            r#"Basic realm="never closed, Bearer error=invalid_token"#,
            "Negotiate Bearer error=invalid_token",
            r#"Negotiate abc==, "x" Bearer error=invalid_token"#,
            "Basic realm=ü, error=invalid_token",
            "Basic Bearer=x, error=invalid_token, ü",
        ] {
            assert_eq!(lenient(&[value]), Other, "{value}");
            assert_eq!(strict(&[value]), Other, "{value}");
        }
    }

    #[test]
    fn bearer_is_found_beside_other_challenges() {
        for values in [
            &[
                r#"Bearer realm="x", error="invalid_token", error_description="expired""#,
                r#"DPoP realm="x", algs="ES256 EdDSA""#,
            ][..],
            &[r#"Basic realm="x", Bearer realm="y", error="invalid_token""#],
            &[r#"Bearer error="invalid_token", Basic realm="x""#],
            &[r#"Negotiate abc==, Bearer error="invalid_token""#],
            &["Negotiate abc=,Bearer error=invalid_token"],
            &[r#"Negotiate abc==, Basic realm="C:\\", Bearer error = "invalid_token""#],
            &["Negotiate", "NTLM", "Bearer error=invalid_token"],
            &["\"", "\u{ff}", "Bearer error=invalid_token"],
        ] {
            assert_eq!(strict(values), Expired, "{values:?}");
        }
    }

    #[test]
    fn any_other_error_passes_and_outweighs_a_bare_challenge() {
        assert_eq!(lenient(&[r#"Bearer error="invalid_request""#]), Other);
        assert_eq!(lenient(&[r#"Bearer realm="a", Bearer realm="b", error="invalid_request""#]), Other);
        assert_eq!(lenient(&[r#"Bearer error="""#]), Expired);
        assert_eq!(lenient(&[r#"Bearer error_description="x", xerror="insufficient_scope""#]), Expired);
    }

    #[test]
    fn of_several_bearer_challenges_a_dead_token_outweighs_a_step_up() {
        let expired = r#"Bearer error="invalid_token""#;
        let step_up = r#"Bearer error="insufficient_user_authentication""#;
        let other = r#"Bearer error="invalid_request""#;
        assert_eq!(lenient(&[step_up, expired, other]), Expired);
        assert_eq!(lenient(&[&format!("{step_up}, {expired}")]), Expired);
        assert_eq!(lenient(&[other, step_up, "Bearer"]), StepUp);
    }

    #[test]
    fn a_401_without_a_readable_challenge_counts_unless_strict() {
        for value in ["", ",", " , ", "\"junk\"", "error=\"invalid_token\"", "\u{a0}=\u{a0}"] {
            assert_eq!(lenient(&[value]), Expired, "{value}");
            assert_eq!(strict(&[value]), Other, "{value}");
        }
    }

    #[test]
    fn the_scheme_that_the_token_was_sent_under_counts_beside_bearer() {
        let read = |scheme, values: &[&str]| {
            ChallengePolicy::bearer().read(StatusCode::UNAUTHORIZED, &headers(values), scheme)
        };
        let expired = r#"DPoP error="invalid_token", algs="ES256""#;
        assert_eq!(read("Bearer", &[expired]), Other);
        assert_eq!(read("dpop", &[expired]), Expired);
        assert_eq!(read("DPoP", &[r#"Bearer, DPoP error="use_dpop_nonce""#]), Other);
        assert_eq!(read("DPoP", &["Bearer error=invalid_token"]), Expired);
        assert_eq!(read("Token", &["Token"]), Expired);
        assert_eq!(read("", &["Basic realm=x", "=", "\"\""]), Other);
    }

    #[test]
    fn another_status_passes() {
        let expired = headers(&[r#"Bearer error="invalid_token""#]);
        for challenge in [ChallengePolicy::bearer(), ChallengePolicy::strict_bearer(), ChallengePolicy::grpc()] {
            for status in [200, 204, 301, 400, 403, 404, 407, 500, 503] {
                let status = StatusCode::from_u16(status).unwrap();
                assert_eq!(challenge.read(status, &expired, "Bearer"), Pass, "{status}");
            }
        }
        let step_up = headers(&[r#"Bearer error="insufficient_user_authentication""#]);
        assert_eq!(ChallengePolicy::grpc().read(StatusCode::BAD_REQUEST, &step_up, "Bearer"), Pass);
    }

    #[test]
    fn grpc_status_16_counts_in_the_headers_of_a_200() {
        let read = |challenge: ChallengePolicy, status, code: &'static str| {
            let headers = HeaderMap::from_iter([(GRPC_STATUS.clone(), HeaderValue::from_static(code))]);
            challenge.read(status, &headers, "Bearer")
        };
        assert_eq!(read(ChallengePolicy::grpc(), StatusCode::OK, "16"), Expired);
        for other in ["0", "7", "1", "6", "160", "016", "", "-16"] {
            assert_eq!(read(ChallengePolicy::grpc(), StatusCode::OK, other), Pass, "{other}");
        }
        assert_eq!(read(ChallengePolicy::grpc(), StatusCode::FORBIDDEN, "16"), Pass);
        assert_eq!(read(ChallengePolicy::bearer(), StatusCode::OK, "16"), Pass);
        assert_eq!(ChallengePolicy::grpc().read(StatusCode::OK, &HeaderMap::new(), "Bearer"), Pass);
        // The response of a proxy.
        assert_eq!(ChallengePolicy::grpc().read(StatusCode::UNAUTHORIZED, &HeaderMap::new(), "Bearer"), Expired);
        assert_eq!(ChallengePolicy::grpc().read(StatusCode::UNAUTHORIZED, &headers(&["Basic"]), "Bearer"), Other);
    }

    #[test]
    fn a_closure_decides_alone() {
        let expired = |head: &ResponseHead<'_>| head.status() == 403 && head.headers().contains_key("x-expired");
        let challenge = ChallengePolicy::when(expired);
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-expired"), HeaderValue::from_static("1"))]);
        let matches = |status, headers: &HeaderMap| challenge.matches(&ResponseHead::new(status, headers));
        assert!(matches(StatusCode::FORBIDDEN, &headers));
        assert!(!matches(StatusCode::FORBIDDEN, &HeaderMap::new()));
        assert!(!matches(StatusCode::UNAUTHORIZED, &headers));
        assert_eq!(challenge.read(StatusCode::UNAUTHORIZED, &headers, "Bearer"), Other);
        assert_eq!(
            format!("{challenge:?} {:?}", ChallengePolicy::default()),
            "ChallengePolicy(When(..)) ChallengePolicy(Bearer)"
        );
    }

    #[test]
    fn a_closure_is_given_the_token_that_the_request_carried_and_its_scheme() {
        let usual = ChallengePolicy::bearer();
        let challenge = ChallengePolicy::when(move |head| {
            head.generation().is_some_and(|generation| generation.get() == 7)
                && head.is_in_force()
                && head.expires_at().is_some()
                && usual.matches(head)
        });
        let headers = headers(&["Token"]);
        let head = ResponseHead { scheme: "Token", ..ResponseHead::new(StatusCode::UNAUTHORIZED, &headers) };
        let sent = SentToken {
            generation: crate::refresh::Generation(7),
            in_force: true,
            expires_at: Some(std::time::SystemTime::UNIX_EPOCH),
        };
        assert_eq!(challenge.judge(head, || Some(sent)), Expired);
        assert_eq!(challenge.judge(head, || None), Other);
        assert_eq!(challenge.judge(head, || Some(SentToken { in_force: false, ..sent })), Other);
        // Policies that don't read the token don't look it up.
        assert_eq!(ChallengePolicy::bearer().judge(head, || panic!("looked up")), Expired);
    }

    #[test]
    fn absurdly_long_values_take_linear_time() {
        let started = Instant::now();
        for piece in ["a ", "a=", "a=b,", "a=\"", "\\\"", "\"\\", " ", ",", "=", "a,", "Bearer error=", "\u{ff}"] {
            for lead in ["", "Bearer ", "Basic realm=\"", "Negotiate abc==, "] {
                let value = format!("{lead}{}", piece.repeat((1 << 19) / piece.len()));
                lenient(&[&value]);
            }
        }
        // A reader in quadratic time takes hours.
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    pub(super) fn value() -> impl Strategy<Value = HeaderValue> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec![
                "Bearer", "Basic", "Negotiate abc==", "error", "realm", "invalid_token", "insufficient_scope",
                "insufficient_user_authentication", "=", "\"", ",", ", ", " ", "\t", "\\",
                "Bearer error=\"invalid_token\"", "Bearer realm=\"x\"", "error=\"\"", "Basic realm=\"Bearer \\\"\"",
            ]).prop_map(|piece| piece.as_bytes().to_vec()),
            1 => prop::collection::vec(prop_oneof![Just(b'\t'), b' '..=b'~', 0x80..=0xffu8], 0..8),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| HeaderValue::from_bytes(&pieces.concat()).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn no_value_panics_and_strict_counts_no_more_than_lenient(
            values in prop::collection::vec(value(), 0..4), scheme in "(Bearer|DPoP|)",
        ) {
            let headers: HeaderMap = values.into_iter().map(|value| (WWW_AUTHENTICATE, value)).collect();
            let read = |challenge: ChallengePolicy| challenge.read(StatusCode::UNAUTHORIZED, &headers, &scheme);
            let (lenient, strict) = (read(ChallengePolicy::bearer()), read(ChallengePolicy::strict_bearer()));
            prop_assert!(strict == lenient || strict == Other);
            prop_assert_eq!(read(ChallengePolicy::grpc()), lenient);
        }
    }
}
