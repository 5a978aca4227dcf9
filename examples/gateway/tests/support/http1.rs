//! HTTP/1 by hand (RFC 9112): answers as they are on the wire.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads an answer, and returns its head and its content. One without framing ends with its connection.
pub(crate) async fn read_response(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut response = until(stream, b"\r\n\r\n").await?;
    let head = String::from_utf8_lossy(&response).to_ascii_lowercase();
    let has_content = !["1", "204", "304"].iter().any(|status| head.split(' ').nth(1).unwrap().starts_with(status));
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    if !has_content {
        return Ok(response);
    }
    if head.contains("\r\ntransfer-encoding: chunked\r\n") {
        loop {
            let line = until(stream, b"\r\n").await?;
            let length = str::from_utf8(&line).ok().and_then(|line| usize::from_str_radix(line.trim_end(), 16).ok());
            let length = length.ok_or(io::ErrorKind::InvalidData)?;
            let mut data = vec![0; length + 2];
            if length == 0 {
                // Trailers end with an empty line.
                while until(stream, b"\r\n").await? != b"\r\n" {}
                return Ok(response);
            }
            stream.read_exact(&mut data).await?;
            response.extend(&data[..length]);
        }
    }
    match length {
        Some(length) => {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            response.extend(body);
        }
        None => drop(stream.read_to_end(&mut response).await?),
    }
    Ok(response)
}

/// Splits an answer into its status and its content.
pub(crate) fn split_head(response: &[u8]) -> (u16, &[u8]) {
    let end = response.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let status = str::from_utf8(&response[..end]).unwrap().split(' ').nth(1).unwrap();
    (status.parse().unwrap(), &response[end..])
}

async fn until(stream: &mut (impl AsyncRead + Unpin), end: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.push(stream.read_u8().await?);
    }
    Ok(bytes)
}
