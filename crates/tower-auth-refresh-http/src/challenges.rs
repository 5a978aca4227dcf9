//! `WWW-Authenticate` in the answer to a refresh call (RFC 9110 §11.6.1).

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// The schemes of proxies and gateways, which know nothing of refresh tokens.
const PROXY_SCHEMES: [&str; 5] = ["basic", "digest", "negotiate", "ntlm", "kerberos"];

/// The schemes under which tokens are sent.
const TOKEN_SCHEMES: [&str; 2] = ["bearer", "dpop"];

/// The challenges of an answer, as far as they matter here.
pub(crate) struct Challenges(Vec<Challenge>);

struct Challenge {
    scheme: String,
    error: Option<String>,
}

impl Challenges {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        Self(values.flat_map(read_value).collect())
    }

    /// All challenges are a proxy's.
    pub(crate) fn are_a_proxys(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|challenge| challenge.is_one_of(&PROXY_SCHEMES))
    }

    /// No challenge asks for a token.
    pub(crate) fn are_foreign(&self) -> bool {
        !self.0.is_empty() && !self.0.iter().any(|challenge| challenge.is_one_of(&TOKEN_SCHEMES))
    }

    /// A challenge asks for a stronger or more recent sign-in (RFC 9470 §3).
    pub(crate) fn ask_for_a_sign_in(&self) -> bool {
        self.0.iter().any(|challenge| {
            challenge.is_one_of(&TOKEN_SCHEMES)
                && challenge.error.as_deref() == Some("insufficient_user_authentication")
        })
    }
}

impl Challenge {
    fn is_one_of(&self, schemes: &[&str]) -> bool {
        schemes.iter().any(|scheme| self.scheme.eq_ignore_ascii_case(scheme))
    }
}

fn read_value(value: &str) -> Vec<Challenge> {
    match http_auth::parse_challenges(value) {
        Ok(challenges) => challenges
            .iter()
            .map(|challenge| Challenge {
                scheme: challenge.scheme.to_owned(),
                error: challenge
                    .params
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case("error"))
                    .map(|(_, value)| value.to_unescaped()),
            })
            .collect(),
        // The parser refuses the whole value for one challenge outside its grammar: `Negotiate abc==, Bearer …`.
        Err(_) => value
            .split(',')
            .filter_map(|part| part.split_ascii_whitespace().next())
            .filter(|word| !word.contains('='))
            .map(|scheme| Challenge { scheme: scheme.to_owned(), error: None })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Challenges {
        Challenges::read(&values.iter().map(|value| (WWW_AUTHENTICATE, value.parse().unwrap())).collect())
    }

    #[test]
    fn challenges_are_a_proxys_if_all_schemes_are() {
        for values in [
            &["Basic realm=\"x\""][..],
            &["Negotiate", "NTLM"],
            &["Digest realm=\"x\", nonce=\"y\""],
            &["kerberos"],
            &["Basic realm=\"a, Bearer b\""],
        ] {
            assert!(read(values).are_a_proxys() && read(values).are_foreign(), "{values:?}");
        }
        for values in [&["JWT realm=\"api\""][..], &["Token"], &["Basic realm=\"x\"", "JWT realm=\"api\""]] {
            assert!(!read(values).are_a_proxys() && read(values).are_foreign(), "{values:?}");
        }
        for values in [
            &[][..],
            &["Bearer"],
            &["Basic realm=\"x\", bearer realm=\"y\""],
            &["Basic realm=\"x\"", "Bearer error=\"invalid_token\""],
            &["Negotiate abc==, Bearer realm=\"y\""],
        ] {
            assert!(!read(values).are_a_proxys() && !read(values).are_foreign(), "{values:?}");
        }
    }

    #[test]
    fn a_step_up_asks_for_a_sign_in() {
        assert!(read(&[r#"Bearer error="insufficient_user_authentication", acr_values="x""#]).ask_for_a_sign_in());
        assert!(!read(&[r#"Basic error="insufficient_user_authentication""#]).ask_for_a_sign_in());
        assert!(!read(&[r#"Bearer error="invalid_token""#]).ask_for_a_sign_in());
    }
}
