//! Sign-in and client authentication against a certified OpenID provider (npm's `oidc-provider`), with its own login
//! pages in headless Chromium.
//!
//! `npm ci` in `tests/interop` sets the provider up. Without it, or without Chromium, tests are skipped, unless `CI` is
//! `true`.

#![expect(clippy::unwrap_used, reason = "what fails in a test, fails the test")]

#[path = "../it/certificates.rs"]
#[expect(dead_code, reason = "another suite serves TLS")]
mod certificates;
#[path = "../../../../examples/gateway/tests/support/chromium.rs"]
#[expect(dead_code, reason = "another suite looks at more of a page")]
mod chromium;
#[path = "../it/keys.rs"]
#[expect(dead_code, reason = "another suite signs by itself")]
mod keys;
#[path = "../it/node.rs"]
mod node;

use std::process::Child;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tower_auth_refresh::{Session, SessionState};
use tower_auth_refresh_http::{
    AuthClient, AuthorizationServer, BrowserSignIn, ClientAuth, ClientCredentials, DeviceSignIn, JwtSigner,
    OAuthRefresh, OAuthRevoke, SignInErrorKind,
};

use self::certificates::Certificates;
use self::chromium::Chromium;
use self::keys::Key;

/// The provider's process, shared by all tests. It ends when its standard input is closed, with this process.
struct Provider {
    issuer: String,
    _process: Child,
}

impl Provider {
    fn get() -> Option<&'static Self> {
        static PROVIDER: OnceLock<Option<Provider>> = OnceLock::new();
        let start = || match node::start("sign_in.mjs") {
            Ok((process, port)) => Some(Self { issuer: format!("http://127.0.0.1:{port}"), _process: process }),
            Err(reason) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{reason}"),
            Err(reason) => {
                println!("skipped: {reason}");
                None
            }
        };
        PROVIDER.get_or_init(start).as_ref()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request = Request::post(format!("{}{path}", self.issuer)).body(body.to_string().into_bytes()).unwrap();
        let answer = AuthClient::rustls().call(request).await.unwrap();
        assert!(answer.status().is_success(), "{}", String::from_utf8_lossy(answer.body()));
        serde_json::from_slice(answer.body()).unwrap_or_default()
    }

    /// Registers a client, with these members besides those of every client.
    async fn register(&self, id: &str, grants: &[&str], more: Value) {
        let is_code = grants.contains(&"authorization_code");
        let mut client = json!({
            "client_id": id,
            "grant_types": grants,
            "application_type": "native",
            "redirect_uris": if is_code { json!(["http://127.0.0.1/callback"]) } else { json!([]) },
            "response_types": if is_code { json!(["code"]) } else { json!([]) },
        });
        let Value::Object(more) = more else { panic!("{more}") };
        client.as_object_mut().unwrap().extend(more);
        self.post("/test/client", client).await;
    }
}

/// Logs in, where the provider asks for it, and consents.
fn log_in(browser: &mut Chromium, url: &str) -> String {
    let mut page = browser.open(url);
    let is_done = "document.title == 'You are signed in' || document.title == 'The sign-in failed'";
    let is_form = "!!document.querySelector('[type=submit]')";
    for step in 0.. {
        assert!(step < 6, "the provider asks again and again");
        page.wait_for(&format!(
            "document.readyState == 'complete' && !window.isOld && (({is_form}) || ({is_done}) || {SUCCESS})"
        ));
        if page.evaluate(&format!("({is_done}) || {SUCCESS}")) == json!(true) {
            break;
        }
        page.run(
            "window.isOld = true; \
             const login = document.querySelector('[name=login]'); if (login) login.value = 'ada'; \
             const password = document.querySelector('[name=password]'); if (password) password.value = 'any'; \
             document.querySelector('[type=submit]').click()",
        );
    }
    page.text("h1")
}

/// The provider's page at the end of a device grant.
const SUCCESS: &str = "document.title == 'Sign-in Success'";

#[tokio::test(flavor = "multi_thread")]
async fn a_user_signs_in_on_the_providers_pages_and_then_approves_a_device() {
    let (Some(provider), Some(mut browser)) = (Provider::get(), Chromium::find()) else { return };
    let key = Key::es256();
    let grants = ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"];
    let authenticated = json!({ "token_endpoint_auth_method": "private_key_jwt", "jwks": { "keys": [key.jwk("k1")] } });
    provider.register("cli", &grants, authenticated).await;
    let http = AuthClient::rustls();
    let server = AuthorizationServer::discover(&http, &provider.issuer).await.unwrap();
    let signer = JwtSigner::from_pem(key.pem().as_bytes()).unwrap().key_id("k1");
    let app = ClientAuth::private_key_jwt("cli", server.issuer(), signer);

    let sign_in = BrowserSignIn::new(http.clone(), &server, app.clone()).unwrap();
    let sign_in = sign_in.scope("openid offline_access").param("prompt", "consent");
    let pending = sign_in.begin().await.unwrap();
    let url = pending.url().to_owned();
    let (title, finished) = tokio::join!(
        tokio::task::spawn_blocking(move || {
            let title = log_in(&mut browser, &url);
            (title, browser)
        }),
        pending.finish()
    );
    let (title, mut browser) = title.unwrap();
    let signed_in = finished.unwrap();
    assert_eq!((title.as_str(), signed_in.subject()), ("You are signed in", Some("ada")));

    let refresh = OAuthRefresh::new(http.clone(), server.token_endpoint(), app.clone()).unwrap();
    let revoke = OAuthRevoke::new(http.clone(), server.revocation_endpoint().unwrap(), app.clone()).unwrap();
    let session = Session::builder(refresh).revoke(revoke).build().await.unwrap();
    session.sign_in(signed_in.tokens).await.unwrap();
    session.refresh().await.unwrap();
    assert_eq!(session.state(), SessionState::Active);
    session.sign_out().await.unwrap();

    let sign_in = DeviceSignIn::new(http, &server, app).unwrap().scope("openid offline_access");
    let pending = sign_in.param("prompt", "consent").begin().await.unwrap();
    let uri = pending.verification_uri_complete().unwrap().to_owned();
    let (title, finished) =
        tokio::join!(tokio::task::spawn_blocking(move || log_in(&mut browser, &uri)), pending.finish());
    assert_eq!(title.unwrap(), "Sign-in Success");
    let signed_in = finished.unwrap();
    assert_eq!(signed_in.subject(), Some("ada"));
    assert!(signed_in.tokens.refresh_token().is_some());
}

#[tokio::test]
async fn a_request_that_the_provider_refuses_comes_back_as_a_typed_error() {
    let Some(provider) = Provider::get() else { return };
    let public = json!({ "token_endpoint_auth_method": "none" });
    provider.register("refused", &["authorization_code"], public).await;
    let http = AuthClient::rustls();
    let server = AuthorizationServer::discover(&http, &provider.issuer).await.unwrap();
    let sign_in = BrowserSignIn::new(http.clone(), &server, ClientAuth::public("refused")).unwrap();
    // Without a page, and without a user that is logged in.
    let pending = sign_in.scope("openid").param("prompt", "none").begin().await.unwrap();
    let request = Request::get(pending.url()).body(Vec::new()).unwrap();
    let finishing = tokio::spawn(pending.finish());
    let redirect = location(request).await;
    let page = AuthClient::rustls().call(Request::get(redirect).body(Vec::new()).unwrap()).await.unwrap();
    assert!(String::from_utf8_lossy(page.body()).contains("The sign-in failed"));
    let failure = finishing.await.unwrap().unwrap_err();
    assert_eq!((failure.kind(), failure.code()), (SignInErrorKind::Refused, Some("login_required")));
}

/// The redirect of an answer, which an `AuthClient` refuses.
async fn location(request: Request<Vec<u8>>) -> String {
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let request = request.map(|body| http_body_util::Full::new(bytes::Bytes::from(body)));
    let answer = client.request(request).await.unwrap();
    answer.headers()["location"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_kind_of_key_is_accepted_and_another_key_is_not() {
    let Some(provider) = Provider::get() else { return };
    let (Some(rsa), Some(other_rsa)) = (Key::rs256(), Key::rs256()) else { return };
    let http = AuthClient::rustls();
    let server = AuthorizationServer::discover(&http, &provider.issuer).await.unwrap();
    let keys =
        [("es256", Key::es256(), Key::es256()), ("eddsa", Key::eddsa(), Key::eddsa()), ("rs256", rsa, other_rsa)];
    for (id, key, wrong) in keys {
        let method = json!({
            "token_endpoint_auth_method": "private_key_jwt",
            "token_endpoint_auth_signing_alg": key.algorithm,
            "jwks": { "keys": [key.jwk("k1")] },
        });
        provider.register(id, &["client_credentials"], method).await;
        let grant = |pem: String, audience: &str| {
            let signer = JwtSigner::from_pem(pem.as_bytes()).unwrap().key_id("k1");
            let auth = ClientAuth::private_key_jwt(id, audience, signer);
            ClientCredentials::new(http.clone(), server.token_endpoint(), auth).unwrap()
        };
        let right = grant(key.pem(), server.issuer());
        right.request_tokens().await.unwrap();
        right.request_tokens().await.unwrap();
        grant(wrong.pem(), server.issuer()).request_tokens().await.unwrap_err();
        grant(key.pem(), "https://other.example").request_tokens().await.unwrap_err();
    }
}

#[tokio::test]
async fn a_certificate_authenticates_a_client_by_its_name_and_by_itself() {
    let (Some(provider), Some(certificates)) = (Provider::get(), Certificates::make("interop")) else { return };
    let port = provider.post("/test/tls", json!({ "folder": certificates.folder() })).await["port"].clone();
    let pem = certificates.read("client.pem");
    let by_name =
        json!({ "token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_subject_dn": "CN=billing" });
    provider.register("by-name", &["client_credentials"], by_name).await;
    let mut jwk = jwk_of(&certificates.read("client.key"));
    jwk["x5c"] = json!([STANDARD.encode(CertificateDer::from_pem_slice(&pem).unwrap())]);
    let by_itself = json!({ "token_endpoint_auth_method": "self_signed_tls_client_auth", "jwks": { "keys": [jwk] } });
    provider.register("by-itself", &["client_credentials"], by_itself).await;

    let url = format!("https://localhost:{port}/token");
    let bound = certificates.client().client_certificate(&pem, &certificates.read("client.key")).build().unwrap();
    let bare = certificates.client().build().unwrap();
    for id in ["by-name", "by-itself"] {
        let grant = |http: &AuthClient| ClientCredentials::new(http.clone(), &url, ClientAuth::tls(id)).unwrap();
        grant(&bound).request_tokens().await.unwrap();
        grant(&bare).request_tokens().await.unwrap_err();
    }
}

/// The public part of a P-256 key.
fn jwk_of(pem: &[u8]) -> Value {
    let PrivateKeyDer::Pkcs8(der) = PrivateKeyDer::from_pem_slice(pem).unwrap() else { panic!("not PKCS#8") };
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random).unwrap();
    keys::p256_jwk(pair.public_key().as_ref())
}
