//! The session cookie over the gateway's own TLS: neither scripts nor other hosts read or replace it.

use std::net::{SocketAddr, TcpListener};

use axum::Router;
use axum::response::Html;
use axum::routing::any;
use gateway::{PublicOrigin, Settings};
use http::HeaderName;
use http::header::{HeaderMap, SET_COOKIE};
use serde_json::{Value, json};
use tower_auth_refresh::Origin;
use tower_auth_refresh_testkit::TestServer;

use crate::certificates::{Certificates, terminate_tls};
use crate::chromium::{Chromium, Page};
use crate::cookies::{fetch, login, open};
use crate::test_gateway::{TestGateway, serve};

/// Names that resolve to this host in a browser.
const OURS: &str = "app.localhost";
const SIBLING: &str = "evil.app.localhost";
const PARENT: &str = "localhost";

/// Cookies that another host sets for this one, or that take the place of the session cookie.
const EVIL: [&str; 9] = [
    "__Host-session=evil; Path=/; Secure; Domain=app.localhost",
    "__Host-session=evil; Path=/; Secure",
    "__host-session=evil; Path=/; Secure; Domain=app.localhost",
    "__Secure-session=evil; Path=/; Secure; Domain=app.localhost",
    "session=evil; Path=/; Domain=app.localhost",
    "=__Host-session=evil; Path=/; Domain=app.localhost",
    "__Host-session =evil; Path=/; Domain=app.localhost",
    " __Host-session=evil; Path=/api; Domain=app.localhost",
    "__Host-session; Path=/; Domain=app.localhost",
];

/// Starts a gateway with TLS, whose upstream sets the cookies of [`EVIL`] too.
async fn start(certificates: &Certificates) -> (TestGateway, String) {
    let kit = TestServer::start().await.unwrap();
    let upstream = serve(evil_site()).await;
    // A port that is free: the origin of the browser's requests has to be known at the start.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let origin = format!("https://{OURS}:{}", free.port());
    let gateway = TestGateway::in_front_of(kit, &upstream, |settings: &mut Settings| {
        settings.listen = free;
        settings.tls = Some(certificates.identity("server"));
        settings.public = PublicOrigin::Named(Origin::parse(&origin).unwrap());
    });
    (gateway.await, origin)
}

/// A site that sets all these cookies, and shows the `Cookie` header that it has got.
fn evil_site() -> Router {
    Router::new().fallback(any(async |headers: HeaderMap| {
        let seen = headers.get("cookie").map(|cookie| cookie.to_str().unwrap().to_owned());
        let set: [(HeaderName, &str); EVIL.len()] = EVIL.map(|cookie| (SET_COOKIE, cookie));
        (axum::response::AppendHeaders(set), Html(format!("<title>evil</title>{}", seen.unwrap_or_default())))
    }))
}

/// Returns the session cookies that the browser has for a page.
fn session_cookies(page: &mut Page<'_>) -> Vec<Value> {
    let cookies = page.cookies();
    cookies.into_iter().filter(|cookie| cookie["name"] == "__Host-session").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_script_and_no_other_host_has_the_session_cookie() {
    let Some(mut chromium) = Chromium::find() else { return };
    let Some(certificates) = Certificates::make("browser-tls") else { return };
    let (gateway, ours) = start(&certificates).await;
    let mut page = open(&mut chromium, &format!("{ours}/healthz"));
    login(&mut page, "ada");
    let [session] = &session_cookies(&mut page)[..] else { panic!("{:?}", page.cookies()) };
    let expected = [
        ("secure", json!(true)),
        ("httpOnly", json!(true)),
        ("sameSite", json!("Strict")),
        ("domain", json!(OURS)),
        ("path", json!("/")),
    ];
    for (attribute, value) in expected {
        assert_eq!(session[attribute], value, "{session}");
    }
    let value = session["value"].clone();
    assert_eq!(page.evaluate("document.cookie"), "", "a script can read the session");
    for cookie in EVIL {
        page.run(&format!("document.cookie = '{cookie}'"));
    }
    // The upstream sets them too.
    assert_eq!(fetch(&mut page, "/api/x", "{}"), 200);
    let assert_unchanged = |page: &mut Page<'_>, after: &str| {
        let sessions = session_cookies(page);
        assert!(matches!(&sessions[..], [session] if session["value"] == value), "{after}: {sessions:?}");
        assert_eq!(fetch(page, "/api/x", "{ method: 'POST' }"), 200, "{after}");
    };
    assert_unchanged(&mut page, "its own scripts and its upstream");
    let sent = page.evaluate("fetch('/api/x').then(answer => answer.text())");
    assert_eq!(sent, "<title>evil</title>", "the upstream has got a cookie");
    let tab = page.leave();

    let plain = serve(evil_site()).await;
    let secure = terminate_tls(certificates.server_config("server", false), &plain).await;
    let plain_port = plain.trim_start_matches("http://").parse::<SocketAddr>().unwrap().port();
    let sites = [
        format!("https://{SIBLING}:{secure}"),
        format!("https://{PARENT}:{secure}"),
        format!("http://{SIBLING}:{plain_port}"),
        format!("http://{PARENT}:{plain_port}"),
    ];
    for site in &sites {
        let mut page = open(&mut chromium, &format!("{site}/"));
        for cookie in EVIL {
            page.run(&format!("document.cookie = '{cookie}'"));
        }
        // With credentials, of a host of the same site: the session cookie is this host's alone.
        let (get, post) = ("{ credentials: 'include', mode: 'no-cors' }", "{ credentials: 'include', method: 'POST' }");
        assert_eq!(
            (fetch(&mut page, &format!("{ours}/api/x"), get), fetch(&mut page, &format!("{ours}/logout"), post)),
            (0, 0)
        );
        let mut page = open(&mut chromium, &format!("{site}/again"));
        let sent = page.evaluate("document.body.innerText");
        assert!(!sent.as_str().unwrap().contains(value.as_str().unwrap()), "{site}: {sent}");
        assert_unchanged(&mut chromium.tab(tab.clone()), site);
    }
    // Those that a sibling may set have arrived, beside the session cookie.
    let cookies = chromium.tab(tab).cookies();
    let is_set = |name: &str| cookies.iter().any(|cookie| cookie["name"] == name && cookie["value"] == "evil");
    assert!(is_set("session") && is_set("__Secure-session"), "{cookies:?}");
    println!("cookies: {} forms from {} sites, none of which replaced the session", EVIL.len(), sites.len() + 2);
    drop(gateway);
}
