use http::{HeaderName, HeaderValue};
use serde_json::json;
use tower_auth_refresh::Session;
use tower_auth_refresh_http::{JsonLogin, JsonLogout, JsonRefresh};

use crate::support::{Answer, Scripted, access, answer, cause, issued, old_tokens, outcome, refresh};

const URL: &str = "https://app.example.com/auth/refresh";

fn setting(status: u16, cookie: &str) -> Answer {
    answer(status, r#"{"access_token":"a2","refresh_token":"from the body"}"#).header("set-cookie", cookie)
}

fn refresher(scripted: &Scripted) -> JsonRefresh {
    JsonRefresh::new(scripted.client(), URL).unwrap().cookie("rt")
}

#[tokio::test]
async fn the_cookie_is_the_refresh_token_and_set_cookie_rotates_it() {
    let scripted = Scripted::with([
        setting(200, "rt=r2; Path=/auth; Max-Age=60; Secure; HttpOnly; SameSite=Strict")
            .header("set-cookie", "theme=dark"),
        setting(200, "rt=r3; Path=/auth; Max-Age=60; Secure"),
    ]);
    let refresher = refresher(&scripted);
    let tokens = refresher.refresh(&old_tokens()).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", Some("r2")));
    let kept = tokens.extra("refresh_cookie").unwrap();
    assert_eq!((&kept["path"], &kept["secure"]), (&json!("/auth"), &json!(true)));
    assert!(tokens.extras().all(|(_, value)| !value.to_string().contains("from the body")));

    let tokens = refresher.refresh(&tokens).await.unwrap();
    assert_eq!(refresh(&tokens), Some("r3"));

    let requests = scripted.requests();
    assert_eq!(requests[0].header("cookie"), Some("rt=old-refresh"));
    assert_eq!(requests[1].header("cookie"), Some("rt=r2"));
    assert!(requests[0].headers["cookie"].is_sensitive());
    assert_eq!((requests[0].method.as_str(), requests[0].body.as_str()), ("POST", ""));
    assert_eq!(requests[0].header("content-type"), None);
}

#[tokio::test]
async fn without_a_set_cookie_the_old_one_is_kept() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2","refresh_token":"from the body"}"#)]);
    let tokens = refresher(&scripted).refresh(&old_tokens()).await.unwrap();
    assert_eq!(refresh(&tokens), None);
}

#[tokio::test]
async fn members_make_a_body() {
    let scripted = Scripted::with([setting(200, "rt=r2")]);
    refresher(&scripted).member("device_id", "7f9c").refresh(&old_tokens()).await.unwrap();
    assert_eq!(scripted.only().json(), json!({"device_id": "7f9c"}));
}

#[tokio::test]
async fn the_deletion_of_the_refresh_cookie_in_a_2xx_or_4xx_ends_the_session() {
    for (status, expected) in [
        (200, "rejected"),
        (400, "rejected"),
        (401, "rejected"),
        (403, "rejected"),
        (404, "rejected"),
        (302, "misconfigured"),
        (500, "in doubt"),
    ] {
        let scripted = Scripted::with([setting(status, "rt=; Path=/auth; Max-Age=0")]);
        let result = refresher(&scripted).refresh(&old_tokens()).await;
        assert_eq!(outcome(&result), expected, "{status}");
        if expected == "rejected" {
            assert!(cause(&result.unwrap_err()).to_string().contains("the server deleted the refresh cookie"));
        }
    }
}

#[tokio::test]
async fn a_cookie_with_control_bytes_is_in_doubt() {
    let scripted = Scripted::with([setting(200, "rt=a\tb; Path=/auth")]);
    assert_eq!(outcome(&refresher(&scripted).refresh(&old_tokens()).await), "in doubt");
}

#[tokio::test]
async fn login_sets_the_cookie_and_logout_sends_it() {
    let scripted =
        Scripted::with([setting(200, "rt=r1; Path=/auth"), setting(200, "rt=r2; Path=/auth"), answer(204, "")]);
    let login = JsonLogin::new(scripted.client(), "https://app.example.com/login").unwrap().cookie("rt");
    let tokens = login.request_tokens(&json!({"user": "ada"})).await.unwrap();
    assert_eq!(refresh(&tokens), Some("r1"));
    let tokens = refresher(&scripted).refresh(&tokens).await.unwrap();
    assert_eq!(refresh(&tokens), Some("r2"));
    let logout = JsonLogout::new(scripted.client(), "https://app.example.com/auth/logout").unwrap().cookie("rt");
    logout.revoke(&tokens).await.unwrap();
    assert_eq!(scripted.requests()[2].header("cookie"), Some("rt=r2"));
    assert_eq!(scripted.requests()[2].body, "");

    // The attributes apply to the logout too.
    let logout = JsonLogout::new(scripted.client(), "https://app.example.com/logout").unwrap().cookie("rt");
    assert!(logout.revoke(&tokens).await.unwrap_err().is_misconfigured());
    assert_eq!(scripted.requests().len(), 3);
}

#[tokio::test]
async fn a_cookie_of_another_host_or_an_expired_one_is_not_sent() {
    let kept = |host: &str, expires: u64| {
        let attributes =
            json!({"domain": host, "host_only": true, "path": "/auth", "secure": true, "expires": expires});
        old_tokens().with_extra(serde_json::Map::from_iter([("refresh_cookie".to_owned(), attributes)]))
    };
    let scripted = Scripted::with([setting(200, "rt=r2")]);
    let result = refresher(&scripted).refresh(&kept("app.example.com", 1)).await;
    assert_eq!(outcome(&result), "rejected");
    let result = refresher(&scripted).refresh(&kept("other.example.com", u64::MAX)).await;
    assert_eq!(outcome(&result), "misconfigured");
    assert!(scripted.requests().is_empty());
    refresher(&scripted).refresh(&kept("app.example.com", u64::MAX)).await.unwrap();
}

/// Flask-JWT-Extended's cookies.
fn both_in_cookies(scripted: &Scripted) -> JsonRefresh {
    JsonRefresh::new(scripted.client(), URL)
        .unwrap()
        .cookie("refresh_token_cookie")
        .access_token_cookie("access_token_cookie")
        .header_from_cookie(HeaderName::from_static("x-csrf-token"), "csrf_refresh_token")
}

fn login_by_cookies(scripted: &Scripted) -> JsonLogin {
    JsonLogin::new(scripted.client(), URL)
        .unwrap()
        .cookie("refresh_token_cookie")
        .access_token_cookie("access_token_cookie")
        .keep_cookie("csrf_refresh_token")
}

fn setting_all(number: u32) -> Answer {
    answer(204, "")
        .header("set-cookie", format!("access_token_cookie=a{number}; Path=/; Max-Age=900; Secure; HttpOnly"))
        .header("set-cookie", format!("refresh_token_cookie=r{number}; Path=/auth; Secure; HttpOnly"))
        .header("set-cookie", format!("csrf_refresh_token=c{number}%7Cx; Path=/; Secure"))
}

#[tokio::test]
async fn both_tokens_and_the_csrf_token_come_in_cookies() {
    let scripted = Scripted::with([setting_all(1), setting_all(2), setting_all(3), answer(204, "")]);
    let login = JsonLogin::new(scripted.client(), "https://app.example.com/login")
        .unwrap()
        .cookie("refresh_token_cookie")
        .access_token_cookie("access_token_cookie")
        .keep_cookie("csrf_refresh_token");
    let tokens = login.request_tokens(&json!({"user": "ada"})).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a1", Some("r1")));
    assert!(tokens.expires_at().is_some());
    let tokens = both_in_cookies(&scripted).refresh(&tokens).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", Some("r2")));
    let tokens = both_in_cookies(&scripted).refresh(&tokens).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a3", Some("r3")));
    let logout = JsonLogout::new(scripted.client(), "https://app.example.com/auth/logout")
        .unwrap()
        .cookie("refresh_token_cookie")
        .header_from_cookie(HeaderName::from_static("x-csrf-token"), "csrf_refresh_token");
    logout.revoke(&tokens).await.unwrap();

    for (number, request) in scripted.requests().iter().enumerate().skip(1) {
        let cookies = format!("refresh_token_cookie=r{number}; csrf_refresh_token=c{number}%7Cx");
        assert_eq!(request.header("cookie"), Some(&*cookies));
        assert_eq!(request.header("x-csrf-token"), Some(&*format!("c{number}|x")));
        assert!(request.headers["x-csrf-token"].is_sensitive());
    }
}

#[tokio::test]
async fn an_access_token_in_a_cookie_needs_no_readable_body() {
    for text in ["", "<html>", "{}", r#"{"access_token":7}"#, r#"{"msg":"ok"}"#] {
        let mut answered = setting_all(2);
        (answered.status, answered.body) = (200, text.into());
        let scripted = Scripted::with([answered]);
        let refresh_call = JsonRefresh::new(scripted.client(), URL).unwrap().cookie("refresh_token_cookie");
        let tokens = refresh_call.access_token_cookie("access_token_cookie").refresh(&old_tokens()).await.unwrap();
        assert_eq!((access(&tokens), refresh(&tokens)), ("a2", Some("r2")), "{text}");
    }
    let without = answer(200, r#"{"msg":"ok"}"#).header("set-cookie", "refresh_token_cookie=r2; Path=/auth");
    let refresh_call =
        JsonRefresh::new(Scripted::with([without]).client(), URL).unwrap().cookie("refresh_token_cookie");
    let result = refresh_call.access_token_cookie("access_token_cookie").refresh(&old_tokens()).await;
    assert_eq!((outcome(&result), issued(&result)), ("misconfigured".to_owned(), Some("r2")));
}

#[tokio::test]
async fn without_the_csrf_cookie_nothing_is_sent() {
    let scripted = Scripted::with([setting_all(2)]);
    let result = both_in_cookies(&scripted).refresh(&old_tokens()).await;
    assert_eq!(outcome(&result), "misconfigured");
    assert!(cause(&result.unwrap_err()).to_string().contains("the session holds no cookie for a header"));
    assert!(scripted.requests().is_empty());
    // An app that signs in by itself provides it.
    let kept = json!({"csrf_refresh_token": {"value": "c1"}});
    let tokens = old_tokens().with_extra(serde_json::Map::from_iter([("kept_cookies".to_owned(), kept)]));
    both_in_cookies(&scripted).refresh(&tokens).await.unwrap();
    assert_eq!(scripted.only().header("x-csrf-token"), Some("c1"));
}

#[tokio::test]
async fn a_kept_cookie_outlives_an_answer_without_it() {
    let scripted = Scripted::with([
        setting_all(1),
        answer(200, r#"{"access_token":"a2"}"#),
        answer(200, r#"{"access_token":"a3"}"#),
    ]);
    let refresh_call = JsonRefresh::new(scripted.client(), URL).unwrap().cookie("refresh_token_cookie");
    let refresh_call = refresh_call.header_from_cookie(HeaderName::from_static("x-csrf-token"), "csrf_refresh_token");
    let login = login_by_cookies(&scripted);
    let session = Session::builder(refresh_call).build().await.unwrap();
    login.sign_in(&session, &json!({})).await.unwrap();
    session.refresh().await.unwrap();
    session.refresh().await.unwrap();
    assert_eq!(access(&session.tokens()), "a3");
    assert_eq!(scripted.requests()[2].header("x-csrf-token"), Some("c1|x"));
}

#[tokio::test]
async fn a_kept_cookie_that_the_server_deletes_is_sent_no_more() {
    let deleting =
        answer(200, r#"{"access_token":"a2"}"#).header("set-cookie", "csrf_refresh_token=; Path=/; Max-Age=0");
    let scripted = Scripted::with([setting_all(1), deleting]);
    let refresh_call = both_in_cookies(&scripted);
    let login = login_by_cookies(&scripted);
    let session = Session::builder(refresh_call).build().await.unwrap();
    login.sign_in(&session, &json!({})).await.unwrap();
    session.refresh().await.unwrap();
    assert_eq!(scripted.requests()[1].header("x-csrf-token"), Some("c1|x"));
    // Without it, nothing is sent.
    session.refresh().await.unwrap_err();
    assert_eq!(scripted.requests().len(), 2);
}

#[tokio::test]
async fn the_deletion_of_another_cookie_ends_no_session() {
    let kept = json!({"domain": "app.example.com", "host_only": true, "path": "/auth", "secure": false});
    let tokens = old_tokens().with_extra(serde_json::Map::from_iter([("refresh_cookie".to_owned(), kept)]));
    for other in ["other=; Path=/auth; Max-Age=0", "rt=; Path=/; Max-Age=0", "rt=; Path=/other; Max-Age=0"] {
        let scripted = Scripted::with([answer(403, "{}").header("set-cookie", other)]);
        assert_eq!(outcome(&refresher(&scripted).refresh(&tokens).await), "misconfigured", "{other}");
    }
    let scripted = Scripted::with([answer(403, "<html>").header("set-cookie", "rt=; Path=/auth; Max-Age=0")]);
    assert_eq!(outcome(&refresher(&scripted).refresh(&tokens).await), "rejected");
}

#[tokio::test]
async fn members_and_headers_of_a_cookie_call_are_configurable() {
    let scripted = Scripted::with([setting(200, "rt=r2")]);
    let refresh_call = refresher(&scripted)
        .member("device.id", "7f9c")
        .content_type(HeaderValue::from_static("application/vnd.api+json"))
        .header(HeaderName::from_static("x-requested-with"), HeaderValue::from_static("XMLHttpRequest"))
        .access_token_as_bearer();
    refresh_call.refresh(&old_tokens()).await.unwrap();
    let request = scripted.only();
    assert_eq!(request.json(), json!({"device": {"id": "7f9c"}}));
    assert_eq!(request.header("content-type"), Some("application/vnd.api+json"));
    assert_eq!(request.header("x-requested-with"), Some("XMLHttpRequest"));
    assert_eq!(request.header("authorization"), Some("Bearer old-access"));
}
