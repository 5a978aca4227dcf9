//! [`Ascii`]: lines of the log without characters that command a terminal or reorder its text.

use std::io::{self, Write};

/// A writer of whole lines, which escapes all characters but ASCII as JSON does.
///
/// The formatter of `tracing` escapes those of ASCII. In JSON it prints U+009B, a terminal's CSI, and U+202E, which
/// reverses the text after it, as they are.
#[derive(Debug)]
pub struct Ascii<W>(pub(crate) W);

impl<W: Write> Write for Ascii<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if line.is_ascii() {
            self.0.write_all(line)?;
            return Ok(line.len());
        }
        let mut escaped = Vec::with_capacity(2 * line.len());
        for character in String::from_utf8_lossy(line).chars() {
            match u8::try_from(character) {
                Ok(byte) if byte.is_ascii() => escaped.push(byte),
                _ => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(escaped, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        self.0.write_all(&escaped)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_characters_but_ascii_are_escaped() {
        let mut written = Vec::new();
        let line = "{\"user\":\"Zo\u{eb} \u{9b}2J \u{202e} \u{1f600} \\n\"}\n";
        assert_eq!(Ascii(&mut written).write(line.as_bytes()).unwrap(), line.len());
        assert_eq!(
            str::from_utf8(&written).unwrap(),
            "{\"user\":\"Zo\\u00eb \\u009b2J \\u202e \\ud83d\\ude00 \\n\"}\n"
        );
        let parsed: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(parsed, serde_json::from_str::<serde_json::Value>(line).unwrap());
    }
}
