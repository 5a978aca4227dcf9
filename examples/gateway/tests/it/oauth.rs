//! `--token-endpoint`: OAuth 2.0 instead of the JSON endpoints.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Form, Json, Router};
use gateway::{AuthServer, Gateway, Settings};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::test_gateway::{Browser, serve, spawn};

type Forms = Arc<Mutex<Vec<HashMap<String, String>>>>;

/// Starts a token endpoint that issues numbered tokens, and an API that rejects the first.
async fn server() -> (String, Forms) {
    async fn token(
        State(forms): State<Forms>,
        headers: HeaderMap,
        Form(form): Form<HashMap<String, String>>,
    ) -> Response {
        let basic = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(basic.as_deref(), Some("Basic Z2F0ZXdheTpzJTJCM2NyZXQ="), "gateway:s%2B3cret");
        let count = {
            let mut forms = forms.lock().unwrap();
            forms.push(form.clone());
            forms.len()
        };
        if form.get("password").is_some_and(|password| password == "wrong") {
            return (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_grant" }))).into_response();
        }
        let response = json!({
            "access_token": format!("a{count}"), "refresh_token": format!("r{count}"),
            "token_type": "Bearer", "expires_in": 300,
        });
        Json(response).into_response()
    }
    async fn revoke(State(forms): State<Forms>, Form(form): Form<HashMap<String, String>>) {
        forms.lock().unwrap().push(form);
    }
    async fn api(headers: HeaderMap) -> Response {
        let token = headers["authorization"].to_str().unwrap().to_owned();
        if token == "Bearer a1" {
            let challenge = [("www-authenticate", r#"Bearer error="invalid_token""#)];
            return (StatusCode::UNAUTHORIZED, challenge).into_response();
        }
        token.into_response()
    }
    let forms = Forms::default();
    let routes = Router::new()
        .route("/token", post(token))
        .route("/revoke", post(revoke))
        .route("/api/whoami", axum::routing::get(api))
        .with_state(forms.clone());
    (serve(routes).await, forms)
}

#[tokio::test]
async fn a_user_signs_in_refreshes_and_signs_out() {
    let (origin, forms) = server().await;
    let settings = Settings::new(
        &origin,
        AuthServer::OAuth {
            token_endpoint: format!("{origin}/token"),
            revocation_endpoint: Some(format!("{origin}/revoke")),
            client_id: "gateway".to_owned(),
            client_secret: Some("s+3cret".to_owned()),
        },
    );
    let mut browser = Browser::at(spawn(Gateway::new(settings.unwrap())).await);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    assert_eq!(browser.get("/api/whoami").await.body, "Bearer a2");
    assert_eq!(browser.post("/logout", "").await.status, 204);
    browser.login("ada", "wrong").await.assert_problem(401, "wrong-credentials");
    let forms = forms.lock().unwrap();
    let form = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!(forms[0], form(&[("grant_type", "password"), ("username", "ada"), ("password", "correct horse")]));
    assert_eq!(forms[1], form(&[("grant_type", "refresh_token"), ("refresh_token", "r1")]));
    assert_eq!(forms[2], form(&[("token", "r2"), ("token_type_hint", "refresh_token")]));
}

#[tokio::test]
async fn a_login_ignores_invalid_optional_fields_of_the_token_response() {
    async fn token(Form(form): Form<HashMap<String, String>>) -> Response {
        Json(serde_json::from_str::<serde_json::Value>(&form["username"]).unwrap()).into_response()
    }
    let origin = serve(Router::new().route("/token", post(token))).await;
    let auth = AuthServer::OAuth {
        token_endpoint: format!("{origin}/token"),
        revocation_endpoint: None,
        client_id: "gateway".to_owned(),
        client_secret: None,
    };
    let mut browser = Browser::at(spawn(Gateway::new(Settings::new(&origin, auth).unwrap())).await);
    for (lifetime, left) in [
        (json!(300), Some(300)),
        (json!("300"), Some(300)),
        (json!(300.5), Some(300)),
        (json!(-1), None),
        (json!(0), None),
        (json!(1e300), None),
        (json!("soon"), None),
        (json!(null), None),
    ] {
        let response =
            json!({ "access_token": "a", "refresh_token": "r", "token_type": "bearer", "expires_in": lifetime });
        assert_eq!(browser.login(&response.to_string(), "x").await.status, 204, "{lifetime}");
        let session = browser.get("/session").await.json();
        let expires_in = session["expires_in"].as_u64();
        assert!(expires_in == left || expires_in == left.map(|left| left - 1), "{lifetime}: {expires_in:?}");
    }
    for response in [
        json!({ "access_token": "a", "refresh_token": null }),
        json!({ "access_token": "a", "refresh_token": "", "token_type": null }),
        json!({ "access_token": "a", "refresh_token": "r", "id_token": 7 }),
    ] {
        assert_eq!(browser.login(&response.to_string(), "x").await.status, 204, "{response}");
    }
    for response in [
        json!({}),
        json!([]),
        json!({ "access_token": "" }),
        json!({ "access_token": "a", "refresh_token": "r", "token_type": "mac" }),
        json!({ "access_token": "a", "refresh_token": "r", "error": "server_error" }),
    ] {
        browser.login(&response.to_string(), "x").await.assert_problem(502, "auth-server-failed");
    }
}

/// The browser has sent what the server can't read. Other errors are about the gateway.
#[tokio::test]
async fn a_login_that_the_token_endpoint_cannot_read_is_a_400() {
    async fn token(Form(form): Form<HashMap<String, String>>) -> Response {
        (StatusCode::BAD_REQUEST, form["username"].clone()).into_response()
    }
    let origin = serve(Router::new().route("/token", post(token))).await;
    let auth = AuthServer::OAuth {
        token_endpoint: format!("{origin}/token"),
        revocation_endpoint: None,
        client_id: "gateway".to_owned(),
        client_secret: None,
    };
    let mut browser = Browser::at(spawn(Gateway::new(Settings::new(&origin, auth).unwrap())).await);
    for body in [r#"{"error":"invalid_request"}"#, r#"{"error":"invalid_scope"}"#, "Bad Request", "{}"] {
        browser.login(body, "x").await.assert_problem(400, "malformed-request");
    }
    browser.login(r#"{"error":"invalid_grant"}"#, "x").await.assert_problem(401, "wrong-credentials");
    for error in ["invalid_client", "unauthorized_client", "unsupported_grant_type"] {
        browser.login(&json!({ "error": error }).to_string(), "x").await.assert_problem(502, "auth-server-failed");
    }
}

#[tokio::test]
async fn a_login_that_a_json_endpoint_cannot_read_is_a_400() {
    async fn login(body: String) -> Response {
        let status = if body.contains("422") { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
        (status, "no JSON").into_response()
    }
    let origin = serve(Router::new().route("/auth/login", post(login))).await;
    let settings = Settings::new(&origin, AuthServer::Json(origin.clone())).unwrap();
    let mut browser = Browser::at(spawn(Gateway::new(settings)).await);
    for user in ["400", "422"] {
        browser.login(user, "x").await.assert_problem(400, "malformed-request");
    }
}
