//! SIGHUP while requests arrive: the certificate is replaced, or isn't, and no request fails.

use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};
use tower_auth_refresh_testkit::TestServer;

use crate::certificates::{Certificates, VERSIONS, connect};
use crate::program::{Program, command};
use crate::test_gateway::Browser;

/// The end of certificates of [`Certificates::issue`].
const END_OF_2049: u64 = 2_524_607_999;

/// Waits until a condition holds.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Returns the end of the certificate in use.
async fn expiry(admin: &Browser) -> u64 {
    let metrics = admin.get("/metrics").await;
    let metrics = str::from_utf8(&metrics.body).unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix("gateway_tls_certificate_expiry_seconds "));
    value.unwrap().parse().unwrap()
}

#[tokio::test]
async fn requests_are_served_while_certificates_are_reloaded_and_broken_ones_refused() {
    let Some(certificates) = Certificates::make("reload") else { return };
    certificates.issue("next", "IP:127.0.0.1", false);
    let certificates = Arc::new(certificates);
    let path = |file: &str| certificates.path(file).into_os_string().into_string().unwrap();
    for file in ["pem", "key"] {
        fs::copy(path(&format!("server.{file}")), path(&format!("first.{file}"))).unwrap();
    }
    fs::write(path("broken.pem"), "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n").unwrap();

    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let mut command = command(&["--upstream", &origin, "--auth", &origin, "--listen=127.0.0.1:0"]);
    command.args(["--public-origin=https://app.example.com", "--admin-listen=127.0.0.1:0"]);
    command.args(["--tls-cert", &path("server.pem"), "--tls-key", &path("server.key")]);
    let program = Program::start_command(command.stderr(File::create(path("log")).unwrap()));
    let logged = |message: &str| fs::read_to_string(path("log")).unwrap().matches(message).count();
    let admin = Browser::at(program.admin.unwrap());
    let first = expiry(&admin).await;
    eventually("the start is not logged", async || logged("certificate loaded") == 1).await;

    let mut kept = Browser::over_tls(program.address, certificates.client_config(VERSIONS));
    assert_eq!(kept.login("ada", "correct horse").await.status, 204);
    let (stopped, served) = (Arc::new(AtomicBool::new(false)), [(); 3].map(|()| Arc::<AtomicUsize>::default()));
    let load = [0, 1, 2].map(|kind| {
        let (kept, certificates) = (kept.clone(), certificates.clone());
        let (stopped, served) = (stopped.clone(), served[kind].clone());
        tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let mut fresh = Browser::over_tls(kept.address(), certificates.client_config(VERSIONS));
                fresh.cookie.clone_from(&kept.cookie);
                let answer = match kind {
                    0 => kept.get("/api/me").await,
                    1 => fresh.get("/api/me").await,
                    _ => fresh.fetch(fresh.request(Method::POST, "/api/echo").body("once".into()).unwrap()).await,
                };
                assert_eq!(answer.status, 200, "{answer:?}");
                served.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let all_are_served = async || {
        let before: Vec<_> = served.iter().map(|served| served.load(Ordering::Relaxed)).collect();
        let go_on =
            async || served.iter().zip(&before).all(|(served, before)| served.load(Ordering::Relaxed) > before + 1);
        eventually("a request is not answered", go_on).await;
    };

    let client = Arc::new(certificates.client_config(VERSIONS));
    for (round, (certificate, key, used, expected)) in [
        ("next", "next", "next", END_OF_2049),
        // In the middle of a renewal, the key is that of another certificate.
        ("first", "next", "next", END_OF_2049),
        ("broken", "next", "next", END_OF_2049),
        ("first", "first", "first", first),
        ("broken", "first", "first", first),
        ("next", "next", "next", END_OF_2049),
    ]
    .into_iter()
    .enumerate()
    {
        all_are_served().await;
        let refused = logged("the previous one stays in use") + usize::from(certificate != used);
        let loaded = logged("certificate loaded") + usize::from(certificate == used);
        for (from, to) in [(format!("{certificate}.pem"), "server.pem"), (format!("{key}.key"), "server.key")] {
            fs::copy(path(&from), path("copy")).unwrap();
            fs::rename(path("copy"), path(to)).unwrap();
        }
        program.signal(Signal::HUP);
        let is_done =
            async || (logged("the previous one stays in use"), logged("certificate loaded")) == (refused, loaded);
        eventually("the reload is not logged", is_done).await;
        all_are_served().await;
        let presented = connect(&client, program.address).await.get_ref().1.peer_certificates().unwrap()[0].clone();
        assert_eq!(presented, certificates.certificate(&format!("{used}.pem")), "round {round}");
        assert_eq!(expiry(&admin).await, expected, "round {round}");
    }
    stopped.store(true, Ordering::Relaxed);
    for load in load {
        load.await.unwrap();
    }
    assert_eq!(kit.violations(), []);
}
