//! The app against a certified OpenID provider (npm's `oidc-provider`): its own login pages in headless Chromium, ID
//! tokens, rotation, the device grant and revocation.
//!
//! `npm ci` in `crates/tower-auth-refresh-http/tests/interop` sets the provider up. Without it, or without Chromium, the
//! test is skipped, unless `CI` is set.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

#[path = "../../../gateway/tests/support/chromium.rs"]
#[expect(dead_code, reason = "another suite looks at more of a page")]
mod chromium;
#[path = "../it/support.rs"]
#[expect(dead_code, reason = "another suite uses the rest")]
mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tower_auth_refresh_reqwest::reqwest;

use self::chromium::Chromium;
use self::support::{Ended, Home, until_it_says};

/// The provider's process, which ends with its standard input.
struct Provider {
    issuer: String,
    process: Child,
}

impl Provider {
    fn start() -> Option<Self> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/tower-auth-refresh-http/tests/interop");
        let mut node = Command::new("node");
        node.arg("sign_in.mjs").current_dir(&scripts).stdin(Stdio::piped()).stdout(Stdio::piped());
        let started = if scripts.join("node_modules").exists() { node.spawn().ok() } else { None };
        let Some(mut process) = started else {
            assert!(std::env::var("CI").is_err(), "the provider isn't installed");
            eprintln!("skipped: node or the provider isn't installed");
            return None;
        };
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        Some(Self { issuer: format!("http://127.0.0.1:{}", ready["port"]), process })
    }

    /// Registers the app as a native client without a secret.
    async fn register(&self) {
        let client = json!({
            "client_id": "app",
            "application_type": "native",
            "token_endpoint_auth_method": "none",
            "grant_types": ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"],
            "redirect_uris": ["http://127.0.0.1/callback"],
            "response_types": ["code"],
        });
        let registered = reqwest::Client::new().post(format!("{}/test/client", self.issuer)).body(client.to_string());
        registered.send().await.unwrap().error_for_status().unwrap();
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Fills in and sends every form that the provider shows, until a page has this title.
fn complete(browser: &mut Chromium, url: &str, title: &str) {
    let is_done = format!("document.title == {}", json!(title));
    let form = "document.querySelector('[type=submit]')";
    let mut page = browser.open(url);
    for _ in 0..6 {
        page.wait_for(&format!("document.readyState == 'complete' && !window.sent && ({is_done} || !!{form})"));
        if page.evaluate(&is_done) == json!(true) {
            return;
        }
        page.run(&format!(
            "window.sent = true; for (const field of document.querySelectorAll('[name=login], [name=password]')) \
             field.value = 'ada'; {form}.click()"
        ));
    }
    panic!("the provider asks again and again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_signs_in_on_the_providers_pages_and_stays_signed_in_until_the_logout() {
    let (Some(provider), Some(mut browser)) = (Provider::start(), Chromium::find()) else { return };
    provider.register().await;
    let home = Home::new();
    let mut login = home.app(&["login", "--issuer", &provider.issuer, "--client-id", "app", "--store", "file"]);
    login.args(["--scope", "openid offline_access", "--param", "prompt=consent"]).env("BROWSER", "true");
    let mut process = login.spawn().unwrap();
    let said = until_it_says(&mut process, "code_challenge=").await;
    let url = said.lines().find_map(|line| line.strip_prefix("  http")).unwrap();
    let url = format!("http{url}");
    let browser = tokio::task::spawn_blocking(move || {
        complete(&mut browser, &url, "You are signed in");
        browser
    });
    let mut browser = browser.await.unwrap();
    assert_eq!(Ended::of(process).await.expect_success(), "Signed in as ada.");
    assert_eq!(home.run(&["whoami"]).await.expect_success(), "ada");

    // The provider rotates the refresh token, and revokes the session if one is presented twice.
    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(home.run(&["token", "--valid-for", "1000000"]).await.expect_success().to_owned());
    }
    tokens.dedup();
    assert_eq!(tokens.len(), 3);
    let logout = home.run(&["logout"]).await;
    assert_eq!(logout.expect_success(), "Signed out, and the tokens are revoked.");

    let mut process = home.start(&["login", "--device", "--store", "file"]);
    let said = until_it_says(&mut process, "or open at once").await;
    let url = said.lines().find_map(|line| line.strip_prefix("or open at once")).unwrap().trim().to_owned();
    let approved = tokio::task::spawn_blocking(move || complete(&mut browser, &url, "Sign-in Success"));
    approved.await.unwrap();
    assert_eq!(Ended::of(process).await.expect_success(), "Signed in as ada.");
    home.run(&["token", "--valid-for", "1000000"]).await.expect_success();
}
