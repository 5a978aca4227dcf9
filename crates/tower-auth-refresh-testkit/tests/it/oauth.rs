//! `/oauth/…`: sign-in by code and by device, refresh and revocation, as a `tower` service on paused time.

#![expect(clippy::unwrap_used, reason = "what fails in a test, fails the test")]

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tower::ServiceExt;
use tower_auth_refresh_testkit::{ResponseBody, TestKit};

/// The pair of RFC 7636, appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

const DEVICE_GRANT: &str = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code";

async fn get(kit: &TestKit, path: &str) -> Response<ResponseBody> {
    let request = Request::get(format!("http://auth.example{path}")).body(Full::<Bytes>::default()).unwrap();
    kit.clone().oneshot(request).await.unwrap()
}

async fn post(kit: &TestKit, path: &str, form: &str) -> (StatusCode, Value) {
    let request = Request::post(format!("http://auth.example{path}")).body(Full::<Bytes>::from(form.to_owned()));
    let (head, body) = kit.clone().oneshot(request.unwrap()).await.unwrap().into_parts();
    let Ok(body) = body.collect().await else { panic!("the body was cut short") };
    (head.status, serde_json::from_slice(&body.to_bytes()).unwrap_or_default())
}

async fn token(kit: &TestKit, form: &str) -> Result<Value, String> {
    match post(kit, "/oauth/token", form).await {
        (StatusCode::OK, pair) => Ok(pair),
        (StatusCode::BAD_REQUEST, error) => Err(error["error"].as_str().unwrap().to_owned()),
        (status, _) => panic!("{status}"),
    }
}

/// Opens the authorization endpoint, and returns the parameters of its redirect.
async fn authorize(kit: &TestKit) -> String {
    let query = format!(
        "response_type=code&client_id=app&state=s1&redirect_uri=http%3A%2F%2F127.0.0.1%3A1%2Fcb\
         &code_challenge_method=S256&code_challenge={CHALLENGE}"
    );
    let response = get(kit, &format!("/oauth/authorize?{query}")).await;
    assert_eq!(response.status(), StatusCode::FOUND);
    let location = response.headers()["location"].to_str().unwrap();
    location.strip_prefix("http://127.0.0.1:1/cb?").unwrap().to_owned()
}

fn exchange(redirect: &str, verifier: &str) -> String {
    let code = redirect.split('&').find(|parameter| parameter.starts_with("code=")).unwrap();
    let redirect_uri = "redirect_uri=http%3A%2F%2F127.0.0.1%3A1%2Fcb";
    format!("grant_type=authorization_code&client_id=app&{code}&{redirect_uri}&code_verifier={verifier}")
}

async fn status(kit: &TestKit, pair: &Value) -> StatusCode {
    let authorization = format!("Bearer {}", pair["access_token"].as_str().unwrap());
    let request = Request::get("/api/me").header("authorization", authorization).body(Full::<Bytes>::default());
    kit.clone().oneshot(request.unwrap()).await.unwrap().status()
}

#[tokio::test(start_paused = true)]
async fn a_code_buys_tokens_once_and_its_replay_ends_the_sign_in() {
    let kit = TestKit::new();
    let redirect = authorize(&kit).await;
    assert!(redirect.contains("state=s1") && redirect.contains("iss=http%3A%2F%2Fauth.example"), "{redirect}");

    assert_eq!(token(&kit, &exchange(&redirect, "another")).await, Err("invalid_grant".to_owned()));
    let pair = token(&kit, &exchange(&redirect, VERIFIER)).await.unwrap();
    assert_eq!(status(&kit, &pair).await, 200);
    assert_eq!(token(&kit, &exchange(&redirect, VERIFIER)).await, Err("invalid_grant".to_owned()));
    assert_eq!(status(&kit, &pair).await, 401);
}

#[tokio::test(start_paused = true)]
async fn a_code_expires_and_a_user_can_refuse_to_give_one() {
    let kit = TestKit::new();
    let redirect = authorize(&kit).await;
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!(token(&kit, &exchange(&redirect, VERIFIER)).await, Err("invalid_grant".to_owned()));

    kit.configure(|settings| settings.consent = false);
    assert!(authorize(&kit).await.starts_with("error=access_denied&state=s1&iss="));
    assert_eq!(get(&kit, "/oauth/authorize?client_id=app").await.status(), 400);
}

#[tokio::test(start_paused = true)]
async fn a_device_is_approved_denied_slowed_down_and_forgotten() {
    let kit = TestKit::new();
    let begin = async || post(&kit, "/oauth/device", "client_id=app").await.1;
    let poll = async |device: &Value| {
        let code = device["device_code"].as_str().unwrap();
        token(&kit, &format!("grant_type={DEVICE_GRANT}&client_id=app&device_code={code}")).await
    };
    let code = |device: &Value| device["user_code"].as_str().unwrap().to_owned();
    let (approved, denied, expired) = (begin().await, begin().await, begin().await);
    assert_eq!(poll(&approved).await, Err("authorization_pending".to_owned()));
    assert_eq!(poll(&approved).await, Err("slow_down".to_owned()));

    assert!(kit.approve_device(&code(&approved).to_lowercase(), "grace"));
    assert!(!kit.approve_device(&code(&approved), "ada"), "already decided");
    let pair = poll(&approved).await.unwrap();
    assert_eq!(status(&kit, &pair).await, 200);
    assert_eq!(kit.log().last().unwrap().user.as_deref(), Some("grace"));
    assert_eq!(poll(&approved).await, Err("invalid_grant".to_owned()), "used");

    assert!(kit.deny_device(&code(&denied)));
    assert_eq!(poll(&denied).await, Err("access_denied".to_owned()));
    tokio::time::advance(Duration::from_secs(600)).await;
    assert!(!kit.approve_device(&code(&expired), "ada"));
    assert_eq!(poll(&expired).await, Err("expired_token".to_owned()));

    let opened = begin().await;
    let uri = opened["verification_uri_complete"].as_str().unwrap().strip_prefix("http://auth.example").unwrap();
    assert_eq!(get(&kit, uri).await.status(), 200);
    assert!(poll(&opened).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refresh_is_counted_as_one_and_a_revocation_ends_the_sign_in() {
    let kit = TestKit::new();
    let first = kit.sign_in("ada");
    let refresh = |token: &str| format!("grant_type=refresh_token&client_id=app&refresh_token={token}");
    let pair = token(&kit, &refresh(&first.refresh_token)).await.unwrap();
    assert_eq!((kit.counters().refreshes, kit.counters().granted), (1, 1));
    assert_eq!(token(&kit, &refresh(&first.access_token)).await, Err("invalid_grant".to_owned()));

    let form = format!("token={}", pair["refresh_token"].as_str().unwrap());
    assert_eq!(post(&kit, "/oauth/revoke", &form).await.0, 200);
    assert_eq!(status(&kit, &pair).await, 401);
    assert_eq!(kit.violations(), []);
    assert_eq!(get(&kit, "/oauth/token").await.status(), 405);
}
