//! Results on stdout and messages on stderr, as text or JSON.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anstyle::{AnsiColor, Style};
use serde_json::Value;

use crate::failure::{Failure, Kind};

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const BOLD: Style = Style::new().bold();

/// The form of the results. The streams leave colours out where the terminal has none, or `NO_COLOR` is set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Prints a result: `json`, or lines of a name and a value.
    pub(crate) fn facts(self, json: &Value, facts: &[(&str, String)]) -> Result<(), Failure> {
        if self.json {
            return line(&json.to_string());
        }
        let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        let mut out = anstream::stdout().lock();
        let mut written = Ok(());
        for (name, value) in facts {
            written = written.and_then(|()| writeln!(out, "{BOLD}{name:width$}{BOLD:#}  {}", printable(value)));
        }
        end(written)
    }

    /// Prints a result that is one sentence.
    pub(crate) fn sentence(self, json: &Value, sentence: &str) -> Result<(), Failure> {
        line(if self.json { json.to_string() } else { printable(sentence) }.as_str())
    }

    pub(crate) fn failure(self, failure: &Failure) {
        let mut err = anstream::stderr().lock();
        let _ = if self.json {
            writeln!(err, "{}", failure.to_json())
        } else {
            writeln!(err, "{RED}app:{RED:#} {}", printable(&failure.line()))
                .and_then(|()| failure.hint().map_or(Ok(()), |hint| writeln!(err, "     {}", printable(hint))))
        };
    }
}

/// Prints a line on stdout, as it is.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    end(writeln!(io::stdout().lock(), "{text}"))
}

/// Prints bytes on stdout, as they are.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    end(out.write_all(bytes).and_then(|()| out.flush()))
}

/// Tells the user something that is no result, on stderr.
pub(crate) fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{}", printable(text));
}

pub(crate) fn warning(text: &str) {
    let _ = writeln!(anstream::stderr(), "{YELLOW}warning:{YELLOW:#} {}", printable(text));
}

/// Replaces control characters: a server's text must not steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

/// Returns the distance of a time from now, such as `in 4 min 10 s`.
pub(crate) fn relative(at: SystemTime) -> String {
    match at.duration_since(SystemTime::now()) {
        Ok(left) => format!("in {}", span(left)),
        Err(passed) => format!("{} ago", span(passed.duration())),
    }
}

pub(crate) fn unix_seconds(at: SystemTime) -> Option<u64> {
    Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes, seconds) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {seconds} s"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn end(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        // The reader has had enough, as with `app call GET /notes | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(Kind::Other, "stdout can't be written").with_source(error)),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_its_two_largest_units() {
        for (seconds, text) in [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3_600, "1 h 0 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn the_text_of_a_server_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\u{9b}c"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c");
    }
}
