//! The sign-in itself: with the browser on this machine, or with a code on another device.

use std::env;

use tower_auth_refresh::Tokens;
use tower_auth_refresh_http::{AuthorizationServer, BrowserSignIn, DeviceSignIn, SignInError, SignInErrorKind};

use crate::app::auth_client;
use crate::args;
use crate::browser;
use crate::failure::{Failure, Kind};
use crate::output::note;
use crate::profile::Profile;
use crate::progress::Progress;

const SCOPE: &str = "openid profile email offline_access";

/// Signs a user in, by the means that the machine has.
pub(crate) async fn sign_in(
    login: &args::Login,
    profile: &Profile,
    server: &AuthorizationServer,
) -> Result<Tokens, Failure> {
    let is_possible = server.device_authorization_endpoint().is_some();
    if login.device || (is_possible && !has_display()) {
        with_device(profile, server).await
    } else {
        with_browser(login, profile, server).await
    }
}

async fn with_browser(login: &args::Login, profile: &Profile, server: &AuthorizationServer) -> Result<Tokens, Failure> {
    let sign_in = BrowserSignIn::new(auth_client(profile)?, server, profile.client_auth()?).map_err(failure)?;
    let mut sign_in = sign_in.scope(profile.scope.as_deref().unwrap_or(SCOPE)).timeout(login.timeout);
    if let Some(uri) = &profile.redirect_uri {
        sign_in = sign_in.redirect_uri(uri).map_err(failure)?;
    }
    for (name, value) in &profile.params {
        sign_in = sign_in.param(name, value);
    }
    let pending = sign_in.begin().await.map_err(failure)?;
    note("Sign in with your browser. If it doesn't open, open this address on this machine:");
    note("");
    note(&format!("  {}", pending.url()));
    note("");
    browser::open(pending.url());
    let _progress = Progress::start("waiting for the browser; Ctrl-C to give up");
    Ok(pending.finish().await.map_err(failure)?.tokens)
}

async fn with_device(profile: &Profile, server: &AuthorizationServer) -> Result<Tokens, Failure> {
    let sign_in = DeviceSignIn::new(auth_client(profile)?, server, profile.client_auth()?).map_err(failure)?;
    let mut sign_in = sign_in.scope(profile.scope.as_deref().unwrap_or(SCOPE));
    for (name, value) in &profile.params {
        sign_in = sign_in.param(name, value);
    }
    let pending = {
        let _progress = Progress::start("asking for a code");
        sign_in.begin().await.map_err(failure)?
    };
    note(&format!("On any device, open  {}", pending.verification_uri()));
    note(&format!("and enter the code   {}", pending.user_code()));
    if let Some(uri) = pending.verification_uri_complete() {
        note(&format!("or open at once      {uri}"));
    }
    let _progress = Progress::start("waiting for your approval; Ctrl-C to give up");
    Ok(pending.finish().await.map_err(failure)?.tokens)
}

/// Returns `true` if a browser on this machine can be seen by the user.
fn has_display() -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_set("BROWSER") {
        return true;
    }
    let has_windows = cfg!(any(windows, target_os = "macos")) || is_set("DISPLAY") || is_set("WAYLAND_DISPLAY");
    has_windows && !is_set("SSH_CONNECTION")
}

fn failure(error: SignInError) -> Failure {
    let kind = match error.kind() {
        SignInErrorKind::Misconfigured | SignInErrorKind::PortTaken | SignInErrorKind::NoListener => Kind::Other,
        SignInErrorKind::Server => match error.server_error() {
            Some(error) if error.is_unavailable() || error.is_in_doubt() => Kind::Unavailable,
            Some(error) if error.is_rejected() => Kind::NotSignedIn,
            _ => Kind::Other,
        },
        _ => Kind::NotSignedIn,
    };
    let hint = match error.kind() {
        SignInErrorKind::PortTaken => Some("close the other program, or use another port with --redirect-uri"),
        SignInErrorKind::TimedOut => Some("run the command again, and complete the sign-in in time"),
        SignInErrorKind::WrongIssuer => Some("another server has answered: don't enter your password there again"),
        _ => None,
    };
    let failure = Failure::new(kind, "the sign-in failed").with_source(error);
    match hint {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    }
}
