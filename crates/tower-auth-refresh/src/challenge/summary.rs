//! [`StepUp`] and [`ChallengeSummary`]: the parts of a challenge that a report keeps.

use std::fmt;

use http::header::HeaderMap;

use super::{Challenge, Finding};

/// The longest error code or scheme in a report.
const LONGEST_CODE: usize = 64;

/// The longest word of an error code. A longer one may be a token.
const LONGEST_WORD: usize = 40;

/// The length from which on a word with a digit may be a token.
const TOKEN_WORD: usize = 16;

/// The bound on all parameters of a [`StepUp`] together.
const MOST_PARAMETERS: usize = 2048;

/// A challenge that a refresh can't answer: which scheme, and which error.
///
/// A server's text may repeat a token, so the other parameters are left out, and both texts are bounded: at most 64
/// bytes of the characters that RFC 6749 §5.2 allows in an error code. A text with a word like a token is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChallengeSummary {
    scheme: Option<Box<str>>,
    error: Option<Box<str>>,
}

/// A challenge that requires more than a fresh token: a stronger authentication of the user, or more rights.
///
/// The parameters are the server's, as they came, and untrusted. An app repeats them in its next authorization request.
/// A parameter that doesn't fit into the 2 KiB for all of them together is left out as a whole. `Debug` shows only
/// their names.
#[derive(Clone, PartialEq, Eq)]
pub struct StepUp {
    summary: ChallengeSummary,
    params: Box<[(Param, Box<str>)]>,
}

/// The parameters of a step-up challenge. The first is the most important: it fits in before the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Param {
    AcrValues,
    MaxAge,
    Scope,
    ResourceMetadata,
    Claims,
}

impl Param {
    const ALL: [Self; 5] = [Self::AcrValues, Self::MaxAge, Self::Scope, Self::ResourceMetadata, Self::Claims];

    fn name(self) -> &'static str {
        match self {
            Self::AcrValues => "acr_values",
            Self::MaxAge => "max_age",
            Self::Scope => "scope",
            Self::ResourceMetadata => "resource_metadata",
            Self::Claims => "claims",
        }
    }
}

impl ChallengeSummary {
    /// Reads the challenge that decided, of a response to a request that carried a token under `scheme`.
    pub(crate) fn read(headers: &HeaderMap, scheme: &str) -> Self {
        strongest(headers, scheme).map_or(Self { scheme: None, error: None }, |(challenge, _)| Self::of(&challenge))
    }

    fn of(challenge: &Challenge<'_>) -> Self {
        let error = challenge.error().and_then(|error| code(&error));
        Self { scheme: code(&challenge.scheme()), error }
    }

    /// Returns the authentication scheme, as the server spells it.
    ///
    /// `None` if the response has no readable challenge.
    #[must_use]
    pub fn scheme(&self) -> Option<&str> {
        self.scheme.as_deref()
    }

    /// Returns the error code (RFC 6750 §3.1), as the server spells it.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

impl StepUp {
    /// Reads the challenge that decided, of a response to a request that carried a token under `scheme`.
    pub(crate) fn read(headers: &HeaderMap, scheme: &str) -> Self {
        let Some((challenge, _)) = strongest(headers, scheme) else {
            return Self { summary: ChallengeSummary { scheme: None, error: None }, params: Box::default() };
        };
        let mut room = MOST_PARAMETERS;
        let mut params = Vec::new();
        for param in Param::ALL {
            if let Some(value) = challenge.param(param.name())
                && let Some(left) = room.checked_sub(value.len())
            {
                room = left;
                params.push((param, Box::from(&*value)));
            }
        }
        Self { summary: ChallengeSummary::of(&challenge), params: params.into() }
    }

    /// Returns the error code: `insufficient_user_authentication` (RFC 9470 §3), `insufficient_scope` (RFC 6750 §3.1),
    /// or Microsoft's `insufficient_claims`.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.summary.error()
    }

    /// Returns the required authentication context classes (`acr_values`, RFC 9470 §3).
    #[must_use]
    pub fn acr_values(&self) -> Option<&str> {
        self.param(Param::AcrValues)
    }

    /// Returns the longest time in seconds since the user's authentication (`max_age`, RFC 9470 §3).
    #[must_use]
    pub fn max_age(&self) -> Option<&str> {
        self.param(Param::MaxAge)
    }

    /// Returns the required scope (`scope`, RFC 6750 §3).
    #[must_use]
    pub fn scope(&self) -> Option<&str> {
        self.param(Param::Scope)
    }

    /// Returns the URL of the resource's metadata (`resource_metadata`, RFC 9728 §5.1).
    #[must_use]
    pub fn resource_metadata(&self) -> Option<&str> {
        self.param(Param::ResourceMetadata)
    }

    /// Returns the required claims, still encoded (`claims`, Microsoft's claims challenge).
    #[must_use]
    pub fn claims(&self) -> Option<&str> {
        self.param(Param::Claims)
    }

    fn param(&self, param: Param) -> Option<&str> {
        self.params.iter().find(|(of, _)| *of == param).map(|(_, value)| &**value)
    }
}

impl fmt::Debug for StepUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.params.iter().map(|(param, _)| param.name()).collect();
        f.debug_struct("StepUp").field("error", &self.error()).field("params", &names).finish_non_exhaustive()
    }
}

impl fmt::Display for ChallengeSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.scheme(), self.error()) {
            (None, None) => f.write_str("no challenge"),
            (Some(scheme), None) => write!(f, "scheme {scheme}"),
            (None, Some(error)) => write!(f, "error {error:?}"),
            (Some(scheme), Some(error)) => write!(f, "scheme {scheme}, error {error:?}"),
        }
    }
}

/// Returns the challenge that decides; of several of the same strength, the first.
fn strongest<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<(Challenge<'a>, Finding)> {
    Challenge::all(headers)
        .map(|challenge| (challenge, Finding::of(&challenge, scheme)))
        .reduce(|strongest, next| if next.1 > strongest.1 { next } else { strongest })
}

/// Returns the part of a text that may be an error code; `None` if there is none, or if it may be a token.
fn code(text: &str) -> Option<Box<str>> {
    // RFC 6749 §5.2. Single quotes and blanks around the code are a server's slip.
    let is_error_char = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    let text = text.trim_matches([' ', '\'']);
    let len = text.bytes().position(|byte| !is_error_char(byte)).unwrap_or(text.len());
    let may_be_token = |word: &str| {
        word.len() > LONGEST_WORD || (word.len() >= TOKEN_WORD && word.bytes().any(|byte| byte.is_ascii_digit()))
    };
    let code = &text[..len];
    // The words are checked before the cut, so that no token is cut to a harmless length.
    if code.split(' ').any(may_be_token) {
        return None;
    }
    let code = code[..code.len().min(LONGEST_CODE)].trim_end();
    (!code.is_empty()).then(|| code.into())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::WWW_AUTHENTICATE;

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (WWW_AUTHENTICATE, HeaderValue::from_bytes(value.as_bytes()).unwrap())).collect()
    }

    fn summary(values: &[&str]) -> (Option<String>, Option<String>) {
        let summary = ChallengeSummary::read(&headers(values), "Bearer");
        (summary.scheme().map(Into::into), summary.error().map(Into::into))
    }

    #[test]
    fn a_summary_has_the_scheme_and_the_error_of_the_strongest_challenge() {
        let some = |scheme: &str, error: &str| (Some(scheme.to_owned()), Some(error.to_owned()));
        assert_eq!(summary(&[]), (None, None));
        assert_eq!(summary(&["Negotiate", "Basic realm=x"]), (Some("Negotiate".into()), None));
        assert_eq!(summary(&["Basic realm=x, bearer error=invalid_request"]), some("bearer", "invalid_request"));
        assert_eq!(summary(&[r#"OAuth2 realm="x", error="invalid_token""#]), some("OAuth2", "invalid_token"));
        assert_eq!(summary(&[r#"Bearer error="missing authorization""#]), some("Bearer", "missing authorization"));
        let text = ChallengeSummary::read(&headers(&["JWT error=x"]), "Bearer").to_string();
        assert_eq!(text, "scheme JWT, error \"x\"");
    }

    #[test]
    fn a_summary_has_no_text_that_may_be_a_token() {
        let token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln";
        assert_eq!(summary(&[&format!("{token} error={token}")]), (None, None));
        let error = |error: &str| summary(&[&format!("Bearer error=\"{error}\"")]).1;
        assert_eq!(error(&format!("bad token {token}")), None);
        assert_eq!(error("8f14e45fceea167a5a36dedd4bea2543"), None);
        assert_eq!(error(&"x".repeat(41)), None);
        assert_eq!(error(&"x".repeat(40)).unwrap().len(), 40);
        assert_eq!(error("insufficient_user_authentication").as_deref(), Some("insufficient_user_authentication"));
        assert_eq!(error(r"invalid\\grant").as_deref(), Some("invalid"));
        assert_eq!(error("expiré").as_deref(), Some("expir"));
        assert_eq!(error(&"sorry ".repeat(20)).unwrap().len(), 64);
        let (_, none) = summary(&["Basic realm=\"secret\", error_description=\"secret\""]);
        assert_eq!(none, None);
    }

    #[test]
    fn a_step_up_has_its_parameters_as_they_came() {
        let value = r#"Bearer error="insufficient_user_authentication", acr_values="gold \"1\"", max_age="300""#;
        let other = r#"Basic realm="x", Bearer error="invalid_request", scope="not this one""#;
        let step_up = StepUp::read(&headers(&[other, value]), "Bearer");
        assert_eq!(step_up.error(), Some("insufficient_user_authentication"));
        assert_eq!((step_up.acr_values(), step_up.max_age()), (Some(r#"gold "1""#), Some("300")));
        assert_eq!((step_up.scope(), step_up.claims(), step_up.resource_metadata()), (None, None, None));

        let value =
            r#"Bearer error="insufficient_scope", scope="a b", resource_metadata="https://r.example/m", claims="e30=""#;
        let step_up = StepUp::read(&headers(&[value]), "Bearer");
        assert_eq!(step_up.error(), Some("insufficient_scope"));
        assert_eq!((step_up.scope(), step_up.claims()), (Some("a b"), Some("e30=")));
        assert_eq!(step_up.resource_metadata(), Some("https://r.example/m"));
        let debug = format!("{step_up:?}");
        assert!(debug.contains("scope") && !debug.contains("a b") && !debug.contains("r.example"), "{debug}");
    }

    #[test]
    fn a_parameter_of_a_step_up_that_does_not_fit_is_left_out_as_a_whole() {
        let claims = "e".repeat(2046);
        let with = |scope: &str| {
            let value = format!("Bearer error=insufficient_scope, claims={claims}, scope={scope}");
            StepUp::read(&headers(&[&value]), "Bearer")
        };
        let fits = with("ab");
        assert_eq!((fits.scope(), fits.claims()), (Some("ab"), Some(&*claims)));
        let full = with("abc");
        assert_eq!((full.scope(), full.claims()), (Some("abc"), None));
    }
}
