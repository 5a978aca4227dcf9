//! The session cookie among others, in other tabs, and in requests of other sites: by a real browser's rules.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::any;
use http::header::{AUTHORIZATION, SET_COOKIE};
use http::{HeaderValue, Method};
use serde_json::json;

use crate::chromium::{Chromium, Page};
use crate::test_gateway::{TestGateway, serve};

/// A call as the upstream has seen it.
#[derive(Clone, Debug)]
struct Seen {
    method: Method,
    path: String,
    token: String,
}

type Calls = Arc<Mutex<Vec<Seen>>>;

/// Starts a gateway in front of an API that records its calls. `/api/cookies` sets cookies of all kinds, and
/// `/api/clear` removes the one that isn't UTF-8.
async fn start() -> (TestGateway, Calls) {
    let calls = Calls::default();
    let recorded = calls.clone();
    let answer = async move |request: Request| -> Response {
        let token = String::from_utf8_lossy(request.headers()[AUTHORIZATION].as_bytes()).into_owned();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        recorded.lock().unwrap().push(Seen { method, path: path.clone(), token });
        let mut response = Html("<title>api</title>").into_response();
        if path == "/api/cookies" {
            for cookie in [
                &b"name=Zo\xc3\xa9; Path=/"[..],
                b"latin=\xe9; Path=/",
                b"k\xc3\xa9y=1; Path=/",
                b"nameless",
                b"session=evil; Path=/",
                b"session=evil; Path=/api",
                b"session=evil; Path=/api/deep; HttpOnly",
                b" session =evil; Path=/",
                b"=session=evil; Path=/",
                b"session=; Path=/; Max-Age=0",
            ] {
                response.headers_mut().append(SET_COOKIE, HeaderValue::from_bytes(cookie).unwrap());
            }
        }
        if path == "/api/clear" {
            response.headers_mut().append(SET_COOKIE, HeaderValue::from_static("latin=; Path=/; Max-Age=0"));
        }
        response
    };
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(answer)), |_| {}).await;
    (gateway, calls)
}

/// Makes a request from a page, and returns its status, or 0 if the browser doesn't show it.
pub(crate) fn fetch(page: &mut Page<'_>, url: &str, options: &str) -> u64 {
    let call = format!("fetch('{url}', {options}).then(answer => answer.status, () => 0)");
    page.evaluate(&call).as_u64().unwrap()
}

pub(crate) fn login(page: &mut Page<'_>, user: &str) {
    let options = format!(
        "{{ method: 'POST', headers: {{ 'content-type': 'application/json' }},
            body: JSON.stringify({{ username: '{user}', password: 'x' }}) }}"
    );
    assert_eq!(fetch(page, "/login", &options), 204);
}

pub(crate) fn open<'a>(chromium: &'a mut Chromium, url: &str) -> Page<'a> {
    let mut page = chromium.open(url);
    page.wait_for(&format!("location.href === '{url}' && document.readyState === 'complete'"));
    page
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_other_cookie_hides_the_session() {
    let Some(mut chromium) = Chromium::find() else { return };
    let (gateway, _) = start().await;
    let mut page = open(&mut chromium, &format!("http://{}/healthz", gateway.address));
    login(&mut page, "ada");
    assert_eq!(page.evaluate("document.cookie"), "", "a script can read the session");
    let assert_signed_in = |page: &mut Page<'_>, after: &str| {
        for path in ["/api/me", "/api/deep/er"] {
            assert_eq!(fetch(page, path, "{}"), 200, "{path} after {after}");
            assert_eq!(fetch(page, path, "{ method: 'POST' }"), 200, "{path} after {after}");
        }
    };
    assert_signed_in(&mut page, "the login");
    for cookie in [
        "name=Zoé; path=/",
        "ключ=значение; path=/",
        "🍪=🍪; path=/",
        "nameless; path=/",
        "=nameless; path=/",
        "quoted=\"a; path=/",
        "a=b=c,d e; path=/",
        // The session cookie can't be overwritten by a script; one beside it can be set.
        "session=evil; path=/",
        "session=evil; path=/api",
        "session=evil; path=/api/deep",
        "=session=evil; path=/",
        "__Host-session=evil; path=/",
    ] {
        page.run(&format!("document.cookie = '{cookie}'"));
        assert_signed_in(&mut page, cookie);
    }
    assert_eq!(fetch(&mut page, "/api/cookies", "{}"), 200);
    assert_signed_in(&mut page, "the cookies of the upstream");
    // While a cookie isn't UTF-8, scripts see none.
    assert_eq!(fetch(&mut page, "/api/clear", "{}"), 200);
    let jar = page.evaluate("document.cookie");
    let jar = jar.as_str().unwrap();
    assert!(jar.contains("name=Zoé") && jar.contains("kéy=1"), "{jar}");

    // Many cookies, within the limit of a request's head, and then more.
    let remove = "document.cookie.split('; ').forEach(pair => { for (const path of ['/', '/api', '/api/deep'])
                  document.cookie = `${pair.split('=')[0]}=; path=${path}; max-age=0` })";
    page.run(remove);
    page.run("for (let n = 0; n < 150; n++) document.cookie = `n${n}=${'x'.repeat(250)}; path=/`");
    assert_signed_in(&mut page, "150 cookies");
    page.run(remove);
    page.run("for (let n = 0; n < 30; n++) document.cookie = `n${n}=${'x'.repeat(4000)}; path=/`");
    assert_eq!(fetch(&mut page, "/api/me", "{}"), 431);
    page.run(remove);
    assert_signed_in(&mut page, "the removal of too many cookies");
    assert_eq!(fetch(&mut page, "/logout", "{ method: 'POST' }"), 204);
    assert_eq!(fetch(&mut page, "/api/me", "{}"), 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_other_origins_do_nothing() {
    let Some(mut chromium) = Chromium::find() else { return };
    let (gateway, calls) = start().await;
    let ours = format!("http://{}", gateway.address);
    let mut page = open(&mut chromium, &format!("{ours}/healthz"));
    login(&mut page, "ada");
    assert_eq!(fetch(&mut page, "/api/mine", "{ method: 'POST' }"), 200);
    calls.lock().unwrap().clear();

    let evil = serve(Router::new().fallback(any(async || Html("<title>evil</title>")))).await;
    let port = evil.trim_start_matches("http://").parse::<SocketAddr>().unwrap().port();
    // Of another site, and of this site with another port.
    for (is_same_site, origin) in [(false, format!("http://localhost:{port}")), (true, evil)] {
        let mut page = open(&mut chromium, &format!("{origin}/"));
        for mode in ["cors", "no-cors"] {
            for method in ["GET", "POST", "PUT", "DELETE"] {
                let options = format!("{{ method: '{method}', mode: '{mode}', credentials: 'include' }}");
                // `no-cors` hides the status too, and refuses other methods itself.
                assert_eq!(fetch(&mut page, &format!("{ours}/api/{mode}"), &options), 0, "{origin} {options}");
            }
        }
        let json =
            "{ method: 'POST', credentials: 'include', headers: { 'content-type': 'application/json' }, body: '{}' }";
        for path in ["/login", "/logout", "/api/json"] {
            assert_eq!(fetch(&mut page, &format!("{ours}{path}"), json), 0);
        }
        page.run(&format!(
            "new Promise(done => {{ const image = new Image(); image.onload = image.onerror = done;
             image.src = '{ours}/api/image' }})"
        ));
        // Forms, which need no script, and whose answer is a page.
        for (action, kind) in [("/api/form", "text/plain"), ("/logout", "application/x-www-form-urlencoded")] {
            let mut page = open(&mut chromium, &format!("{origin}/form"));
            page.run(&format!(
                "const form = document.createElement('form'); form.method = 'POST'; form.enctype = '{kind}';
                 form.action = '{ours}{action}'; document.body.append(form); form.submit()"
            ));
            page.wait_for(&format!("location.href === '{ours}{action}' && document.readyState === 'complete'"));
            let answer = page.evaluate("document.body.innerText");
            assert!(answer.as_str().unwrap().contains("/problems/cross-origin"), "{origin}: {answer}");
        }
        // A link: of another site, it comes without the cookie.
        let mut page = open(&mut chromium, &format!("{origin}/link"));
        page.run(&format!("location.href = '{ours}/api/link'"));
        page.wait_for(&format!("location.href === '{ours}/api/link' && document.readyState === 'complete'"));
        assert_eq!(page.evaluate("document.title === 'api'"), json!(is_same_site), "{origin}");

        // Only this site's own images and links came with the session: safe requests, whose answers it can't read.
        let seen = std::mem::take(&mut *calls.lock().unwrap());
        let unsafe_call = seen.iter().find(|call| call.method != Method::GET);
        assert!(unsafe_call.is_none() && (is_same_site || seen.is_empty()), "{origin}: {seen:?}");
    }
    let mut page = open(&mut chromium, &format!("{ours}/healthz"));
    assert_eq!(fetch(&mut page, "/api/mine", "{}"), 200, "another site has signed the user out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tabs_share_logins_and_logouts() {
    let Some(mut chromium) = Chromium::find() else { return };
    let (gateway, calls) = start().await;
    let url = format!("http://{}/healthz", gateway.address);
    let last_call = |of: &str| {
        let seen = calls.lock().unwrap().last().cloned().unwrap();
        assert_eq!(seen.path, of);
        seen.token
    };
    let mut page = open(&mut chromium, &url);
    login(&mut page, "ada");
    assert_eq!(fetch(&mut page, "/api/first", "{}"), 200);
    let ada = last_call("/api/first");
    let first = page.leave();
    let mut page = open(&mut chromium, &url);
    assert_eq!(fetch(&mut page, "/api/second", "{}"), 200);
    assert_eq!(last_call("/api/second"), ada);
    assert_eq!(fetch(&mut page, "/logout", "{ method: 'POST' }"), 204);
    let second = page.leave();
    let mut page = chromium.tab(first.clone());
    assert_eq!(fetch(&mut page, "/api/first", "{}"), 401);
    // A logout in both tabs.
    assert_eq!(fetch(&mut page, "/logout", "{ method: 'POST' }"), 204);
    login(&mut page, "eve");
    assert_eq!(fetch(&mut page, "/api/first", "{}"), 200);
    let eve = last_call("/api/first");
    assert_ne!(eve, ada);
    let mut page = chromium.tab(second);
    assert_eq!(fetch(&mut page, "/api/second", "{}"), 200);
    assert_eq!(last_call("/api/second"), eve);
}
