//! Tests of the servers, mostly over real sockets with a hyper client.

mod api;
mod auth;
#[cfg(feature = "conformance")]
mod broken;
mod client;
mod faults;
mod gates;
mod oauth;
mod oracle;
mod server;
#[cfg(feature = "conformance")]
mod stores;
