//! Token responses that other crates have received.

use std::error::Error;
use std::time::{Duration, SystemTime};

use oauth2::basic::BasicTokenType;
use oauth2::{ExtraTokenFields, Scope, StandardTokenResponse};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};
use tower_auth_refresh::{RefreshError, Tokens};
use tower_auth_refresh_http::{AuthServerError, ClientAuth, OAuthRefresh, TokenFields};

use crate::support::{Scripted, access, answer, issued, old_tokens, outcome, refresh};

fn read(response: &impl Serialize) -> Result<Tokens, AuthServerError> {
    TokenFields::default().tokens(response)
}

/// Further members, in the form in which `openidconnect` 4 has its ID token.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Further {
    id_token: Option<String>,
    tenant: Option<u32>,
}

impl ExtraTokenFields for Further {}

#[test]
fn a_response_of_oauth2_becomes_tokens_with_its_scope_its_id_token_and_its_vendors_members() {
    let further = Further { id_token: Some("h.c.s".to_owned()), tenant: Some(7) };
    let access_token = oauth2::AccessToken::new("a1".to_owned());
    let mut response = StandardTokenResponse::new(access_token, BasicTokenType::Bearer, further);
    response.set_refresh_token(Some(oauth2::RefreshToken::new("r1".to_owned())));
    response.set_expires_in(Some(&Duration::from_secs(300)));
    response.set_scopes(Some(["read", "write"].map(|scope| Scope::new(scope.to_owned())).to_vec()));

    let tokens = read(&response).unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a1", Some("r1")));
    let left = tokens.expires_at().unwrap().duration_since(SystemTime::now()).unwrap();
    assert!((295..=300).contains(&left.as_secs()), "{left:?}");
    let mut kept: Vec<_> = tokens.extras().map(|(name, value)| (name, value.clone())).collect();
    kept.sort_by_key(|(name, _)| *name);
    assert_eq!(kept, [("id_token", json!("h.c.s")), ("scope", json!("read write")), ("tenant", json!(7))]);
}

#[test]
fn a_response_in_json_is_read_at_the_paths_of_the_fields() {
    let fields = TokenFields::default().access_token("data.token").refresh_token("data.renewal");
    let tokens = fields.tokens(&json!({"data": {"token": "a1", "renewal": "r1"}, "user": "u1"})).unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a1", Some("r1")));
    assert_eq!(tokens.extras().collect::<Vec<_>>(), [("user", &json!("u1"))]);
}

#[tokio::test]
async fn a_response_means_what_it_means_as_the_answer_to_a_refresh() {
    let bearer = |expires_in: Value| json!({"access_token": "a2", "refresh_token": "rt-2", "expires_in": expires_in});
    for response in [
        bearer(json!(300)),
        bearer(json!("300")),
        bearer(json!(0)),
        bearer(json!(-1)),
        bearer(json!(1e300)),
        bearer(json!("soon")),
        bearer(json!(10 * 366 * 24 * 60 * 60 + 1)),
        json!({"access_token": " Bearer a2\n", "refresh_token": "", "token_type": "custom"}),
        json!({"access_token": "a2", "token_type": "DPoP", "refresh_token": "rt-2"}),
        json!({"access_token": "a2", "token_type": "mac"}),
        json!({"access_token": 7, "refresh_token": "rt-2"}),
        json!({"access_token": "a\u{0}2", "refresh_token": "rt-2"}),
        json!({"access_token": "a2", "refresh_token": 7}),
        json!({"access_token": "a2", "refresh_token": "r\n2"}),
        json!({"accessToken": "a2", "refreshToken": "rt-2"}),
        json!({"access_token": "a2", "refresh_token": "rt-2", "error": "invalid_grant"}),
        json!({"error": "invalid_grant"}),
        json!({"error": "invalid_client", "refresh_token": "rt-2"}),
        json!({"error": "temporarily_unavailable"}),
        json!({}),
        json!([]),
        json!(null),
        json!("a2"),
    ] {
        let client = Scripted::with([answer(200, response.to_string())]).client();
        let call = OAuthRefresh::new(client, "https://auth.example.com/token", ClientAuth::public("app")).unwrap();
        let answered = call.refresh(&old_tokens()).await;
        let handed_over = read(&response).map_err(RefreshError::from);
        assert_eq!(outcome(&handed_over), outcome(&answered), "{response}");
        assert_eq!(issued(&handed_over), issued(&answered), "{response}");
        if let (Ok(ours), Ok(theirs)) = (handed_over, answered) {
            assert_eq!((access(&ours), refresh(&ours)), (access(&theirs), refresh(&theirs)), "{response}");
            assert_eq!(ours.expires_at().is_some(), theirs.expires_at().is_some(), "{response}");
            assert!(ours.extras().eq(theirs.extras()), "{response}");
        }
    }
}

#[test]
fn the_error_of_a_response_shows_no_secret_and_no_status_that_the_response_never_had() {
    for response in [
        json!({"access_token": ["hunter2"], "refresh_token": "hunter2"}),
        json!({"access_token": "hunter2\u{7f}", "refresh_token": "hunter2"}),
        json!({"token": "hunter2"}),
        json!("hunter2"),
        json!({"error": "invalid_grant", "error_description": "hunter2"}),
        json!({"error": "Hunter2 hunter2"}),
    ] {
        let error = read(&response).unwrap_err();
        let (display, debug, source) = (error.to_string(), format!("{error:?}"), format!("{:?}", error.source()));
        for shown in [&display, &debug, &source] {
            assert!(!shown.to_lowercase().contains("hunter2"), "{shown}");
        }
        assert_eq!((error.status(), error.endpoint()), (None, None));
        assert!(!display.contains("200"), "{display}");
    }
}

#[test]
fn a_response_that_cannot_be_written_as_json_is_misconfigured_and_its_message_left_out() {
    struct Talkative;
    impl Serialize for Talkative {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(S::Error::custom("hunter2"))
        }
    }
    let error = read(&Talkative).unwrap_err();
    assert!(error.is_misconfigured() && error.source().is_none());
    assert_eq!(error.to_string(), "the token response can't be written as JSON");
}
