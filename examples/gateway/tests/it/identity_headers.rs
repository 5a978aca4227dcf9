//! Fields by which an upstream or a client could be deceived: identities, and trailers that look like headers.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use gateway::StripHeaders;
use http::{HeaderMap, HeaderName, Method, Request};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower_auth_refresh_testkit::TestServer;

use crate::test_gateway::{TestGateway, upstream_with_raw_response};

/// Headers that some proxy or identity provider sets, in spellings that some server reads alike.
const IDENTITIES: [&str; 30] = [
    "remote-user",
    "remote-groups",
    "Remote_User",
    "remote.email",
    "client-cert",
    "client-cert-chain",
    "client_cert",
    "oidc_claim_sub",
    "OIDC-CLAIM-email",
    "oidc_access_token",
    "x-oidc-user",
    "mellon_name_id",
    "shib-identity-provider",
    "sm_user",
    "iv-user",
    "x-jwt-payload",
    "x-amzn-mtls-clientcert",
    "proxy",
    "x.forwarded.for",
    "x_forwarded_host",
    "x~real~ip",
    "x'remote'user",
    "authorization_",
    "proxy_authorization",
    "content_length",
    "transfer_encoding",
    "x-tenant",
    "x_tenant",
    "x-acme-user",
    "x-acme-role",
];

#[tokio::test]
async fn no_spelling_of_an_identity_header_reaches_the_upstream() {
    let gateway = TestGateway::start_with(|settings| {
        let names = ["X-Tenant", "X-ACME-*", "authorization-"].map(str::to_owned);
        settings.strip_headers = StripHeaders::read(&names).unwrap();
    });
    let gateway = gateway.await;
    let browser = gateway.browser("ada").await;
    let mut request = browser.request(Method::GET, "/api/headers");
    for name in IDENTITIES {
        request = request.header(HeaderName::from_bytes(name.as_bytes()).unwrap(), "root");
    }
    let kept = ["x-tenants", "x-acm", "x-client-version", "proxies", "remotely", "x_kept", "x.kept"];
    for name in kept {
        request = request.header(name, "kept");
    }
    let seen = browser.fetch(request.body(Body::empty()).unwrap()).await.json();
    let mut names: Vec<_> = seen["headers"].as_object().unwrap().keys().map(String::as_str).collect();
    let forwarded = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
    let set = [&["host", "sec-fetch-site", "traceparent", "via", "x-request-id"][..], &forwarded].concat();
    names.retain(|name| !set.contains(name) && !kept.contains(name));
    assert_eq!(names, Vec::<&str>::new());
    assert_eq!(seen["headers"].as_object().unwrap().len(), set.len() + kept.len());
}

/// The gateway asks for the body itself.
#[tokio::test]
async fn an_expectation_is_not_passed_on() {
    let gateway = TestGateway::start().await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let head = format!("host: {}\r\ncookie: {cookie}\r\nx-requested-with: x\r\nconnection: close\r\n", gateway.address);
    let request = format!("POST /api/headers HTTP/1.1\r\n{head}expect: 100-continue\r\ncontent-length: 4\r\n\r\nbody");
    let response = gateway.send_raw(&request).await;
    let response = response.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&response);
    assert!(response.starts_with("HTTP/1.1 200 ") && !response.contains("expect"), "{response}");
}

#[tokio::test]
async fn the_address_of_a_client_is_the_same_over_a_socket_of_ipv6() {
    let gateway = TestGateway::start_with(|settings| settings.listen = "[::]:0".parse().unwrap()).await;
    let mut browser = gateway.anonymous();
    browser.connect_to(([127, 0, 0, 1], gateway.address.port()).into());
    browser.login("ada", "correct horse").await;
    let seen = browser.get("/api/headers").await.json();
    assert_eq!(seen["headers"]["x-forwarded-for"][0], "127.0.0.1");
}

#[tokio::test]
async fn trailers_of_a_response_set_no_cookie() {
    let response = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-checksum\r\n\r\n5\r\nwhole\r\n0\r\n\
        x-checksum: 1\r\nset-cookie: session=fixed\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: 1\r\n\
        access-control-allow-origin: *\r\nalt-svc: h3\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\
        location: /\r\ncache-control: public\r\nwww-authenticate: Basic\r\nclear-site-data: *\r\n\r\n";
    let upstream = upstream_with_raw_response(response).await;
    let gateway = TestGateway::in_front_of(TestServer::start().await.unwrap(), &upstream, |_| {}).await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
    let request = Request::get(format!("http://{}/api/x", gateway.address)).header("cookie", cookie);
    let response = client.request(request.body(Body::empty()).unwrap()).await.unwrap();
    let body = response.into_body().collect().await.unwrap();
    let names: Vec<_> = body.trailers().unwrap().keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["x-checksum"]);
    assert_eq!(body.to_bytes(), "whole");
}

#[tokio::test]
async fn trailers_of_a_request_identify_no_user() {
    let seen = Arc::<Mutex<Vec<HeaderMap>>>::default();
    let api = {
        let seen = seen.clone();
        async move |body: Body| {
            let trailers = body.collect().await.unwrap().trailers().cloned();
            seen.lock().unwrap().extend(trailers);
        }
    };
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(api)), |_| {}).await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let names =
        ["x-checksum", "authorization", "cookie", "remote-user", "x_real_ip", "host", "content-length", "expect"];
    let head = format!(
        "POST /api/x HTTP/1.1\r\nhost: {}\r\ncookie: {cookie}\r\nx-requested-with: x\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\ntrailer: {}\r\n\r\n4\r\nbody\r\n0\r\n",
        gateway.address,
        names.join(", ")
    );
    let trailers = names.map(|name| format!("{name}: 1\r\n")).concat();
    let response = gateway.send_raw(&format!("{head}{trailers}\r\n")).await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    let seen = seen.lock().unwrap();
    let names: Vec<_> = seen.iter().flat_map(HeaderMap::keys).map(HeaderName::as_str).collect();
    assert!(names.iter().all(|name| *name == "x-checksum"), "{names:?}");
}
