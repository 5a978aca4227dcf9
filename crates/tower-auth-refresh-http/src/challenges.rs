//! `WWW-Authenticate` in the answer to a refresh call (RFC 9110 §11.6.1).

use http::HeaderMap;
use tower_auth_refresh::challenge::Challenge;

/// The schemes of proxies and gateways, which know nothing of refresh tokens.
const PROXY_SCHEMES: [&str; 5] = ["basic", "digest", "negotiate", "ntlm", "kerberos"];

/// The schemes under which tokens are sent.
const TOKEN_SCHEMES: [&str; 2] = ["bearer", "dpop"];

/// The challenges of an answer.
pub(crate) struct Challenges<'a>(Vec<Challenge<'a>>);

impl<'a> Challenges<'a> {
    pub(crate) fn read(headers: &'a HeaderMap) -> Self {
        Self(Challenge::all(headers).collect())
    }

    /// All challenges are a proxy's.
    pub(crate) fn are_a_proxys(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|challenge| is_one_of(challenge, &PROXY_SCHEMES))
    }

    /// No challenge asks for a token.
    pub(crate) fn are_foreign(&self) -> bool {
        !self.0.is_empty() && !self.0.iter().any(|challenge| is_one_of(challenge, &TOKEN_SCHEMES))
    }

    /// A challenge asks for a stronger or more recent sign-in (RFC 9470 §3).
    pub(crate) fn ask_for_a_sign_in(&self) -> bool {
        self.0.iter().any(|challenge| {
            is_one_of(challenge, &TOKEN_SCHEMES)
                && challenge.error().as_deref() == Some("insufficient_user_authentication")
        })
    }
}

fn is_one_of(challenge: &Challenge<'_>, schemes: &[&str]) -> bool {
    schemes.iter().any(|scheme| challenge.is_scheme(scheme))
}

#[cfg(test)]
mod tests {
    use http::header::WWW_AUTHENTICATE;

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (WWW_AUTHENTICATE, value.parse().unwrap())).collect()
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
            let headers = headers(values);
            let challenges = Challenges::read(&headers);
            assert!(challenges.are_a_proxys() && challenges.are_foreign(), "{values:?}");
        }
        for values in [&["JWT realm=\"api\""][..], &["Token"], &["Basic realm=\"x\"", "JWT realm=\"api\""]] {
            let headers = headers(values);
            let challenges = Challenges::read(&headers);
            assert!(!challenges.are_a_proxys() && challenges.are_foreign(), "{values:?}");
        }
        for values in [
            &[][..],
            &["Bearer"],
            &["Basic realm=\"x\", bearer realm=\"y\""],
            &["Basic realm=\"x\"", "Bearer error=\"invalid_token\""],
            &["Negotiate abc==, Bearer realm=\"y\""],
        ] {
            let headers = headers(values);
            let challenges = Challenges::read(&headers);
            assert!(!challenges.are_a_proxys() && !challenges.are_foreign(), "{values:?}");
        }
    }

    #[test]
    fn a_step_up_asks_for_a_sign_in() {
        let ask = |value| Challenges::read(&headers(&[value])).ask_for_a_sign_in();
        assert!(ask(r#"Bearer error="insufficient_user_authentication", acr_values="x""#));
        assert!(!ask(r#"Basic error="insufficient_user_authentication""#));
        assert!(!ask(r#"Bearer error="invalid_token""#));
    }
}
