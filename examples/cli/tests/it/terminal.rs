//! The app in a terminal, by tmux: what a user sees.

use std::cell::Cell;
use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use tower_auth_refresh_testkit::TestServer;

use crate::support::{Home, PATIENCE, arrived, home_with_expired_token};

/// A terminal with a shell, until it is dropped.
struct Terminal<'a> {
    home: &'a Home,
    /// The number of commands so far: the screen of one isn't taken for that of another.
    commands: Cell<u32>,
}

impl<'a> Terminal<'a> {
    /// Opens a terminal in this home; `None` if tmux isn't installed.
    fn open(home: &'a Home, variables: &[(&str, &str)]) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            assert!(env::var("CI").is_err(), "tmux isn't installed");
            eprintln!("skipped: tmux isn't installed");
            return None;
        }
        let terminal = Self { home, commands: Cell::new(0) };
        let mut shell = terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "40"]);
        shell.args(["env", "-i", "PS1=$ ", "TERM=screen-256color"]).arg(format!("PATH={}", env::var("PATH").unwrap()));
        home.set_environment(|name, value| {
            shell.arg(format!("{name}={}", value.display()));
        });
        shell.args(variables.iter().map(|(name, value)| format!("{name}={value}"))).args(["sh", "-i"]);
        assert!(shell.status().unwrap().success());
        terminal.until(|screen| screen.starts_with('$'));
        let program = env!("CARGO_BIN_EXE_app");
        terminal.enter(&format!("alias app={program}; clear"));
        terminal.until(|screen| screen == "$");
        Some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Command {
        let mut tmux = Command::new("tmux");
        // The socket is in the home.
        tmux.env("TMUX_TMPDIR", self.home.path()).env_remove("TMUX").args(["-L", "app"]).args(arguments);
        tmux
    }

    fn enter(&self, line: &str) {
        assert!(self.tmux(&["send-keys", "-l", line]).status().unwrap().success());
        self.press("Enter");
    }

    fn press(&self, key: &str) {
        assert!(self.tmux(&["send-keys", key]).status().unwrap().success());
    }

    /// Returns the text on the screen, without spaces at the ends of lines.
    fn screen(&self) -> String {
        self.capture(&[])
    }

    /// Returns the screen with its escape sequences.
    fn colours(&self) -> String {
        self.capture(&["-e"])
    }

    fn capture(&self, options: &[&str]) -> String {
        let output = self.tmux(&["capture-pane", "-p"]).args(options).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }

    /// Waits until the screen is so.
    #[track_caller]
    fn until(&self, is_so: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let screen = self.screen();
            if is_so(&screen) {
                return screen;
            }
            assert!(begun.elapsed() < PATIENCE, "{screen}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Runs a command, and returns the screen after it, with the exit code in the end.
    fn run(&self, line: &str) -> String {
        let number = self.commands.get() + 1;
        self.commands.set(number);
        self.enter(&format!("clear; {line}; echo \"[$?] {number}\""));
        let end = format!("] {number}\n$");
        self.until(|screen| screen.ends_with(&end)).replace(&end, "]")
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_is_shown_and_leaves_nothing_behind() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    let Some(terminal) = Terminal::open(&home, &[]) else { return };
    server.expire_access_tokens();
    let gate = server.hold_refreshes();
    terminal.enter("clear; app call GET /api/notes; echo \"[$?]\"");
    arrived(&gate).await;
    let waiting = terminal.until(|screen| screen.contains("waiting for the API"));
    let line = waiting.lines().last().unwrap();
    assert!("|/-\\".contains(line.chars().next().unwrap()) && line.ends_with(" s"), "{waiting}");
    // It moves.
    terminal.until(|screen| screen.contains("waiting for the API") && screen != waiting);
    assert!(terminal.colours().contains("\x1b[36m"), "{:?}", terminal.colours());
    gate.open();
    let ended = terminal.until(|screen| screen.ends_with("]\n$"));
    let body = r#"{"body_length":0,"generation":3,"method":"GET","path":"/api/notes","query":null,"user":"ada"}"#;
    assert_eq!(ended, format!("{body}\n[0]\n$"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_in_one_terminal_costs_the_other_nothing() {
    let server = TestServer::start().await.unwrap();
    let home = home_with_expired_token(&server).await;
    let Some(terminal) = Terminal::open(&home, &[]) else { return };
    let gate = server.hold_refreshes();
    terminal.enter("clear; app token; echo \"[$?]\"");
    arrived(&gate).await;
    // Another shell waits for the same refresh.
    let other = home.start(&["token"]);
    terminal.press("C-c");
    terminal.until(|screen| screen.contains("saving the session; Ctrl-C again to exit at once"));
    gate.open();
    // A shell may stop at the signal, so that there is no `echo`.
    let ended = terminal.until(|screen| screen.ends_with("\n$"));
    assert!(ended.contains("app: interrupted") && !ended.contains("saving"), "{ended}");
    crate::support::Ended::of(other).await.expect_success();
    assert_eq!(server.counters().refreshes, 2);
    assert_eq!(server.violations(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_screen_of_a_session_has_colours_and_no_secret() {
    let server = TestServer::start().await.unwrap();
    let home = Home::signed_in(&server).await;
    let token = home.run(&["token"]).await.expect_success().to_owned();
    let Some(terminal) = Terminal::open(&home, &[("APP_PROFILE", "default")]) else { return };
    let origin = server.origin();

    let status = terminal.run("app status");
    let directory = home.sessions();
    let facts = [
        "profile       default".to_owned(),
        format!("server        {origin}, as the client app"),
        "signed in     yes".to_owned(),
        "access token  expires in".to_owned(),
        format!("sent to       {origin}"),
        format!("kept in       {}, not encrypted", directory.display()),
        "[0]".to_owned(),
    ];
    assert!(facts.iter().all(|fact| status.contains(fact)), "{status}");
    assert!(terminal.colours().contains("\x1b[1mprofile"), "{:?}", terminal.colours());

    let screens = [
        status,
        terminal.run("app call GET /api/notes --include"),
        terminal.run("app call GET /api/headers --json"),
        terminal.run("app call GET http://example.com/"),
        terminal.run("app whoami"),
        terminal.run("app logout"),
        terminal.run("app token"),
    ];
    let last = &screens[6];
    assert_eq!(last, "app: no user is signed in\n     sign in: app login\n[3]");
    assert!(terminal.colours().starts_with("\x1b[1m\x1b[31mapp:"), "{:?}", terminal.colours());
    assert!(screens.iter().all(|screen| !screen.contains(&token)), "{screens:?}");
    for refresh in [server.sign_in("ada").refresh_token, token] {
        // All tokens of the testkit begin in the same way.
        let beginning = refresh.split('_').next().unwrap();
        assert!(screens.iter().all(|screen| !screen.contains(&format!("{beginning}_"))), "{beginning}: {screens:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_color_is_obeyed() {
    let home = Home::new();
    let Some(terminal) = Terminal::open(&home, &[("NO_COLOR", "1")]) else { return };
    assert!(terminal.run("app token").starts_with("app: there is no profile"));
    assert!(!terminal.colours().contains('\x1b'), "{:?}", terminal.colours());
}
