//! Reads header values as bytes: they may hold any byte from 0x80 on (RFC 9110 §5.5), which must not hide the rest.

use http::{HeaderMap, HeaderName};

/// Removes the white space of HTTP at both ends: SP and HTAB, and no other (RFC 9110 §5.6.3).
pub(crate) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Returns the elements of all lines of a comma-separated list.
pub(crate) fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(trim)
}

/// Splits a value at the first occurrence of a byte, and trims both parts.
pub(crate) fn split_once(value: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = value.iter().position(|byte| *byte == separator)?;
    Some((trim(&value[..at]), trim(&value[at + 1..])))
}
