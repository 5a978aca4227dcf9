//! Prints what the servers saw, as the network tab of a browser would.

use std::io::{IsTerminal, stdout};

use tower_auth_refresh_testkit::{Entry, Route};

pub(crate) struct Inspector {
    shown: bool,
    coloured: bool,
}

impl Inspector {
    pub(crate) fn new(shown: bool) -> Self {
        Self { shown, coloured: stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// A headline.
    pub(crate) fn headline(&self, text: &str) {
        if self.shown {
            println!("\n{}", self.painted("1", text));
        }
    }

    /// What the app sees.
    pub(crate) fn note(&self, text: &str) {
        if self.shown {
            println!("{}", self.painted("2", &format!("          {text}")));
        }
    }

    /// The requests of a scene, in the order in which they arrived.
    pub(crate) fn requests(&self, entries: &[Entry]) {
        if !self.shown {
            return;
        }
        for entry in entries {
            let colour = match (&entry.route, entry.status) {
                (Route::Refresh, Some(200)) => "1;36",
                (_, Some(200)) => "32",
                (_, Some(401)) => "33",
                _ => "31",
            };
            let status = entry.status.map_or_else(|| "lost".to_owned(), |status| status.to_string());
            let token = entry.generation.map_or_else(String::new, |generation| format!("token {generation}"));
            let line = format!(
                "{:8.3} s  {:4} {:14} {status:4}  {token:8} {:4} ms  {}",
                entry.at.as_secs_f64(),
                entry.method.as_str(),
                entry.path,
                entry.took.as_millis(),
                entry.note.unwrap_or_default(),
            );
            println!("{}", self.painted(colour, line.trim_end()));
        }
    }

    fn painted(&self, colour: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
