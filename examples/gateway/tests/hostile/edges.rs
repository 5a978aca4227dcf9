//! What a client claims of itself: addresses, ids of requests and traces, and the routes of the operator.

use axum::body::Body;
use http::Method;

use crate::test_gateway::TestGateway;

/// Without trusted proxies, nothing that a client says of itself reaches the upstream.
#[tokio::test]
async fn no_claim_of_a_client_reaches_the_upstream() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    let chains = [
        "10.6.6.6",
        "10.6.6.6, 127.0.0.1",
        "127.0.0.1, 10.6.6.6",
        "::ffff:10.6.6.6",
        "10.6.6.6:80",
        ",",
        "\"10.6.6.6\"",
    ];
    let traces = [
        "00-10660000000000000000000000000000-0000000000000000-01",
        "00-\"10.6.6.6\"-aaaaaaaaaaaaaaaa-01",
        "ff-1066aaaaaaaaaaaaaaaaaaaaaaaaaaaa-aaaaaaaaaaaaaaaa-01",
        "00-1066AAAAAAAAAAAAAAAAAAAAAAAAAAAA-aaaaaaaaaaaaaaaa-01",
        "10.6.6.6",
    ];
    let mut sent = 0;
    for name in
        ["x-forwarded-for", "x-real-ip", "forwarded", "client-ip", "x-request-id", "traceparent", "x_forwarded_for"]
    {
        for value in chains.into_iter().chain(traces) {
            let request = browser.request(Method::GET, "/api/headers").header(name, value).header(name, value);
            let response = browser.fetch(request.body(Body::empty()).unwrap()).await;
            assert_eq!(response.status, 200);
            let seen = response.json();
            assert_eq!(seen["headers"]["x-forwarded-for"], serde_json::json!(["127.0.0.1"]), "{name}: {value}");
            // Long enough for no random id to have them.
            let claims = ["6.6.6", "1066000000", "1066aaaaaa", "1066AAAAAA"];
            let text = seen["headers"].to_string();
            assert!(!claims.iter().any(|claim| text.contains(claim)), "{name}: {value}: {text}");
            let id = response.headers["x-request-id"].to_str().unwrap();
            assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
            sent += 1;
        }
    }
    println!("claims: {sent} requests, none of which the upstream could take for true");
}

/// The metrics are on the listener of the operator, in whatever way a client spells them.
#[tokio::test]
async fn the_admin_routes_are_not_public() {
    let gateway = TestGateway::start().await;
    let paths =
        ["/metrics", "/metrics/", "//metrics", "/./metrics", "/api/../metrics", "/%6detrics", "/metrics?x", "/METRICS"];
    for path in paths.into_iter().map(str::to_owned).chain([format!("http://{}/metrics", gateway.address)]) {
        for method in ["GET", "POST", "OPTIONS"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: {}\r\nx-requested-with: x\r\nx-original-url: /metrics\r\n\
                 x-rewrite-url: /metrics\r\nconnection: close\r\n\r\n",
                gateway.address
            );
            let answer = gateway.send_raw(&request).await;
            assert!(!answer.contains("gateway_") && !answer.starts_with("HTTP/1.1 2"), "{path}: {answer}");
        }
    }
}
