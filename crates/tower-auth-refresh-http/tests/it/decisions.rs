//! The decision table: the outcome of each answer, for each kind of refresh call.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use tower_auth_refresh::{RefreshError, Tokens};
use tower_auth_refresh_http::{AuthClient, ClientAuth, ClientCredentials, JsonRefresh, OAuthRefresh};

use crate::support::{Answer, Scripted, access, answer, cause, old_tokens, outcome, refresh};

const URL: &str = "https://auth.example.com/auth/refresh";
const TOKENS: &str = r#"{"access_token":"a2","refresh_token":"r2","expires_in":300,"token_type":"Bearer"}"#;

async fn by_oauth(client: AuthClient) -> Result<Tokens, RefreshError> {
    OAuthRefresh::new(client, URL, ClientAuth::public("app")).unwrap().refresh(&old_tokens()).await
}

async fn by_json(client: AuthClient) -> Result<Tokens, RefreshError> {
    JsonRefresh::new(client, URL).unwrap().refresh(&old_tokens()).await
}

async fn by_cookie(client: AuthClient) -> Result<Tokens, RefreshError> {
    JsonRefresh::new(client, URL).unwrap().cookie("rt").refresh(&old_tokens()).await
}

/// The same outcome for all kinds of call.
async fn all(answer: Answer, expected: &str) {
    each(answer, expected, expected).await;
}

/// One outcome by OAuth, and one by the flavours of an app's own endpoint.
async fn each(answer: Answer, oauth: &str, own: &str) {
    let client = || Scripted::with([answer.clone()]).client();
    assert_eq!(outcome(&by_oauth(client()).await), oauth, "oauth: {answer:?}");
    assert_eq!(outcome(&by_json(client()).await), own, "json: {answer:?}");
    assert_eq!(outcome(&by_cookie(client()).await), own, "cookie: {answer:?}");
}

fn error(status: u16, code: &str) -> Answer {
    answer(status, format!(r#"{{"error":"{code}","error_description":"some text"}}"#))
}

#[tokio::test]
async fn a_valid_2xx_yields_its_tokens() {
    for status in [200, 201, 203] {
        all(answer(status, TOKENS), "tokens").await;
    }
    for lenient in [
        r#"{"access_token":"a2"}"#,
        r#"{"access_token":"a2","token_type":"bearer"}"#,
        r#"{"access_token":"a2","token_type":null,"refresh_token":null,"error":null}"#,
        " {\"access_token\":\"a2\",\"refresh_token\":\"\",\"error\":\"\"}\r\n",
    ] {
        all(answer(200, lenient).header("content-type", "text/html"), "tokens").await;
    }
}

#[tokio::test]
async fn an_answer_without_a_refresh_token_leaves_the_old_one_to_be_kept() {
    let client = Scripted::with([answer(200, r#"{"access_token":"a2"}"#)]).client();
    let tokens = by_oauth(client).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", None));
}

#[tokio::test]
async fn a_2xx_with_an_error_is_classified_by_the_error() {
    for status in [200, 201] {
        all(error(status, "invalid_grant"), "rejected").await;
        all(error(status, "bad_refresh_token"), "rejected").await;
        all(error(status, "invalid_client"), "misconfigured").await;
        all(error(status, "whatever_else"), "misconfigured").await;
        all(error(status, "temporarily_unavailable"), "unavailable").await;
        all(error(status, "server_error"), "in doubt").await;
    }
    all(answer(200, r#"{"error":{"code":"invalid_grant"}}"#), "rejected").await;
    all(answer(200, r#"{"error":{"message":"no"}}"#), "misconfigured").await;
    all(answer(200, r#"{"access_token":"a2","error":"invalid_grant"}"#), "rejected").await;
    all(answer(200, r#"{"access_token":"a2","error":"Invalid_Client"}"#), "misconfigured").await;
}

#[tokio::test]
async fn a_hollow_error_beside_an_access_token_is_ignored() {
    for hollow in [r#"{"code":"ok"}"#, r#"{"code":0}"#, r#""""#, r#""none""#, "0", "false", "{}", "[]"] {
        all(answer(200, format!(r#"{{"access_token":"a2","error":{hollow}}}"#)), "tokens").await;
    }
}

#[tokio::test]
async fn a_hollow_error_beside_a_malformed_token_is_ignored() {
    for hollow in [r#""""#, "{}", "null"] {
        all(answer(200, format!(r#"{{"access_token":"a\nb","error":{hollow}}}"#)), "in doubt").await;
    }
}

#[tokio::test]
async fn a_2xx_without_an_access_token_at_its_path_is_misconfigured() {
    for answered in ["{}", r#"{"access_token":""}"#, r#"{"access_token":null}"#, r#"{"accessToken":"a2"}"#] {
        all(answer(200, answered), "misconfigured").await;
    }
    let failed = by_json(Scripted::with([answer(200, "{}")]).client()).await.unwrap_err();
    let message = "https://auth.example.com/auth/refresh: \
                   the answer holds no access token at the configured path (status 200)";
    assert_eq!(cause(&failed).to_string(), message);
}

#[tokio::test]
async fn a_malformed_2xx_is_in_doubt() {
    let long = format!(r#"{{"access_token":"a2","padding":"{}"}}"#, "x".repeat(64 * 1024));
    for malformed in [
        "",
        "{",
        "null",
        "[]",
        "\"a2\"",
        "access_token=a2&token_type=bearer",
        "<html></html>",
        r#"{"access_token":7}"#,
        r#"{"access_token":["a2"]}"#,
        r#"{"access_token":"a\r\nb"}"#,
        r#"{"access_token":"a\u0000b"}"#,
        r#"{"access_token":"tök"}"#,
        r#"{"access_token":"a2","token_type":"DPoP"}"#,
        r#"{"access_token":"a2","token_type":"mac"}"#,
        &long,
        &"[".repeat(5000),
    ] {
        all(answer(200, malformed.to_owned()), "in doubt").await;
    }
    all(answer(204, ""), "in doubt").await;
    let malformed = answer(200, r#"{"access_token":"a2","refresh_token":"a\nb"}"#);
    assert_eq!(outcome(&by_oauth(Scripted::with([malformed]).client()).await), "in doubt");
}

#[tokio::test]
async fn an_answer_exactly_at_the_limit_is_read() {
    let around = r#"{"access_token":"a2","padding":""}"#.len();
    let body = |length| format!(r#"{{"access_token":"a2","padding":"{}"}}"#, "x".repeat(length - around));
    all(answer(200, body(64 * 1024)), "tokens").await;
    all(answer(200, body(64 * 1024 + 1)), "in doubt").await;
    let rejection = r#"{"error":"invalid_grant"}"#;
    let padded = rejection.to_owned() + &" ".repeat(64 * 1024 - rejection.len());
    all(answer(400, padded).header("content-length", (64 * 1024).to_string()), "rejected").await;
}

#[tokio::test]
async fn an_expires_in_of_any_type_never_fails_an_answer() {
    for expires_in in ["0", "-1", "1e400", "18446744073709551616", "\"300\"", "\"x\"", "null", "{}", "1e-400"] {
        let text = format!(r#"{{"access_token":"a2","expires_in":{expires_in}}}"#);
        // JSON itself has no number of that size.
        let expected = if expires_in == "1e400" { "in doubt" } else { "tokens" };
        all(answer(200, text), expected).await;
    }
}

#[tokio::test]
async fn an_error_is_of_one_kind() {
    let cases = [
        (400, "invalid_grant", [true, false, false, false]),
        (400, "invalid_client", [false, true, false, false]),
        (400, "temporarily_unavailable", [false, false, true, false]),
        (500, "server_error", [false, false, false, true]),
    ];
    for (status, code, expected) in cases {
        let error = by_oauth(Scripted::with([error(status, code)]).client()).await.unwrap_err();
        let cause = cause(&error);
        let kinds = [cause.is_rejected(), cause.is_misconfigured(), cause.is_unavailable(), cause.is_in_doubt()];
        assert_eq!((kinds, cause.code()), (expected, Some(code)));
    }
}

#[tokio::test]
async fn a_redirect_is_never_followed_and_means_misconfigured() {
    for status in [300, 301, 302, 303, 304, 307, 308] {
        let answer = answer(status, TOKENS).header("location", "https://evil.example/");
        all(answer.clone(), "misconfigured").await;
        let scripted = Scripted::with([answer]);
        by_oauth(scripted.client()).await.unwrap_err();
        assert_eq!(scripted.requests().len(), 1);
    }
}

#[tokio::test]
async fn invalid_grant_in_any_4xx_ends_the_session() {
    for status in [400, 401, 403, 404, 409, 410, 422, 429, 499] {
        for code in [
            "invalid_grant",
            "login_required",
            "interaction_required",
            "consent_required",
            "insufficient_user_authentication",
        ] {
            all(error(status, code), "rejected").await;
        }
    }
    let error = by_oauth(Scripted::with([error(400, "invalid_grant")]).client()).await.unwrap_err();
    assert_eq!(cause(&error).status(), Some(StatusCode::BAD_REQUEST));
    assert_eq!(cause(&error).code(), Some("invalid_grant"));
    let message = "https://auth.example.com/auth/refresh: the server rejected the grant (status 400, invalid_grant)";
    assert_eq!(cause(&error).to_string(), message);
    assert_eq!(cause(&error).endpoint(), Some(URL));
}

#[tokio::test]
async fn a_401_that_asks_for_a_stronger_sign_in_ends_the_session() {
    let step_up = r#"Bearer error="insufficient_user_authentication", acr_values="myACR""#;
    all(answer(401, "").header("www-authenticate", step_up), "rejected").await;
}

#[tokio::test]
async fn a_plain_401_is_a_refusal_of_an_app_but_not_of_an_oauth_server() {
    for body in ["", "{}", r#"{"message":"jwt expired"}"#, r#"{"error":"Unauthorized","statusCode":401}"#] {
        each(answer(401, body), "misconfigured", "rejected").await;
        let with = |value: &str| answer(401, body).header("www-authenticate", value);
        each(with("Bearer"), "misconfigured", "rejected").await;
        each(with("Bearer error=\"invalid_token\""), "misconfigured", "rejected").await;
        each(with("Basic realm=\"x\", Bearer"), "misconfigured", "rejected").await;
        let expected = if body.is_empty() { "misconfigured" } else { "rejected" };
        each(with("JWT realm=\"api\""), "misconfigured", expected).await;
        each(with("Basic realm=\"x\"").header("www-authenticate", "Token"), "misconfigured", expected).await;
        all(with("Basic realm=\"staging\""), "misconfigured").await;
        all(with("Digest realm=\"x\", nonce=\"y\""), "misconfigured").await;
        all(with("Kerberos"), "misconfigured").await;
        all(with("Negotiate"), "misconfigured").await;
        all(with("Negotiate").header("www-authenticate", "NTLM"), "misconfigured").await;
    }
    // A page of something in front of the app, which would answer JSON.
    for page in ["<html>401</html>", "Unauthorized", "[1]", "\"no\""] {
        all(answer(401, page), "misconfigured").await;
    }
}

#[tokio::test]
async fn a_firewalls_page_ends_no_session() {
    for status in [400, 403, 404, 405, 407, 410, 421, 451] {
        all(answer(status, "<html>Access denied</html>").header("content-type", "text/html"), "misconfigured").await;
        all(answer(status, ""), "misconfigured").await;
        all(answer(status, r#"{"message":"denied"}"#), "misconfigured").await;
    }
    all(answer(403, "<html>invalid_grant</html>"), "misconfigured").await;
    all(answer(403, r#"["invalid_grant"]"#), "misconfigured").await;
}

#[tokio::test]
async fn a_wrong_client_keeps_the_tokens() {
    for status in [400, 401, 403] {
        for code in
            ["invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_target"]
        {
            all(error(status, code), "misconfigured").await;
        }
    }
    // league/oauth2-server up to 8 says this of a refresh token.
    each(error(401, "invalid_request"), "misconfigured", "rejected").await;
    all(error(401, "invalid_request").header("www-authenticate", "Basic"), "misconfigured").await;
    all(error(400, "invalid_request"), "misconfigured").await;
    all(error(403, "invalid_request"), "misconfigured").await;
    all(error(401, "invalid_client").header("www-authenticate", "Basic realm=\"as\""), "misconfigured").await;
    all(error(400, "something_new"), "misconfigured").await;
}

#[tokio::test]
async fn a_server_that_asks_to_be_called_later_is_unavailable() {
    for status in [400, 401, 403, 500, 503] {
        all(error(status, "temporarily_unavailable"), "unavailable").await;
        all(error(status, "slow_down").header("retry-after", "5"), "unavailable for 5 s").await;
    }
    for status in [429, 503] {
        let with = |value: &str| answer(status, "").header("retry-after", value);
        all(with("7"), "unavailable for 7 s").await;
        all(with("Sun, 06 Nov 1994 08:49:37 GMT"), "unavailable for 0 s").await;
        all(with("86400"), "unavailable for 86400 s").await;
        all(with("99999999999999999999"), "unavailable for 18446744073709551615 s").await;
    }
    all(answer(429, "<html>slow down</html>"), "unavailable").await;
    all(answer(429, "").header("retry-after", "soon"), "unavailable").await;
}

#[tokio::test]
async fn the_reset_of_a_rate_limit_is_the_delay_of_a_429_without_retry_after() {
    let reset = |name: &'static str, value: &str| answer(429, "").header(name, value);
    all(reset("x-rate-limit-reset", "30"), "unavailable for 30 s").await;
    all(reset("ratelimit-reset", "30"), "unavailable for 30 s").await;
    let at = "Sun, 06 Nov 1994 08:49:37 GMT";
    all(reset("x-rate-limit-reset", "784111800").header("date", at), "unavailable for 784111800 s").await;
    let epoch = reset("x-rate-limit-reset", "1800000042").header("date", "Fri, 15 Jan 2027 08:00:00 GMT");
    all(epoch, "unavailable for 42 s").await;
}

#[tokio::test]
async fn any_other_5xx_is_in_doubt() {
    for status in [500, 501, 502, 503, 504, 520, 599] {
        all(answer(status, "<html>Bad gateway</html>"), "in doubt").await;
        all(error(status, "invalid_grant"), "in doubt").await;
    }
    all(answer(500, "").header("retry-after", "7"), "in doubt").await;
    all(answer(503, "").header("retry-after", "soon"), "in doubt").await;
}

#[tokio::test]
async fn an_unassigned_status_is_in_doubt() {
    for status in [600, 999] {
        all(answer(status, TOKENS), "in doubt").await;
    }
}

#[tokio::test]
async fn gzip_is_decoded_though_identity_was_asked_for() {
    let gzip = |text: &str| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    all(answer(200, gzip(TOKENS)).header("content-encoding", "gzip"), "tokens").await;
    all(answer(200, gzip(TOKENS)), "in doubt").await;
    all(answer(200, gzip(&" ".repeat(1 << 20))).header("content-encoding", "gzip"), "in doubt").await;
    all(answer(200, TOKENS).header("content-encoding", "identity"), "tokens").await;
    let dead = gzip(r#"{"error":"invalid_grant"}"#);
    all(answer(400, dead).header("content-encoding", "gzip"), "rejected").await;
    all(error(400, "invalid_grant").header("content-encoding", "br"), "misconfigured").await;
    all(answer(200, TOKENS).header("content-encoding", "br"), "in doubt").await;
}

#[tokio::test]
async fn a_byte_order_mark_is_skipped_and_stray_bytes_cost_no_tokens() {
    let marked = |text: &str| [b"\xEF\xBB\xBF".as_slice(), text.as_bytes()].concat();
    all(answer(200, marked(TOKENS)), "tokens").await;
    all(answer(200, [marked("").as_slice(), &marked(TOKENS)].concat()), "in doubt").await;
    all(answer(400, marked(r#"{"error":"invalid_grant"}"#)), "rejected").await;
    all(answer(200, b"{\"user\":\"J\xf6rg\",\"access_token\":\"a2\"}".as_slice()), "tokens").await;
    all(answer(400, b"{\"error\":\"invalid_grant\",\"hint\":\"\xff\"}".as_slice()), "rejected").await;
    all(answer(200, b"{\"access_token\":\"a\xff2\"}".as_slice()), "in doubt").await;
    let refresh = JsonRefresh::new(Scripted::with([answer(403, marked(r#"{"code":"DEAD"}"#))]).client(), URL).unwrap();
    let refresh = refresh.rejected_when(|_, body| body["code"] == "DEAD");
    assert_eq!(outcome(&refresh.refresh(&old_tokens()).await), "rejected");
}

#[tokio::test]
async fn a_token_type_other_than_bearer_is_accepted() {
    for token_type in ["bot", "user", "BearerToken", "JWT", "Bearer "] {
        all(answer(200, format!(r#"{{"access_token":"a2","token_type":"{token_type}"}}"#)), "tokens").await;
    }
}

#[tokio::test]
async fn white_space_and_a_scheme_name_around_a_token_are_removed() {
    let refreshed = answer(200, r#"{"access_token":"Bearer a2\n","refresh_token":" r2\n"}"#);
    let tokens = by_json(Scripted::with([refreshed.clone()]).client()).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", Some("r2")));
    let tokens = by_oauth(Scripted::with([refreshed]).client()).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", Some("r2")));
}

#[tokio::test]
async fn an_answer_that_matches_rejected_when_ends_the_session() {
    let own = |status: StatusCode, body: &serde_json::Value| status == 403 && body["code"] == "TOKEN_REVOKED";
    let refused = answer(403, r#"{"code":"TOKEN_REVOKED"}"#);
    let other = answer(403, r#"{"code":"BLOCKED"}"#);
    for (answer, expected) in
        [(refused, "rejected"), (other, "misconfigured"), (answer(403, "<html>"), "misconfigured")]
    {
        let client = || Scripted::with([answer.clone()]).client();
        let json = JsonRefresh::new(client(), URL).unwrap().rejected_when(own);
        assert_eq!(outcome(&json.refresh(&old_tokens()).await), expected);
        let oauth = OAuthRefresh::new(client(), URL, ClientAuth::public("app")).unwrap().rejected_when(own);
        assert_eq!(outcome(&oauth.refresh(&old_tokens()).await), expected);
        let cookie = JsonRefresh::new(client(), URL).unwrap().cookie("rt").rejected_when(own);
        assert_eq!(outcome(&cookie.refresh(&old_tokens()).await), expected);
    }
    // A bare 400, and an error in a 200.
    let bare = Scripted::with([answer(400, "")]).client();
    let oauth = OAuthRefresh::new(bare, URL, ClientAuth::public("app"))
        .unwrap()
        .rejected_when(|status, body| status == 400 && body.is_null());
    assert_eq!(outcome(&oauth.refresh(&old_tokens()).await), "rejected");
    let hidden = Scripted::with([answer(200, r#"{"ok":false}"#)]).client();
    let json = JsonRefresh::new(hidden, URL).unwrap().rejected_when(|_, body| body["ok"] == false);
    assert_eq!(outcome(&json.refresh(&old_tokens()).await), "rejected");
}

#[tokio::test]
async fn client_credentials_are_never_in_doubt_and_end_no_session() {
    for (answer, expected) in [
        (answer(200, TOKENS), "tokens"),
        (answer(500, ""), "unavailable"),
        (answer(200, "<html>"), "unavailable"),
        (answer(503, "").header("retry-after", "3"), "unavailable for 3 s"),
        (error(400, "invalid_grant"), "misconfigured"),
        (error(401, "invalid_client"), "misconfigured"),
        (answer(302, ""), "misconfigured"),
    ] {
        let client = Scripted::with([answer.clone()]).client();
        let grant = ClientCredentials::new(client, URL, ClientAuth::basic("svc", "s")).unwrap();
        let result = grant.request_tokens().await;
        assert_eq!(outcome(&result), expected, "{answer:?}");
        if let Ok(tokens) = result {
            assert_eq!(refresh(&tokens), None);
        }
    }
}
