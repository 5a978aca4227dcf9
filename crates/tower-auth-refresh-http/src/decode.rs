//! Content codings (RFC 9110 §8.4) that a server or a CDN applies although `identity` was asked for.

use std::io::Read;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use tower::BoxError;

/// Codings in a row that are undone.
const MOST_CODINGS: usize = 3;

/// The problem of a body that the connection or the time cut off.
pub(crate) const BROKEN_OFF: &str = "the answer broke off";

/// The end of a body, as far as it was read.
#[derive(Debug)]
pub(crate) enum BodyEnd {
    Complete,
    /// The body is longer than the limit.
    TooLong,
    /// The body has a `Content-Encoding` that is unsupported or malformed.
    Undecodable,
    /// The connection or the time ended before the body did.
    BrokenOff(BoxError),
}

impl BodyEnd {
    /// Returns what is wrong with the body; `None` if it is complete.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        match self {
            Self::Complete => None,
            Self::TooLong => Some("the answer is longer than the limit"),
            Self::Undecodable => Some("the answer has a content encoding that is not supported"),
            Self::BrokenOff(_) => Some(BROKEN_OFF),
        }
    }
}

/// Undoes `gzip` and `deflate`, up to `limit` bytes. What was decoded before a fault is kept.
pub(crate) fn decode(headers: &HeaderMap, text: Vec<u8>, end: BodyEnd, limit: usize) -> (Vec<u8>, BodyEnd) {
    let values = headers.get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let codings = values.flat_map(|value| value.split(',')).map(|coding| coding.trim().to_ascii_lowercase());
    let codings: Vec<_> = codings.filter(|coding| !coding.is_empty() && coding != "identity").collect();
    if codings.len() > MOST_CODINGS {
        return (Vec::new(), BodyEnd::Undecodable);
    }
    // The last coding was applied last.
    codings.iter().rev().fold((text, end), |(text, end), coding| {
        let decoder: Box<dyn Read + '_> = match &**coding {
            "gzip" | "x-gzip" if text.starts_with(b"\x1f\x8b") => Box::new(MultiGzDecoder::new(&*text)),
            "deflate" if is_zlib(&text) => Box::new(ZlibDecoder::new(&*text)),
            // A client that decodes the body itself may leave the header as it was.
            "gzip" | "x-gzip" => return (text, end),
            "deflate" if text.trim_ascii_start().starts_with(b"{") => return (text, end),
            // Some servers send `deflate` without the zlib format that RFC 9110 §8.4.1.2 asks for.
            "deflate" => Box::new(DeflateDecoder::new(&*text)),
            _ => return (Vec::new(), BodyEnd::Undecodable),
        };
        decompress(decoder, end, limit)
    })
}

/// The header of RFC 1950 §2.2.
fn is_zlib(text: &[u8]) -> bool {
    matches!(text, [cmf, flags, ..] if cmf & 0x0f == 8 && u16::from_be_bytes([*cmf, *flags]).is_multiple_of(31))
}

fn decompress(decoder: Box<dyn Read + '_>, end: BodyEnd, limit: usize) -> (Vec<u8>, BodyEnd) {
    let mut text = Vec::new();
    // One byte more shows that the limit is exceeded: a small body can expand a thousandfold.
    let result = decoder.take(limit as u64 + 1).read_to_end(&mut text);
    let end = match (result, end) {
        _ if text.len() > limit => BodyEnd::TooLong,
        (Err(_), BodyEnd::Complete) => BodyEnd::Undecodable,
        (_, end) => end,
    };
    text.truncate(limit);
    (text, end)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    const TEXT: &[u8] = br#"{"access_token":"a2"}"#;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn decoded(coding: &str, text: impl Into<Vec<u8>>) -> (Vec<u8>, BodyEnd) {
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, coding.parse().unwrap())]);
        decode(&headers, text.into(), BodyEnd::Complete, 64 * 1024)
    }

    #[test]
    fn gzip_and_both_kinds_of_deflate_are_decoded() {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(TEXT).unwrap();
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
        raw.write_all(TEXT).unwrap();
        for (coding, encoded) in [
            ("gzip", gzip(TEXT)),
            ("GZIP", gzip(TEXT)),
            ("x-gzip", gzip(TEXT)),
            ("gzip, identity", gzip(TEXT)),
            ("gzip, gzip", gzip(&gzip(TEXT))),
            ("gzip, gzip, gzip", gzip(&gzip(&gzip(TEXT)))),
            ("deflate", zlib.finish().unwrap()),
            ("deflate", raw.finish().unwrap()),
            ("identity", TEXT.to_vec()),
            ("", TEXT.to_vec()),
            // Decoded by the client, which left the header.
            ("gzip", TEXT.to_vec()),
            ("deflate", TEXT.to_vec()),
        ] {
            let (text, end) = decoded(coding, encoded);
            assert_eq!(text, TEXT, "{coding}");
            assert!(matches!(end, BodyEnd::Complete), "{coding}");
        }
    }

    #[test]
    fn an_unknown_coding_and_too_many_codings_are_not_decoded() {
        for coding in ["br", "zstd", "compress", "gzip, br", "gzip, gzip, gzip, gzip"] {
            assert!(matches!(decoded(coding, TEXT), (_, BodyEnd::Undecodable)), "{coding}");
        }
    }

    #[test]
    fn a_body_that_expands_to_exactly_the_limit_is_complete() {
        let (text, end) = decoded("gzip", gzip(&vec![b' '; 64 * 1024]));
        assert_eq!(text.len(), 64 * 1024);
        assert!(matches!(end, BodyEnd::Complete));
    }

    #[test]
    fn what_was_decoded_before_the_body_ends_early_is_kept() {
        let whole: Vec<u8> = (0..2_000_u32).flat_map(|n| (n * n).to_be_bytes()).collect();
        let encoded = gzip(&whole);
        let (text, end) = decoded("gzip", &encoded[..encoded.len() / 2]);
        assert!(!text.is_empty() && whole.starts_with(&text));
        assert!(matches!(end, BodyEnd::Undecodable));
    }

    #[test]
    fn a_small_body_that_expands_a_thousandfold_is_decoded_up_to_the_limit() {
        let bomb = gzip(&gzip(&vec![b' '; 50 << 20]));
        assert!(bomb.len() < 4 * 1024);
        let (text, end) = decoded("gzip, gzip", bomb);
        assert_eq!(text.len(), 64 * 1024);
        assert!(matches!(end, BodyEnd::TooLong));
    }
}
