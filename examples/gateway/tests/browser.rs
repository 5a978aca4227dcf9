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
    page.wait_for("document.querySelector('#state').textContent === 'ada: the API refuses the token from now on'");
    fire(&mut page, 2);
    page.wait_for("document.querySelector('#replays').textContent === '20'");
    assert_eq!(totals(&page.totals()), [40, 0, 20, 1, 20]);
    page.wait_for("document.querySelector('#state').textContent.endsWith('token 2')");
    let heading = page.text("article h2");
    assert_eq!(heading, "Burst 2: 20 calls");
    assert_eq!(page.text("article .behind"), "20 × 401 → 1 × refresh → 20 × sent again");
    let seen = page.text("article .browser");
    assert!(seen.starts_with("20 × 200 in "), "{seen}");
    let bars = "['refused', 'refresh', 'replay'].map(kind => document.querySelectorAll(`article:first-child i.${kind}`).length)";
    assert_eq!(page.evaluate(bars), serde_json::json!([20, 1, 20]));
    keep(&page.screenshot(), "refreshed");

    // As many as there may be, when the page has just been loaded again; in a small window they fit too.
    page.reload();
    page.wait_for("document.querySelector('#state')?.dataset.state === 'active' && document.body.dataset.live === ''");
    assert_eq!(page.text("#state"), "ada: active, token 2");
    page.run("document.querySelector('#count').value = '1000'");
    page.run("document.querySelector('#expire').click()");
    page.wait_for("document.querySelector('#state').textContent === 'ada: the API refuses the token from now on'");
    fire(&mut page, 1);
    page.wait_for("document.querySelector('#replays').textContent === '200'");
    assert_eq!(totals(&page.totals()), [200, 0, 200, 1, 200]);
    assert_eq!(page.text("article .behind"), "200 × 401 → 1 × refresh → 200 × sent again");
    keep(&page.screenshot(), "many");
    for (width, colours) in [(1200, "dark"), (360, "light")] {
        page.resize(width, colours);
        settle();
        assert_eq!(
            page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"),
            true,
            "at {width}"
        );
        keep(&page.screenshot(), colours);
    }

    // A session that the authorization server ended.
    page.run("document.querySelector('#count').value = '20'");
    page.run("document.querySelector('#revoke').click()");
    page.wait_for("document.querySelector('#state').textContent === 'ada: revoked, the next call will find out'");
    fire(&mut page, 2);
    page.wait_for("document.querySelector('#state').textContent === 'the session has ended: log in again'");
    assert_eq!(page.text("#browser-bad"), "20");
    assert_eq!(page.text("article .behind"), "20 × 401 → 1 × refresh refused");
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
