//! Tests of gateways in this process, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/certificates.rs"]
mod certificates;
#[cfg(target_os = "linux")]
#[path = "../support/haproxy.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod haproxy;
#[path = "../support/http2.rs"]
mod http2;
#[path = "../support/nginx.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod nginx;
#[path = "../support/test_gateway.rs"]
mod test_gateway;

mod cancellation;
mod client_address;
mod connections;
mod credentials;
mod drain_delay;
mod failures;
mod fields;
mod identity_headers;
mod kept_connections;
mod limits;
mod metrics;
mod oauth;
mod proxy_protocol;
mod sessions;
mod shutting_down;
mod slow_readers;
mod stalled_streams;
mod streaming;
mod tls;
mod tls_peers;
mod uploads;
mod users;
mod versions;
