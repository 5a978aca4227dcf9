//! The end of a certificate's validity (RFC 5280 §4.1.2.5).

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

const SECONDS_PER_DAY: i64 = 24 * 60 * 60;

/// A moment in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expiry {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Expiry {
    /// Returns the seconds since 1970.
    pub(super) fn unix_time(self) -> i64 {
        // Years begin in March, so that the leap day is the last of a year.
        let year = if self.month <= 2 { self.year - 1 } else { self.year };
        let month = (self.month + 9) % 12;
        let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + self.day - 719_469;
        days * SECONDS_PER_DAY + self.hour * 3600 + self.minute * 60 + self.second
    }

    pub(super) fn is_past(self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.unix_time() < i64::try_from(now).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Reads the end of the validity, or returns `None` if the certificate is malformed.
pub(super) fn read(certificate: &[u8]) -> Option<Expiry> {
    let (certificate, _) = value(certificate, SEQUENCE)?;
    let (fields, _) = value(certificate, SEQUENCE)?;
    // Certificates of version 1 have no version.
    let fields = value(fields, VERSION).map_or(fields, |(_, rest)| rest);
    let (_, fields) = value(fields, INTEGER)?;
    let (_algorithm, fields) = value(fields, SEQUENCE)?;
    let (_issuer, fields) = value(fields, SEQUENCE)?;
    let (validity, _) = value(fields, SEQUENCE)?;
    let (_, end) = value(validity, UTC_TIME).or_else(|| value(validity, GENERALIZED_TIME))?;
    if let Some((text, _)) = value(end, UTC_TIME) {
        let (year, rest) = number(text, 2)?;
        time(if year < 50 { 2000 + year } else { 1900 + year }, rest)
    } else {
        let (year, rest) = number(value(end, GENERALIZED_TIME)?.0, 4)?;
        time(year, rest)
    }
}

/// Reads a value of DER with this tag, and returns it with the bytes after it.
fn value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match usize::from(*length) {
        length @ 0..0x80 => (length, rest),
        length => {
            let (length, rest) = rest.split_at_checked(length - 0x80).filter(|(length, _)| length.len() <= 3)?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
    };
    if *first == tag { rest.split_at_checked(length) } else { None }
}

fn time(year: i64, text: &[u8]) -> Option<Expiry> {
    let (month, text) = number(text, 2)?;
    let (day, text) = number(text, 2)?;
    let (hour, text) = number(text, 2)?;
    let (minute, text) = number(text, 2)?;
    let (second, text) = number(text, 2)?;
    (text == b"Z" && (1..=12).contains(&month)).then_some(Expiry { year, month, day, hour, minute, second })
}

/// Reads a number of so many digits, and returns it with the bytes after it.
fn number(text: &[u8], digits: usize) -> Option<(i64, &[u8])> {
    let (number, rest) = text.split_at_checked(digits)?;
    let number = str::from_utf8(number).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a value of DER.
    fn der(tag: u8, content: &[&[u8]]) -> Vec<u8> {
        let content = content.concat();
        let length = match u8::try_from(content.len()) {
            Ok(length @ 0..0x80) => vec![length],
            Ok(length) => vec![0x81, length],
            Err(_) => [&[0x82][..], &u16::try_from(content.len()).unwrap().to_be_bytes()].concat(),
        };
        [&[tag][..], &length, &content].concat()
    }

    fn certificate(version: &[u8], end: &[u8], issuer: usize) -> Vec<u8> {
        let validity = der(SEQUENCE, &[&der(UTC_TIME, &[b"200101000000Z"]), end]);
        let (serial, algorithm) = (der(INTEGER, &[&[1; 16]]), der(SEQUENCE, &[&[5, 0]]));
        let fields = [version, &serial, &algorithm, &der(SEQUENCE, &[&vec![0; issuer]]), &validity, b"rest"];
        der(SEQUENCE, &[&der(SEQUENCE, &fields), b"signature"])
    }

    fn shown(certificate: &[u8]) -> Option<(String, i64)> {
        read(certificate).map(|expiry| (expiry.to_string(), expiry.unix_time()))
    }

    #[test]
    fn the_end_of_a_certificate_is_read() {
        let version = der(VERSION, &[&der(INTEGER, &[&[2]])]);
        for (tag, text, expected, seconds) in [
            (UTC_TIME, "700101000000Z", "1970-01-01T00:00:00Z", 0),
            (UTC_TIME, "491231235959Z", "2049-12-31T23:59:59Z", 2_524_607_999),
            (UTC_TIME, "500101000000Z", "1950-01-01T00:00:00Z", -631_152_000),
            (UTC_TIME, "240229120000Z", "2024-02-29T12:00:00Z", 1_709_208_000),
            (GENERALIZED_TIME, "21000301000000Z", "2100-03-01T00:00:00Z", 4_107_542_400),
            (GENERALIZED_TIME, "99991231235959Z", "9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            let end = der(tag, &[text.as_bytes()]);
            for issuer in [0, 100, 200, 1000] {
                let expected = Some((expected.to_owned(), seconds));
                assert_eq!(shown(&certificate(&version, &end, issuer)), expected);
                assert_eq!(shown(&certificate(b"", &end, issuer)), expected);
            }
        }
    }

    #[test]
    fn a_malformed_certificate_has_no_end() {
        let end = |text: &[u8]| certificate(b"", &der(UTC_TIME, &[text]), 10);
        for text in ["", "Z", "491231235959", "491231235959+0000", "49123123595Z", "491331235959Z", "+9123123595xZ"] {
            assert_eq!(read(&end(text.as_bytes())), None, "{text}");
        }
        let whole = end(b"491231235959Z");
        for length in 0..whole.len() - 20 {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] = 0xff;
            let _ = read(&changed);
        }
    }
}
