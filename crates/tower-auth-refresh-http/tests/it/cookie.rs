use serde_json::json;
use tower_auth_refresh_http::{CookieRefresh, JsonLogin, JsonLogout};

use crate::support::{Answer, Scripted, access, answer, cause, old_tokens, outcome, refresh};

const URL: &str = "https://app.example.com/auth/refresh";

fn setting(status: u16, cookie: &str) -> Answer {
    answer(status, r#"{"access_token":"a2","refresh_token":"from the body"}"#).header("set-cookie", cookie)
}

fn refresher(scripted: &Scripted) -> CookieRefresh {
    CookieRefresh::new(scripted.client(), URL, "rt").unwrap()
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
