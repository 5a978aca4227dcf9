//! TLS by rustls and ring: the gateway's own ([`ServerTls`]), and that with the servers it calls ([`client`]).

pub(crate) mod client;
mod expiry;
mod files;
mod server;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};

pub(crate) use self::server::ServerTls;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
