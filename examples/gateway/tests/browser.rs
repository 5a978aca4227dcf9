//! The demo page, and the session cookie, in headless Chromium, driven over its debugging pipe.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/certificates.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod certificates;
#[path = "support/chromium.rs"]
mod chromium;
#[path = "browser/cookies.rs"]
mod cookies;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod program;
#[path = "support/test_gateway.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod test_gateway;
#[path = "browser/tls.rs"]
mod tls;

use std::env;
use std::time::Duration;

use self::chromium::{Chromium, Page};
use self::program::Program;

#[test]
fn the_demo_page_shows_refreshes_and_replays() {
    let Some(mut chromium) = Chromium::find() else { return };
    let program = Program::start(&["--demo"]);
    let mut page = chromium.open(&format!("http://{}/", program.address));
    page.wait_for("document.body?.dataset.live === ''");
    assert_eq!(page.text("#state"), "signed out");

    page.run("document.querySelector('#login').requestSubmit()");
    page.wait_for("document.querySelector('#state').dataset.state === 'active'");
    assert_eq!(page.text("#state"), "ada: active, token 1");
    // Scripts can't read the session cookie.
    assert_eq!(page.evaluate("document.cookie"), "");

    // The browser's own calls pass, and their responses hold no token.
    let own =
        "fetch('/api/headers', { method: 'POST' }).then(async answer => [answer.status, (await answer.json()).user])";
    assert_eq!(page.evaluate(own), serde_json::json!([200, "ada"]));

    // Twenty calls with a valid token.
    send_burst(&mut page, 1);
    assert_eq!(totals(&page.totals()), [20, 0, 0, 0, 0]);

    // Twenty calls with an expired token: one refresh, and no failed call in the browser.
    page.run("document.querySelector('#expire').click()");
    page.wait_for("document.querySelector('#state').textContent === 'ada: access token expired'");
    send_burst(&mut page, 2);
    page.wait_for("document.querySelector('#replays').textContent === '20'");
    assert_eq!(totals(&page.totals()), [40, 0, 20, 1, 20]);
    page.wait_for("document.querySelector('#state').textContent.endsWith('token 2')");
    let heading = page.text("article h2");
    assert_eq!(heading, "Burst 2: 20 calls");
    assert_eq!(page.text("article .behind"), "20 × 401 → 1 × refresh → 20 × replayed");
    let browser = page.text("article .browser");
    assert!(browser.starts_with("20 × 200 in "), "{browser}");
    let bars = "['refused', 'refresh', 'replay'].map(kind => document.querySelectorAll(`article:first-child i.${kind}`).length)";
    assert_eq!(page.evaluate(bars), serde_json::json!([20, 1, 20]));
    save(&page.screenshot(), "refreshed");

    // The maximum number of calls, after a reload. The page fits into a small window too.
    page.reload();
    page.wait_for("document.querySelector('#state')?.dataset.state === 'active' && document.body.dataset.live === ''");
    assert_eq!(page.text("#state"), "ada: active, token 2");
    page.run("document.querySelector('#count').value = '1000'");
    page.run("document.querySelector('#expire').click()");
    page.wait_for("document.querySelector('#state').textContent === 'ada: access token expired'");
    send_burst(&mut page, 1);
    page.wait_for("document.querySelector('#replays').textContent === '200'");
    assert_eq!(totals(&page.totals()), [200, 0, 200, 1, 200]);
    assert_eq!(page.text("article .behind"), "200 × 401 → 1 × refresh → 200 × replayed");
    save(&page.screenshot(), "many");
    for (width, colours) in [(1200, "dark"), (360, "light")] {
        page.resize(width, colours);
        settle();
        assert_eq!(
            page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"),
            true,
            "at {width}"
        );
        save(&page.screenshot(), colours);
    }

    // The authorization server ends the session.
    page.run("document.querySelector('#count').value = '20'");
    page.run("document.querySelector('#revoke').click()");
    page.wait_for(
        "document.querySelector('#state').textContent === 'ada: tokens revoked, the next call ends the session'",
    );
    send_burst(&mut page, 2);
    page.wait_for("document.querySelector('#state').textContent === 'session ended: log in again'");
    assert_eq!(page.text("#browser-bad"), "20");
    assert_eq!(page.text("article .behind"), "20 × 401 → 1 × refresh refused");
    save(&page.screenshot(), "ended");
    assert_eq!(page.errors(), Vec::<String>::new());

    // The page's event stream does not delay the shutdown.
    program.terminate();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut program = program;
    assert!(runtime.block_on(program.exit(Duration::from_secs(5))).success());
}

fn send_burst(page: &mut Page<'_>, burst: usize) {
    page.run("document.querySelector('#fire').click()");
    page.wait_for(&format!(
        "document.querySelectorAll('article').length === {burst} && 'finished' in document.querySelector('article').dataset"
    ));
    settle();
}

/// Waits for pending events.
fn settle() {
    std::thread::sleep(Duration::from_millis(300));
}

fn totals(texts: &[String]) -> Vec<u32> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Saves a screenshot for manual inspection.
fn save(png: &[u8], name: &str) {
    let directory = env!("CARGO_TARGET_TMPDIR");
    let path = format!("{directory}/gateway-{name}.png");
    std::fs::write(&path, png).unwrap();
    println!("{path}");
}
