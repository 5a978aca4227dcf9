//! The name of a session's user, for the log and the limits.
//!
//! It is an [extra member](Tokens::extra) of the session's tokens: refreshes and stores keep it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};
use tower_auth_refresh::Tokens;

/// The member of the tokens.
const MEMBER: &str = "gateway_user";

/// The longest name that is kept, which OpenID Connect allows for `sub`.
const MAX_LENGTH: usize = 255;

/// The longest claims that are read.
const MAX_CLAIMS: usize = 16 * 1024;

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

/// Adds the name of the user to the tokens of a login.
///
/// The name is the `sub` of the ID token, else of the access token, else the `username` or `email` of the credentials. If
/// they have both, the server may have read either: the other one may be the name of another user. The tokens come from
/// the authorization server itself, so that their signature is not checked.
pub(crate) fn with_user(tokens: Tokens, credentials: &Map<String, Value>) -> Tokens {
    let id_token = tokens.extra("id_token").and_then(Value::as_str).and_then(subject);
    let subject = id_token.or_else(|| subject(tokens.access_token()?.expose_secret()));
    let user = subject.or_else(|| match (credentials.get("username"), credentials.get("email")) {
        (Some(name), None) | (None, Some(name)) => name.as_str().filter(|name| is_name(name)).map(str::to_owned),
        _ => None,
    });
    let Some(user) = user else { return tokens };
    let mut members: Map<_, _> = tokens.extras().map(|(name, value)| (name.to_owned(), value.clone())).collect();
    members.insert(MEMBER.to_owned(), user.into());
    tokens.with_extra(members)
}

/// Returns the name of the user that has signed in, if it is known.
pub(crate) fn of(tokens: &Tokens) -> Option<&str> {
    tokens.extra(MEMBER)?.as_str()
}

/// Returns the `sub` of a signed JWT (RFC 7519 §4.1.2).
fn subject(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_header, claims, _signature, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    if claims.len() > MAX_CLAIMS {
        return None;
    }
    let Claims { sub } = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    is_name(&sub).then_some(sub)
}

/// Checks if a name can be printed in one line of a log.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_LENGTH && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tower_auth_refresh::AccessToken;

    use super::*;

    fn jwt(claims: &Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn tokens(access: &str, id_token: Option<String>) -> Tokens {
        let mut members = Map::from_iter([("scope".to_owned(), "notes".into())]);
        members.extend(id_token.map(|token| ("id_token".to_owned(), token.into())));
        Tokens::from_access_token(AccessToken::new(access).unwrap()).with_extra(members)
    }

    fn user(access: &str, id_token: Option<String>, credentials: &Value) -> Option<String> {
        let tokens = with_user(tokens(access, id_token), credentials.as_object().unwrap());
        assert_eq!(tokens.extra("scope"), Some(&"notes".into()));
        of(&tokens).map(str::to_owned)
    }

    #[test]
    fn a_user_is_named_by_the_best_source() {
        let credentials = json!({ "username": "ada", "password": "secret", "email": "ada@example.com" });
        let (access, id_token) = (jwt(&json!({ "sub": "u-2" })), jwt(&json!({ "sub": "u-1", "iss": "x" })));
        assert_eq!(user(&access, Some(id_token), &credentials).as_deref(), Some("u-1"));
        assert_eq!(user(&access, Some("opaque".to_owned()), &credentials).as_deref(), Some("u-2"));
        assert_eq!(user("opaque", None, &json!({ "username": "ada", "password": "x" })).as_deref(), Some("ada"));
        assert_eq!(user("opaque", None, &json!({ "email": "ada@example.com" })).as_deref(), Some("ada@example.com"));
        assert_eq!(user("opaque", None, &json!({ "username": 7, "password": "secret" })), None);
    }

    #[test]
    fn credentials_with_two_names_name_no_user() {
        let credentials = json!({ "username": "victim@example.com", "email": "mallory@example.com" });
        assert_eq!(user("opaque", None, &credentials), None);
        assert_eq!(user("opaque", None, &json!({ "username": null, "email": "mallory@example.com" })), None);
    }

    #[test]
    fn a_name_that_could_forge_a_line_or_is_too_long_is_no_name() {
        for sub in [json!(7), json!(""), json!("a\nb"), json!("a\u{1b}[2J"), json!("x".repeat(256)), json!(null)] {
            let access = jwt(&json!({ "sub": sub }));
            assert_eq!(user(&access, None, &json!({ "username": "ada" })).as_deref(), Some("ada"), "{sub}");
            assert_eq!(user("opaque", None, &json!({ "username": sub })), None, "{sub}");
        }
        let large = jwt(&json!({ "sub": "u-1", "more": "x".repeat(MAX_CLAIMS) }));
        assert_eq!(user(&large, None, &json!({})), None);
        for broken in ["e30.%%%.c2ln", "e30.e30.c2ln", "e30.e30", "..", "a.b.c.d", ""] {
            assert_eq!(subject(broken), None, "{broken}");
        }
    }
}
