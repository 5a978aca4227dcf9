//! ID tokens: what is validated, with keys made on the spot.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use ring::digest::{SHA256, SHA512, digest};
use serde_json::{Value, json};
use tower::{BoxError, ServiceExt, service_fn};
use tower_auth_refresh_http::{
    AuthClient, BrowserSignIn, ClientAuth, DeviceSignIn, PendingBrowserSignIn, SignInError, SignInErrorKind, SignedIn,
};

use super::browser::{open, query};
use super::{ISSUER, discovered, kind, metadata};
use crate::keys::{Key, encoded};
use crate::support::{Scripted, answer, pairs};

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// The claims of a good ID token for this nonce, signed by `ES256`.
fn claims(nonce: &Value) -> Value {
    claims_for("ES256", nonce)
}

/// The hash of the access token is that of the algorithm, halved.
fn claims_for(algorithm: &str, nonce: &Value) -> Value {
    let hash = digest(if algorithm == "EdDSA" { &SHA512 } else { &SHA256 }, b"a1");
    let hash = encoded(&hash.as_ref()[..hash.as_ref().len() / 2]);
    json!({
        "iss": ISSUER, "sub": "user-7", "aud": "app", "iat": now(), "exp": now() + 300, "nonce": nonce,
        "at_hash": hash, "email": "ada@example.com", "email_verified": "true",
    })
}

/// An ID token that is made once the nonce is known.
type Late = Arc<OnceLock<Option<String>>>;

/// A server that issues this ID token, and publishes these keys: at each request the next set, at last the same.
fn server(id_token: Late, keys: Vec<Vec<Value>>) -> AuthClient {
    let requests = Arc::new(AtomicUsize::new(0));
    AuthClient::new(service_fn(move |request: Request<Full<bytes::Bytes>>| {
        let body = match request.uri().path() {
            "/jwks" => {
                let request = requests.fetch_add(1, Ordering::Relaxed);
                json!({ "keys": keys[request.min(keys.len() - 1)] })
            }
            "/device" => json!({
                "device_code": "dc", "user_code": "uc", "verification_uri": "https://auth.example.com/device",
                "expires_in": 60,
            }),
            _ => json!({ "access_token": "a1", "refresh_token": "r1", "id_token": id_token.get() }),
        };
        async move {
            request.into_body().collect().await?;
            Ok::<_, BoxError>(Response::new(Full::new(bytes::Bytes::from(body.to_string()))))
        }
    }))
}

/// Signs in with an ID token that is made for the nonce of the authorization request.
async fn sign_in(make: impl FnOnce(&Value) -> Option<String>, keys: Vec<Value>) -> Result<SignedIn, SignInError> {
    sign_in_while_keys_rotate(make, vec![keys]).await
}

async fn sign_in_while_keys_rotate(
    make: impl FnOnce(&Value) -> Option<String>,
    keys: Vec<Vec<Value>>,
) -> Result<SignedIn, SignInError> {
    let server_metadata = discovered(metadata()).await;
    let id_token = Late::default();
    let client = server(id_token.clone(), keys);
    let sign_in = BrowserSignIn::new(client, &server_metadata, ClientAuth::public("app")).unwrap().scope("openid");
    let sign_in = sign_in.trusted_audience("project");
    let pending: PendingBrowserSignIn = sign_in.begin().await.unwrap();
    let sent = query(&pending);
    id_token.set(make(&json!(sent["nonce"]))).unwrap();
    let uri = format!("{}?code=c1&state={}", pending.redirect_uri(), sent["state"]);
    let finishing = tokio::spawn(pending.finish());
    open(&uri).await;
    finishing.await.unwrap()
}

#[tokio::test]
async fn a_valid_id_token_names_the_user_and_is_kept() {
    for key in [Key::es256(), Key::eddsa()].into_iter().chain(Key::rs256()) {
        let header = json!({ "alg": key.algorithm, "kid": "k1" });
        // A key of another use or of an unknown kind is passed over.
        let unknown = json!({ "kty": "AKP", "alg": "ML-DSA-44", "pub": "AA", "kid": "k2" });
        let keys = vec![unknown, Key::es256().jwk("k0"), key.jwk("k1")];
        let signed_in = sign_in(|nonce| Some(key.sign(&header, &claims_for(key.algorithm, nonce))), keys).await;
        let signed_in = signed_in.unwrap();
        assert_eq!(signed_in.subject(), Some("user-7"));
        assert_eq!(signed_in.claim("email"), Some(&json!("ada@example.com")));
        assert!(signed_in.tokens.extra("id_token").is_some());
        assert!(!format!("{signed_in:?}").contains("ada"));
    }
}

#[tokio::test]
async fn an_id_token_that_is_not_for_this_sign_in_is_refused() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 13] = [
        ("another issuer", |claims| claims["iss"] = json!("https://evil.example")),
        ("a trailing slash", |claims| claims["iss"] = json!("https://auth.example.com/")),
        ("another audience", |claims| claims["aud"] = json!("other")),
        ("one more audience", |claims| claims["aud"] = json!(["app", "other"])),
        ("no client", |claims| claims["aud"] = json!(["project"])),
        ("another party", |claims| claims["azp"] = json!("other")),
        ("another nonce", |claims| claims["nonce"] = json!("replayed")),
        ("no nonce", |claims| drop(claims.as_object_mut().unwrap().remove("nonce"))),
        ("expired", |claims| claims["exp"] = json!(now() - 600)),
        ("issued in the future", |claims| claims["iat"] = json!(now() + 3_600)),
        ("another access token", |claims| claims["at_hash"] = json!("AAAA")),
        ("no subject", |claims| drop(claims.as_object_mut().unwrap().remove("sub"))),
        ("no expiry", |claims| drop(claims.as_object_mut().unwrap().remove("exp"))),
    ];
    let key = Key::es256();
    let header = json!({ "alg": "ES256", "kid": "k1" });
    for (change, apply) in changes {
        let make = |nonce: &Value| {
            let mut claims = claims(nonce);
            apply(&mut claims);
            Some(key.sign(&header, &claims))
        };
        let failure = sign_in(make, vec![key.jwk("k1")]).await.unwrap_err();
        assert_eq!(failure.kind(), SignInErrorKind::InvalidIdToken, "{change}");
    }
}

/// Makes an ID token, or none, for a nonce.
type Make<'a> = dyn Fn(&Value) -> Option<String> + 'a;

#[tokio::test]
async fn an_id_token_may_also_be_for_a_trusted_audience() {
    let key = Key::es256();
    let make = |nonce: &Value| {
        let mut claims = claims(nonce);
        (claims["aud"], claims["azp"]) = (json!(["project", "app"]), json!("app"));
        Some(key.sign(&json!({ "alg": "ES256", "kid": "k1" }), &claims))
    };
    assert_eq!(sign_in(make, vec![key.jwk("k1")]).await.unwrap().subject(), Some("user-7"));
}

#[tokio::test]
async fn a_signature_that_is_not_the_servers_is_refused() {
    let (key, other) = (Key::es256(), Key::es256());
    let header = json!({ "alg": "ES256", "kid": "k1" });
    let forged = async |make: &dyn Fn(&Value) -> Option<String>| kind(sign_in(make, vec![key.jwk("k1")]).await);
    let unsigned = |nonce: &Value| {
        Some(format!("{}.{}.", encoded(json!({ "alg": "none" }).to_string()), encoded(claims(nonce).to_string())))
    };
    let symmetric = |nonce: &Value| Some(key.sign(&json!({ "alg": "HS256", "kid": "k1" }), &claims(nonce)));
    let unknown = |nonce: &Value| Some(key.sign(&json!({ "alg": "ES256", "kid": "k9" }), &claims(nonce)));
    let foreign = |nonce: &Value| Some(other.sign(&header, &claims(nonce)));
    let cases: [&Make<'_>; 6] =
        [&unsigned, &symmetric, &unknown, &foreign, &|_| Some("unreadable".to_owned()), &|_| None];
    for make in cases {
        assert_eq!(forged(make).await, SignInErrorKind::InvalidIdToken);
    }
}

#[tokio::test]
async fn clocks_may_differ_by_a_minute() {
    let key = Key::es256();
    let header = json!({ "alg": "ES256", "kid": "k1" });
    for (ahead, is_valid) in [(-30, true), (30, true), (-600, false), (600, false)] {
        let make = |nonce: &Value| {
            let mut claims = claims(nonce);
            // Issued and expired at once, by a clock that is ahead of or behind this one.
            (claims["iat"], claims["exp"]) = (json!(now() + ahead), json!(now() + ahead));
            Some(key.sign(&header, &claims))
        };
        assert_eq!(sign_in(make, vec![key.jwk("k1")]).await.is_ok(), is_valid, "{ahead} s");
    }
}

#[tokio::test(start_paused = true)]
async fn clocks_differ_by_no_more_than_they_may() {
    let key = Key::es256();
    let mut claims = claims(&json!(null));
    claims["exp"] = json!(now() - 30);
    let id_token = key.sign(&json!({ "alg": "ES256", "kid": "k1" }), &claims);
    for (tolerance, is_valid) in [(None, true), (Some(10), false), (Some(3_600), true)] {
        let client = server(Arc::new(Some(id_token.clone()).into()), vec![vec![key.jwk("k1")]]);
        let sign_in = DeviceSignIn::new(client, &discovered(metadata()).await, ClientAuth::public("app")).unwrap();
        let mut sign_in = sign_in.scope("openid");
        if let Some(tolerance) = tolerance {
            sign_in = sign_in.clock_tolerance(Duration::from_secs(tolerance));
        }
        assert_eq!(sign_in.begin().await.unwrap().finish().await.is_ok(), is_valid, "{tolerance:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_device_grant_validates_without_a_nonce() {
    let key = Key::eddsa();
    let header = json!({ "alg": "EdDSA", "kid": "k1" });
    let mut claims = claims_for("EdDSA", &json!(null));
    claims.as_object_mut().unwrap().remove("nonce");
    let mut foreign = claims.clone();
    foreign["aud"] = json!("other");
    for (claims, is_valid) in [(claims, true), (foreign, false)] {
        let client = server(Arc::new(Some(key.sign(&header, &claims)).into()), vec![vec![key.jwk("k1")]]);
        let sign_in = DeviceSignIn::new(client, &discovered(metadata()).await, ClientAuth::public("app")).unwrap();
        let signed_in = sign_in.scope("openid").begin().await.unwrap().finish().await;
        assert_eq!(signed_in.is_ok(), is_valid);
    }
}

#[tokio::test(start_paused = true)]
async fn the_tokens_of_a_refused_id_token_are_revoked_in_a_call_of_five_seconds_at_most() {
    let mut metadata = metadata();
    metadata["revocation_endpoint"] = json!("https://auth.example.com/revoke");
    let metadata = discovered(metadata).await;
    let codes = json!({
        "device_code": "dc", "user_code": "uc", "verification_uri": "https://auth.example.com/device",
        "expires_in": 60,
    });
    let tokens = json!({ "access_token": "a1", "refresh_token": "r1", "id_token": "unreadable" });
    for (revoked, seconds) in [(Some(200), 0), (Some(503), 0), (None, 5)] {
        let answers = [json!({ "keys": [] }), codes.clone(), tokens.clone()].map(|body| answer(200, body.to_string()));
        let scripted = Scripted::with(answers.into_iter().chain([answer(revoked.unwrap_or(200), "")]));
        let server = scripted.clone();
        let client = AuthClient::new(service_fn(move |request: Request<Full<bytes::Bytes>>| {
            let hangs = revoked.is_none() && request.uri().path() == "/revoke";
            let answering = server.clone().oneshot(request);
            async move {
                let answer = answering.await;
                if hangs { std::future::pending().await } else { answer }
            }
        }));
        let sign_in = DeviceSignIn::new(client, &metadata, ClientAuth::public("app")).unwrap().scope("openid");
        let pending = sign_in.begin().await.unwrap();
        let started = tokio::time::Instant::now();
        assert_eq!(kind(pending.finish().await), SignInErrorKind::InvalidIdToken);
        assert_eq!(started.elapsed().as_secs(), 5 + seconds, "one interval, and the revocation");
        let [.., revocation] = &scripted.requests()[3..] else { panic!("no revocation") };
        assert_eq!(revocation.uri.path(), "/revoke");
        let form = [("token", "r1"), ("token_type_hint", "refresh_token"), ("client_id", "app")];
        assert_eq!(revocation.form(), pairs(&form));
    }
}

/// The failures of both kinds of sign-in to begin, at a server with this `jwks_uri`.
async fn failures(jwks_uri: Value, scripted: &Scripted) -> [SignInError; 2] {
    let mut metadata = metadata();
    metadata["jwks_uri"] = jwks_uri;
    let server = discovered(metadata).await;
    let (client, auth) = (scripted.client(), ClientAuth::public("app"));
    let browser = BrowserSignIn::new(client.clone(), &server, auth.clone()).unwrap().scope("openid profile");
    let device = DeviceSignIn::new(client, &server, auth).unwrap().scope("profile openid");
    [browser.begin().await.unwrap_err(), device.begin().await.unwrap_err()]
}

#[tokio::test]
async fn a_server_without_keys_is_named_before_the_browser_opens() {
    let none = "the server's metadata has no jwks_uri";
    let unfit = "the server's jwks_uri is no URL for secrets";
    let plain = json!("http://auth.example.com/jwks");
    for (jwks_uri, message) in [(json!(null), none), (json!(7), none), (plain, unfit)] {
        let scripted = Scripted::default();
        for failure in failures(jwks_uri, &scripted).await {
            assert_eq!(failure.kind(), SignInErrorKind::Misconfigured);
            assert_eq!(failure.to_string(), message);
        }
        assert_eq!(scripted.requests().len(), 0);
    }
}

#[tokio::test]
async fn keys_that_cannot_be_had_end_the_sign_in_before_anything_is_asked_for() {
    let jwks = "https://auth.example.com/jwks";
    for outage in [answer(503, ""), answer(200, r#"{"keys":7}"#)] {
        let scripted = Scripted::with([outage]);
        for failure in failures(json!(jwks), &scripted).await {
            assert_eq!(failure.kind(), SignInErrorKind::Server);
            assert_eq!(failure.server_error().unwrap().endpoint(), Some(jwks));
        }
        assert!(scripted.requests().iter().all(|request| request.uri.path() == "/jwks"));
    }
}

#[tokio::test]
async fn a_key_that_is_newer_than_the_sign_in_is_requested_once() {
    let (old, new) = (Key::es256(), Key::es256());
    let sets = vec![vec![old.jwk("k0")], vec![new.jwk("k1")], vec![new.jwk("k2")]];
    for (key_id, is_valid) in [("k1", true), ("k2", false)] {
        let header = json!({ "alg": "ES256", "kid": key_id });
        let signed_in = sign_in_while_keys_rotate(|nonce| Some(new.sign(&header, &claims(nonce))), sets.clone()).await;
        assert_eq!(signed_in.is_ok(), is_valid, "{key_id}");
    }
}
