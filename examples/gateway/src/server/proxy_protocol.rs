//! The PROXY protocol, versions 1 and 2: a proxy names its client before the first byte of a connection.
//!
//! See <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The begin of a header of version 2. One of version 1 is longer too.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1.
const MAX_LINE: usize = 107;

/// The length of two addresses and ports of IPv4 and of IPv6, in version 2.
const TWO_V4: usize = 12;
const TWO_V6: usize = 36;

/// Reads the header of a connection and nothing after it. Returns the address of the proxy's client, or `None` if the
/// connection is the proxy's own, as for a health check, or that of a client without an address.
///
/// # Errors
///
/// Returns the socket's error, or one of kind `InvalidData` if there is no valid header.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut line = [0; MAX_LINE];
    let (begin, rest) = line.split_at_mut(SIGNATURE.len());
    stream.read_exact(begin).await?;
    if begin == SIGNATURE {
        return read_binary(stream).await;
    }
    if !begin.starts_with(b"PROXY ") {
        return Err(malformed("the connection begins without a header"));
    }
    let mut length = 0;
    while length < rest.len() {
        // What comes after the line is not this function's to take.
        let seen = stream.peek(&mut rest[length..]).await?;
        let arrived = &rest[length..length + seen];
        let end = arrived.iter().position(|byte| *byte == b'\n');
        if arrived.is_empty() {
            break;
        }
        let taken = end.map_or(seen, |end| end + 1);
        stream.read_exact(&mut rest[length..length + taken]).await?;
        length += taken;
        if end.is_some() {
            return parse_line(&line[..SIGNATURE.len() + length]);
        }
    }
    Err(malformed("the line has no end"))
}

/// Reads the rest of a header of version 2.
async fn read_binary(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    let [command, family, high, low] = fixed;
    let mut left = usize::from(u16::from_be_bytes([high, low]));
    let mut addresses = [0; TWO_V6];
    let addresses = &mut addresses[..left.min(TWO_V6)];
    stream.read_exact(addresses).await?;
    left -= addresses.len();
    let client = parse_binary(command, family, addresses)?;
    // Further fields (TLVs) are skipped.
    let mut skipped = [0; 256];
    while left > 0 {
        let length = left.min(skipped.len());
        stream.read_exact(&mut skipped[..length]).await?;
        left -= length;
    }
    Ok(client)
}

/// Parses a header of version 1.
fn parse_line(line: &[u8]) -> io::Result<Option<IpAddr>> {
    let line = line.strip_prefix(b"PROXY ").and_then(|line| line.strip_suffix(b"\r\n"));
    let line = line.and_then(|line| str::from_utf8(line).ok()).ok_or_else(|| malformed("the line is malformed"))?;
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Ok(None);
    }
    let mut fields = line.split(' ');
    let mut next = || fields.next().unwrap_or_default();
    let (family, source, destination, ports) = (next(), next(), next(), [next(), next()]);
    let source = match family {
        "TCP4" => source.parse::<Ipv4Addr>().ok().zip(destination.parse::<Ipv4Addr>().ok()).map(|both| both.0.into()),
        "TCP6" => source.parse::<Ipv6Addr>().ok().zip(destination.parse::<Ipv6Addr>().ok()).map(|both| both.0.into()),
        _ => None,
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let is_complete = ports.into_iter().all(is_port) && fields.next().is_none();
    source.filter(|_| is_complete).map(Some).ok_or_else(|| malformed("the line is malformed"))
}

/// Parses the command, the family and the addresses of a header of version 2.
fn parse_binary(command: u8, family: u8, addresses: &[u8]) -> io::Result<Option<IpAddr>> {
    match (command, family) {
        // TCP over IPv4 and IPv6.
        (0x21, 0x11) if addresses.len() >= TWO_V4 => Ok(addresses.first_chunk::<4>().map(|ip| IpAddr::from(*ip))),
        (0x21, 0x21) if addresses.len() >= TWO_V6 => Ok(addresses.first_chunk::<16>().map(|ip| IpAddr::from(*ip))),
        (0x21, 0x11 | 0x21) => Err(malformed("the addresses are cut off")),
        // LOCAL, whose other fields have no meaning, and an unspecified or a UNIX address.
        (0x20, _) | (0x21, 0x00 | 0x31) => Ok(None),
        (0x21, _) => Err(malformed("the address is not of a TCP connection")),
        _ => Err(malformed("the version or the command is unknown")),
    }
}

fn malformed(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Reads a header and returns what is left of the connection too.
    async fn read_from(bytes: &[u8]) -> (io::Result<Option<IpAddr>>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut proxy = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        proxy.write_all(bytes).await.unwrap();
        drop(proxy);
        let client = read(&mut stream).await;
        let mut left = Vec::new();
        stream.read_to_end(&mut left).await.unwrap();
        (client, left)
    }

    fn random_address() -> SocketAddr {
        let ip: IpAddr = if fastrand::bool() {
            Ipv4Addr::from_bits(fastrand::u32(..)).into()
        } else {
            Ipv6Addr::from_bits(fastrand::u128(..)).into()
        };
        (ip, fastrand::u16(..)).into()
    }

    fn version_1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let (from, to) = (source.ip(), destination.ip());
        format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
    }

    fn version_2(command: u8, source: SocketAddr, destination: SocketAddr, more: &[u8]) -> Vec<u8> {
        let (family, mut addresses) = match (source.ip(), destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => (0x11, [from.octets(), to.octets()].concat()),
            (from, to) => {
                let octets = |ip| match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                    IpAddr::V6(ip) => ip.octets(),
                };
                (0x21, [octets(from), octets(to)].concat())
            }
        };
        addresses.extend(source.port().to_be_bytes());
        addresses.extend(destination.port().to_be_bytes());
        addresses.extend(more);
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, &addresses].concat()
    }

    #[tokio::test]
    async fn every_header_is_read_back_and_nothing_after_it() {
        for round in 0..200 {
            let source = random_address();
            let destination =
                std::iter::repeat_with(random_address).find(|to| to.is_ipv4() == source.is_ipv4()).unwrap();
            let more = vec![7; fastrand::usize(..1000)];
            let header = match round % 2 {
                0 => version_1(source, destination),
                _ => version_2(0x21, source, destination, &more),
            };
            let rest = vec![b'\n'; fastrand::usize(..200)];
            let (client, left) = read_from(&[&header[..], &rest].concat()).await;
            assert_eq!(client.unwrap(), Some(source.ip()), "{header:?}");
            assert_eq!(left, rest);
            // A part of a header is none.
            let part = &header[..fastrand::usize(..header.len())];
            assert!(read_from(part).await.0.is_err(), "{part:?}");
        }
    }

    #[tokio::test]
    async fn the_longest_headers_are_read() {
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let line = format!("PROXY TCP6 {longest} {longest} 65535 65535\r\n");
        assert_eq!(read_from(line.as_bytes()).await.0.unwrap(), Some(longest.parse().unwrap()));
        let unknown = format!("PROXY UNKNOWN {longest} {longest} 65535 65535\r\n");
        assert_eq!((unknown.len(), read_from(unknown.as_bytes()).await.0.unwrap()), (MAX_LINE, None));
        let address = "192.0.2.7:1".parse().unwrap();
        let binary = version_2(0x21, address, address, &vec![0; 65_535 - TWO_V4]);
        assert_eq!(read_from(&[&binary, &b"GET"[..]].concat()).await.0.unwrap(), Some(address.ip()));
    }

    #[test]
    fn a_connection_of_the_proxy_itself_names_no_client() {
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN 192.0.2.1 \n anything\r\n", "PROXY UNKNOWN \r\n"] {
            assert_eq!(parse_line(line.as_bytes()).unwrap(), None, "{line:?}");
        }
        for (command, family) in [(0x20, 0x11), (0x20, 0x00), (0x20, 0xff), (0x21, 0x00), (0x21, 0x31)] {
            assert_eq!(parse_binary(command, family, &[1; TWO_V6]).unwrap(), None, "{command} {family}");
            assert_eq!(parse_binary(command, family, &[]).is_ok(), family != 0x11 || command == 0x20);
        }
    }

    #[test]
    fn a_malformed_header_is_rejected() {
        for line in [
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 \r\n",
            "PROXY TCP4 192.0.2.1 ::1 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1:80 192.0.2.2 1 2\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4\r\n192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UNKNOWNX\r\n",
            "PROXY \r\n",
            "PROXY\r\n",
            "proxy UNKNOWN\r\n",
            "",
        ] {
            assert_eq!(parse_line(line.as_bytes()).unwrap_err().kind(), io::ErrorKind::InvalidData, "{line:?}");
        }
        for (command, family, length) in
            [(0x21, 0x11, 11), (0x21, 0x21, 35), (0x21, 0x12, 36), (0x21, 0x22, 36), (0x21, 0x41, 36), (0x21, 0x13, 36)]
        {
            assert!(parse_binary(command, family, &vec![0; length]).is_err(), "{command} {family} {length}");
        }
        for command in (0..=u8::MAX).filter(|command| ![0x20, 0x21].contains(command)) {
            assert!(parse_binary(command, 0x11, &[0; TWO_V6]).is_err(), "{command}");
        }
    }

    #[tokio::test]
    async fn a_connection_without_a_header_is_rejected() {
        for bytes in [
            &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\r\n\r\n\0\r\nQUIT\r\n\r\n\r\n",
            &[b'x'; 1000],
            b"PROXY UNKNOWN",
            &[&b"PROXY UNKNOWN "[..], &[b'x'; 1000]].concat(),
            &[&b"PROXY UNKNOWN "[..], &[b'x'; 92], b"\r\n"].concat(),
            b"",
        ] {
            assert!(read_from(bytes).await.0.is_err(), "{bytes:?}");
        }
    }
}
