//! A silent refresh over real HTTP: `cargo run -p quickstart`.
//!
//! Starts an authorization server and an API on loopback, signs in, lets the access token expire, and calls the API
//! five times concurrently through a hyper client with the middleware. Prints the requests that the servers received,
//! like a network inspector; with `--json`, prints figures instead.

mod auth;
mod inspector;
mod scenes;

use std::process::ExitCode;

use tower::BoxError;

const HELP: &str = "\
A silent refresh over real HTTP.

Usage: cargo run -p quickstart [-- --json]

  --json   print only the figures, as one JSON object
  --help   print this help

Output to a terminal is coloured unless NO_COLOR is set.";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--json"] => true,
        ["--help" | "-h"] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("quickstart: unknown arguments: {} (try --help)", arguments.join(" "));
            return ExitCode::from(2);
        }
    };
    match run(json).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(json: bool) -> Result<(), BoxError> {
    let figures = scenes::run(&inspector::Inspector::new(!json)).await?;
    if json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    Ok(())
}
