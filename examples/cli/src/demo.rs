//! The demonstration: the life of a session, told by the commands themselves, against built-in servers.
//!
//! Every command is a process of this program, with a home of its own in a temporary directory.

use std::fmt::Display;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{env, fs, thread};

use anstyle::{AnsiColor, Style};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tower_auth_refresh_reqwest::reqwest;
use tower_auth_refresh_testkit::{TestKit, TestServer};

use crate::failure::Failure;

const COMMAND: Style = Style::new().bold();
const NARRATION: Style = AnsiColor::Cyan.on_default();
const NOTE: Style = Style::new().dimmed();

pub(crate) async fn run() -> Result<(), Failure> {
    let told = async {
        let home = env::temp_dir().join(format!("app-demo-{}", std::process::id()));
        // Fails if another program has made it.
        fs::create_dir(&home)?;
        let home = Home(home);
        tell(&home.0).await
    };
    told.await.map_err(|error| Failure::other("the demonstration", error))
}

/// The directory of the demonstration, removed at its end and after Ctrl-C.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn tell(home: &Path) -> io::Result<()> {
    let server = TestServer::start().await?;
    let (kit, address, origin) = (server.kit().clone(), server.address(), server.origin());
    let stage = Stage { program: env::current_exe()?, home: home.to_owned(), kit: kit.clone() };

    say(format_args!("An authorization server and an API run on {origin}. To use your own: app --help"))?;
    say("Ada signs in with the browser.")?;
    let login = format!("login --issuer {origin} --client-id demo --scope notes --api {origin} --store file");
    let mut browser = stage.start(&login)?;
    let url = browser.shown("  ").await?;
    reqwest::get(url).await.map_err(io::Error::other)?;
    browser.end().await?;
    stage.run("status").await?;
    stage.run("call GET /api/notes").await?;

    say("The access token expires. The next call renews it, and the user notices nothing.")?;
    kit.expire_access_tokens();
    stage.run("call GET /api/notes").await?;
    stage.count()?;

    say("It expires again, and two shells call at the same moment: they share one refresh.")?;
    kit.expire_access_tokens();
    kit.hold_unauthorized_until(2);
    let (first, second) = (stage.start("call GET /api/first")?, stage.start("call GET /api/second")?);
    first.end().await?;
    second.end().await?;
    stage.count()?;

    say(
        "Ctrl-C in the middle of a refresh: the server has replaced the refresh token already, so the new one is saved.",
    )?;
    kit.expire_access_tokens();
    let gate = kit.hold_refreshes();
    let interrupted = stage.start("call GET /api/notes")?;
    gate.arrived(1).await;
    interrupt(&interrupted.process)?;
    sleep(Duration::from_millis(700)).await;
    gate.open();
    interrupted.end().await?;
    stage.run("call GET /api/notes").await?;
    stage.count()?;

    say("The network is down. That is no sign-out.")?;
    drop(server);
    stage.run("call GET /api/notes").await?;
    let server = kit.serve(address).await?;
    stage.run("call GET /api/notes").await?;

    say("The provider ends the session.")?;
    kit.revoke("ada");
    stage.run("call GET /api/notes").await?;

    say("Ada signs in again, with a code on another device. The settings are in the profile.")?;
    let mut device = stage.start("login --device --store file")?;
    let code = device.shown("and enter the code").await?;
    kit.approve_device(&code, "ada");
    device.end().await?;
    stage.run("logout").await?;
    stage.run("status").await?;

    stage.count()?;
    let reused = kit.counters().violations;
    say(format_args!("Refresh tokens presented twice: {reused}."))?;
    drop(server);
    Ok(())
}

/// The home and the servers that the commands run with.
struct Stage {
    program: PathBuf,
    home: PathBuf,
    kit: TestKit,
}

impl Stage {
    /// Starts a command, after printing it.
    fn start(&self, line: &str) -> io::Result<Shell> {
        writeln!(anstream::stdout(), "{COMMAND}$ app {line}{COMMAND:#}")?;
        // One pipe for both, as in a terminal.
        let (reader, stdout) = io::pipe()?;
        let mut command = Command::new(&self.program);
        command.args(line.split(' ')).stdin(Stdio::null()).stderr(stdout.try_clone()?).stdout(stdout);
        // The demonstration opens the address itself.
        command.env("BROWSER", "true").env_remove("APP_TOKEN").env_remove("APP_PROFILE");
        command.env("XDG_CONFIG_HOME", self.home.join("config")).env("XDG_STATE_HOME", self.home.join("state"));
        let process = command.spawn()?;
        // The pipe ends with the process only if no other writer is left here.
        drop(command);
        let (send, lines) = mpsc::unbounded_channel();
        thread::spawn(move || {
            io::BufReader::new(reader).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
        });
        Ok(Shell { process, lines })
    }

    async fn run(&self, line: &str) -> io::Result<()> {
        self.start(line)?.end().await
    }

    fn count(&self) -> io::Result<()> {
        let refreshes = self.kit.counters().refreshes;
        writeln!(anstream::stdout(), "{NOTE}(refreshes so far: {refreshes}){NOTE:#}")
    }
}

/// A command that runs.
struct Shell {
    process: Child,
    /// What it says.
    lines: mpsc::UnboundedReceiver<String>,
}

impl Shell {
    /// Prints what the command says, up to the line that begins in this way. Returns the rest of that line.
    async fn shown(&mut self, beginning: &str) -> io::Result<String> {
        while let Some(line) = self.lines.recv().await {
            writeln!(anstream::stdout(), "{line}")?;
            if let Some(rest) = line.strip_prefix(beginning) {
                return Ok(rest.trim().to_owned());
            }
        }
        Err(io::Error::other(format!("the command has not said {beginning:?}")))
    }

    /// Waits for the end of the command, and prints the rest of what it says.
    async fn end(mut self) -> io::Result<()> {
        while let Some(line) = self.lines.recv().await {
            writeln!(anstream::stdout(), "{line}")?;
        }
        match self.process.wait().await?.code() {
            Some(0) => Ok(()),
            code => writeln!(anstream::stdout(), "{NOTE}(exit code {}){NOTE:#}", code.unwrap_or_default()),
        }
    }
}

fn say(narration: impl Display) -> io::Result<()> {
    writeln!(anstream::stdout(), "\n{NARRATION}# {narration}{NARRATION:#}")
}

fn interrupt(process: &Child) -> io::Result<()> {
    writeln!(anstream::stdout(), "^C")?;
    let Some(id) = process.id().and_then(|id| id.try_into().ok()) else { return Ok(()) };
    send_interrupt(id)
}

#[cfg(unix)]
fn send_interrupt(process: i32) -> io::Result<()> {
    use rustix::process::{Pid, Signal, kill_process};

    Pid::from_raw(process).map_or(Ok(()), |process| Ok(kill_process(process, Signal::INT)?))
}

#[cfg(not(unix))]
fn send_interrupt(_process: i32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
