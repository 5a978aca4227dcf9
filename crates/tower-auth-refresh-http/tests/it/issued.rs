//! A refresh token that a server issues beside something unusable is never thrown away.

use std::convert::Infallible;
use std::future::ready;
use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use tower::{BoxError, service_fn};
use tower_auth_refresh::{RefreshError, Tokens};
use tower_auth_refresh_http::{AuthClient, ClientAuth, ClientCredentials, JsonRefresh, OAuthRefresh, TokenFields};

use crate::support::{Answer, Scripted, answer, issued, old_tokens, outcome};

const URL: &str = "https://auth.example.com/auth/refresh";

async fn by_json(answer: Answer) -> Result<Tokens, RefreshError> {
    JsonRefresh::new(Scripted::with([answer]).client(), URL).unwrap().refresh(&old_tokens()).await
}

async fn by_oauth(answer: Answer) -> Result<Tokens, RefreshError> {
    let client = Scripted::with([answer]).client();
    OAuthRefresh::new(client, URL, ClientAuth::public("app")).unwrap().refresh(&old_tokens()).await
}

/// The outcome of an answer, which is the same for JSON and OAuth calls, and its refresh token.
async fn both(answer: Answer) -> (String, Option<String>) {
    let (json, oauth) = (by_json(answer.clone()).await, by_oauth(answer.clone()).await);
    assert_eq!((outcome(&json), issued(&json)), (outcome(&oauth), issued(&oauth)), "{answer:?}");
    (outcome(&json), issued(&json).map(str::to_owned))
}

fn kept(outcome: &str) -> (String, Option<String>) {
    (outcome.to_owned(), Some("rt-2".to_owned()))
}

fn lost(outcome: &str) -> (String, Option<String>) {
    (outcome.to_owned(), None)
}

#[tokio::test]
async fn a_2xx_with_an_unusable_access_token_keeps_its_refresh_token() {
    for unusable in [
        r#"{"access_token":7,"refresh_token":"rt-2"}"#,
        r#"{"access_token":["a2"],"refresh_token":"rt-2"}"#,
        r#"{"access_token":"a\u00002","refresh_token":"rt-2"}"#,
        r#"{"access_token":"a2","token_type":"DPoP","refresh_token":"rt-2"}"#,
        r#"{"access_token":"a2","token_type":"mac","refresh_token":"rt-2"}"#,
    ] {
        assert_eq!(both(answer(200, unusable)).await, kept("in doubt"), "{unusable}");
    }
}

#[tokio::test]
async fn a_2xx_without_an_access_token_keeps_its_refresh_token() {
    for misconfigured in [
        r#"{"refresh_token":"rt-2"}"#,
        r#"{"id_token":"i2","refresh_token":"rt-2"}"#,
        r#"{"access_token":null,"refresh_token":"Bearer rt-2\n"}"#,
        // The paths are wrong.
        r#"{"status":0,"body":{"access_token":"a2","refresh_token":"rt-2"}}"#,
        r#"{"ok":true,"authed_user":{"access_token":"a2","refresh_token":"rt-2"}}"#,
        r#"{"accessToken":"a2","refreshToken":"rt-2"}"#,
    ] {
        assert_eq!(both(answer(200, misconfigured)).await, kept("misconfigured"), "{misconfigured}");
    }
}

#[tokio::test]
async fn an_unreadable_2xx_keeps_its_refresh_token() {
    let tokens = r#"{"access_token":"a2","refresh_token":"rt-2""#;
    let padded = format!("{tokens},\"padding\":\"{}\"}}", "x".repeat(70_000));
    let deep = format!("{tokens},\"deep\":{}}}", "[".repeat(30_000));
    for unreadable in [
        format!("{tokens},\"expires_in\":1e400}}"),
        format!("{tokens}}} trailing"),
        format!("{tokens},"),
        format!(")]}}',\n{tokens}}}"),
        padded,
        deep,
    ] {
        assert_eq!(both(answer(200, unreadable)).await, kept("in doubt"));
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(format!("{tokens}}}").as_bytes()).unwrap();
    let mut gzip = encoder.finish().unwrap();
    gzip.truncate(gzip.len() - 4);
    assert_eq!(both(answer(200, gzip).header("content-encoding", "gzip")).await, kept("in doubt"));
}

#[tokio::test]
async fn a_2xx_that_breaks_off_keeps_its_refresh_token() {
    let breaking_off = AuthClient::new(service_fn(|_: Request<Full<Bytes>>| {
        let sent = r#"{"refresh_token":"rt-2","access_token":"a"#;
        let frames: [Result<Frame<Bytes>, BoxError>; 2] = [Ok(Frame::data(sent.into())), Err("reset".into())];
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames)))))
    }));
    let result = JsonRefresh::new(breaking_off, URL).unwrap().refresh(&old_tokens()).await;
    assert_eq!((outcome(&result), issued(&result)), ("in doubt".to_owned(), Some("rt-2")));
}

#[tokio::test]
async fn a_2xx_with_an_error_keeps_its_refresh_token_and_ends_no_session() {
    let with = |error: &str| answer(200, format!(r#"{{"error":"{error}","refresh_token":"rt-2"}}"#));
    assert_eq!(both(with("invalid_grant")).await, kept("in doubt"));
    assert_eq!(both(with("invalid_client")).await, kept("misconfigured"));
    assert_eq!(both(with("temporarily_unavailable")).await, kept("in doubt"));
    assert_eq!(both(with("something_new")).await, kept("misconfigured"));
}

#[tokio::test]
async fn a_refresh_token_that_is_not_new_or_not_issued_is_not_kept() {
    let old = r#"{"refresh_token":"old-refresh"}"#;
    assert_eq!(both(answer(200, old)).await, lost("misconfigured"));
    for malformed in [r#"{"refresh_token":"rt\n2"}"#, r#"{"refresh_token":7}"#, r#"{"refresh_token":""}"#] {
        assert_eq!(both(answer(200, malformed)).await, lost("misconfigured"), "{malformed}");
    }
    // The refresh token of an error is an echo, or the name of a wrong parameter.
    for (status, expected) in
        [(400, "misconfigured"), (422, "misconfigured"), (500, "in doubt"), (302, "misconfigured")]
    {
        assert_eq!(both(answer(status, r#"{"refresh_token":"is invalid"}"#)).await, lost(expected), "{status}");
    }
}

#[tokio::test]
async fn the_refresh_token_at_a_configured_path_is_kept() {
    let text = r#"{"data":{"token":7,"renewal":"rt-2"}}"#;
    let fields = TokenFields::default().access_token("data.token").refresh_token("data.renewal");
    let client = Scripted::with([answer(200, text)]).client();
    let result = JsonRefresh::new(client, URL).unwrap().fields(fields).refresh(&old_tokens()).await;
    assert_eq!((outcome(&result), issued(&result)), ("in doubt".to_owned(), Some("rt-2")));
}

#[tokio::test]
async fn a_match_of_rejected_when_ends_the_session_whatever_is_issued() {
    let client = Scripted::with([answer(200, r#"{"ok":false,"refresh_token":"rt-2"}"#)]).client();
    let refresh = JsonRefresh::new(client, URL).unwrap().rejected_when(|_, body| body["ok"] == false);
    let result = refresh.refresh(&old_tokens()).await;
    assert_eq!((outcome(&result), issued(&result)), ("rejected".to_owned(), None));
}

#[tokio::test]
async fn a_refresh_cookie_beside_a_failure_is_kept() {
    let cookie = |status, body: &'static str| async move {
        let answer = answer(status, body).header("set-cookie", "rt=rt-2; Path=/auth");
        let refresh = JsonRefresh::new(Scripted::with([answer]).client(), URL).unwrap().cookie("rt");
        let result = refresh.refresh(&old_tokens()).await;
        (outcome(&result), issued(&result).map(str::to_owned))
    };
    assert_eq!(cookie(200, "{}").await, kept("misconfigured"));
    assert_eq!(cookie(200, r#"{"access_token":7}"#).await, kept("in doubt"));
    assert_eq!(cookie(204, "").await, kept("in doubt"));
    assert_eq!(cookie(500, "").await, kept("in doubt"));
    assert_eq!(cookie(403, r#"{"message":"missing CSRF token"}"#).await, kept("misconfigured"));
    // A cookie is set deliberately: the server's refusal isn't definite.
    assert_eq!(cookie(401, "{}").await, kept("in doubt"));
    // A refresh token in the body is ignored.
    let answer = answer(200, r#"{"refresh_token":"rt-9"}"#);
    let refresh = JsonRefresh::new(Scripted::with([answer]).client(), URL).unwrap().cookie("rt");
    assert_eq!(issued(&refresh.refresh(&old_tokens()).await), None);
}

#[tokio::test]
async fn client_credentials_have_no_refresh_token_to_keep() {
    let client = Scripted::with([answer(200, r#"{"access_token":7,"refresh_token":"rt-2"}"#)]).client();
    let grant = ClientCredentials::new(client, URL, ClientAuth::basic("svc", "s")).unwrap();
    let result = grant.request_tokens().await;
    assert_eq!((outcome(&result), issued(&result)), ("unavailable".to_owned(), None));
}
