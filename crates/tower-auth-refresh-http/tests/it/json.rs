use serde_json::json;
use tower_auth_refresh::{RefreshToken, Tokens};
use tower_auth_refresh_http::{JsonRefresh, TokenFields};

use crate::support::{Scripted, access, answer, old_tokens, outcome, refresh};

const URL: &str = "https://api.example.com/auth/refresh";

#[tokio::test]
async fn the_refresh_token_goes_as_json_to_the_endpoint_and_nothing_else_does() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2","refresh_token":"r2","scope":"read"}"#)]);
    let tokens = JsonRefresh::new(scripted.client(), URL).unwrap().refresh(&old_tokens()).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", Some("r2")));
    assert_eq!(tokens.extra("scope"), Some(&json!("read")));

    let asked = scripted.only();
    assert_eq!((asked.method.as_str(), asked.uri.to_string().as_str()), ("POST", URL));
    assert_eq!(asked.json(), json!({"refresh_token": "old-refresh"}));
    assert_eq!(asked.header("content-type"), Some("application/json"));
    assert_eq!(asked.header("accept"), Some("application/json"));
    assert_eq!(asked.header("authorization"), None);
    assert_eq!(asked.header("accept-encoding"), None);
    assert!(asked.opted_out);
}

#[tokio::test]
async fn an_app_with_its_own_names_is_understood() {
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
    let asked = scripted.only();
    assert_eq!(asked.header("authorization"), Some("Bearer old-refresh"));
    assert!(asked.headers["authorization"].is_sensitive());
    assert_eq!((asked.body.as_str(), asked.header("content-type")), ("", None));
}

#[tokio::test]
async fn without_a_refresh_token_nothing_is_sent() {
    let scripted = Scripted::with([answer(200, "{}")]);
    let result = JsonRefresh::new(scripted.client(), URL).unwrap().refresh(&Tokens::default()).await;
    assert_eq!(outcome(&result), "misconfigured");
    assert!(scripted.asked().is_empty());
}

#[tokio::test]
async fn a_token_of_any_printable_bytes_arrives_as_it_was() {
    let odd = r#"q"\u0041/&=; ~"#;
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2"}"#)]);
    let tokens = Tokens::from_refresh_token(RefreshToken::new(odd).unwrap());
    JsonRefresh::new(scripted.client(), URL).unwrap().refresh(&tokens).await.unwrap();
    assert_eq!(scripted.only().json()["refresh_token"], odd);
}
