//! [`Progress`]: shows on stderr that the program waits, and for what.

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// A wait that is shorter is not shown.
pub(crate) const UNNOTICED: Duration = Duration::from_millis(400);

const FRAMES: [&str; 4] = ["|", "/", "-", "\\"];
const CYAN: Style = AnsiColor::Cyan.on_default();

/// A message on stderr for as long as this lives. In a terminal it moves, and disappears at the end; elsewhere it is one
/// line.
pub(crate) struct Progress {
    task: JoinHandle<()>,
    in_terminal: bool,
}

impl Progress {
    pub(crate) fn start(message: impl Into<String>) -> Self {
        let (message, in_terminal) = (message.into(), stderr().is_terminal());
        let task = tokio::spawn(async move {
            sleep(UNNOTICED).await;
            if in_terminal {
                draw(&message).await;
            } else {
                let _ = writeln!(stderr(), "{message} …");
            }
        });
        Self { task, in_terminal }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.task.abort();
        if self.in_terminal {
            clear();
        }
    }
}

async fn draw(message: &str) {
    let begun = Instant::now();
    for frame in FRAMES.iter().cycle() {
        let waited = begun.elapsed().as_secs();
        let _ = write!(anstream::stderr(), "\r{CYAN}{frame}{CYAN:#} {message} {waited} s ");
        let _ = anstream::stderr().flush();
        sleep(Duration::from_millis(120)).await;
    }
}

/// Clears the line of a terminal, one without escape sequences too.
fn clear() {
    let width = 100;
    let _ = write!(stderr(), "\r{:width$}\r", "");
    let _ = stderr().flush();
}
