//! Opens the system's browser.

use std::env;
use std::process::{Command, Stdio};

/// Starts the browser. If it doesn't start, the user opens the address that was printed.
pub(crate) fn open(url: &str) {
    let Some(mut browser) = command(url) else { return };
    // Ctrl-C in the terminal is for this program, not for the browser.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut browser, 0);
    // Its messages would mix with ours.
    let _ = browser.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
}

/// `BROWSER` is a program, as `xdg-open`, `git` and Python take it; other platforms ignore it.
fn command(url: &str) -> Option<Command> {
    if let Some(program) = env::var_os("BROWSER").filter(|program| !program.is_empty()) {
        let mut command = Command::new(program);
        command.arg(url);
        return Some(command);
    }
    let (program, arguments): (_, &[&str]) = match env::consts::OS {
        "macos" => ("open", &[]),
        // Not `start`, which would take `&` for the end of a command.
        "windows" => ("rundll32", &["url.dll,FileProtocolHandler"]),
        "linux" | "freebsd" | "openbsd" | "netbsd" => ("xdg-open", &[]),
        _ => return None,
    };
    let mut command = Command::new(program);
    command.args(arguments).arg(url);
    Some(command)
}
