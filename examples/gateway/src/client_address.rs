//! [`ClientAddress`]: the address of a request's client.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue};

/// The header in which proxies append the address of their client.
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of a client, in the extensions of each request.
///
/// The log, the limits, the upstream and the authorization server all have it from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientAddress {
    ip: IpAddr,
    /// Made once for each connection.
    forwarded_for: HeaderValue,
}

impl ClientAddress {
    /// Creates the address of a client that is connected directly.
    ///
    /// A socket of IPv6 sees clients of IPv4 as `::ffff:192.0.2.1`; both notations are the same address.
    pub(crate) fn new(ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        Self { ip, forwarded_for: header(&ip.to_string()) }
    }

    /// Returns the address.
    pub(crate) fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Returns the address as text, with which its header begins.
    pub(crate) fn text(&self) -> &str {
        let addresses = str::from_utf8(self.forwarded_for.as_bytes()).unwrap_or_default();
        addresses.split_once(',').map_or(addresses, |(client, _)| client)
    }

    /// Returns the value of `X-Forwarded-For` for the servers behind the gateway.
    pub(crate) fn forwarded_for(&self) -> &HeaderValue {
        &self.forwarded_for
    }
}

fn header(addresses: &str) -> HeaderValue {
    HeaderValue::from_str(addresses).expect("addresses are visible ASCII")
}
