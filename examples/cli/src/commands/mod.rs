//! The commands, one file each.

mod call;
mod completions;
mod login;
mod logout;
mod status;
mod token;
mod whoami;

use std::sync::Arc;

use crate::app::App;
use crate::args::Command;
use crate::demo;
use crate::failure::Failure;

pub(crate) async fn run(app: Arc<App>, command: Option<Command>) -> Result<(), Failure> {
    let app = &*app;
    match command {
        None => demo::run().await,
        Some(Command::Login(login)) => login::run(app, *login).await,
        Some(Command::Whoami) => whoami::run(app).await,
        Some(Command::Token(token)) => token::run(app, &token).await,
        Some(Command::Call(call)) => call::run(app, call).await,
        Some(Command::Logout) => logout::run(app).await,
        Some(Command::Status) => status::run(app).await,
        Some(Command::Completions { shell }) => completions::run(shell),
    }
}
