//! `app token`: prints an access token that is worth sending.

use std::time::SystemTime;

use serde_json::json;
use tower_auth_refresh::Tokens;

use crate::app::App;
use crate::args;
use crate::failure::{Failure, Kind};
use crate::output;
use crate::progress::Progress;

pub(super) async fn run(app: &App, arguments: &args::Token) -> Result<(), Failure> {
    if let Some(token) = app.override_token()? {
        return print(app, &Tokens::from_access_token(token));
    }
    let session = app.stored_session(&app.profile()?).await?;
    let end = SystemTime::now().checked_add(arguments.valid_for);
    let tokens = session.tokens();
    if tokens.access_token().is_some() && tokens.expires_at().is_none_or(|at| end.is_some_and(|end| at > end)) {
        return print(app, &tokens);
    }
    let renewed = {
        let _progress = Progress::start("renewing the access token");
        session.refresh().await
    };
    print(app, &renewed.map_err(|why| Failure::no_token(why, &app.login_command()))?)
}

fn print(app: &App, tokens: &Tokens) -> Result<(), Failure> {
    let token = tokens.access_token().ok_or_else(|| Failure::new(Kind::Other, "the session has no access token"))?;
    let expires_at = tokens.expires_at().and_then(output::unix_seconds);
    app.output
        .sentence(&json!({"access_token": token.expose_secret(), "expires_at": expires_at}), token.expose_secret())
}
