use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::ACCEPT;
use http::{HeaderName, HeaderValue};
use serde_json::json;
use tower_auth_refresh::{RefreshErrorKind, RefreshToken, Session, Tokens};
use tower_auth_refresh_http::{
    AuthorizationServer, ClientAuth, ClientCredentials, OAuthRefresh, OAuthRevoke, TokenFields,
};

use crate::support::{Answer, Scripted, access, answer, failing, issued, old_tokens, outcome, pairs, refresh};

const URL: &str = "https://auth.example.com/token";

#[tokio::test]
async fn the_refresh_grant_is_a_form_with_basic_authentication() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2","refresh_token":"r2","id_token":"i2"}"#)]);
    let grant = OAuthRefresh::new(scripted.client(), URL, ClientAuth::basic("my app", "s3:c r€t"))
        .unwrap()
        .scope("read write")
        .param("audience", "https://api.example.com");
    let tokens = grant.refresh(&old_tokens()).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", Some("r2")));
    assert_eq!(tokens.extra("id_token").unwrap(), "i2");

    let request = scripted.only();
    assert_eq!((request.method.as_str(), request.uri.to_string().as_str()), ("POST", URL));
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(request.header("accept"), Some("application/json"));
    assert!(request.skips_auth);
    let expected = [
        ("grant_type", "refresh_token"),
        ("refresh_token", "old-refresh"),
        ("scope", "read write"),
        ("audience", "https://api.example.com"),
    ];
    assert_eq!(request.form(), pairs(&expected));
    // base64("my%20app:s3%3Ac%20r%E2%82%ACt")
    assert_eq!(request.header("authorization"), Some("Basic bXklMjBhcHA6czMlM0FjJTIwciVFMiU4MiVBQ3Q="));
    assert!(request.headers["authorization"].is_sensitive());
}

#[tokio::test]
async fn http_basic_encodes_an_id_and_a_secret_so_that_every_form_decoder_reads_them() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2"}"#)]);
    for (plain, encoded) in [
        ("app-1_2.3", "app-1_2.3"),
        // Not `+`, which a decoder of URLs leaves as it is.
        ("my app", "my%20app"),
        ("a:b", "a%3Ab"),
        ("100%", "100%25"),
        ("%20", "%2520"),
        ("a+b", "a%2Bb"),
        ("r\u{e9}sum\u{e9} \u{20ac}", "r%C3%A9sum%C3%A9%20%E2%82%AC"),
    ] {
        let auth = ClientAuth::basic(plain, plain);
        OAuthRefresh::new(scripted.client(), URL, auth).unwrap().refresh(&old_tokens()).await.unwrap();
        let requests = scripted.requests();
        let sent = requests.last().unwrap().header("authorization").unwrap().strip_prefix("Basic ").unwrap();
        let credentials = String::from_utf8(STANDARD.decode(sent).unwrap()).unwrap();
        assert_eq!(credentials, format!("{encoded}:{encoded}"), "{plain}");
    }
}

#[tokio::test]
async fn a_client_authenticates_in_the_body_or_not_at_all() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2"}"#)]);
    for (auth, expected) in [
        (ClientAuth::post("app", "s&c=t"), vec![("client_id", "app"), ("client_secret", "s&c=t")]),
        (ClientAuth::public("app"), vec![("client_id", "app")]),
    ] {
        let grant = OAuthRefresh::new(scripted.client(), URL, auth).unwrap();
        let tokens = Tokens::from_refresh_token(RefreshToken::new("r 1&+%").unwrap());
        grant.refresh(&tokens).await.unwrap();
        let request = scripted.requests().pop().unwrap();
        assert_eq!(request.header("authorization"), None);
        let mut form = pairs(&[("grant_type", "refresh_token"), ("refresh_token", "r 1&+%")]);
        form.extend(pairs(&expected));
        assert_eq!(request.form(), form);
    }
}

#[tokio::test]
async fn without_a_refresh_token_nothing_is_sent() {
    let scripted = Scripted::with([answer(200, "{}")]);
    let grant = OAuthRefresh::new(scripted.client(), URL, ClientAuth::public("app")).unwrap();
    assert_eq!(outcome(&grant.refresh(&Tokens::default()).await), "misconfigured");
    assert!(scripted.requests().is_empty());
}

#[tokio::test]
async fn client_credentials_need_no_refresh_token() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2","expires_in":60,"refresh_token":"stray"}"#)]);
    let grant =
        ClientCredentials::new(scripted.client(), URL, ClientAuth::basic("svc", "s")).unwrap().scope("invoices");
    let tokens = grant.request_tokens().await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", None));
    assert!(tokens.expires_at().is_some());
    assert_eq!(scripted.only().form(), pairs(&[("grant_type", "client_credentials"), ("scope", "invoices")]));
}

#[tokio::test]
async fn revocation_sends_the_refresh_token_or_else_the_access_token() {
    let scripted = Scripted::with([answer(200, "")]);
    let revoke = OAuthRevoke::new(scripted.client(), URL, ClientAuth::public("app")).unwrap();
    let access_only = Tokens::from_access_token(old_tokens().access_token().unwrap().clone());
    for (tokens, token, hint) in
        [(old_tokens(), "old-refresh", "refresh_token"), (access_only, "old-access", "access_token")]
    {
        revoke.revoke(&tokens).await.unwrap();
        let expected = [("token", token), ("token_type_hint", hint), ("client_id", "app")];
        assert_eq!(scripted.requests().pop().unwrap().form(), pairs(&expected));
    }
    revoke.revoke(&Tokens::default()).await.unwrap();
    assert_eq!(scripted.requests().len(), 2);
}

#[tokio::test]
async fn a_token_that_is_revoked_already_is_no_error() {
    for answered in [answer(400, r#"{"error":"invalid_token"}"#), answer(400, r#"{"error":"invalid_grant"}"#)] {
        let scripted = Scripted::with([answered]);
        let revoke = OAuthRevoke::new(scripted.client(), URL, ClientAuth::public("app")).unwrap();
        revoke.revoke(&old_tokens()).await.unwrap();
    }
}

#[tokio::test]
async fn a_revocation_that_fails_returns_the_reason() {
    let scripted = Scripted::with([
        answer(503, "").header("retry-after", "9"),
        answer(401, r#"{"error":"invalid_client"}"#),
        answer(500, ""),
    ]);
    let revoke = OAuthRevoke::new(scripted.client(), URL, ClientAuth::public("app")).unwrap();
    let error = revoke.revoke(&old_tokens()).await.unwrap_err();
    assert_eq!(error.retry_after().unwrap().as_secs(), 9);
    let error = revoke.revoke(&old_tokens()).await.unwrap_err();
    assert!(error.is_misconfigured() && error.code() == Some("invalid_client"));
    assert!(revoke.revoke(&old_tokens()).await.unwrap_err().is_in_doubt());
}

fn metadata(issuer: &str) -> Answer {
    answer(
        200,
        format!(
            r#"{{"issuer":"{issuer}","token_endpoint":"https://login.example.com/t","revocation_endpoint":"https://login.example.com/r"}}"#
        ),
    )
}

#[tokio::test]
async fn a_server_is_discovered_where_rfc_8414_says() {
    for (issuer, url) in [
        ("https://auth.example.com", "https://auth.example.com/.well-known/oauth-authorization-server"),
        ("https://auth.example.com/", "https://auth.example.com/.well-known/oauth-authorization-server"),
        ("https://auth.example.com/a/b", "https://auth.example.com/.well-known/oauth-authorization-server/a/b"),
        ("https://a.io/b/c", "https://a.io/.well-known/oauth-authorization-server/b/c"),
    ] {
        let scripted = Scripted::with([metadata(issuer)]);
        let server = AuthorizationServer::discover(&scripted.client(), issuer).await.unwrap();
        assert_eq!((server.issuer(), server.token_endpoint()), (issuer, "https://login.example.com/t"));
        assert_eq!(server.revocation_endpoint(), Some("https://login.example.com/r"));
        let request = scripted.only();
        assert_eq!((request.method.as_str(), request.uri.to_string().as_str()), ("GET", url));
        assert!(request.skips_auth);
    }
}

#[tokio::test]
async fn a_server_is_discovered_where_openid_connect_says_otherwise() {
    for nothing in [answer(404, ""), answer(403, "<html>"), answer(200, "<html>"), answer(302, "")] {
        let scripted = Scripted::with([nothing, metadata("https://auth.example.com/a")]);
        AuthorizationServer::discover(&scripted.client(), "https://auth.example.com/a").await.unwrap();
        let url = "https://auth.example.com/a/.well-known/openid-configuration";
        assert_eq!(scripted.requests()[1].uri.to_string(), url);
    }
    for later in [answer(500, ""), answer(429, "")] {
        let scripted = Scripted::with([later]);
        let error = AuthorizationServer::discover(&scripted.client(), "https://auth.example.com/a").await.unwrap_err();
        assert!(error.is_unavailable());
        assert_eq!(scripted.requests().len(), 1);
    }
}

#[tokio::test]
async fn metadata_of_another_issuer_and_unsafe_endpoints_are_refused() {
    let issuer = "https://auth.example.com";
    for refused in [
        metadata("https://auth.example.com/"),
        metadata("https://evil.example"),
        answer(200, r#"{"token_endpoint":"https://login.example.com/t"}"#),
        answer(200, r#"{"issuer":"https://auth.example.com"}"#),
        answer(200, r#"{"issuer":"https://auth.example.com","token_endpoint":"http://login.example.com/t"}"#),
        answer(
            200,
            r#"{"issuer":"https://auth.example.com","token_endpoint":"https://x/t","revocation_endpoint":"http://x/r"}"#,
        ),
    ] {
        let scripted = Scripted::with([refused]);
        let error = AuthorizationServer::discover(&scripted.client(), issuer).await.unwrap_err();
        assert!(error.is_misconfigured(), "{error}");
    }
    for issuer in ["http://auth.example.com", "https://auth.example.com?x", "https://auth.example.com#x", "auth"] {
        let scripted = Scripted::with([metadata(issuer)]);
        assert!(AuthorizationServer::discover(&scripted.client(), issuer).await.unwrap_err().is_misconfigured());
        assert!(scripted.requests().is_empty());
    }
}

#[tokio::test]
async fn the_tokens_of_a_grant_are_found_at_configured_paths() {
    let scripted =
        Scripted::with([answer(200, r#"{"ok":true,"authed_user":{"access_token":"a2","refresh_token":"r2"}}"#)]);
    let fields =
        || TokenFields::default().access_token("authed_user.access_token").refresh_token("authed_user.refresh_token");
    let grant = OAuthRefresh::new(scripted.client(), URL, ClientAuth::public("app")).unwrap().fields(fields());
    let tokens = grant.refresh(&old_tokens()).await.unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a2", Some("r2")));
    let grant = ClientCredentials::new(scripted.client(), URL, ClientAuth::basic("svc", "s")).unwrap().fields(fields());
    assert_eq!(access(&grant.request_tokens().await.unwrap()), "a2");
}

#[tokio::test]
async fn the_names_and_headers_of_a_grant_are_configurable() {
    let scripted = Scripted::with([answer(200, r#"{"access_token":"a2"}"#)]);
    let auth = ClientAuth::post("app", "s3cret").id_field("client_key").secret_field("secret");
    let grant = OAuthRefresh::new(scripted.client(), URL, auth)
        .unwrap()
        .refresh_token_field("token")
        .param("grant_type", "renewal")
        .param("resource", "https://a.example")
        .param("resource", "https://b.example")
        .header(HeaderName::from_static("apikey"), HeaderValue::from_static("k1"))
        .header(ACCEPT, HeaderValue::from_static("application/json"));
    grant.refresh(&old_tokens()).await.unwrap();
    let request = scripted.only();
    assert!(request.headers["apikey"].is_sensitive() && !request.headers[ACCEPT].is_sensitive());
    let expected = [
        ("token", "old-refresh"),
        ("grant_type", "renewal"),
        ("resource", "https://a.example"),
        ("resource", "https://b.example"),
        ("client_key", "app"),
        ("secret", "s3cret"),
    ];
    assert_eq!(request.form(), pairs(&expected));
    assert_eq!(request.header("apikey"), Some("k1"));

    let grant = OAuthRefresh::new(scripted.client(), URL, ClientAuth::none()).unwrap();
    grant.refresh(&old_tokens()).await.unwrap();
    let expected = pairs(&[("grant_type", "refresh_token"), ("refresh_token", "old-refresh")]);
    assert_eq!(scripted.requests()[1].form(), expected);
}

/// A signed JWT of this subject.
fn id_token(subject: &str) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(json!({ "sub": subject }).to_string()))
}

#[tokio::test]
async fn an_id_token_that_cannot_be_read_does_not_replace_one_whose_user_is_known() {
    let answered = |access: &str, id_token: serde_json::Value| {
        let answered = json!({"access_token": access, "refresh_token": format!("{access}-r"), "id_token": id_token});
        answer(200, answered.to_string())
    };
    for unreadable in [json!(null), json!("unreadable"), json!(""), json!(7), json!({"sub": "ada"})] {
        let bobs = answered("bobs-access", id_token("bob").into());
        let client = Scripted::with([answered("a2", unreadable), bobs.clone(), bobs]).client();
        let grant = OAuthRefresh::new(client, URL, ClientAuth::public("app")).unwrap();
        let held = serde_json::Map::from_iter([("id_token".to_owned(), id_token("ada").into())]);
        let tokens = old_tokens().with_extra(held);
        let session = Session::builder(grant).tokens(tokens).build().await.unwrap();
        session.refresh().await.unwrap();
        assert_eq!(session.tokens().extra("id_token"), Some(&id_token("ada").into()));

        // The refresh token of the other user isn't kept either: it would bring that user's access tokens.
        session.refresh().await.unwrap_err();
        assert_eq!(failing(&session), RefreshErrorKind::Misconfigured);
        assert_eq!((access(&session.tokens()), refresh(&session.tokens())), ("a2", Some("a2-r")));
    }
}

#[tokio::test]
async fn an_id_token_of_another_user_refuses_the_tokens() {
    let answered = |id: Option<String>| {
        let mut answered = json!({"access_token": "a2", "refresh_token": "r2"});
        answered["id_token"] = id.map_or(serde_json::Value::Null, Into::into);
        answer(200, answered.to_string())
    };
    let held = serde_json::Map::from_iter([("id_token".to_owned(), id_token("ada").into())]);
    for (id, expected) in [
        (Some(id_token("ada")), "tokens"),
        (None, "tokens"),
        (Some("unreadable".to_owned()), "tokens"),
        (Some(id_token("bob")), "misconfigured"),
    ] {
        let client = Scripted::with([answered(id)]).client();
        let grant = OAuthRefresh::new(client, URL, ClientAuth::public("app")).unwrap();
        let result = grant.refresh(&old_tokens().with_extra(held.clone())).await;
        assert_eq!((outcome(&result).as_str(), issued(&result)), (expected, None));
        // A session that held none accepts any.
        assert_eq!(outcome(&grant.refresh(&old_tokens()).await), "tokens");
    }
}

#[tokio::test(start_paused = true)]
async fn metadata_is_shared_by_the_clones_of_a_client_for_a_time() {
    let issuer = "https://auth.example.com";
    let scripted = Scripted::with([metadata(issuer)]);
    let client = scripted.client();
    for (after, requests) in [(0, 1), (599, 1), (2, 2), (0, 2)] {
        tokio::time::advance(Duration::from_secs(after)).await;
        AuthorizationServer::discover(&client.clone(), issuer).await.unwrap();
        assert_eq!(scripted.requests().len(), requests, "after {after} s");
    }
    // Another issuer, another client, and a client that shares nothing.
    AuthorizationServer::discover(&client, "https://auth.example.com/a").await.unwrap_err();
    AuthorizationServer::discover(&scripted.client(), issuer).await.unwrap();
    let alone = client.metadata_lifetime(Duration::ZERO);
    let before = scripted.requests().len();
    for _ in 0..2 {
        AuthorizationServer::discover(&alone, issuer).await.unwrap();
    }
    assert_eq!(scripted.requests().len(), before + 2);
}

#[tokio::test]
async fn failures_of_a_discovery_are_not_shared_and_name_the_metadata() {
    let issuer = "https://auth.example.com/a";
    let scripted = Scripted::with([answer(500, ""), metadata("https://evil.example"), metadata(issuer)]);
    let client = scripted.client();
    for _ in 0..2 {
        let error = AuthorizationServer::discover(&client, issuer).await.unwrap_err();
        let named = "https://auth.example.com/.well-known/oauth-authorization-server/a";
        assert_eq!(error.endpoint(), Some(named));
    }
    AuthorizationServer::discover(&client, issuer).await.unwrap();
}

#[tokio::test]
async fn the_metadata_of_many_issuers_does_not_pile_up() {
    let issuers: Vec<_> = (0..17).map(|number| format!("https://auth.example.com/{number}")).collect();
    let scripted = Scripted::with(issuers.iter().chain(&issuers[..1]).map(|issuer| metadata(issuer)));
    let client = scripted.client();
    for issuer in &issuers {
        AuthorizationServer::discover(&client, issuer).await.unwrap();
    }
    AuthorizationServer::discover(&client, &issuers[1]).await.unwrap();
    assert_eq!(scripted.requests().len(), 17);
    AuthorizationServer::discover(&client, &issuers[0]).await.unwrap();
    assert_eq!(scripted.requests().len(), 18);
}
