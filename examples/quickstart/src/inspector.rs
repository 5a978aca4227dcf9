//! Prints the requests that the servers received, like the network tab of a browser.

use std::io::{IsTerminal, stdout};

use tower_auth_refresh_testkit::{Entry, Route};

pub(crate) struct Inspector {
    enabled: bool,
    coloured: bool,
}

impl Inspector {
    pub(crate) fn new(enabled: bool) -> Self {
        Self { enabled, coloured: stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// Prints the headline of a scene.
    pub(crate) fn headline(&self, text: &str) {
        if self.enabled {
            println!("\n{}", self.painted("1", text));
        }
    }

    /// Prints an observation of the app.
    pub(crate) fn note(&self, text: &str) {
        if self.enabled {
            println!("{}", self.painted("2", &format!("          {text}")));
        }
    }

    /// Prints the requests of a scene, in order of arrival.
    pub(crate) fn requests(&self, entries: &[Entry]) {
        if !self.enabled {
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
