//! A malicious or broken authorization server: the cost of its answers is bounded, and none of them breaks a session.

#[cfg(feature = "client")]
use std::time::Duration;

#[cfg(feature = "client")]
use tower_auth_refresh::{NotRefreshed, RefreshErrorKind, Session};
use tower_auth_refresh::{RefreshError, Tokens};
use tower_auth_refresh_http::{AuthClient, ClientAuth, JsonRefresh, OAuthRefresh};
#[cfg(feature = "client")]
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use crate::support::{Answer, Scripted, access, answer, failing, old_tokens, outcome, refresh};

const URL: &str = "https://auth.example.com/auth/refresh";

/// By OAuth, as JSON and by cookie.
async fn by_each(answer: Answer) -> [Result<Tokens, RefreshError>; 3] {
    let client = || -> AuthClient { Scripted::with([answer.clone()]).client() };
    let old = old_tokens();
    [
        OAuthRefresh::new(client(), URL, ClientAuth::public("app")).unwrap().refresh(&old).await,
        JsonRefresh::new(client(), URL).unwrap().refresh(&old).await,
        JsonRefresh::new(client(), URL).unwrap().cookie("rt").refresh(&old).await,
    ]
}

#[tokio::test]
async fn an_answer_nested_30_000_deep_is_in_doubt_wherever_the_depth_is() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let depth = 60_000 / (open.len() + close.len());
        let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        for text in [
            deep.clone(),
            format!(r#"{{"access_token":"a2","extra":{deep}}}"#),
            format!(r#"{{"access_token":{deep}}}"#),
            format!(r#"{{"access_token":"a2","expires_in":{deep}}}"#),
        ] {
            assert!(text.len() < 64 * 1024, "it is read whole");
            for result in by_each(answer(200, text.clone())).await {
                assert_eq!(outcome(&result), "in doubt");
            }
        }
        // It doesn't end a session either.
        let error = format!(r#"{{"error":"invalid_grant","extra":{deep}}}"#);
        for result in by_each(answer(400, error)).await {
            assert_eq!(outcome(&result), "misconfigured");
        }
    }
}

#[tokio::test]
async fn the_last_of_a_repeated_member_counts_and_the_others_are_kept_nowhere() {
    let twice = r#"{"access_token":"first","refresh_token":"r8","access_token":"a2","refresh_token":"r9"}"#;
    let [oauth, json, cookie] = by_each(answer(200, twice)).await.map(Result::unwrap);
    for tokens in [&oauth, &json, &cookie] {
        assert_eq!(access(tokens), "a2");
        assert!(tokens.extras().all(|(_, value)| !value.to_string().contains("first")));
    }
    assert_eq!((refresh(&oauth), refresh(&json)), (Some("r9"), Some("r9")));
    for result in by_each(answer(400, r#"{"error":"invalid_grant","error":"invalid_client"}"#)).await {
        assert_eq!(outcome(&result), "misconfigured");
    }
}

#[tokio::test]
async fn the_content_type_of_an_answer_is_ignored() {
    for content_type in ["text/html", "application/x-www-form-urlencoded", "image/png", "\u{1}", ""] {
        let content_type = content_type.replace('\u{1}', "not a / media ; type");
        for (text, expected) in [(r#"{"access_token":"a2"}"#, "tokens"), ("<html>access_token</html>", "in doubt")] {
            for result in by_each(answer(200, text).header("content-type", content_type.clone())).await {
                assert_eq!(outcome(&result), expected, "{content_type}");
            }
        }
    }
}

#[tokio::test]
async fn of_many_cookies_only_the_configured_one_is_kept_and_its_last_value_counts() {
    let mut flood = answer(200, r#"{"access_token":"a2"}"#);
    for n in 0..5_000 {
        flood = flood.header("set-cookie", format!("{}{n}={}", ["rt", "x", "RT"][n % 3], "y".repeat(64)));
    }
    for n in 0..1_000 {
        flood = flood.header("set-cookie", format!("rt=r{n}; Path=/; Secure"));
    }
    let scripted = Scripted::with([flood]);
    let tokens = JsonRefresh::new(scripted.client(), URL).unwrap().cookie("rt").refresh(&old_tokens()).await.unwrap();
    assert_eq!(refresh(&tokens), Some("r999"));
    let kept: usize = tokens.extras().map(|(name, value)| name.len() + value.to_string().len()).sum();
    assert!(kept < 1_000, "{kept} bytes are kept beside the tokens");
}

#[cfg(feature = "client")]
#[tokio::test]
async fn an_answer_of_a_byte_at_a_time_is_bounded_by_each_of_both_time_outs_and_ends_no_session() {
    let server = TestServer::start().await.unwrap();
    let second = Duration::from_secs(1);
    for (call, whole) in [(second / 2, 30 * second), (30 * second, second / 2)] {
        server.inject(Route::Refresh, Fault::drip(second / 4));
        let pair = serde_json::to_value(server.sign_in("ada")).unwrap();
        let [access, refresh] = ["access_token", "refresh_token"].map(|name| pair[name].as_str().unwrap().to_owned());
        let tokens = Tokens::new(
            tower_auth_refresh::AccessToken::new(access).unwrap(),
            tower_auth_refresh::RefreshToken::new(refresh).unwrap(),
        );
        let refresh = JsonRefresh::new(AuthClient::rustls().timeout(call), &server.url("/auth/refresh")).unwrap();
        let session = Session::builder(refresh).refresh_timeout(whole).tokens(tokens.clone()).build().await.unwrap();
        let begun = std::time::Instant::now();
        match session.refresh().await {
            Err(NotRefreshed::Failed(error)) => assert_eq!(error.kind(), RefreshErrorKind::InDoubt),
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < 10 * second, "{:?}", begun.elapsed());
        assert_eq!((failing(&session), session.tokens()), (RefreshErrorKind::InDoubt, tokens));
        server.clear_faults();
    }
}
