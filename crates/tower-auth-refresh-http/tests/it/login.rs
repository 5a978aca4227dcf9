use serde_json::json;
use tower_auth_refresh_http::{JsonLogin, JsonLogout, TokenFields};

use crate::support::{Answer, Scripted, access, answer, old_tokens, refresh};

const LOGIN: &str = "https://api.example.com/auth/login";
const LOGOUT: &str = "https://api.example.com/auth/logout";

#[tokio::test]
async fn credentials_buy_tokens() {
    let scripted = Scripted::with([answer(201, r#"{"accessToken":"a1","refreshToken":"r1","user":{"id":7}}"#)]);
    let login = JsonLogin::new(scripted.client(), LOGIN).unwrap().fields(TokenFields::camel_case());
    let tokens = login.request_tokens(&json!({"email": "ada@example.com", "password": "correct horse"})).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a1", Some("r1")));
    assert_eq!(tokens.extra("user"), Some(&json!({"id": 7})));
    let asked = scripted.only();
    assert_eq!(asked.uri.to_string(), LOGIN);
    assert_eq!(asked.json()["password"], "correct horse");
    assert!(asked.opted_out);
}

#[tokio::test]
async fn wrong_credentials_are_told_from_everything_else() {
    let refused = |answer: Answer| async {
        let scripted = Scripted::with([answer]);
        JsonLogin::new(scripted.client(), LOGIN).unwrap().request_tokens(&json!({})).await.unwrap_err()
    };
    for wrong in [
        answer(401, ""),
        answer(401, r#"{"error":"invalid_credentials"}"#),
        answer(400, r#"{"message":"no such user"}"#),
        answer(403, r#"{"message":"locked"}"#),
        answer(422, r#"{"errors":[]}"#),
    ] {
        let error = refused(wrong.clone()).await;
        assert!(error.is_rejected(), "{wrong:?}: {error}");
    }
    for page in [answer(403, "<html>"), answer(401, "<html>"), answer(404, "{}"), answer(302, "")] {
        let error = refused(page.clone()).await;
        assert!(error.is_misconfigured(), "{page:?}: {error}");
    }
    assert!(refused(answer(429, "").header("retry-after", "5")).await.retry_after().is_some());
    assert!(refused(answer(500, "")).await.is_in_doubt());
}

#[tokio::test]
async fn credentials_that_are_no_json_are_never_sent_nor_shown() {
    let scripted = Scripted::with([answer(200, "{}")]);
    let login = JsonLogin::new(scripted.client(), LOGIN).unwrap();
    // A map whose keys can't be JSON names.
    let credentials = std::collections::BTreeMap::from([(vec!["hunter2"], 1)]);
    let error = login.request_tokens(&credentials).await.unwrap_err();
    assert!(error.is_misconfigured());
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    assert!(scripted.asked().is_empty());
}

#[tokio::test]
async fn logout_names_the_refresh_token() {
    let scripted = Scripted::with([answer(204, "")]);
    let logout = JsonLogout::new(scripted.client(), LOGOUT).unwrap().refresh_token_field("token").member("all", true);
    logout.revoke(&old_tokens()).await.unwrap();
    let asked = scripted.only();
    assert_eq!(asked.json(), json!({"token": "old-refresh", "all": true}));
    assert_eq!(asked.header("authorization"), None);

    logout.with_access_token().revoke(&old_tokens()).await.unwrap();
    assert_eq!(scripted.asked()[1].header("authorization"), Some("Bearer old-access"));
}

#[tokio::test]
async fn a_logout_that_fails_says_so() {
    let scripted = Scripted::with([answer(401, ""), answer(500, "")]);
    let logout = JsonLogout::new(scripted.client(), LOGOUT).unwrap();
    assert!(logout.revoke(&old_tokens()).await.unwrap_err().is_rejected());
    assert!(logout.revoke(&old_tokens()).await.unwrap_err().is_in_doubt());
}
