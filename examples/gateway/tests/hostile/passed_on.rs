//! Headers of the PROXY protocol: every length, cut and byte, and the same header in pieces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::future::join_all;
use gateway::TrustedProxies;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::test_gateway::TestGateway;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 443\r\n";

/// The address of the balancer, which is the client of its own connections.
const BALANCER: &str = "127.0.0.1";

async fn start(trusted: &str) -> TestGateway {
    let change = |settings: &mut gateway::Settings| {
        settings.trusted_proxies = TrustedProxies::read(&[trusted.to_owned()]).unwrap();
        settings.proxy_protocol = true;
        settings.client_timeout = Duration::from_millis(500);
        settings.idle_connection_timeout = Duration::from_millis(500);
    };
    TestGateway::start_with(change).await
}

/// Sends a header in two pieces, cut at `at`, then a request. Returns the client that the upstream has seen; `None` if
/// the gateway has closed the connection.
async fn send(gateway: &TestGateway, bytes: &[u8], at: usize, cookie: &str) -> Option<String> {
    let request = format!("GET /api/headers HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n");
    let all = [bytes, request.as_bytes()].concat();
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let _ = stream.write_all(&all[..at]).await;
    tokio::task::yield_now().await;
    let _ = stream.write_all(&all[at..]).await;
    let mut answer = Vec::new();
    let end = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
    let _ = end.await.unwrap_or_else(|_| panic!("{}", bytes.escape_ascii()));
    let answer = String::from_utf8(answer).unwrap();
    if answer.is_empty() {
        return None;
    }
    let (_, seen) = answer.split_once(r#""x-forwarded-for":[""#).unwrap_or_else(|| panic!("{answer}"));
    Some(seen.split_once('"').unwrap().0.to_owned())
}

/// Returns the client of a header of version 2, as the specification has it; `None` if it is no valid header of a stream.
fn client_of_binary(header: &[u8]) -> Option<String> {
    let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
    let rest = header.get(16..16 + length)?;
    match (header[12], header[13]) {
        (0x20, _) | (0x21, 0x00 | 0x31) => Some(BALANCER.to_owned()),
        (0x21, 0x11) if length >= 12 => Some(Ipv4Addr::from(*rest.first_chunk::<4>()?).to_string()),
        (0x21, 0x21) if length >= 36 => Some(IpAddr::from(*rest.first_chunk::<16>()?).to_canonical().to_string()),
        _ => None,
    }
}

/// Returns the client of a line of version 1.
fn client_of_line(line: &[u8]) -> Option<String> {
    // Blank lines after it are skipped as those before a request (RFC 9112 §2.2).
    let (line, _) = str::from_utf8(line).ok()?.split_once("\r\n")?;
    if line.contains('\n') || line.len() > 105 {
        return None;
    }
    if line == "PROXY UNKNOWN" || line.starts_with("PROXY UNKNOWN ") {
        return Some(BALANCER.to_owned());
    }
    let words: Vec<_> = line.split(' ').collect();
    let ["PROXY", family, source, destination, ports @ ..] = &words[..] else { return None };
    let is_port = |port: &&str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if ports.len() != 2 || !ports.iter().all(is_port) {
        return None;
    }
    match *family {
        "TCP4" => destination.parse::<Ipv4Addr>().ok().and(source.parse::<Ipv4Addr>().ok()).map(|ip| ip.to_string()),
        "TCP6" => {
            let ip = destination.parse::<Ipv6Addr>().ok().and(source.parse::<Ipv6Addr>().ok())?;
            Some(IpAddr::from(ip).to_canonical().to_string())
        }
        _ => None,
    }
}

fn binary(command: u8, family: u8, length: usize) -> Vec<u8> {
    let announced = u16::try_from(length).unwrap().to_be_bytes();
    let addresses = (0..length).map(|at| u8::try_from(at % 200).unwrap() + 1);
    [SIGNATURE, &[command, family], &announced].concat().into_iter().chain(addresses).collect()
}

/// Returns headers of version 2: of all commands, families and lengths.
fn binaries() -> Vec<Vec<u8>> {
    let mut headers = Vec::new();
    for family in [0x00, 0x11, 0x12, 0x21, 0x31, 0xff] {
        headers.extend((0..60).map(|length| binary(0x21, family, length)));
        headers.extend([255, 256, 257, 4096, 0xffff].map(|length| binary(0x21, family, length)));
        headers.extend((0..=255).step_by(7).map(|command| binary(command, family, 36)));
    }
    headers.extend((0..=255).map(|family| binary(0x21, family, 36)));
    headers.extend((0..=255).step_by(5).map(|family| binary(0x20, family, 3)));
    // Further fields whose lengths don't add up are skipped as they are.
    for field in [&b"\x04\0\x02hi"[..], b"\x04\xff\xffx", b"\x20\0\0", b"\x05\0\x80", b"\xff"] {
        let mut header = binary(0x21, 0x11, 12);
        header[15] += u8::try_from(field.len()).unwrap();
        header.extend(field);
        headers.push(header);
    }
    headers
}

/// Returns lines of version 1: with each byte replaced, left out and repeated, and forms that some parser takes.
fn lines() -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for at in 0..LINE.len() {
        for byte in *b" \t\r\n\0:.0-9a+\x80" {
            let mut line = LINE.to_vec();
            line[at] = byte;
            lines.push(line);
        }
        lines.push([&LINE[..at], &LINE[at + 1..]].concat());
        lines.push([&LINE[..=at], &LINE[at..]].concat());
    }
    for line in [
        "TCP4 192.0.2.7 192.0.2.1 65535 65535",
        "TCP4 192.0.2.7 192.0.2.1 65536 443",
        "TCP4 192.0.2.7 192.0.2.1 -1 443",
        "TCP4 192.0.2.7 192.0.2.1 +1 443",
        "TCP4 192.0.2.7 192.0.2.1 0x1 443",
        "TCP4 192.0.2.7 ::1 1 2",
        "TCP4 ::1 192.0.2.7 1 2",
        "TCP4 192.0.2.007 192.0.2.1 1 2",
        "TCP4 3221225991 192.0.2.1 1 2",
        "TCP4 192.0.2.7 192.0.2.1 1 2 3",
        "TCP4 192.0.2.7  192.0.2.1 1 2",
        "TCP6 ::1 ::2 1 2",
        "TCP6 [::1] ::2 1 2",
        "TCP6 fe80::1%lo ::2 1 2",
        "TCP6 ::ffff:192.0.2.8 ::1 1 2",
        "UDP4 192.0.2.7 192.0.2.1 1 2",
        "UNKNOWN",
        "UNKNOWN ",
        "UNKNOWNx",
        "UNKNOWN PROXY TCP4 192.0.2.7 192.0.2.1 1 2",
        "unknown",
        "",
    ] {
        lines.push(format!("PROXY {line}\r\n").into_bytes());
    }
    for length in [90, 91, 92, 93, 200, 10_000] {
        lines.push(format!("PROXY UNKNOWN {}\r\n", "x".repeat(length)).into_bytes());
    }
    lines
}

#[tokio::test]
async fn no_header_of_a_balancer_is_read_in_two_ways() {
    let gateway = start(BALANCER).await;
    let own = binary(0x20, 0, 0);
    let cookie = sign_in(&gateway, &own).await;
    let binaries = binaries().into_iter().map(|header| (client_of_binary(&header), header));
    let lines = lines().into_iter().map(|line| (client_of_line(&line), line));
    let headers: Vec<_> = binaries.chain(lines).collect();
    let mut passed = 0;
    for headers in headers.chunks(200) {
        let sent = headers.iter().map(async |(client, header)| {
            let at = fastrand::usize(..=header.len());
            let seen = send(&gateway, header, at, &cookie).await;
            assert_eq!(&seen, client, "{}", header[..header.len().min(200)].escape_ascii());
            usize::from(seen.is_some())
        });
        passed += join_all(sent).await.into_iter().sum::<usize>();
    }
    println!("PROXY protocol: {} headers, {passed} of which were valid", headers.len());
    assert!(passed > 100 && passed < headers.len());
}

/// A header in two segments, cut at each byte, with the request in the second; and one that ends there.
#[tokio::test]
async fn a_header_is_read_in_pieces_and_never_in_part() {
    let gateway = start(BALANCER).await;
    let cookie = sign_in(&gateway, LINE).await;
    let mut with_fields = binary(0x21, 0x21, 36);
    with_fields[15] += 5;
    with_fields.extend(b"\x04\0\x02hi");
    let mut pieces = 0;
    for (header, client) in
        [(LINE.to_vec(), client_of_line(LINE)), (with_fields.clone(), client_of_binary(&with_fields))]
    {
        let cuts = (0..=header.len() + 20).map(|at| send(&gateway, &header, at, &cookie));
        for seen in join_all(cuts).await {
            assert_eq!(seen, client);
            pieces += 1;
        }
        let ends = (0..header.len()).map(async |end| {
            let mut stream = TcpStream::connect(gateway.address).await.unwrap();
            stream.write_all(&header[..end]).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("an end");
            assert_eq!(answer, b"", "{}", header[..end].escape_ascii());
        });
        pieces += join_all(ends).await.len();
    }
    println!("PROXY protocol: {pieces} headers in pieces or cut off");
}

#[tokio::test]
async fn no_header_of_another_peer_is_read() {
    let gateway = start("192.0.2.0/24").await;
    let headers = binaries().into_iter().step_by(9).chain(lines().into_iter().step_by(9));
    let headers: Vec<_> = headers.chain([vec![]]).collect();
    let sent = headers.iter().map(|header| send(&gateway, header, header.len(), "session=x"));
    assert!(join_all(sent).await.iter().all(Option::is_none));
    println!("PROXY protocol: {} headers of a peer that isn't trusted, all of which were refused", headers.len());
}

/// Signs a user in through the balancer, and returns the cookie.
async fn sign_in(gateway: &TestGateway, header: &[u8]) -> String {
    let body = r#"{"username":"ada","password":"correct horse"}"#;
    let request = format!(
        "POST /login HTTP/1.1\r\nhost: a\r\nx-requested-with: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(&[header, request.as_bytes()].concat()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next());
    cookie.unwrap().to_owned()
}
