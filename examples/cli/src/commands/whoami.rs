//! `app whoami`: the user, by the ID token of the sign-in or by the userinfo endpoint.

use serde_json::{Map, Value};
use tower_auth_refresh::Session;

use crate::api;
use crate::app::App;
use crate::claims::Claims;
use crate::failure::{Failure, Kind};
use crate::profile::Profile;

pub(super) async fn run(app: &App) -> Result<(), Failure> {
    let profile = app.profile()?;
    let session = app.session(&profile).await?;
    let claims = match Claims::of(&session.tokens()) {
        Some(claims) => claims,
        None => userinfo(app, &profile, session).await?,
    };
    let sentence = claims.name();
    app.output.sentence(&Value::Object(claims.0), &sentence)
}

async fn userinfo(app: &App, profile: &Profile, session: Session) -> Result<Claims, Failure> {
    let Some(endpoint) = &profile.userinfo_endpoint else {
        let reason = "the provider has given no ID token, and has no userinfo endpoint";
        return Err(Failure::new(Kind::Other, reason));
    };
    let url = api::url(endpoint)?;
    let client = api::client(session, vec![api::origin(&url, profile.plain_http)?])?;
    let response = api::send(app, client.get(url)).await?;
    let claims: Map<String, Value> = response.json().await.map_err(|error| api::unavailable(error.without_url()))?;
    Ok(Claims(claims))
}
