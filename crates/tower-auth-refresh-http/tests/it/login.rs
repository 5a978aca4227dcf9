use std::error::Error;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tower_auth_refresh::Session;
use tower_auth_refresh_http::{JsonLogin, JsonLogout, JsonRefresh, TokenFields};

use crate::support::{Answer, Scripted, access, answer, old_tokens, refresh};

const LOGIN: &str = "https://api.example.com/auth/login";
const LOGOUT: &str = "https://api.example.com/auth/logout";

#[tokio::test]
async fn credentials_are_exchanged_for_tokens() {
    let scripted = Scripted::with([answer(201, r#"{"accessToken":"a1","refreshToken":"r1","user":{"id":7}}"#)]);
    let login = JsonLogin::new(scripted.client(), LOGIN).unwrap().fields(TokenFields::camel_case());
    let tokens = login.request_tokens(&json!({"email": "ada@example.com", "password": "correct horse"})).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a1", Some("r1")));
    assert_eq!(tokens.extra("user"), Some(&json!({"id": 7})));
    let request = scripted.only();
    assert_eq!(request.uri.to_string(), LOGIN);
    assert_eq!(request.json()["password"], "correct horse");
    assert!(request.skips_auth);
}

#[tokio::test]
async fn wrong_credentials_are_distinguished_from_other_failures() {
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
async fn a_failed_login_has_its_cause() {
    let refresh_call = JsonRefresh::new(Scripted::default().client(), LOGIN).unwrap();
    let session = Session::builder(refresh_call).build().await.unwrap();
    let login = JsonLogin::new(Scripted::with([answer(401, "")]).client(), LOGIN).unwrap();
    let error = login.sign_in(&session, &json!({})).await.unwrap_err();
    assert_eq!(error.to_string(), "the login failed");
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("the server rejected the credentials"), "{cause}");
}

#[tokio::test]
async fn credentials_that_are_not_json_are_neither_sent_nor_shown() {
    let scripted = Scripted::with([answer(200, "{}")]);
    let login = JsonLogin::new(scripted.client(), LOGIN).unwrap();
    // A map whose keys can't be JSON names.
    let credentials = std::collections::BTreeMap::from([(vec!["hunter2"], 1)]);
    let error = login.request_tokens(&credentials).await.unwrap_err();
    assert!(error.is_misconfigured());
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    assert!(scripted.requests().is_empty());
}

#[tokio::test]
async fn logout_sends_the_refresh_token() {
    let scripted = Scripted::with([answer(204, "")]);
    let logout = JsonLogout::new(scripted.client(), LOGOUT).unwrap().refresh_token_field("token").member("all", true);
    logout.revoke(&old_tokens()).await.unwrap();
    let request = scripted.only();
    assert_eq!(request.json(), json!({"token": "old-refresh", "all": true}));
    assert_eq!(request.header("authorization"), None);

    logout.with_access_token().revoke(&old_tokens()).await.unwrap();
    assert_eq!(scripted.requests()[1].header("authorization"), Some("Bearer old-access"));
}

#[tokio::test]
async fn a_logout_of_a_token_that_is_dead_already_succeeds() {
    for answered in [
        answer(401, ""),
        answer(401, "Unauthorized"),
        answer(401, r#"{"error":"invalid_token"}"#).header("www-authenticate", "Bearer error=\"invalid_token\""),
        answer(403, r#"{"message":"forbidden"}"#),
        answer(404, r#"{"detail":"unknown token"}"#),
        answer(400, r#"{"error":"invalid_grant"}"#),
    ] {
        let scripted = Scripted::with([answered.clone()]);
        let result = JsonLogout::new(scripted.client(), LOGOUT).unwrap().revoke(&old_tokens()).await;
        assert!(result.is_ok(), "{answered:?}: {result:?}");
    }
}

#[tokio::test]
async fn a_logout_that_may_have_left_the_token_alive_fails() {
    let failed = |answer: Answer| async {
        let scripted = Scripted::with([answer]);
        JsonLogout::new(scripted.client(), LOGOUT).unwrap().revoke(&old_tokens()).await.unwrap_err()
    };
    for page in [
        answer(403, "<html>Access denied</html>"),
        answer(404, "\n<!doctype html>"),
        answer(401, "").header("www-authenticate", "Basic realm=\"staging\""),
        answer(401, r#"{"error":"invalid_client"}"#),
        answer(400, r#"{"message":"no"}"#),
        answer(302, ""),
    ] {
        assert!(failed(page.clone()).await.is_misconfigured(), "{page:?}");
    }
    let error = failed(answer(500, "")).await;
    assert!(error.is_in_doubt());
    assert_eq!(error.to_string(), format!("{LOGOUT}: the server failed (status 500)"));
    assert_eq!(failed(answer(429, "").header("retry-after", "9")).await.retry_after().unwrap().as_secs(), 9);
}

#[tokio::test]
async fn a_401_to_a_logout_with_an_expired_access_token_fails() {
    let scripted = Scripted::with([answer(401, "")]);
    let logout = JsonLogout::new(scripted.client(), LOGOUT).unwrap();
    let live = old_tokens().with_expires_at(SystemTime::now() + Duration::from_secs(60));
    let expired = old_tokens().with_expires_at(SystemTime::now() - Duration::from_secs(1));
    logout.revoke(&expired).await.unwrap();
    let logout = logout.with_access_token();
    logout.revoke(&live).await.unwrap();
    let error = logout.revoke(&expired).await.unwrap_err();
    assert!(error.to_string().contains("the server refused the logout, whose access token has expired"));
}

#[tokio::test]
async fn the_refresh_token_of_a_logout_as_bearer() {
    let scripted = Scripted::with([answer(204, "")]);
    let logout = JsonLogout::new(scripted.client(), LOGOUT).unwrap().refresh_token_as_bearer();
    logout.revoke(&old_tokens()).await.unwrap();
    let request = scripted.only();
    assert_eq!((request.header("authorization"), &*request.body), (Some("Bearer old-refresh"), ""));
    // The header can't hold both tokens.
    assert!(logout.with_access_token().revoke(&old_tokens()).await.unwrap_err().is_misconfigured());
    assert_eq!(scripted.requests().len(), 1);
}
