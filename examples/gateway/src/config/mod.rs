//! The command line ([`Args`]) and the checked settings ([`Settings`]), validated once before the start.

mod args;
mod store;
mod strip;
mod tls;
mod trusted_proxies;
mod units;
mod unknown;

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use http::Uri;
use tower_auth_refresh::Origin;

pub use self::args::{Args, LogFormat};
pub use self::store::Store;
pub use self::strip::StripHeaders;
pub use self::tls::{Identity, PeerTls};
pub use self::trusted_proxies::TrustedProxies;
pub use self::unknown::UnknownVariable;

/// The settings of a gateway, validated and complete.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The certificate and key of the gateway. Default: `None`, plain HTTP.
    pub tls: Option<Identity>,
    /// The proxies in front that name the address of their client. Default: none.
    pub trusted_proxies: TrustedProxies,
    /// Each connection begins with the header of the PROXY protocol, from a trusted proxy. Default: `false`.
    pub proxy_protocol: bool,
    /// The address of the admin listener, which serves the metrics. Default: `None`, they are not served.
    pub admin_listen: Option<SocketAddr>,
    /// The origin under which browsers reach the gateway.
    pub public: PublicOrigin,
    /// The API.
    pub upstream: Upstream,
    /// TLS with the API. Default: Mozilla's roots and no client certificate.
    pub upstream_tls: PeerTls,
    /// The authorization server.
    pub auth: AuthServer,
    /// TLS with the authorization server. Default: Mozilla's roots and no client certificate.
    pub auth_tls: PeerTls,
    /// Where the sessions' tokens are kept. Default: in memory.
    pub store: Store,
    /// The file with the keys that encrypt the tokens in the store. Default: `None`, they are in clear.
    pub store_keys: Option<PathBuf>,
    /// Accepts a PostgreSQL server without `fsync`, whose commits survive a crash by other means. Default: `false`.
    pub store_allow_fsync_off: bool,
    /// The maximum number of sessions in memory. Default: 100,000.
    pub max_sessions: usize,
    /// The time without requests after which a session is signed out. Default: 12 h.
    pub idle: Duration,
    /// The maximum number of concurrent refreshes. Default: 256.
    pub refreshes_in_flight: usize,
    /// The maximum number of concurrent logins at the authorization server. Default: 64.
    pub logins_in_flight: usize,
    /// The maximum number of concurrent logins of one address. Default: `None`, no limit of its own.
    pub logins_in_flight_per_address: Option<usize>,
    /// The maximum number of concurrent requests that are proxied. Default: `None`, a quarter of the file descriptors.
    pub requests_in_flight: Option<usize>,
    /// The maximum number of concurrent requests of one session that are proxied. Default: 256.
    pub requests_in_flight_per_session: u32,
    /// The maximum number of concurrent requests of one address that are proxied. Default: `None`, no limit of its own.
    pub requests_in_flight_per_address: Option<u32>,
    /// The maximum number of sessions of one user. Default: `None`, no limit of its own.
    pub sessions_per_user: Option<usize>,
    /// The time before its expiry at which a token is refreshed. Default: `None`, only after a 401.
    pub refresh_early: Option<Duration>,
    /// The time-out of a refresh. Default: 20 s, of which the claim of another gateway that was killed may take up 15.
    pub refresh_timeout: Duration,
    /// Further headers that are removed from the requests of clients. Default: none.
    pub strip_headers: StripHeaders,
    /// The maximum size of a request body, in bytes. Default: 64 MiB.
    pub body_limit: u64,
    /// The longest time without progress of the upstream. Default: 30 s.
    pub upstream_timeout: Duration,
    /// The longest time in which a client sends nothing of its request, or reads nothing of its response.
    /// Default: 30 s.
    pub client_timeout: Duration,
    /// The maximum number of connections of clients. Default: `None`, half of the file descriptors.
    pub max_connections: Option<usize>,
    /// The maximum number of connections of one address. Default: `None`, no limit of its own.
    pub max_connections_per_address: Option<usize>,
    /// The time without requests after which a connection is closed. Default: 75 s.
    pub idle_connection_timeout: Duration,
    /// The time in which a shutdown serves on while `/readyz` fails. Default: 0.
    pub drain_delay: Duration,
    /// The longest time that a shutdown waits for open requests, refreshes and sign-outs. Default: 30 s.
    pub shutdown_timeout: Duration,
    /// Allows `http://` to hosts other than loopback. Default: `false`.
    pub allow_plain_http: bool,
}

/// The origin under which browsers reach a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicOrigin {
    /// This origin.
    Named(Origin),
    /// Any loopback host over plain HTTP, for development.
    Loopback,
}

/// The API behind a gateway.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The origin that receives access tokens.
    pub(crate) origin: Origin,
    pub(crate) uri: Uri,
}

/// The endpoints for sign-in, refresh and sign-out.
#[derive(Clone)]
#[non_exhaustive]
pub enum AuthServer {
    /// JSON endpoints `/auth/login`, `/auth/refresh` and `/auth/logout` below this URL.
    Json(String),
    /// OAuth 2.0.
    OAuth {
        /// The token endpoint (RFC 6749 §3.2).
        token_endpoint: String,
        /// The revocation endpoint (RFC 7009), called on sign-out.
        revocation_endpoint: Option<String>,
        /// The client ID of the gateway.
        client_id: String,
        /// The client secret. `None`: a public client.
        client_secret: Option<String>,
    },
}

/// An invalid setting. The message is one line and names the setting.
#[derive(Debug)]
pub struct InvalidSetting(String);

impl Args {
    /// Validates the settings.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if a value is invalid, or if the upstream or the authorization server is missing: for
    /// a demo, [`Demo::start`](crate::Demo::start) sets both.
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
        for (flag, count) in [
            ("--max-sessions", Some(self.max_sessions)),
            ("--refreshes-in-flight", Some(self.refreshes_in_flight)),
            ("--logins-in-flight", Some(self.logins_in_flight)),
            ("--logins-in-flight-per-address", self.logins_in_flight_per_address),
            ("--requests-in-flight", self.requests_in_flight),
            ("--requests-in-flight-per-session", Some(self.requests_in_flight_per_session as usize)),
            ("--requests-in-flight-per-address", self.requests_in_flight_per_address.map(|count| count as usize)),
            ("--sessions-per-user", self.sessions_per_user),
            ("--max-connections", self.max_connections),
            ("--max-connections-per-address", self.max_connections_per_address),
        ] {
            if count == Some(0) {
                return Err(InvalidSetting::of(flag, "must be at least 1"));
            }
        }
        let store = self.store.map_or(Ok(Store::Memory), |store| Store::read(&store, self.allow_plain_http))?;
        if store == Store::Memory && self.store_keys.is_some() {
            return Err(InvalidSetting::of("--store-keys", "the tokens are in memory: set --store"));
        }
        if self.store_allow_fsync_off && !matches!(store, Store::Postgres(_)) {
            return Err(InvalidSetting::of("--store-allow-fsync-off", "only for --store postgres://…"));
        }
        let tls = Identity::read(self.tls_cert, self.tls_key);
        let identity = Identity::read(self.upstream_client_cert, self.upstream_client_key);
        let upstream_tls = PeerTls { ca: self.upstream_ca, identity };
        upstream_tls.require_https("--upstream", ("--upstream", &upstream))?;
        let auth_tls =
            PeerTls { ca: self.auth_ca, identity: Identity::read(self.auth_client_cert, self.auth_client_key) };
        auth_tls.require_https("--auth", auth.setting())?;
        if let AuthServer::OAuth { revocation_endpoint: Some(url), .. } = &auth {
            auth_tls.require_https("--auth", ("--revocation-endpoint", url))?;
        }
        let public = PublicOrigin::read(self.public_origin.as_deref(), self.listen, self.allow_plain_http)?;
        if tls.is_some() && !public.is_https() {
            return Err(InvalidSetting::of("--public-origin", "with --tls-cert, an https:// origin is required"));
        }
        let trusted_proxies = TrustedProxies::read(&self.trusted_proxy)?;
        if self.proxy_protocol && trusted_proxies.is_empty() {
            return Err(InvalidSetting::of("--proxy-protocol", "requires --trusted-proxy"));
        }
        Ok(Settings {
            listen: self.listen,
            tls,
            trusted_proxies,
            proxy_protocol: self.proxy_protocol,
            admin_listen: self.admin_listen,
            public,
            upstream: Upstream::read(&upstream, self.allow_plain_http)?,
            upstream_tls,
            auth,
            auth_tls,
            store,
            store_keys: self.store_keys,
            store_allow_fsync_off: self.store_allow_fsync_off,
            max_sessions: self.max_sessions,
            idle: self.idle,
            refreshes_in_flight: self.refreshes_in_flight,
            logins_in_flight: self.logins_in_flight,
            logins_in_flight_per_address: self.logins_in_flight_per_address,
            requests_in_flight: self.requests_in_flight,
            requests_in_flight_per_session: self.requests_in_flight_per_session,
            requests_in_flight_per_address: self.requests_in_flight_per_address,
            sessions_per_user: self.sessions_per_user,
            refresh_early: self.refresh_early,
            refresh_timeout: self.refresh_timeout,
            strip_headers: StripHeaders::read(&self.strip_header)?,
            body_limit: self.body_limit,
            upstream_timeout: self.upstream_timeout,
            client_timeout: self.client_timeout,
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            idle_connection_timeout: self.idle_connection_timeout,
            drain_delay: self.drain_delay.unwrap_or_default(),
            shutdown_timeout: self.shutdown_timeout,
            allow_plain_http: self.allow_plain_http,
        })
    }
}

impl Settings {
    /// Returns the default settings, with a free port on loopback.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if tokens must not be sent to the upstream's URL.
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
            None => Err(InvalidSetting::of("--public-origin", "required when not listening on loopback")),
        }
    }

    /// Checks if browsers connect over TLS.
    pub(crate) fn is_https(&self) -> bool {
        matches!(self, Self::Named(origin) if origin.to_string().starts_with("https:"))
    }
}

impl Upstream {
    fn read(url: &str, allow_plain_http: bool) -> Result<Self, InvalidSetting> {
        let invalid = |reason: &dyn fmt::Display| InvalidSetting::of("--upstream", reason);
        let uri = Uri::try_from(url).map_err(|error| invalid(&error))?;
        if uri.query().is_some() || url.contains('#') {
            return Err(invalid(&"the URL must not have a query or a fragment"));
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

impl AuthServer {
    /// Returns the setting that names the server, and its URL.
    fn setting(&self) -> (&'static str, &str) {
        match self {
            Self::Json(url) => ("--auth", url),
            Self::OAuth { token_endpoint, .. } => ("--token-endpoint", token_endpoint),
        }
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

    /// Creates the error of a setting from its flag and the reason.
    pub fn of(flag: &str, reason: impl fmt::Display) -> Self {
        Self(format!("{flag}: {reason}"))
    }

    /// Creates the error of a URL that is valid apart from plain HTTP.
    pub(crate) fn plain_http(flag: &str) -> Self {
        Self::of(flag, "tokens would be sent unencrypted: use https, or --allow-plain-http")
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
    fn an_upstream_url_must_be_safe_for_tokens() {
        let refused =
            |url| settings(&["--upstream", url, "--auth", "https://auth.example.com"]).unwrap_err().to_string();
        assert!(refused("http://api.example.com").starts_with("--upstream: "));
        assert!(refused("ftp://api.example.com").starts_with("--upstream: "));
        assert!(refused("https://api.example.com/?a=b").starts_with("--upstream: "));
        assert!(refused("https://a:b@api.example.com").starts_with("--upstream: "));
        assert!(refused("/api").starts_with("--upstream: "));
        let valid =
            settings(&["--upstream", "https://api.example.com/v1/", "--auth", "https://auth.example.com"]).unwrap();
        assert_eq!(valid.upstream.origin.to_string(), "https://api.example.com");
    }

    #[test]
    fn the_public_origin_is_required_off_loopback() {
        let rest = ["--upstream=https://api.example.com", "--auth=https://auth.example.com", "--listen=0.0.0.0:80"];
        assert!(settings(&rest).unwrap_err().to_string().starts_with("--public-origin: "));
        let named = settings(&[&rest[..], &["--public-origin=https://app.example.com"]].concat()).unwrap();
        assert!(named.public.is_https());
    }

    #[test]
    fn settings_of_tls_fit_together() {
        let rest = ["--upstream=https://a.example", "--auth=https://b.example"];
        let read = |flags: &[&str]| settings(&[&rest[..], flags].concat());
        let refused = |flags: &[&str]| read(flags).unwrap_err().to_string();
        let identity = ["--tls-cert=chain.pem", "--tls-key=key.pem"];
        assert!(refused(&identity).starts_with("--public-origin: "));
        let plain = ["--public-origin=http://localhost"];
        assert!(refused(&[&identity[..], &plain].concat()).starts_with("--public-origin: "));
        assert!(read(&[&identity[..], &["--public-origin=https://app.example"]].concat()).unwrap().tls.is_some());
        for half in ["--tls-cert", "--tls-key", "--upstream-client-cert", "--upstream-client-key", "--auth-client-key"]
        {
            let error = refused(&[half, "file.pem"]);
            assert!(error.contains("required"), "{error}");
        }
        let rest = ["--upstream=http://127.0.0.1:1", "--auth=http://127.0.0.1:2"];
        let refused = |flags: &[&str]| settings(&[&rest[..], flags].concat()).unwrap_err().to_string();
        let client = |side: &str| [format!("--{side}-client-cert=c.pem"), format!("--{side}-client-key=k.pem")];
        assert_eq!(refused(&["--upstream-ca=ca.pem"]), "--upstream-ca: --upstream is not https");
        assert_eq!(refused(&["--auth-ca=ca.pem"]), "--auth-ca: --auth is not https");
        let oauth = ["--token-endpoint=HTTPS://a.example/token", "--client-id=gateway", "--auth-ca=ca.pem"];
        let with_oauth = |flags: &[&str]| settings(&[&["--upstream=https://a.example"], &oauth[..], flags].concat());
        assert!(with_oauth(&["--revocation-endpoint=https://a.example/revoke"]).is_ok());
        let error = with_oauth(&["--revocation-endpoint=http://127.0.0.1:2/revoke"]).unwrap_err().to_string();
        assert_eq!(error, "--auth-ca: --revocation-endpoint is not https");
        for side in ["upstream", "auth"] {
            let [certificate, key] = client(side);
            let expected = format!("--{side}-client-cert: --{side} is not https");
            assert_eq!(refused(&[&certificate, &key]), expected);
        }
    }

    #[test]
    fn only_a_store_in_postgres_can_do_without_fsync() {
        let flags = ["--upstream=https://a.example", "--auth=https://b.example", "--store-allow-fsync-off"];
        for store in ["memory", "file:/var/lib/gateway", "rediss://redis.example"] {
            let refused = settings(&[&flags[..], &["--store", store]].concat()).unwrap_err().to_string();
            assert!(refused.starts_with("--store-allow-fsync-off: "), "{refused}");
        }
        let settings = settings(&[&flags[..], &["--store=postgres://gateway@db.example/gateway"]].concat()).unwrap();
        assert!(settings.store_allow_fsync_off);
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let flags = ["--upstream=https://a.example", "--token-endpoint=https://b.example", "--client-id=id"];
        let secrets = ["--client-secret=hush", "--store=rediss://gateway:hush@redis.example"];
        let settings = settings(&[&flags[..], &secrets].concat()).unwrap();
        assert!(!format!("{settings:?}").contains("hush"));
    }
}
