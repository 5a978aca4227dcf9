//! The demo's page in a real browser: headless Chromium, driven over its debugging pipe.

#![expect(clippy::unwrap_used, reason = "what fails in a test, fails the test")]

#[path = "support/chromium.rs"]
mod chromium;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "made for more than this")]
mod program;

use std::env;
use std::time::Duration;

use self::chromium::{Chromium, Page};
use self::program::Program;

#[test]
fn the_page_shows_what_silently_happens() {
    let Some(mut chromium) = Chromium::find() else { return };
    let program = Program::start(&["--demo"]);
    let mut page = chromium.open(&format!("http://{}/", program.address));
    page.wait_for("document.body?.dataset.live === ''");
    assert_eq!(page.text("#state"), "signed out");

    page.run("document.querySelector('#login').requestSubmit()");
    page.wait_for("document.querySelector('#state').dataset.state === 'active'");
    assert_eq!(page.text("#state"), "ada: active, token 1");
    // No script can read the session.
    assert_eq!(page.evaluate("document.cookie"), "");

    // The browser's own calls pass, and bring no token back.
    let own =
        "fetch('/api/headers', { method: 'POST' }).then(async answer => [answer.status, (await answer.json()).user])";
    assert_eq!(page.evaluate(own), serde_json::json!([200, "ada"]));

    // Twenty calls with a good token.
    fire(&mut page, 1);
    assert_eq!(totals(&page.totals()), [20, 0, 0, 0, 0]);

    // Twenty with an expired one: a refresh, and the browser sees nothing of it.
    page.run("document.querySelector('#expire').click()");
    settle();
    fire(&mut page, 2);
    page.wait_for("document.querySelector('#replays').textContent === '20'");
    assert_eq!(totals(&page.totals()), [40, 0, 20, 1, 20]);
    page.wait_for("document.querySelector('#state').textContent.endsWith('token 2')");
    let heading = page.text("article h2");
    assert!(heading.contains("20 × 401 → 1 × refresh → 20 × sent again. The browser saw: 20 × 200"), "{heading}");
    let bars = "['refused', 'refresh', 'replay'].map(kind => document.querySelectorAll(`article:first-child i.${kind}`).length)";
    assert_eq!(page.evaluate(bars), serde_json::json!([20, 1, 20]));
    keep(&page.screenshot(), "refreshed");

    // A session that the authorization server ended.
    page.run("document.querySelector('#revoke').click()");
    settle();
    fire(&mut page, 3);
    page.wait_for("document.querySelector('#state').textContent === 'the session has ended: log in again'");
    assert_eq!(page.text("#browser-bad"), "20");
    keep(&page.screenshot(), "ended");
    assert_eq!(page.complaints(), Vec::<String>::new());

    // The page's stream of events holds nobody up.
    program.terminate();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut program = program;
    assert!(runtime.block_on(program.exit(Duration::from_secs(5))).success());
}

fn fire(page: &mut Page<'_>, burst: usize) {
    page.run("document.querySelector('#fire').click()");
    page.wait_for(&format!(
        "document.querySelectorAll('article').length === {burst} && 'finished' in document.querySelector('article').dataset"
    ));
    settle();
}

/// Lets events on their way arrive.
fn settle() {
    std::thread::sleep(Duration::from_millis(300));
}

fn totals(texts: &[String]) -> Vec<u32> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Leaves a picture for whoever wants to look.
fn keep(png: &[u8], name: &str) {
    let directory = env!("CARGO_TARGET_TMPDIR");
    let path = format!("{directory}/gateway-{name}.png");
    std::fs::write(&path, png).unwrap();
    println!("{path}");
}
