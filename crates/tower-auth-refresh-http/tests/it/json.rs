use http::header::ACCEPT;
use http::{HeaderName, HeaderValue};
use serde_json::json;
use tower_auth_refresh::{RefreshToken, Tokens};
use tower_auth_refresh_http::{ClientAuth, JsonRefresh, TokenFields};

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

#[tokio::test]
async fn a_graphql_call_nests_the_tokens_in_its_variables() {
    let scripted = Scripted::with([answer(200, r#"{"data":{"refresh":{"accessToken":"a2","refreshToken":"r2"}}}"#)]);
    let query = "mutation($refreshToken: String!) { refresh(token: $refreshToken) { accessToken refreshToken } }";
    let refresher = JsonRefresh::new(scripted.client(), URL)
        .unwrap()
        .member("query", query)
        .member("variables.deviceId", "7f9c")
        .refresh_token_field("variables.refreshToken")
        .access_token_field("/variables/accessToken")
        .fields(
            TokenFields::default().access_token("data.refresh.accessToken").refresh_token("data.refresh.refreshToken"),
        );
    let tokens = refresher.refresh(&old_tokens()).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", Some("r2")));
    let variables = json!({"deviceId": "7f9c", "refreshToken": "old-refresh", "accessToken": "old-access"});
    assert_eq!(scripted.only().json(), json!({"query": query, "variables": variables}));
}

#[tokio::test]
async fn a_path_through_a_member_that_is_no_object_is_misconfigured_and_sends_nothing() {
    let scripted = Scripted::with([answer(200, "{}")]);
    let refresher = JsonRefresh::new(scripted.client(), URL).unwrap().member("a", 1).refresh_token_field("a.b");
    assert_eq!(outcome(&refresher.refresh(&old_tokens()).await), "misconfigured");
    assert!(scripted.requests().is_empty());
}

#[tokio::test]
async fn the_content_type_and_the_headers_of_a_call_are_configurable() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2"}"#)]);
    let json_api = HeaderValue::from_static("application/vnd.api+json");
    let refresher = JsonRefresh::new(scripted.client(), URL)
        .unwrap()
        .content_type(json_api.clone())
        .header(ACCEPT, json_api)
        .header(HeaderName::from_static("apikey"), HeaderValue::from_static("k1"));
    refresher.refresh(&old_tokens()).await.unwrap();
    let request = scripted.only();
    for name in ["content-type", "accept"] {
        assert_eq!(request.header(name), Some("application/vnd.api+json"));
    }
    assert_eq!(request.header("apikey"), Some("k1"));
    assert!(request.headers["apikey"].is_sensitive());
}

#[tokio::test]
async fn the_expired_access_token_is_sent_as_bearer_by_opt_in() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2"}"#)]);
    let refresher = JsonRefresh::new(scripted.client(), URL).unwrap().access_token_as_bearer();
    refresher.refresh(&old_tokens()).await.unwrap();
    let request = scripted.only();
    assert_eq!(request.header("authorization"), Some("Bearer old-access"));
    assert_eq!(request.json(), json!({"refresh_token": "old-refresh"}));
    // A session that starts from a refresh token has none.
    let tokens = Tokens::from_refresh_token(RefreshToken::new("r1").unwrap());
    refresher.refresh(&tokens).await.unwrap();
    assert_eq!(scripted.requests()[1].header("authorization"), None);
}

#[tokio::test]
async fn a_json_call_authenticates_its_client() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2"}"#)]);
    let refresher = || JsonRefresh::new(scripted.client(), URL).unwrap();
    refresher().client_auth(ClientAuth::basic("app", "s3cret")).refresh(&old_tokens()).await.unwrap();
    refresher().client_auth(ClientAuth::post("app", "s3cret")).refresh(&old_tokens()).await.unwrap();
    let named = ClientAuth::public("app").id_field("clientId");
    refresher().client_auth(named).refresh(&old_tokens()).await.unwrap();
    let requests = scripted.requests();
    assert_eq!(requests[0].header("authorization"), Some("Basic YXBwOnMzY3JldA=="));
    assert_eq!(requests[0].json(), json!({"refresh_token": "old-refresh"}));
    let expected = json!({"refresh_token": "old-refresh", "client_id": "app", "client_secret": "s3cret"});
    assert_eq!(requests[1].json(), expected);
    assert_eq!(requests[2].json(), json!({"refresh_token": "old-refresh", "clientId": "app"}));

    // The header holds either the client or a token.
    let both = refresher().client_auth(ClientAuth::basic("app", "s3cret")).refresh_token_as_bearer();
    assert_eq!(outcome(&both.refresh(&old_tokens()).await), "misconfigured");
    assert_eq!(scripted.requests().len(), 3);
}

#[tokio::test]
async fn one_token_that_is_both_is_renewed_by_itself() {
    let scripted = Scripted::with([answer(200, r#"{"token":"t2"}"#), answer(200, r#"{"token":"t3"}"#)]);
    let refresher = JsonRefresh::new(scripted.client(), URL)
        .unwrap()
        .refresh_token_as_bearer()
        .fields(TokenFields::default().access_token("token").refresh_token("token"));
    let tokens = refresher.refresh(&old_tokens()).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("t2", Some("t2")));
    let tokens = refresher.refresh(&tokens).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("t3", Some("t3")));
    assert_eq!(scripted.requests()[1].header("authorization"), Some("Bearer t2"));
}
