//! Clients and upstreams that mean harm: every case is checked by an oracle of its own, and counted.
//!
//! `HOSTILE_REQUESTS=200000 cargo test -p gateway --release --test hostile -- --nocapture` is the long form.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/certificates.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod certificates;
#[path = "../support/haproxy.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod haproxy;
#[path = "../support/http1.rs"]
mod http1;
#[path = "../support/http2.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod http2;
#[path = "../support/nginx.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod nginx;
#[path = "../support/program.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod program;
#[path = "../support/test_gateway.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod test_gateway;

mod cookie_forms;
mod cross_site;
mod edges;
mod handshakes;
mod interleaved;
mod malformed_http2;
mod passed_on;
mod printed;
mod proxies_behind;
mod proxies_in_front;
mod smuggling;
mod upstreams;
mod users;
