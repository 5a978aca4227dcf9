//! `--upstream-ca`, `--auth-ca` and client certificates: TLS with the servers that the gateway calls.

use std::io;
use std::sync::{Arc, Mutex};

use axum::routing::any;
use axum::{Form, Json, Router};
use gateway::{AuthServer, Gateway, PeerTls, Settings};
use http::{HeaderMap, Request};
use rustls::ServerConfig;
use serde_json::json;
use tower_auth_refresh_testkit::TestServer;
use tracing::subscriber::{DefaultGuard, set_default};

use crate::certificates::{Certificates, terminate_tls};
use crate::test_gateway::{Browser, serve, spawn};

/// The log of this test's thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn capture() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts a gateway whose upstream is the kit's API, over TLS. The authorization server is the kit, over plain HTTP.
async fn signed_in(kit: &TestServer, config: ServerConfig, host: &str, tls: PeerTls) -> Browser {
    let port = terminate_tls(config, &kit.origin()).await;
    let mut settings = Settings::new(&format!("https://{host}:{port}"), AuthServer::Json(kit.origin())).unwrap();
    settings.upstream_tls = tls;
    let mut browser = Browser::at(spawn(Gateway::new(settings)).await);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    browser
}

#[tokio::test]
async fn an_upstream_with_a_certificate_of_the_private_ca_is_called() {
    let Some(certificates) = Certificates::make("upstream-ca") else { return };
    let kit = TestServer::start().await.unwrap();
    let config = certificates.server_config("server", false);
    for host in ["127.0.0.1", "localhost"] {
        let browser = signed_in(&kit, config.clone(), host, certificates.trusted()).await;
        kit.expire_access_tokens();
        assert_eq!(browser.get("/api/me").await.status, 200);
    }
    assert_eq!(kit.violations(), []);
}

#[tokio::test]
async fn http_2_is_negotiated_with_the_upstream() {
    let Some(certificates) = Certificates::make("upstream-alpn") else { return };
    let version = async |request: Request<axum::body::Body>| format!("{:?}", request.version());
    let api = serve(Router::new().fallback(any(version))).await;
    let kit = TestServer::start().await.unwrap();
    for (protocol, expected) in [(&b"h2"[..], "HTTP/2.0"), (b"http/1.1", "HTTP/1.1")] {
        let mut config = certificates.server_config("server", false);
        config.alpn_protocols = vec![protocol.to_vec()];
        let port = terminate_tls(config, &api).await;
        let mut settings = Settings::new(&format!("https://127.0.0.1:{port}"), AuthServer::Json(kit.origin())).unwrap();
        settings.upstream_tls = certificates.trusted();
        let mut browser = Browser::at(spawn(Gateway::new(settings)).await);
        assert_eq!(browser.login("ada", "correct horse").await.status, 204);
        assert_eq!(browser.get("/api/x").await.body, expected);
    }
}

#[tokio::test]
async fn an_upstream_that_cannot_be_verified_is_sent_nothing() {
    let Some(certificates) = Certificates::make("upstream-refused") else { return };
    let Some(others) = Certificates::make("upstream-other-ca") else { return };
    certificates.issue("expired", "IP:127.0.0.1", true);
    certificates.issue("elsewhere", "DNS:elsewhere.example", false);
    let kit = TestServer::start().await.unwrap();
    let (log, _guard) = Log::capture();
    for (server, tls, reason) in [
        ("expired", certificates.trusted(), "expired"),
        ("elsewhere", certificates.trusted(), "not valid for name"),
        ("server", others.trusted(), "BadSignature"),
        // Mozilla's roots.
        ("server", PeerTls::default(), "UnknownIssuer"),
    ] {
        let browser = signed_in(&kit, certificates.server_config(server, false), "127.0.0.1", tls).await;
        let before = log.text().len();
        browser.get("/api/me").await.assert_problem(502, "upstream-failed");
        let lines = log.text().split_off(before);
        assert!(lines.contains("call to the upstream failed") && lines.contains(reason), "{server}: {lines}");
    }
    assert_eq!(kit.counters().api, 0);
}

#[tokio::test]
async fn an_upstream_that_requires_a_client_certificate_gets_it() {
    let Some(certificates) = Certificates::make("upstream-mtls") else { return };
    let kit = TestServer::start().await.unwrap();
    let config = certificates.server_config("server", true);
    let (log, _guard) = Log::capture();
    let browser = signed_in(&kit, config.clone(), "127.0.0.1", certificates.trusted()).await;
    browser.get("/api/me").await.assert_problem(502, "upstream-failed");
    assert_eq!(kit.counters().api, 0);
    assert!(log.text().contains("CertificateRequired"), "{}", log.text());

    let tls = PeerTls { identity: Some(certificates.identity("client")), ..certificates.trusted() };
    let browser = signed_in(&kit, config, "127.0.0.1", tls).await;
    assert_eq!(browser.get("/api/me").await.status, 200);
}

#[tokio::test]
async fn an_authorization_server_that_requires_a_client_certificate_gets_it() {
    let Some(certificates) = Certificates::make("auth-mtls") else { return };
    let kit = TestServer::start().await.unwrap();
    let port = terminate_tls(certificates.server_config("server", true), &kit.origin()).await;
    let auth = AuthServer::Json(format!("https://127.0.0.1:{port}"));
    for (tls, is_served) in [
        (PeerTls { identity: Some(certificates.identity("client")), ..certificates.trusted() }, true),
        (certificates.trusted(), false),
        (PeerTls { identity: Some(certificates.identity("client")), ca: None }, false),
    ] {
        let mut settings = Settings::new(&kit.origin(), auth.clone()).unwrap();
        settings.auth_tls = tls;
        let mut browser = Browser::at(spawn(Gateway::new(settings)).await);
        let login = browser.login("ada", "correct horse").await;
        if is_served {
            assert_eq!(login.status, 204);
            kit.expire_access_tokens();
            assert_eq!(browser.get("/api/me").await.status, 200);
            assert_eq!(browser.post("/logout", "").await.status, 204);
        } else {
            login.assert_problem(503, "auth-server-unavailable");
        }
    }
    assert_eq!((kit.counters().refreshes, kit.violations()), (1, vec![]));
}

#[tokio::test]
async fn a_token_endpoint_knows_a_client_by_its_certificate() {
    let Some(certificates) = Certificates::make("oauth-mtls") else { return };
    let token = async |headers: HeaderMap, Form(form): Form<Vec<(String, String)>>| {
        assert!(form.contains(&("client_id".into(), "gateway".into())) && !headers.contains_key("authorization"));
        Json(json!({ "access_token": "a1", "refresh_token": "r1", "token_type": "Bearer" }))
    };
    let plain = serve(Router::new().fallback(any(token))).await;
    let port = terminate_tls(certificates.server_config("server", true), &plain).await;
    let auth = AuthServer::OAuth {
        token_endpoint: format!("https://127.0.0.1:{port}/token"),
        revocation_endpoint: None,
        client_id: "gateway".to_owned(),
        client_secret: None,
    };
    let mut settings = Settings::new(&plain, auth).unwrap();
    settings.auth_tls = PeerTls { identity: Some(certificates.identity("client")), ..certificates.trusted() };
    let mut browser = Browser::at(spawn(Gateway::new(settings)).await);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let Some(certificates) = Certificates::make("files") else { return };
    certificates.issue("other", "IP:127.0.0.1", false);
    let set_mode = |file: &str, mode| {
        std::fs::set_permissions(certificates.path(file), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    std::fs::write(certificates.path("text"), "certificate").unwrap();
    set_mode("text", 0o600);
    std::fs::copy(certificates.path("client.key"), certificates.path("open.key")).unwrap();
    set_mode("open.key", 0o644);
    let identity = |certificate: &str, key: &str| {
        Some(gateway::Identity { certificate: certificates.path(certificate), key: certificates.path(key) })
    };
    for (certificate, key, flag, file, reason) in [
        ("absent", "client.key", "cert", "absent", "No such file"),
        ("text", "client.key", "cert", "text", "there is no certificate"),
        ("client.key", "client.key", "cert", "client.key", "there is no certificate"),
        ("client.pem", "absent", "key", "absent", "No such file"),
        ("client.pem", "text", "key", "text", "there is no private key"),
        ("client.pem", "open.key", "key", "open.key", "is open to other users (mode 0644): run `chmod 6"),
        ("client.pem", "other.key", "key", "other.key", "keys"),
    ] {
        for prefix in ["--tls", "--upstream-client", "--auth-client"] {
            let mut settings =
                Settings::new("https://a.example", AuthServer::Json("https://b.example".to_owned())).unwrap();
            match prefix {
                "--tls" => settings.tls = identity(certificate, key),
                "--auth-client" => settings.auth_tls.identity = identity(certificate, key),
                _ => settings.upstream_tls.identity = identity(certificate, key),
            }
            let error = Gateway::new(settings).listen().await.err().unwrap().to_string();
            let expected = format!("{prefix}-{flag}: {}: ", certificates.path(file).display());
            assert!(error.starts_with(&expected) && error.contains(reason), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
    }
}
