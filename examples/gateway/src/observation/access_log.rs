//! [`AccessLog`]: the lines of requests, one for each.
//!
//! They have the form of the other lines of the log, without the cost of formatting each field by `tracing`.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::Level;

use super::trace::write_hex;
use crate::config::LogFormat;
use crate::log::LogWriter;

/// The longest value of a client or server that is printed.
const MAX_VALUE: usize = 1024;

/// The length of a time: `2026-11-27T02:13:16.123456Z`.
const TIME: usize = 27;

/// The room for a line, which most don't exceed.
const CAPACITY: usize = 768;

/// Writes a line for each request.
#[derive(Clone, Debug)]
pub struct AccessLog {
    writer: LogWriter,
    format: LogFormat,
}

/// A line that is begun with the request and ended with the response.
#[derive(Debug)]
pub(super) struct Line {
    bytes: Vec<u8>,
    format: LogFormat,
}

impl AccessLog {
    /// Creates the log; `None` if the filter of the log excludes lines of `gateway::request`.
    ///
    /// Call it after the subscriber of `tracing` has been set.
    #[must_use]
    pub fn new(writer: LogWriter, format: LogFormat) -> Option<Self> {
        tracing::enabled!(target: "gateway::request", Level::INFO).then_some(Self { writer, format })
    }

    pub(super) fn begin(&self) -> Line {
        let mut bytes = Vec::with_capacity(CAPACITY);
        let (before, after) = frame(self.format);
        bytes.extend_from_slice(before);
        // Written when the line ends.
        bytes.extend_from_slice(&[b' '; TIME]);
        bytes.extend_from_slice(after);
        Line { bytes, format: self.format }
    }

    pub(super) fn end(&self, mut line: Line) {
        let start = frame(self.format).0.len();
        write_time(SystemTime::now(), &mut line.bytes[start..start + TIME]);
        let end: &[u8] = match self.format {
            LogFormat::Text => b"\n",
            LogFormat::Json => b"},\"target\":\"gateway::request\"}\n",
        };
        line.bytes.extend_from_slice(end);
        self.writer.write_or_drop(&line.bytes);
    }
}

/// Returns the parts of a line before and after its time.
fn frame(format: LogFormat) -> (&'static [u8], &'static [u8]) {
    match format {
        LogFormat::Text => (b"", b"  INFO gateway::request: request completed"),
        LogFormat::Json => {
            (b"{\"timestamp\":\"", b"\",\"level\":\"INFO\",\"fields\":{\"message\":\"request completed\"")
        }
    }
}

impl Line {
    fn name(&mut self, name: &str) {
        let (before, after) = match self.format {
            LogFormat::Text => (" ", "="),
            LogFormat::Json => (",\"", "\":"),
        };
        for part in [before, name, after] {
            self.bytes.extend_from_slice(part.as_bytes());
        }
    }

    /// Adds a value that is known to be safe.
    pub(super) fn word(&mut self, name: &str, value: &str) {
        self.name(name);
        match self.format {
            LogFormat::Text => self.bytes.extend_from_slice(value.as_bytes()),
            LogFormat::Json => {
                self.bytes.push(b'"');
                self.bytes.extend_from_slice(value.as_bytes());
                self.bytes.push(b'"');
            }
        }
    }

    /// Adds a value from elsewhere: bounded, and escaped as in JSON, so that it can't forge a line or command a terminal.
    pub(super) fn text(&mut self, name: &str, value: &str) {
        let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        self.name(name);
        self.bytes.push(b'"');
        if value.len() <= MAX_VALUE && value.bytes().all(is_plain) {
            self.bytes.extend_from_slice(value.as_bytes());
        } else {
            for (at, character) in value.char_indices() {
                if at >= MAX_VALUE {
                    self.bytes.extend_from_slice(b"...");
                    break;
                }
                match u8::try_from(character) {
                    Ok(byte) if is_plain(byte) => self.bytes.push(byte),
                    _ => character.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                        let _ = write!(self.bytes, "\\u{unit:04x}");
                    }),
                }
            }
        }
        self.bytes.push(b'"');
    }

    pub(super) fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.bytes.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Adds a time in seconds, with six decimal places.
    pub(super) fn seconds(&mut self, name: &str, value: Duration) {
        self.number(name, value.as_secs());
        let mut fraction = *b".000000";
        write_decimal(value.subsec_micros().into(), &mut fraction[1..]);
        self.bytes.extend_from_slice(&fraction);
    }

    /// Adds an address with its port.
    pub(super) fn address(&mut self, name: &str, value: SocketAddr) {
        let quote: &[u8] = match self.format {
            LogFormat::Text => b"",
            LogFormat::Json => b"\"",
        };
        self.name(name);
        self.bytes.extend_from_slice(quote);
        match value.ip() {
            IpAddr::V4(ip) => {
                for (at, octet) in ip.octets().into_iter().enumerate() {
                    self.bytes.extend_from_slice(if at > 0 { b"." } else { b"" });
                    self.bytes.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
                }
            }
            IpAddr::V6(ip) => {
                let _ = write!(self.bytes, "[{ip}]");
            }
        }
        self.bytes.push(b':');
        self.bytes.extend_from_slice(itoa::Buffer::new().format(value.port()).as_bytes());
        self.bytes.extend_from_slice(quote);
    }

    pub(super) fn hash(&mut self, name: &str, value: [u8; 8]) {
        let mut digits = [0; 16];
        write_hex(&value, &mut digits);
        self.word(name, str::from_utf8(&digits).unwrap_or_default());
    }
}

/// Writes a time of UTC with microseconds (RFC 3339).
fn write_time(time: SystemTime, text: &mut [u8]) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    text.copy_from_slice(b"0000-00-00T00:00:00.000000Z");
    for (at, length, value) in [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3600),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
        (20, 6, since.subsec_micros().into()),
    ] {
        write_decimal(value, &mut text[at..at + length]);
    }
}

/// Returns the date of a day since 1970, by Hinnant's `civil_from_days`: years begin in March, so that the leap day is
/// the last one.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// Writes a number with leading zeros.
fn write_decimal(mut value: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or_default();
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: LogFormat, write: impl FnOnce(&mut Line)) -> String {
        let mut line = Line { bytes: Vec::new(), format };
        write(&mut line);
        String::from_utf8(line.bytes).unwrap()
    }

    fn time(seconds: u64, microseconds: u64) -> String {
        let mut text = [0; TIME];
        write_time(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(microseconds), &mut text);
        String::from_utf8(text.to_vec()).unwrap()
    }

    #[test]
    fn times_are_of_utc() {
        for (seconds, microseconds, text) in [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, 999_999, "2000-02-28T23:59:59.999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000001Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000000Z"),
            (1_735_689_599, 0, "2024-12-31T23:59:59.000000Z"),
            (1_795_745_596, 123_456, "2026-11-27T02:13:16.123456Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(time(seconds, microseconds), text);
        }
    }

    #[test]
    fn a_value_can_neither_forge_a_line_nor_command_a_terminal() {
        for (value, printed) in [
            ("/api/notes", "/api/notes"),
            ("a\" admin=\"b", "a\\u0022 admin=\\u0022b"),
            ("a\nb\r\u{1b}[2J\0\u{7f}\\", "a\\u000ab\\u000d\\u001b[2J\\u0000\\u007f\\u005c"),
            ("Zo\u{eb} \u{202e} \u{1f600}", "Zo\\u00eb \\u202e \\ud83d\\ude00"),
        ] {
            assert_eq!(line(LogFormat::Text, |line| line.text("user.id", value)), format!(" user.id=\"{printed}\""));
            let json = line(LogFormat::Json, |line| line.text("user.id", value));
            let parsed: serde_json::Value = serde_json::from_str(&format!("{{{}}}", &json[1..])).unwrap();
            assert_eq!(parsed["user.id"], value);
        }
        for long in ["x".repeat(MAX_VALUE + 1), "\u{eb}".repeat(MAX_VALUE)] {
            let printed = line(LogFormat::Text, |line| line.text("path", &long));
            assert!(printed.len() < 4 * MAX_VALUE && printed.ends_with("...\""), "{printed}");
        }
    }

    #[test]
    fn numbers_have_one_form() {
        let write = |line: &mut Line| {
            line.number("bytes", 12_345);
            line.address("server", ([192, 0, 2, 10], 443).into());
            line.seconds("duration", Duration::from_micros(1_000_250));
            line.word("route", "/api");
            line.hash("session.hash", [0, 1, 2, 3, 0xab, 0xcd, 0xef, 0xff]);
        };
        assert_eq!(
            line(LogFormat::Text, write),
            " bytes=12345 server=192.0.2.10:443 duration=1.000250 route=/api session.hash=00010203abcdefff"
        );
        assert_eq!(
            line(LogFormat::Json, write),
            r#","bytes":12345,"server":"192.0.2.10:443","duration":1.000250,"route":"/api","session.hash":"00010203abcdefff""#
        );
    }
}
