//! The command line ([`Args`]) and what it comes to ([`Settings`]): each setting is checked once, before anything starts.

mod args;
mod units;

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use http::Uri;
use tower_auth_refresh::Origin;

pub use self::args::{Args, LogFormat};

/// What a gateway is told: checked, and complete.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// What browsers call this gateway.
    pub public: PublicOrigin,
    /// The API.
    pub upstream: Upstream,
    /// The authorization server.
    pub auth: AuthServer,
    /// How many users may be signed in. Default: 100,000.
    pub max_sessions: usize,
    /// How long a session may go unused. Default: 12 h.
    pub idle: Duration,
    /// How many refreshes may be under way at the same time. Default: 256.
    pub refreshes_in_flight: usize,
    /// How long before its expiry a token is refreshed. Default: `None`, when the API refuses it.
    pub refresh_early: Option<Duration>,
    /// How long a refresh may take. Default: 15 s.
    pub refresh_timeout: Duration,
    /// The longest request body, in bytes. Default: 64 MiB.
    pub body_limit: u64,
    /// How long the upstream may be silent. Default: 30 s.
    pub upstream_timeout: Duration,
    /// How long a client may be silent in mid-request, or take nothing of its answer. Default: 30 s.
    pub client_timeout: Duration,
    /// How long a shutdown waits for requests and refreshes that are under way. Default: 30 s.
    pub shutdown_timeout: Duration,
    /// Whether `http://` is allowed off loopback. Default: no.
    pub allow_plain_http: bool,
}

/// What browsers call a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicOrigin {
    /// By this origin.
    Named(Origin),
    /// By any name of this machine's own, over plain HTTP: for development.
    Loopback,
}

/// Where the API is.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Who may be shown the tokens.
    pub(crate) origin: Origin,
    pub(crate) uri: Uri,
}

/// How users sign in, and their tokens are refreshed.
#[derive(Clone)]
#[non_exhaustive]
pub enum AuthServer {
    /// `/auth/login`, `/auth/refresh` and `/auth/logout` below this URL.
    Json(String),
    /// OAuth 2.0.
    OAuth {
        /// RFC 6749 §3.2.
        token_endpoint: String,
        /// RFC 7009.
        revocation_endpoint: Option<String>,
        /// Who the gateway is.
        client_id: String,
        /// How it proves it.
        client_secret: Option<String>,
    },
}

/// A setting is wrong. The message is one line, and names it.
#[derive(Debug)]
pub struct InvalidSetting(String);

impl Args {
    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`], also where neither an upstream nor an authorization server is set: fill them in first for
    /// a demo.
    pub fn into_settings(self) -> Result<Settings, InvalidSetting> {
        let missing = |flag: &str| InvalidSetting(format!("{flag} is missing"));
        let upstream = self.upstream.ok_or_else(|| missing("--upstream (or --demo)"))?;
        let auth = match (self.auth, self.token_endpoint, self.client_id) {
            (Some(base), ..) => AuthServer::Json(base),
            (None, Some(token_endpoint), Some(client_id)) => AuthServer::OAuth {
                token_endpoint,
                revocation_endpoint: self.revocation_endpoint,
                client_id,
                client_secret: self.client_secret,
            },
            _ => return Err(missing("--auth (or --token-endpoint, or --demo)")),
        };
        if self.max_sessions == 0 {
            return Err(InvalidSetting::of("--max-sessions", "nobody could sign in"));
        }
        if self.refreshes_in_flight == 0 {
            return Err(InvalidSetting::of("--refreshes-in-flight", "no token could be refreshed"));
        }
        Ok(Settings {
            listen: self.listen,
            public: PublicOrigin::read(self.public_origin.as_deref(), self.listen, self.allow_plain_http)?,
            upstream: Upstream::read(&upstream, self.allow_plain_http)?,
            auth,
            max_sessions: self.max_sessions,
            idle: self.idle,
            refreshes_in_flight: self.refreshes_in_flight,
            refresh_early: self.refresh_early,
            refresh_timeout: self.refresh_timeout,
            body_limit: self.body_limit,
            upstream_timeout: self.upstream_timeout,
            client_timeout: self.client_timeout,
            shutdown_timeout: self.shutdown_timeout,
            allow_plain_http: self.allow_plain_http,
        })
    }
}

impl Settings {
    /// The defaults, on a free port of loopback.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if the upstream is not a URL that tokens may be sent to.
    pub fn new(upstream: &str, auth: AuthServer) -> Result<Self, InvalidSetting> {
        let flags = ["gateway", "--listen=127.0.0.1:0", "--upstream", upstream, "--auth=unset"];
        let args = Args::try_parse_from(flags).map_err(|error| InvalidSetting(error.to_string()))?;
        Ok(Self { auth, ..args.into_settings()? })
    }
}

impl PublicOrigin {
    fn read(origin: Option<&str>, listen: SocketAddr, allow_plain_http: bool) -> Result<Self, InvalidSetting> {
        match origin {
            Some(origin) => self::origin("--public-origin", origin, allow_plain_http).map(Self::Named),
            None if listen.ip().is_loopback() => Ok(Self::Loopback),
            None => Err(InvalidSetting::of("--public-origin", "needed when not listening on loopback")),
        }
    }

    /// Whether browsers come over TLS.
    pub(crate) fn is_https(&self) -> bool {
        matches!(self, Self::Named(origin) if origin.to_string().starts_with("https:"))
    }
}

impl Upstream {
    fn read(url: &str, allow_plain_http: bool) -> Result<Self, InvalidSetting> {
        let wrong = |what: &dyn fmt::Display| InvalidSetting::of("--upstream", what);
        let uri = Uri::try_from(url).map_err(|invalid| wrong(&invalid))?;
        if uri.query().is_some() || url.contains('#') {
            return Err(wrong(&"the URL has a query or a fragment"));
        }
        let origin = url.split_inclusive('/').take(3).collect::<String>();
        let origin = self::origin("--upstream", &origin, allow_plain_http)?;
        Ok(Self { origin, uri })
    }
}

fn origin(flag: &str, text: &str, allow_plain_http: bool) -> Result<Origin, InvalidSetting> {
    match (Origin::parse(text), Origin::parse_allowing_http(text)) {
        (Ok(origin), _) => Ok(origin),
        (Err(_), Ok(origin)) if allow_plain_http => Ok(origin),
        (Err(_), Ok(_)) => Err(InvalidSetting::plain_http(flag)),
        (Err(_), Err(invalid)) => Err(InvalidSetting::of(flag, invalid)),
    }
}

impl fmt::Debug for AuthServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(base) => f.debug_tuple("Json").field(base).finish(),
            Self::OAuth { token_endpoint, client_id, .. } => {
                let mut debug = f.debug_struct("OAuth");
                debug.field("token_endpoint", token_endpoint).field("client_id", client_id).finish_non_exhaustive()
            }
        }
    }
}

impl InvalidSetting {
    fn new(message: &str) -> Self {
        Self(message.to_owned())
    }

    /// What is wrong with a setting.
    pub fn of(flag: &str, what: impl fmt::Display) -> Self {
        Self(format!("{flag}: {what}"))
    }

    /// A setting would be right if plain HTTP were allowed.
    pub(crate) fn plain_http(flag: &str) -> Self {
        Self::of(flag, "tokens would cross the network in clear: use https, or --allow-plain-http")
    }
}

impl fmt::Display for InvalidSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for InvalidSetting {}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: &[&str]) -> Result<Settings, InvalidSetting> {
        let args = Args::try_parse_from(["gateway"].iter().chain(flags)).map_err(|e| InvalidSetting(e.to_string()))?;
        args.into_settings()
    }

    #[test]
    fn the_upstream_must_be_fit_for_tokens() {
        let refused =
            |url| settings(&["--upstream", url, "--auth", "https://auth.example.com"]).unwrap_err().to_string();
        assert!(refused("http://api.example.com").starts_with("--upstream: "));
        assert!(refused("ftp://api.example.com").starts_with("--upstream: "));
        assert!(refused("https://api.example.com/?a=b").starts_with("--upstream: "));
        assert!(refused("https://a:b@api.example.com").starts_with("--upstream: "));
        assert!(refused("/api").starts_with("--upstream: "));
        let fine =
            settings(&["--upstream", "https://api.example.com/v1/", "--auth", "https://auth.example.com"]).unwrap();
        assert_eq!(fine.upstream.origin.to_string(), "https://api.example.com");
    }

    #[test]
    fn off_loopback_the_public_origin_is_needed() {
        let rest = ["--upstream=https://api.example.com", "--auth=https://auth.example.com", "--listen=0.0.0.0:80"];
        assert!(settings(&rest).unwrap_err().to_string().starts_with("--public-origin: "));
        let named = settings(&[&rest[..], &["--public-origin=https://app.example.com"]].concat()).unwrap();
        assert!(named.public.is_https());
    }

    #[test]
    fn secrets_stay_out_of_debug() {
        let flags = ["--upstream=https://a.example", "--token-endpoint=https://b.example", "--client-id=id"];
        let settings = settings(&[&flags[..], &["--client-secret=hush"]].concat()).unwrap();
        assert!(!format!("{settings:?}").contains("hush"));
    }
}
