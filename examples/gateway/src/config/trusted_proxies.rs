//! [`TrustedProxies`]: the proxies in front that name their clients.

use std::net::IpAddr;
use std::str::FromStr;

use super::InvalidSetting;

/// The networks of the proxies that are believed when they name the address of their client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

/// A network in the notation of CIDR (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    /// The number of leading bits that all addresses have in common.
    length: u32,
}

impl TrustedProxies {
    /// Reads networks (`10.0.0.0/8`, `2001:db8::/32`) and single addresses.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if one is neither.
    pub fn read(networks: &[String]) -> Result<Self, InvalidSetting> {
        let networks = networks.iter().map(|text| {
            let text = text.trim();
            text.parse().map_err(|InvalidNetwork| {
                InvalidSetting::of("--trusted-proxy", format!("{text:?} is neither an address nor a network in CIDR"))
            })
        });
        networks.collect::<Result<_, _>>().map(Self)
    }

    /// Checks if no proxy is trusted.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks if this is the address of a trusted proxy.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            // A shift by all bits is none of the type's.
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.checked_shr(u32::BITS - self.length).unwrap_or_default() == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.checked_shr(u128::BITS - self.length).unwrap_or_default() == 0
            }
            _ => false,
        }
    }
}

struct InvalidNetwork;

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                (address, Some(length.parse().map_err(|_| InvalidNetwork)?))
            }
            Some(_) => return Err(InvalidNetwork),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| InvalidNetwork)?;
        let bits = if address.is_ipv4() { u32::BITS } else { u128::BITS };
        let length = length.unwrap_or(bits);
        if length > bits {
            return Err(InvalidNetwork);
        }
        // `::ffff:10.0.0.0/104` is 10.0.0.0/8.
        let canonical = address.to_canonical();
        if canonical.is_ipv4() && address.is_ipv6() {
            return match length.checked_sub(u128::BITS - u32::BITS) {
                Some(length) => Ok(Self { address: canonical, length }),
                None => Err(InvalidNetwork),
            };
        }
        Ok(Self { address, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(networks: &[&str]) -> Result<TrustedProxies, InvalidSetting> {
        TrustedProxies::read(&networks.iter().map(|network| (*network).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn networks_and_addresses_are_read() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.1.2.3/8", "10.0.0.0", "::10.0.0.1"),
            (" 192.0.2.1 ", "192.0.2.1", "192.0.2.2"),
            ("192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"),
            ("0.0.0.0/0", "203.0.113.1", "2001:db8::1"),
            ("::/0", "2001:db8::1", "203.0.113.1"),
            ("::/0", "::1", "::ffff:203.0.113.1"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::"),
            ("::ffff:10.0.0.0/104", "10.9.9.9", "11.0.0.0"),
            ("::ffff:192.0.2.1", "192.0.2.1", "192.0.2.0"),
            ("172.16.0.0/12", "172.31.255.255", "172.32.0.0"),
        ] {
            let proxies = read(&["198.51.100.7", network]).unwrap();
            assert!(proxies.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!proxies.contains(outside.parse().unwrap()), "{network} {outside}");
        }
        assert!(!TrustedProxies::default().contains([127, 0, 0, 1].into()));
    }

    #[test]
    fn other_texts_are_rejected() {
        for invalid in [
            "",
            "/",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0/8",
            "10.0.0.0/8/8",
            "2001:db8::/129",
            "::ffff:10.0.0.0/95",
            "[::1]",
            "10.0.0.1:80",
            "proxy.example.com",
            "10.0.0.0-10.0.0.9",
            "10.0.0.0/99999999999",
        ] {
            let refused = read(&["10.0.0.0/8", invalid]).unwrap_err().to_string();
            assert!(refused.starts_with("--trusted-proxy: "), "{refused}");
        }
    }
}
