//! [`App`]: what a command works with — the profile, its session, and the HTTP clients.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tower::BoxError;
use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, Session, SessionRegistry, Tokens};
use tower_auth_refresh_http::{AuthClient, OAuthRefresh, OAuthRevoke};
use tower_auth_refresh_reqwest::{ReqwestService, reqwest};
use tower_auth_refresh_store::{FileStore, KeychainKey, StoreError};

use crate::args::Global;
use crate::failure::{Failure, Kind};
use crate::output::Output;
use crate::paths::Paths;
use crate::profile::{Name, Profile};

/// The time within which a refresh ends, with all its attempts. A command, and Ctrl-C, wait no longer for it.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(30);

/// The time to save the tokens after that.
const SAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The time for the user to unlock the keychain.
const KEYCHAIN_TIMEOUT: Duration = Duration::from_secs(60);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The time-out of a call to the authorization server.
const AUTH_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) struct App {
    pub(crate) paths: Paths,
    pub(crate) name: Name,
    pub(crate) output: Output,
    /// The access token of `APP_TOKEN`.
    override_token: Option<String>,
    /// The sessions, once they are opened: only that of the profile is ever used.
    sessions: OnceLock<SessionRegistry<String>>,
    settle_within: Mutex<Duration>,
}

impl App {
    pub(crate) fn new(global: Global) -> Result<Self, Failure> {
        Ok(Self {
            paths: Paths::of_user()?,
            name: global.profile,
            output: Output { json: global.json },
            override_token: std::env::var("APP_TOKEN").ok().filter(|token| !token.is_empty()),
            sessions: OnceLock::new(),
            settle_within: Mutex::new(REFRESH_TIMEOUT + SAVE_TIMEOUT),
        })
    }

    /// The command that signs in to this profile.
    pub(crate) fn login_command(&self) -> String {
        match self.name.as_str() {
            "default" => "app login".to_owned(),
            name => format!("app login --profile {name}"),
        }
    }

    /// Returns the token of `APP_TOKEN`, which takes the place of the session's.
    pub(crate) fn override_token(&self) -> Result<Option<AccessToken>, Failure> {
        let parse = |token: &String| AccessToken::new(token.as_str());
        let parsed = self.override_token.as_ref().map(parse).transpose();
        parsed.map_err(|error| Failure::other("APP_TOKEN", error))
    }

    /// Returns the profile.
    pub(crate) fn profile(&self) -> Result<Profile, Failure> {
        Profile::load(&self.paths, &self.name)?.ok_or_else(|| self.no_profile())
    }

    pub(crate) fn no_profile(&self) -> Failure {
        let failure = Failure::new(Kind::SignInRequired, format!("there is no profile {:?}", self.name.as_str()));
        failure.with_hint(format!("sign in: {} --issuer URL --client-id ID", self.login_command()))
    }

    /// Returns the session to make calls with: that of the profile, or that of the token of `APP_TOKEN`.
    pub(crate) async fn session(&self, profile: &Profile) -> Result<Session, Failure> {
        match self.override_token()? {
            Some(token) => self.session_of(token).await,
            None => self.stored_session(profile).await,
        }
    }

    /// Returns the session of a user who is signed in.
    pub(crate) async fn stored_session(&self, profile: &Profile) -> Result<Session, Failure> {
        let sessions = self.sessions(profile).await?;
        let found = sessions.get(&self.session_key(profile)).await.map_err(|error| self.unreadable(error))?;
        found.ok_or_else(|| {
            let failure = Failure::new(Kind::SignInRequired, "no user is signed in");
            failure.with_hint(format!("sign in: {}", self.login_command()))
        })
    }

    /// Returns a session of the token of `APP_TOKEN`, which nothing renews.
    pub(crate) async fn session_of(&self, token: AccessToken) -> Result<Session, Failure> {
        let no_refresh = tower::service_fn(|_: RefreshRequest| async {
            Err::<Tokens, _>(RefreshError::misconfigured("the token of APP_TOKEN can't be renewed"))
        });
        let session = Session::builder(no_refresh).tokens(Tokens::from_access_token(token)).build().await;
        session.map_err(|error| Failure::other("the token of APP_TOKEN", error))
    }

    /// The key of the profile's session in the store.
    ///
    /// Tokens belong to the server and the client that they were issued by and to: if the profile changes, they are not
    /// found, rather than sent elsewhere.
    pub(crate) fn session_key(&self, profile: &Profile) -> String {
        format!("{}\n{}\n{}", self.name.as_str(), profile.token_endpoint, profile.client_id)
    }

    /// Opens the sessions of this profile.
    pub(crate) async fn sessions(&self, profile: &Profile) -> Result<&SessionRegistry<String>, Failure> {
        if let Some(sessions) = self.sessions.get() {
            return Ok(sessions);
        }
        let files = self.open_store(profile.keychain).await.map_err(|error| self.unreadable(error))?;
        self.sessions_in(files, profile)
    }

    /// Returns the sessions of this profile, in a store that is open.
    pub(crate) fn sessions_in(&self, files: FileStore, profile: &Profile) -> Result<&SessionRegistry<String>, Failure> {
        let misconfigured = |error| Failure::other("the profile's endpoints", error);
        let (client, auth) = (auth_client(profile)?, profile.client_auth()?);
        let refresh =
            OAuthRefresh::new(client.clone(), &profile.token_endpoint, auth.clone()).map_err(misconfigured)?;
        let mut session = Session::builder(refresh)
            .rotation(profile.rotation.0)
            // A token that has expired isn't sent; one that hasn't is not renewed in the background, since the command
            // would wait for it at its end.
            .refresh_early(Duration::ZERO)
            .refresh_timeout(REFRESH_TIMEOUT);
        if let Some(endpoint) = &profile.revocation_endpoint {
            session = session.revoke(OAuthRevoke::new(client, endpoint, auth).map_err(misconfigured)?);
        }
        let sessions = SessionRegistry::builder(session)
            .store_factory(move |key: &String| -> Arc<dyn TokenStore> { files.store(key) })
            .build()
            .map_err(|error| Failure::other("the sessions", error))?;
        Ok(self.sessions.get_or_init(|| sessions))
    }

    /// Opens the directory of the tokens, with the key in the keychain or without a key.
    pub(crate) async fn open_store(&self, keychain: bool) -> Result<FileStore, StoreError> {
        let directory = self.paths.sessions(self.name.as_str());
        let key = KeychainKey::new(self.key_name()).timeout(KEYCHAIN_TIMEOUT);
        let open = move || {
            let builder = FileStore::builder(&directory);
            // Tokens from before there was a keychain are encrypted when they are written next.
            if keychain { builder.keys(key.open(&directory)?.accept_unencrypted()) } else { builder }.open()
        };
        // The keychain may ask the user.
        let opened = tokio::task::spawn_blocking(open).await;
        opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// The name of the key in the system's keychain: each profile has its own.
    pub(crate) fn key_name(&self) -> String {
        format!("app/{}", self.name.as_str())
    }

    /// An error of the store, for commands that need the tokens.
    pub(crate) fn unreadable(&self, error: impl Into<BoxError>) -> Failure {
        let failure = Failure::other("the stored session can't be read", error);
        let profile = self.name.as_str();
        failure.with_hint(format!("to forget it and sign in again: app logout --profile {profile}"))
    }

    /// Bounds the wait at the end of the command. Default: the time of a refresh.
    pub(crate) fn settle_within(&self, time: Duration) {
        *self.settle_within.lock().unwrap_or_else(PoisonError::into_inner) = time;
    }

    /// Waits until no refresh is under way and the tokens are saved.
    ///
    /// A refresh token that has been sent is used up: a process that ended before it has saved the successor would sign
    /// the user out, in every shell.
    pub(crate) async fn settle(&self) {
        let time = *self.settle_within.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sessions) = self.sessions.get() {
            let _ = tokio::time::timeout(time, sessions.wait_idle()).await;
        }
    }
}

/// The client of the calls to the authorization server.
///
/// Each call has a connection of its own: a server that closed an idle one at the wrong moment would leave a refresh in
/// doubt.
pub(crate) fn auth_client(profile: &Profile) -> Result<AuthClient, Failure> {
    let http = http(reqwest::Client::builder().pool_max_idle_per_host(0))?;
    let client = http.auth_client().timeout(AUTH_TIMEOUT);
    Ok(if profile.plain_http { client.allow_plain_http() } else { client })
}

/// The HTTP client, with the system's proxies and roots.
pub(crate) fn http(builder: reqwest::ClientBuilder) -> Result<ReqwestService, Failure> {
    let builder = builder.user_agent(concat!("app/", env!("CARGO_PKG_VERSION"))).connect_timeout(CONNECT_TIMEOUT);
    ReqwestService::new(builder).map_err(|error| Failure::other("the HTTP client", error))
}
