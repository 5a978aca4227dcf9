//! Requests of other sites: every combination of the headers by which a browser says where a request comes from.

use axum::body::Body;
use futures_util::future::join_all;
use http::{HeaderValue, Method, Request};

use crate::test_gateway::TestGateway;

#[tokio::test]
async fn only_requests_of_this_origin_pass() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    let ours = format!("http://{}", gateway.address);
    let host = gateway.address.to_string();
    let origins: Vec<Vec<&str>> = vec![
        vec![],
        vec![&ours],
        vec!["null"],
        vec!["http://evil.example"],
        vec![&ours, "http://evil.example"],
        vec!["http://evil.example", &ours],
        vec![""],
        vec![&host],
        vec!["http://"],
        vec!["http://127.0.0.1"],
        vec![&ours, &ours],
    ];
    let sites: Vec<Vec<&str>> = vec![
        vec![],
        vec!["same-origin"],
        vec!["same-site"],
        vec!["cross-site"],
        vec!["none"],
        vec![""],
        vec!["same-origin", "cross-site"],
        vec!["cross-site", "same-origin"],
        vec!["Same-Origin"],
        vec!["same-origin "],
    ];
    let (mut sent, mut passed) = (0, 0);
    for origin in &origins {
        for site in &sites {
            let mut calls = Vec::new();
            for with in [false, true] {
                // The oracle: all lines that there are have to say so, and one has to be there.
                let origin_says = origin.iter().all(|line| *line == ours);
                let site_says = site.iter().all(|line| line.trim() == "same-origin");
                let is_ours = origin_says && site_says && (with || !origin.is_empty() || !site.is_empty());
                for (method, safe) in
                    [("GET", true), ("HEAD", true), ("POST", false), ("DELETE", false), ("FROB", false)]
                {
                    let mut request = Request::builder()
                        .method(Method::from_bytes(method.as_bytes()).unwrap())
                        .uri(format!("{ours}/api/act"))
                        .header("cookie", browser.cookie.clone().unwrap());
                    for line in origin {
                        request = request.header("origin", HeaderValue::from_str(line).unwrap());
                    }
                    for line in site {
                        request = request.header("sec-fetch-site", HeaderValue::from_str(line).unwrap());
                    }
                    if with {
                        request = request.header("x-requested-with", "x");
                    }
                    let (request, browser) = (request.body(Body::empty()).unwrap(), &browser);
                    calls.push(async move {
                        let status = browser.fetch(request).await.status.as_u16();
                        assert_eq!(
                            status,
                            if safe || is_ours { 200 } else { 403 },
                            "{method} {origin:?} {site:?} {with}"
                        );
                        usize::from(status == 200)
                    });
                }
            }
            sent += calls.len();
            passed += join_all(calls).await.into_iter().sum::<usize>();
        }
    }
    println!("origins: {sent} requests, {passed} at the upstream");
    assert_eq!(gateway.kit.counters().api, passed as u64);
}
