//! `app logout`: revokes the tokens, and forgets them whatever happens.

use std::time::Duration;
use std::{fs, io};

use serde_json::json;
use tower_auth_refresh::SessionRegistryError;
use tower_auth_refresh::session::SessionErrorKind;

use crate::app::App;
use crate::failure::Failure;
use crate::output::warning;
use crate::profile::Profile;
use crate::progress::Progress;

pub(super) async fn run(app: &App) -> Result<(), Failure> {
    let revoked = match Profile::load(&app.paths, &app.name) {
        Ok(None) => return app.output.sentence(&json!({"revoked": null}), "No user is signed in."),
        Ok(Some(profile)) => sign_out(app, &profile).await?,
        Err(failure) => {
            forget(app)?;
            Err(failure.line())
        }
    };
    match revoked {
        Ok(true) => app.output.sentence(&json!({"revoked": true}), "Signed out, and the tokens are revoked."),
        Ok(false) => {
            warning("the provider has no revocation endpoint: the tokens are valid there until they expire");
            app.output.sentence(&json!({"revoked": false}), "Signed out.")
        }
        Err(why) => {
            warning(&format!("the tokens may be valid at the provider until they expire: {why}"));
            app.output.sentence(&json!({"revoked": false}), "Signed out on this machine.")
        }
    }
}

/// Signs the user out. Returns whether the tokens were revoked, or why they could not be.
async fn sign_out(app: &App, profile: &Profile) -> Result<Result<bool, String>, Failure> {
    let _progress = Progress::start("revoking the tokens");
    let sessions = match app.sessions(profile).await {
        Ok(sessions) => sessions,
        // A lost key, or damaged files.
        Err(failure) => return forget(app).map(|()| Err(failure.line())),
    };
    match sessions.sign_out(&app.session_key(profile)).await {
        Ok(()) => Ok(Ok(profile.revocation_endpoint.is_some())),
        Err(SessionRegistryError::Session(error)) if error.kind() == SessionErrorKind::Revoke => {
            // The session repeats the call for 10 minutes, longer than a command takes.
            app.settle_within(Duration::ZERO);
            Ok(Err(Failure::other("not revoked", error).line()))
        }
        Err(error) => {
            app.settle_within(Duration::ZERO);
            forget(app).map(|()| Err(Failure::other("not revoked", error).line()))
        }
    }
}

/// Removes the files of the session.
fn forget(app: &App) -> Result<(), Failure> {
    let directory = app.paths.sessions(app.name.as_str());
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::other(format!("{}: not removed", directory.display()), error))
        }
        _ => Ok(()),
    }
}
