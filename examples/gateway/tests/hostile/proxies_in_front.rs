//! A real nginx and a real HAProxy in front: no request is read by the proxy in one way and by the gateway in another.
//!
//! The gateway must not read more requests than the proxy has sent, and its upstream none that was smuggled.

use std::net::SocketAddr;

use futures_util::future::join_all;

use crate::haproxy::HaProxy;
use crate::nginx::Nginx;
use crate::smuggling::{Attack, framings, targets, with_byte};

/// The requests that are sent at once: each may wait for the time-outs of the proxy and of the gateway.
const AT_ONCE: usize = 600;

/// Sends the corpora, of which the short form takes a part, through a proxy. `forwarded` reads from the proxy's log the
/// number of requests that it has sent to the gateway.
async fn send_through(name: &str, attack: &Attack, proxy: SocketAddr, forwarded: impl Fn() -> usize) {
    let cookie = &attack.cookie;
    let bytes = (0..=255).flat_map(|byte| with_byte(cookie, byte)).collect();
    let part = if std::env::var_os("HOSTILE_REQUESTS").is_some() { 1 } else { 7 };
    let (mut sent, mut passed) = (0, 0);
    let before = read_by(attack).await;
    for corpus in [framings(cookie), targets(cookie), bytes] {
        let requests: Vec<_> = corpus.iter().step_by(part).collect();
        for requests in requests.chunks(AT_ONCE) {
            join_all(requests.iter().map(|request| Attack::send_to(proxy, request))).await;
            passed += attack.check(requests[0]);
        }
        sent += requests.len();
    }
    let (read, forwarded) = (read_by(attack).await - before, forwarded());
    println!("{name} in front: {sent} requests, {forwarded} forwarded, {read} read, {passed} at the upstream");
    assert!(read <= forwarded && passed <= read && passed > 50, "{forwarded} {read} {passed}");
}

/// Returns the number of requests that the gateway has read.
async fn read_by(attack: &Attack) -> usize {
    let page = attack.gateway.metrics().await;
    let counts = page.lines().filter(|line| line.starts_with("gateway_requests_total{"));
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// As installed: with HTTP/1.0, a connection for each request, and whole uploads.
#[tokio::test]
async fn nginx_and_the_gateway_read_the_same_requests() {
    let attack = Attack::start().await;
    let nginx = Nginx::start(|address| {
        format!(
            "client_header_timeout 1s; client_body_timeout 1s; keepalive_timeout 1s;
            server {{
                listen {address};
                location / {{ proxy_pass http://{}; }}
            }}",
            attack.gateway.address
        )
    });
    let Some(nginx) = nginx else { return };
    send_through("nginx", &attack, nginx.address, || nginx_forwarded(&nginx)).await;
}

/// Where nginx sends requests as they arrive, over connections that it keeps, a smuggled request would be answered to
/// another client.
#[tokio::test]
async fn nginx_with_kept_connections_and_the_gateway_read_the_same_requests() {
    let attack = Attack::start().await;
    let nginx = Nginx::start(|address| {
        format!(
            "client_header_timeout 1s; client_body_timeout 1s; keepalive_timeout 1s; merge_slashes off;
            upstream gateway {{ server {}; keepalive 16; }}
            server {{
                listen {address};
                location / {{
                    proxy_pass http://gateway; proxy_set_header Host $host; proxy_set_header Connection '';
                    proxy_http_version 1.1; proxy_request_buffering off;
                }}
            }}",
            attack.gateway.address
        )
    });
    let Some(nginx) = nginx else { return };
    send_through("nginx, connections kept", &attack, nginx.address, || nginx_forwarded(&nginx)).await;
}

fn nginx_forwarded(nginx: &Nginx) -> usize {
    nginx.access_log().lines().filter(|line| !line.starts_with("- ")).count()
}

#[tokio::test]
async fn haproxy_and_the_gateway_read_the_same_requests() {
    let attack = Attack::start().await;
    let haproxy = HaProxy::start(|address| {
        format!(
            "timeout client 1s
            timeout http-request 1s
            timeout http-keep-alive 1s
            frontend clients
                bind {address}
                default_backend gateways
            backend gateways
                http-reuse always
                server gateway {}",
            attack.gateway.address
        )
    });
    let Some(haproxy) = haproxy else { return };
    let forwarded = || haproxy.log().lines().filter(|line| line.contains(" gateways/gateway ")).count();
    send_through("HAProxy", &attack, haproxy.address, forwarded).await;
}
