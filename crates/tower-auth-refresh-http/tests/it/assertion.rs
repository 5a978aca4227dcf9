//! Client authentication by signed assertions (RFC 7523), and by the certificate of the connection (RFC 8705).

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::json;
use tower::BoxError;
use tower_auth_refresh::{RefreshError, Session, Tokens};
use tower_auth_refresh_http::{
    AuthorizationServer, ClientAuth, ClientCredentials, JsonRefresh, JwtSigner, OAuthRefresh, OAuthRevoke,
};

use crate::keys::{Key, part};
use crate::support::{Scripted, SentRequest, answer, old_tokens, outcome};

const ISSUER: &str = "https://auth.example.com";
const URL: &str = "https://auth.example.com/token";

fn granting() -> Scripted {
    Scripted::with([answer(200, r#"{"access_token":"a2","refresh_token":"r2"}"#)])
}

fn field(request: &SentRequest, name: &str) -> String {
    let form = request.form();
    let mut values = form.iter().filter(|(other, _)| other == name);
    let (value, None) = (values.next().unwrap().1.clone(), values.next()) else { panic!("{name} is repeated") };
    value
}

fn verify(algorithm: &'static dyn VerificationAlgorithm, public: &[u8], jwt: &str) {
    let (input, signature) = jwt.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    UnparsedPublicKey::new(algorithm, public).verify(input.as_bytes(), &signature).unwrap();
}

#[tokio::test]
async fn an_assertion_names_the_client_and_the_issuer_for_a_minute() {
    let keys: [(Key, &'static dyn VerificationAlgorithm); 2] =
        [(Key::es256(), &ECDSA_P256_SHA256_FIXED), (Key::eddsa(), &ED25519)];
    for (key, algorithm) in keys {
        let scripted = granting();
        let signer = JwtSigner::from_pem(key.pem().as_bytes()).unwrap().key_id("k1");
        let auth = ClientAuth::private_key_jwt("app", ISSUER, signer);
        OAuthRefresh::new(scripted.client(), URL, auth).unwrap().refresh(&old_tokens()).await.unwrap();

        let request = scripted.only();
        assert_eq!(request.header("authorization"), None);
        let type_ = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        assert_eq!(field(&request, "client_assertion_type"), type_);
        assert_eq!(field(&request, "client_id"), "app");
        let jwt = field(&request, "client_assertion");
        verify(algorithm, &key.public(), &jwt);
        assert_eq!(part(&jwt, 0), json!({ "alg": key.algorithm, "typ": "JWT", "kid": "k1" }));
        let claims = part(&jwt, 1);
        assert_eq!((&claims["iss"], &claims["sub"], &claims["aud"]), (&json!("app"), &json!("app"), &json!(ISSUER)));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let (issued, expires) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
        assert!(issued <= now && now - issued < 3600 && expires == issued + 60, "{claims}");
    }
}

#[tokio::test]
async fn every_call_has_an_assertion_of_its_own() {
    let signer = JwtSigner::from_pem(Key::es256().pem().as_bytes()).unwrap();
    let auth = ClientAuth::private_key_jwt("app", ISSUER, signer);
    let scripted = granting();
    let refresh = OAuthRefresh::new(scripted.client(), URL, auth.clone()).unwrap();
    let first = refresh.refresh(&old_tokens());
    refresh.refresh(&old_tokens()).await.unwrap();
    first.await.unwrap();
    OAuthRevoke::new(scripted.client(), URL, auth.clone()).unwrap().revoke(&old_tokens()).await.unwrap();
    ClientCredentials::new(scripted.client(), URL, auth.clone()).unwrap().request_tokens().await.unwrap();
    let requests = scripted.requests();
    let assertions = requests.iter().map(|request| field(request, "client_assertion"));
    let ids: HashSet<_> = assertions.map(|jwt| part(&jwt, 1)["jti"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 4);
    assert!(ids.iter().all(|id| id.len() == 22), "128 bits");

    let json = granting();
    let refresh = JsonRefresh::new(json.client(), URL).unwrap().client_auth(auth);
    refresh.refresh(&old_tokens()).await.unwrap();
    assert_eq!(part(json.only().json()["client_assertion"].as_str().unwrap(), 1)["sub"], "app");
}

#[tokio::test]
async fn an_rsa_key_signs_rs256_from_either_format() {
    let Ok(made) = Command::new("openssl").args(["genrsa", "-traditional", "2048"]).output() else {
        assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
        return;
    };
    let pkcs1 = String::from_utf8(made.stdout).unwrap();
    assert!(pkcs1.contains("BEGIN RSA PRIVATE KEY"), "{pkcs1}");
    let converted = openssl(&["pkcs8", "-topk8", "-nocrypt"], pkcs1.as_bytes());
    let public = openssl(&["rsa", "-RSAPublicKey_out", "-outform", "DER"], pkcs1.as_bytes());
    for pem in [pkcs1.into_bytes(), converted] {
        let scripted = granting();
        let auth = ClientAuth::private_key_jwt("app", ISSUER, JwtSigner::from_pem(&pem).unwrap());
        OAuthRefresh::new(scripted.client(), URL, auth).unwrap().refresh(&old_tokens()).await.unwrap();
        let jwt = field(&scripted.only(), "client_assertion");
        assert_eq!(part(&jwt, 0)["alg"], "RS256");
        verify(&RSA_PKCS1_2048_8192_SHA256, &public, &jwt);
    }
}

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap().stdout
}

#[tokio::test]
async fn a_signer_elsewhere_is_awaited_and_its_failure_leaves_the_token_unused() {
    let scripted = granting();
    let signer = JwtSigner::new("ES256", |input: Vec<u8>| async move {
        tokio::task::yield_now().await;
        Ok(vec![input.len().to_le_bytes()[0]])
    });
    let auth = ClientAuth::private_key_jwt("app", ISSUER, signer);
    OAuthRefresh::new(scripted.client(), URL, auth).unwrap().refresh(&old_tokens()).await.unwrap();
    assert!(field(&scripted.only(), "client_assertion").split('.').nth(2).is_some_and(|part| part.len() == 2));

    let broken = JwtSigner::new("ES256", |_| async { Err("the module is locked".into()) });
    let scripted = granting();
    let refresh = OAuthRefresh::new(scripted.client(), URL, ClientAuth::private_key_jwt("app", ISSUER, broken));
    assert_eq!(outcome(&refresh.unwrap().refresh(&old_tokens()).await), "unavailable");
    assert_eq!(scripted.requests().len(), 0);
}

#[tokio::test]
async fn a_signer_says_by_the_kind_of_its_error_if_its_failure_may_pass() {
    type Make = fn() -> BoxError;
    let failures: [(Make, &str); 5] = [
        (|| RefreshError::misconfigured("the key is unknown").into(), "misconfigured"),
        (|| RefreshError::rejected("the agent knows no such client").into(), "misconfigured"),
        (|| RefreshError::unavailable("the agent starts").into(), "unavailable"),
        (|| RefreshError::in_doubt("the agent hung up").into(), "unavailable"),
        (|| std::io::Error::other(RefreshError::misconfigured("the key is unknown")).into(), "misconfigured"),
    ];
    for (make, expected) in failures {
        let scripted = granting();
        let signer = JwtSigner::new("ES256", move |_| async move { Err(make()) });
        let auth = ClientAuth::private_key_jwt("app", ISSUER, signer);
        let refresh = OAuthRefresh::new(scripted.client(), URL, auth).unwrap();
        assert_eq!(outcome(&refresh.refresh(&old_tokens()).await), expected);
        assert_eq!(scripted.requests().len(), 0);
    }
}

#[tokio::test]
async fn a_signer_says_when_it_may_be_asked_again() {
    let later = Duration::from_secs(7);
    let signer = JwtSigner::new("ES256", move |_| async move {
        Err(RefreshError::unavailable("the agent is busy").with_retry_after(later).into())
    });
    let auth = ClientAuth::private_key_jwt("app", ISSUER, signer);
    let refresh = OAuthRefresh::new(granting().client(), URL, auth).unwrap();
    assert_eq!(refresh.refresh(&old_tokens()).await.unwrap_err().retry_after(), Some(later));
}

#[tokio::test(start_paused = true)]
async fn a_signer_that_hangs_is_given_the_time_out_of_a_call() {
    let hanging = JwtSigner::new("ES256", |_| std::future::pending());
    let scripted = granting();
    let auth = ClientAuth::private_key_jwt("app", ISSUER, hanging);
    let client = scripted.client().timeout(Duration::from_secs(3));
    let started = tokio::time::Instant::now();
    let refresh = OAuthRefresh::new(client.clone(), URL, auth.clone()).unwrap();
    assert_eq!(outcome(&refresh.refresh(&old_tokens()).await), "unavailable");
    let refresh = JsonRefresh::new(client, URL).unwrap().client_auth(auth);
    assert_eq!(outcome(&refresh.refresh(&old_tokens()).await), "unavailable");
    assert_eq!((started.elapsed().as_secs(), scripted.requests().len()), (6, 0));
}

#[test]
fn no_key_is_shown_and_a_key_that_cannot_be_used_is_named() {
    let key = Key::es256();
    let signer = JwtSigner::from_pem(key.pem().as_bytes()).unwrap().key_id("k1");
    assert_eq!(format!("{signer:?}"), r#"JwtSigner { algorithm: "ES256", key_id: Some("k1"), .. }"#);
    let auth = ClientAuth::private_key_jwt("app", ISSUER, signer);
    assert_eq!(format!("{auth:?}"), r#"ClientAuth { id: "app", method: "private_key_jwt", .. }"#);

    let message = |pem: &str| JwtSigner::from_pem(pem.as_bytes()).unwrap_err().to_string();
    assert_eq!(message(""), "the text holds no private key in PEM");
    let sec1 = "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n";
    assert_eq!(message(sec1), "the key isn't in PKCS#8 format");
    let other = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert_eq!(message(other), "the key isn't one of P-256, P-384, Ed25519 or RSA");
}

#[tokio::test]
async fn a_client_with_a_certificate_sends_its_id_alone_to_the_aliases() {
    let metadata = json!({
        "issuer": ISSUER,
        "token_endpoint": URL,
        "revocation_endpoint": "https://auth.example.com/revoke",
        "mtls_endpoint_aliases": { "token_endpoint": "https://mtls.example.com/token", "issuer": "https://evil" },
    });
    let scripted = Scripted::with([answer(200, metadata.to_string())]);
    let server = AuthorizationServer::discover(&scripted.client(), ISSUER).await.unwrap();
    assert_eq!(server.token_endpoint(), URL);
    let server = server.mtls_endpoints();
    assert_eq!(server.token_endpoint(), "https://mtls.example.com/token");
    assert_eq!(server.revocation_endpoint(), Some("https://auth.example.com/revoke"));
    assert_eq!(server.issuer(), ISSUER);

    let scripted = granting();
    let auth = ClientAuth::tls("app");
    let refresh = OAuthRefresh::new(scripted.client(), server.token_endpoint(), auth).unwrap();
    let session = Session::builder(refresh).tokens(old_tokens()).build().await.unwrap();
    session.refresh().await.unwrap();
    let request = scripted.only();
    assert_eq!((request.header("authorization"), field(&request, "client_id")), (None, "app".to_owned()));
    assert!(!request.body.contains("secret") && !request.body.contains("assertion"));
    let _: Tokens = session.tokens();
}
