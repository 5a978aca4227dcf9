//! [`ClientAddress`]: the address of a request's client, as the [`Peer`] of its connection tells it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::TrustedProxies;
use crate::fields;

/// The header in which each proxy appends the address of its client.
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The most proxies between a client and the gateway.
const MAX_HOPS: usize = 16;

/// The address of a client, in the extensions of requests for the gateway's own routes.
///
/// The log, the limits, the upstream and the authorization server all have it from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientAddress {
    ip: IpAddr,
    forwarded_for: HeaderValue,
}

impl ClientAddress {
    /// Creates the address of a client that is connected directly.
    ///
    /// A socket of IPv6 sees clients of IPv4 as `::ffff:192.0.2.1`; both notations are the same address.
    pub(crate) fn new(ip: IpAddr) -> Self {
        Self::behind(&[ip.to_canonical()])
    }

    /// Creates the address at the end of a path: a peer, the client of that peer, and so on.
    fn behind(path: &[IpAddr]) -> Self {
        let forwarded_for: Vec<_> = path.iter().rev().map(IpAddr::to_string).collect();
        Self {
            ip: path[path.len() - 1],
            forwarded_for: HeaderValue::from_str(&forwarded_for.join(", ")).expect("addresses are visible ASCII"),
        }
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

    /// Returns the value of `X-Forwarded-For` for the servers behind the gateway: the client, and the trusted proxies
    /// after it.
    pub(crate) fn forwarded_for(&self) -> &HeaderValue {
        &self.forwarded_for
    }
}

/// The other end of a connection: a client, or a trusted proxy.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Made once for each connection.
    address: ClientAddress,
    /// Present if the peer is one of them.
    proxies: Option<Arc<TrustedProxies>>,
}

impl Peer {
    pub(crate) fn new(ip: IpAddr, proxies: &Arc<TrustedProxies>) -> Self {
        let address = ClientAddress::new(ip);
        let proxies = proxies.contains(address.ip).then(|| proxies.clone());
        Self { address, proxies }
    }

    /// Returns the peer whose connection this proxy has passed on, or `None` if this is no trusted proxy.
    pub(crate) fn passing_on(&self, ip: IpAddr) -> Option<Self> {
        self.proxies.as_ref().map(|proxies| Self::new(ip, proxies))
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.address.ip
    }

    /// Checks if the peer is a trusted proxy.
    pub(crate) fn is_trusted(&self) -> bool {
        self.proxies.is_some()
    }

    /// Returns the client that has sent a request.
    ///
    /// A trusted proxy has appended its client to `X-Forwarded-For`. If that is a trusted proxy too, so has that one:
    /// from the right, the first address that isn't trusted is the client, and what is left of it may be forged. At an
    /// entry that is no address, the last address that was one is the client.
    pub(crate) fn client(&self, headers: &HeaderMap) -> ClientAddress {
        let Some(proxies) = &self.proxies else { return self.address.clone() };
        let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
        let entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')).map(fields::trim);
        let mut path = vec![self.address.ip];
        for entry in entries.filter(|entry| !entry.is_empty()).take(MAX_HOPS) {
            let Some(ip) = parse(entry) else { break };
            path.push(ip);
            if !proxies.contains(ip) {
                break;
            }
        }
        if path.len() == 1 { self.address.clone() } else { ClientAddress::behind(&path) }
    }
}

/// Parses an address, which some proxies write with a port or in brackets.
fn parse(entry: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(entry).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let ip = text.parse().ok().or_else(with_port).or_else(bracketed)?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the client of a request and the header for the upstream.
    fn client(peer: &str, lines: &[&str]) -> (String, String) {
        let proxies = ["10.0.0.0/8", "2001:db8:a::/48", "::1"].map(str::to_owned);
        let peer = Peer::new(peer.parse().unwrap(), &Arc::new(TrustedProxies::read(&proxies).unwrap()));
        let headers =
            lines.iter().map(|line| (X_FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap())).collect();
        let client = peer.client(&headers);
        (client.ip().to_string(), client.forwarded_for().to_str().unwrap().to_owned())
    }

    #[test]
    fn a_trusted_proxy_names_its_client() {
        for (peer, lines, ip, forwarded_for) in [
            ("10.0.0.1", &["192.0.2.7"][..], "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            ("::ffff:10.0.0.1", &["::ffff:192.0.2.7"], "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            ("::1", &[" 192.0.2.7\t"], "192.0.2.7", "192.0.2.7, ::1"),
            // What the client has sent itself is left of its address.
            ("10.0.0.1", &["203.0.113.1, 192.0.2.7"], "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            ("10.0.0.1", &["203.0.113.1", "192.0.2.7"], "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            ("10.0.0.1", &["10.0.0.9, 192.0.2.7"], "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            // Further trusted proxies.
            ("10.0.0.1", &["192.0.2.7, 10.0.0.2"], "192.0.2.7", "192.0.2.7, 10.0.0.2, 10.0.0.1"),
            (
                "10.0.0.1",
                &["192.0.2.7, 2001:db8:a::2", "10.3.0.1"],
                "192.0.2.7",
                "192.0.2.7, 2001:db8:a::2, 10.3.0.1, 10.0.0.1",
            ),
            // Ports and brackets.
            ("10.0.0.1", &["192.0.2.7:4711"], "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            ("10.0.0.1", &["[2001:db8::7]:4711"], "2001:db8::7", "2001:db8::7, 10.0.0.1"),
            ("10.0.0.1", &["[2001:db8::7]"], "2001:db8::7", "2001:db8::7, 10.0.0.1"),
            ("10.0.0.1", &["[::ffff:192.0.2.7]:80"], "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            // Empty elements of a list are none (RFC 9110 §5.6.1).
            ("10.0.0.1", &["192.0.2.7, ,", "", ","], "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            // All are trusted: the request begins at the leftmost.
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3", "10.0.0.3, 10.0.0.2, 10.0.0.1"),
            ("10.0.0.1", &[], "10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(client(peer, lines), (ip.to_owned(), forwarded_for.to_owned()), "{peer} {lines:?}");
        }
    }

    #[test]
    fn a_peer_that_is_not_trusted_names_no_client() {
        for lines in [&["192.0.2.7"][..], &["10.0.0.1"], &["10.0.0.1, 10.0.0.2", "192.0.2.7"], &[]] {
            let itself = "203.0.113.1".to_owned();
            assert_eq!(client("203.0.113.1", lines), (itself.clone(), itself), "{lines:?}");
        }
    }

    /// The address right of it has been named by a trusted proxy.
    #[test]
    fn an_entry_that_is_no_address_ends_the_path() {
        for garbage in [
            "unknown",
            "_hidden",
            "192.0.2",
            "192.0.2.7.1",
            "192.0.2.07",
            "192.0.2.7:",
            "192.0.2.7:99999",
            "[192.0.2.7]",
            "[2001:db8::7",
            "2001:db8::7]",
            "[2001:db8::7]x",
            "fe80::1%eth0",
            "localhost",
            "\"192.0.2.7\"",
            "é",
            "1",
            "192.0.2.7 192.0.2.8",
            "for=192.0.2.7",
            "192.0.2.7;10.0.0.2",
        ] {
            assert_eq!(client("10.0.0.1", &[garbage]).0, "10.0.0.1", "{garbage}");
            let lines = [&format!("192.0.2.7, {garbage}, 10.0.0.2")[..]];
            assert_eq!(client("10.0.0.1", &lines), ("10.0.0.2".to_owned(), "10.0.0.2, 10.0.0.1".to_owned()));
        }
    }

    #[test]
    fn a_path_is_bounded() {
        let line = ["192.0.2.7"].into_iter().chain(std::iter::repeat_n("10.0.0.2", 5000)).collect::<Vec<_>>().join(",");
        let (ip, forwarded_for) = client("10.0.0.1", &[&line]);
        assert_eq!((&*ip, forwarded_for.split(", ").count()), ("10.0.0.2", MAX_HOPS + 1));
    }
}
