//! `app login`: signs in with the browser or another device, and keeps the tokens and the profile.

use std::io::IsTerminal;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tower_auth_refresh::{RefreshToken, Session, Tokens};
use tower_auth_refresh_http::AuthorizationServer;
use tower_auth_refresh_store::{FileStore, StoreError, StoreErrorKind};

use crate::app::{App, auth_client};
use crate::args::{self, StorePlace};
use crate::claims::Claims;
use crate::failure::{Failure, Kind};
use crate::output::warning;
use crate::profile::Profile;
use crate::progress::Progress;
use crate::sign_in::sign_in;

pub(super) async fn run(app: &App, login: args::Login) -> Result<(), Failure> {
    if app.override_token()?.is_some() {
        warning("the session is not used while APP_TOKEN is set");
    }
    let before = Profile::load(&app.paths, &app.name)?;
    let mut profile = settings(&login, before.as_ref())?;
    let server = discover(&mut profile).await?;
    // Before the sign-in: tokens that can't be kept would be lost.
    let files = choose_place(app, login.store, before.as_ref(), &mut profile).await?;
    let sessions = app.sessions_in(files.clone(), &profile)?;
    let tokens = match server {
        _ if login.with_refresh_token => read_refresh_token().await?,
        Some(server) => sign_in(&login, &profile, &server).await?,
        None => return Err(Failure::new(Kind::Usage, "--issuer is missing: the profile has a token endpoint alone")),
    };
    profile.save(&app.paths, &app.name)?;
    if let Some(before) = before.filter(|before| app.session_key(before) != app.session_key(&profile)) {
        forget(&files, &app.session_key(&before)).await;
    }
    let session = sessions.sign_in(app.session_key(&profile), tokens).await.map_err(|error| app.unreadable(error))?;
    if login.with_refresh_token {
        prove(&session).await?;
    }
    let user = Claims::of(&session.tokens()).map(|claims| claims.name());
    let sentence = user.as_ref().map_or_else(|| "Signed in.".to_owned(), |user| format!("Signed in as {user}."));
    app.output.sentence(&json!({"profile": app.name.as_str(), "user": user}), &sentence)
}

/// The settings of the arguments, completed by those of the last sign-in.
fn settings(login: &args::Login, before: Option<&Profile>) -> Result<Profile, Failure> {
    let missing = |what| Failure::new(Kind::Usage, format!("{what} is missing, and no profile has it yet"));
    let (issuer, token_endpoint) = match (&login.issuer, &login.token_endpoint, before) {
        (None, Some(endpoint), _) => (None, endpoint.clone()),
        (None, None, Some(before)) => (before.issuer.clone(), before.token_endpoint.clone()),
        // The token endpoint is discovered.
        (Some(issuer), ..) => (Some(issuer.clone()), String::new()),
        (None, None, None) => return Err(missing("--issuer")),
    };
    // Without an issuer the token endpoint is the server.
    let is_same =
        |before: &&Profile| before.issuer == issuer && (issuer.is_some() || before.token_endpoint == token_endpoint);
    let before = before.filter(is_same);
    let kept = |get: fn(&Profile) -> Option<String>| before.and_then(get);
    let apis = if login.apis.is_empty() { before.map(|before| before.apis.clone()) } else { Some(login.apis.clone()) };
    let params =
        if login.params.is_empty() { before.map(|before| before.params.clone()) } else { Some(login.params.clone()) };
    let client_id = login.client_id.clone().or_else(|| kept(|before| Some(before.client_id.clone())));
    let client_id = client_id.ok_or_else(|| missing("--client-id"))?;
    // A secret is for its own client.
    let client = before.filter(|before| before.client_id == client_id);
    let secret = login.client_secret_env.clone().or_else(|| client?.client_secret_env.clone());
    let profile = Profile {
        issuer,
        token_endpoint,
        client_id,
        client_secret_env: secret,
        client_auth: login.client_auth.or(before.map(|before| before.client_auth)).unwrap_or_default(),
        redirect_uri: login.redirect_uri.clone().or_else(|| kept(|before| before.redirect_uri.clone())),
        params: params.unwrap_or_default(),
        scope: login.scope.clone().or_else(|| kept(|before| before.scope.clone())),
        apis: apis.unwrap_or_default(),
        revocation_endpoint: kept(|before| before.revocation_endpoint.clone()),
        userinfo_endpoint: kept(|before| before.userinfo_endpoint.clone()),
        rotation: login.rotation.or(before.map(|before| before.rotation)).unwrap_or_default(),
        keychain: false,
        plain_http: login.allow_plain_http || before.is_some_and(|before| before.plain_http),
    };
    // An invalid one is reported before the sign-in.
    profile.origins()?;
    Ok(profile)
}

/// Completes the profile by the endpoints of the issuer, so that no other command has to ask for them.
async fn discover(profile: &mut Profile) -> Result<Option<AuthorizationServer>, Failure> {
    let Some(issuer) = &profile.issuer else { return Ok(None) };
    let _progress = Progress::start(format!("asking {issuer} for its endpoints"));
    let server = AuthorizationServer::discover(&auth_client(profile)?, issuer).await.map_err(|error| {
        let kind = if error.is_unavailable() { Kind::Unavailable } else { Kind::Other };
        Failure::new(kind, "discovery of the issuer failed").with_source(error)
    })?;
    server.token_endpoint().clone_into(&mut profile.token_endpoint);
    profile.revocation_endpoint = server.revocation_endpoint().map(str::to_owned);
    profile.userinfo_endpoint = server.member("userinfo_endpoint").and_then(Value::as_str).map(str::to_owned);
    Ok(Some(server))
}

/// Decides whether the tokens are encrypted with a key in the keychain, and tests that they can be kept there.
async fn choose_place(
    app: &App,
    place: StorePlace,
    before: Option<&Profile>,
    profile: &mut Profile,
) -> Result<FileStore, Failure> {
    let failed = |error: StoreError| Failure::other("the tokens can't be kept", error);
    let had_key = before.is_some_and(|before| before.keychain);
    let opened = match app.open_store(place != StorePlace::File).await {
        Err(error) if place == StorePlace::Auto && !had_key && error.kind() == StoreErrorKind::Unavailable => {
            let directory = app.paths.sessions(app.name.as_str());
            warning(&format!("no keychain ({error})"));
            warning(&format!("the tokens are kept unencrypted in {}, which only you may read", directory.display()));
            app.open_store(false).await.map(|files| (files, false))
        }
        Err(error) if place != StorePlace::File => {
            return Err(failed(error).with_hint("to keep the tokens unencrypted: --store file"));
        }
        opened => opened.map(|files| (files, place != StorePlace::File)),
    };
    let (files, keychain) = opened.map_err(failed)?;
    files.check().await.map_err(failed)?;
    // A session that is encrypted with another key, or damaged, isn't replaced unasked.
    files.store(app.session_key(profile)).load().await.map_err(|error| app.unreadable(error))?;
    profile.keychain = keychain;
    Ok(files)
}

/// Forgets the session of another server or client, which the profile had before.
async fn forget(files: &FileStore, key: &str) {
    let store = files.store(key);
    let forgotten = async {
        match store.load().await? {
            Some(record) => store.clear(record.version()).await.map(drop),
            None => Ok(()),
        }
    };
    if let Err(error) = forgotten.await {
        warning(&format!("the tokens of the profile's last server are not removed: {error}"));
    }
}

/// Reads the refresh token of another program, which must not use it any more.
async fn read_refresh_token() -> Result<Tokens, Failure> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::new(
            Kind::Usage,
            "a refresh token is read from a file or a pipe, not typed on the screen",
        ));
    }
    let mut text = String::new();
    tokio::io::stdin().read_to_string(&mut text).await.map_err(|error| Failure::other("stdin", error))?;
    let token = RefreshToken::new(text.trim()).map_err(|error| Failure::other("the refresh token on stdin", error))?;
    Ok(Tokens::from_refresh_token(token))
}

/// Obtains the first access token with an imported refresh token.
async fn prove(session: &Session) -> Result<(), Failure> {
    let _progress = Progress::start("renewing the access token");
    session.refresh().await.map(drop).map_err(|why| {
        let kind = match Kind::of(&why) {
            Kind::SignInRequired => Kind::NotSignedIn,
            kind => kind,
        };
        Failure::new(kind, "the provider gave no access token for the refresh token").with_source(why)
    })
}
