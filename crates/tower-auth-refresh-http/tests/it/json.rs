use serde_json::json;
use tower_auth_refresh::{RefreshToken, Tokens};
use tower_auth_refresh_http::{JsonRefresh, TokenFields};

use crate::support::{Scripted, access, answer, old_tokens, outcome, refresh};

const URL: &str = "https://api.example.com/auth/refresh";

#[tokio::test]
async fn only_the_refresh_token_is_sent_as_json() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2","refresh_token":"r2","scope":"read"}"#)]);
    let tokens = JsonRefresh::new(scripted.client(), URL).unwrap().refresh(&old_tokens()).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", Some("r2")));
    assert_eq!(tokens.extra("scope"), Some(&json!("read")));

    let request = scripted.only();
    assert_eq!((request.method.as_str(), request.uri.to_string().as_str()), ("POST", URL));
    assert_eq!(request.json(), json!({"refresh_token": "old-refresh"}));
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.header("accept"), Some("application/json"));
    assert_eq!(request.header("authorization"), None);
    assert_eq!(request.header("accept-encoding"), Some("identity"));
    assert!(request.skips_auth);
}

#[tokio::test]
async fn the_names_of_an_app_are_configurable() {
    let scripted = Scripted::with([answer(200, r#"{"data":{"tokens":[{"accessToken":"a2","refreshToken":"r2"}]}}"#)]);
    let refresher = JsonRefresh::new(scripted.client(), URL)
        .unwrap()
        .refresh_token_field("refreshToken")
        .access_token_field("accessToken")
        .member("device_id", "7f9c")
        .member("app", json!({"version": 3}))
        .fields(
            TokenFields::camel_case()
                .access_token("data.tokens.0.accessToken")
                .refresh_token("data.tokens.0.refreshToken"),
        );
    let tokens = refresher.refresh(&old_tokens()).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", Some("r2")));
    let expected = json!({
        "refreshToken": "old-refresh",
        "accessToken": "old-access",
        "device_id": "7f9c",
        "app": {"version": 3},
    });
    assert_eq!(scripted.only().json(), expected);
}

#[tokio::test]
async fn the_refresh_token_as_bearer_leaves_the_body_empty() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2"}"#)]);
    let refresher = JsonRefresh::new(scripted.client(), URL).unwrap().refresh_token_as_bearer();
    refresher.refresh(&old_tokens()).await.unwrap();
    let request = scripted.only();
    assert_eq!(request.header("authorization"), Some("Bearer old-refresh"));
    assert!(request.headers["authorization"].is_sensitive());
    assert_eq!((request.body.as_str(), request.header("content-type")), ("", None));
}

#[tokio::test]
async fn without_a_refresh_token_nothing_is_sent() {
    let scripted = Scripted::with([answer(200, "{}")]);
    let result = JsonRefresh::new(scripted.client(), URL).unwrap().refresh(&Tokens::default()).await;
    assert_eq!(outcome(&result), "misconfigured");
    assert!(scripted.requests().is_empty());
}

#[tokio::test]
async fn a_token_of_any_printable_bytes_is_sent_unchanged() {
    let odd = r#"q"\u0041/&=; ~"#;
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2"}"#)]);
    let tokens = Tokens::from_refresh_token(RefreshToken::new(odd).unwrap());
    JsonRefresh::new(scripted.client(), URL).unwrap().refresh(&tokens).await.unwrap();
    assert_eq!(scripted.only().json()["refresh_token"], odd);
}
