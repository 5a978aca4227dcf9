//! `app status`: the session as it is stored. It renews nothing.

use serde_json::json;
use tower_auth_refresh::Session;

use crate::app::App;
use crate::claims::Claims;
use crate::failure::{Failure, Kind};
use crate::output::{relative, unix_seconds};

pub(super) async fn run(app: &App) -> Result<(), Failure> {
    if app.override_token()?.is_some() {
        let sentence = "The access token of APP_TOKEN is used; the session of the profile is not.";
        return app.output.sentence(&json!({"override": "APP_TOKEN"}), sentence);
    }
    let profile = app.profile()?;
    let session = match app.stored_session(&profile).await {
        Ok(session) => Some(session),
        Err(failure) if failure.kind == Kind::SignInRequired => None,
        Err(failure) => return Err(failure),
    };
    let tokens = session.as_ref().map(Session::tokens).unwrap_or_default();
    let user = Claims::of(&tokens).map(|claims| claims.name());
    let expires_at = tokens.expires_at();
    let renewable = tokens.refresh_token().is_some();
    let server = profile.issuer.as_ref().unwrap_or(&profile.token_endpoint);
    let directory = app.paths.sessions(app.name.as_str());
    let key = if profile.keychain { Some(app.key_name()) } else { None };

    let access = match (session.is_some(), expires_at) {
        (false, _) => "none".to_owned(),
        (true, None) if tokens.access_token().is_none() => "none yet".to_owned(),
        (true, None) => "no expiry known".to_owned(),
        (true, Some(at)) if at <= std::time::SystemTime::now() => format!("expired {}", relative(at)),
        (true, Some(at)) => format!("expires {}", relative(at)),
    };
    let renewal = match (session.is_some(), renewable) {
        (false, _) => "",
        (true, true) => "; renewed when it is needed",
        (true, false) => "; can't be renewed",
    };
    let place = match &key {
        Some(key) => format!("{}, encrypted with the key {key:?} of the system's keychain", directory.display()),
        None => format!("{}, not encrypted; only you may read it", directory.display()),
    };
    let json = json!({
        "profile": app.name.as_str(),
        "server": server,
        "client_id": profile.client_id,
        "signed_in": session.is_some(),
        "user": user,
        "access_token": {"expires_at": expires_at.and_then(unix_seconds), "renewable": renewable},
        "apis": profile.apis,
        "store": {"directory": directory, "keychain": key},
    });
    let signed_in = match (session.is_some(), user) {
        (false, _) => format!("no; sign in: {}", app.login_command()),
        (true, Some(user)) => format!("yes, as {user}"),
        (true, None) => "yes".to_owned(),
    };
    app.output.facts(
        &json,
        &[
            ("profile", app.name.as_str().to_owned()),
            ("server", format!("{server}, as the client {}", profile.client_id)),
            ("signed in", signed_in),
            ("access token", format!("{access}{renewal}")),
            ("sent to", if profile.apis.is_empty() { "no API yet".to_owned() } else { profile.apis.join(", ") }),
            ("kept in", place),
        ],
    )?;
    match session {
        Some(_) => Ok(()),
        None => Err(Failure::new(Kind::SignInRequired, "no user is signed in")),
    }
}
