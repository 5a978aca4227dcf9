//! A command-line app that signs its users in and keeps them signed in, in however many shells.
//!
//! ```sh
//! cargo run -p cli -- login --issuer https://auth.example.com --client-id my-app --api https://api.example.com
//! cargo run -p cli -- call GET /me
//! ```
//!
//! Without arguments, runs a demonstration against built-in servers.

mod api;
mod app;
mod args;
mod browser;
mod claims;
mod commands;
mod demo;
mod failure;
mod output;
mod paths;
mod profile;
mod progress;
mod sign_in;
mod signals;

use std::panic::resume_unwind;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use crate::app::App;
use crate::args::Cli;
use crate::failure::{Failure, Kind};
use crate::output::Output;
use crate::progress::Progress;
use crate::signals::Signals;

fn main() -> ExitCode {
    // Exits with 2 if the command line is invalid.
    let cli = Cli::parse();
    let output = Output { json: cli.global.json };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(output, Err(Failure::other("the async runtime", error))),
    };
    let outcome = runtime.block_on(run(cli));
    // A read of stdin, or a call of the keychain, may never end.
    runtime.shutdown_timeout(Duration::ZERO);
    end(output, outcome)
}

/// Runs the command until it ends, or a signal comes.
async fn run(cli: Cli) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::other("the signals", error))?;
    let app = Arc::new(App::new(cli.global)?);
    // A task of its own: a read or a write that blocks doesn't hold up the signals.
    let command = tokio::spawn(commands::run(Arc::clone(&app), cli.command));
    let abort = command.abort_handle();
    let outcome = tokio::select! {
        outcome = command => outcome.unwrap_or_else(|panic| resume_unwind(panic.into_panic())),
        signal = signals.next() => {
            abort.abort();
            Err(Failure::new(Kind::Interrupted(signal), "interrupted"))
        }
    };
    let again = signals.again();
    let _progress = Progress::start("saving the session; Ctrl-C again to exit at once");
    tokio::select! {
        () = app.settle() => outcome,
        signal = again => {
            Err(Failure::new(Kind::Interrupted(signal), "interrupted before the session was saved"))
        }
    }
}

fn end(output: Output, outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            failure.exit_code()
        }
    }
}
