//! A silent refresh over real HTTP: `cargo run -p quickstart`.
//!
//! Starts an authorization server and an API on loopback, signs in, lets the access token expire, and calls the API
//! five times concurrently through a hyper client with the middleware. Prints the requests that the servers received,
//! like a network inspector; with `--json`, prints figures instead. With `--replicas`, shows two processes that keep the
//! tokens of one user in a directory.

mod auth;
mod inspector;
mod replica;
mod replicas;
mod scenes;

use std::process::ExitCode;

use serde::Serialize;
use tower::BoxError;

use crate::inspector::Inspector;

const HELP: &str = "\
A silent refresh over real HTTP.

Usage: cargo run -p quickstart [-- [--replicas] [--json]]

  --replicas  show two processes that share the tokens of one user, and survive kill -9
  --json      print only the figures, as one JSON object
  --help      print this help

Output to a terminal is coloured unless NO_COLOR is set.";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => one_process(false).await,
        ["--json"] => one_process(true).await,
        ["--replicas"] => two_processes(false).await,
        ["--replicas", "--json"] => two_processes(true).await,
        [replica::ARGUMENT, directory, origin] => replica::serve(directory, origin).await,
        ["--help" | "-h"] => {
            println!("{HELP}");
            Ok(())
        }
        _ => {
            eprintln!("quickstart: unknown arguments: {} (try --help)", arguments.join(" "));
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn one_process(json: bool) -> Result<(), BoxError> {
    print(json, &scenes::run(&Inspector::new(!json)).await?)
}

async fn two_processes(json: bool) -> Result<(), BoxError> {
    print(json, &replicas::run(&Inspector::new(!json)).await?)
}

fn print(json: bool, figures: &impl Serialize) -> Result<(), BoxError> {
    if json {
        println!("{}", serde_json::to_string(figures)?);
    }
    Ok(())
}
