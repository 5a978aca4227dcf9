//! Command-line arguments and environment variables.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{Parser, ValueEnum};

use super::{InvalidSetting, units};

/// The headings of `--help`.
const LISTENING: &str = "Listening";
const UPSTREAM: &str = "Upstream";
const AUTHORIZATION_SERVER: &str = "Authorization server";

/// Backend for frontend: browsers get a session cookie, access and refresh tokens stay in the gateway.
///
/// A browser signs in at POST /login and gets a session cookie. Its calls to /api/… are proxied to the upstream with
/// the user's access token. When the token expires, the gateway refreshes it once and replays the failed calls.
///
/// To try it: gateway --demo
#[derive(Clone, Debug, Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(name = "gateway", version, max_term_width = 110)]
pub struct Args {
    /// Run with a built-in authorization server, API and demo page
    #[arg(long, env = "GATEWAY_DEMO", value_parser = BoolishValueParser::new())]
    pub demo: bool,

    /// Test the settings, the store and the connections to the servers, print a line for each, and exit: with 1 if a
    /// test has failed
    #[arg(long, help_heading = "Process")]
    pub check: bool,

    /// Listen on this address: plain HTTP, or TLS with --tls-cert
    #[arg(
        long,
        env = "GATEWAY_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        help_heading = LISTENING
    )]
    pub listen: SocketAddr,

    /// Serve TLS with this certificate and those that have signed it, in PEM; read again at SIGHUP [default: plain HTTP]
    #[arg(long, env = "GATEWAY_TLS_CERT", value_name = "FILE", requires = "tls_key", help_heading = LISTENING)]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM, which no other user may read; read again at SIGHUP
    #[arg(long, env = "GATEWAY_TLS_KEY", value_name = "FILE", requires = "tls_cert", help_heading = LISTENING)]
    pub tls_key: Option<PathBuf>,

    /// Believe the X-Forwarded-For of proxies with these addresses, as 10.0.0.0/8. May be repeated; the variable has a
    /// comma between networks [default: none]
    #[arg(long, env = "GATEWAY_TRUSTED_PROXY", value_name = "CIDR", value_delimiter = ',', help_heading = LISTENING)]
    pub trusted_proxy: Vec<String>,

    /// Serve /metrics, /healthz and /readyz on this address (plain HTTP; for no client) [default: no /metrics]
    #[arg(long, env = "GATEWAY_ADMIN_LISTEN", value_name = "ADDRESS", help_heading = LISTENING)]
    pub admin_listen: Option<SocketAddr>,

    /// Require the header of the PROXY protocol (version 1 or 2) on each connection, from a --trusted-proxy
    #[arg(long, env = "GATEWAY_PROXY_PROTOCOL", value_parser = BoolishValueParser::new(), help_heading = LISTENING)]
    pub proxy_protocol: bool,

    /// Origin that browsers see; optional when listening on loopback without TLS
    #[arg(long, env = "GATEWAY_PUBLIC_ORIGIN", value_name = "https://HOST", help_heading = LISTENING)]
    pub public_origin: Option<String>,

    /// Base URL of the API: /api/notes is proxied to URL/api/notes. Required without --demo
    #[arg(long, env = "GATEWAY_UPSTREAM", value_name = "URL", help_heading = UPSTREAM)]
    pub upstream: Option<String>,

    /// Trust the root certificates in this file for the upstream, and no others [default: Mozilla's]
    #[arg(long, env = "GATEWAY_UPSTREAM_CA", value_name = "FILE", help_heading = UPSTREAM)]
    pub upstream_ca: Option<PathBuf>,

    /// Present this certificate to the upstream, in PEM with those that have signed it
    #[arg(
        long,
        env = "GATEWAY_UPSTREAM_CLIENT_CERT",
        value_name = "FILE",
        requires = "upstream_client_key",
        help_heading = UPSTREAM
    )]
    pub upstream_client_cert: Option<PathBuf>,

    /// Private key of --upstream-client-cert, in PEM, which no other user may read
    #[arg(
        long,
        env = "GATEWAY_UPSTREAM_CLIENT_KEY",
        value_name = "FILE",
        requires = "upstream_client_cert",
        help_heading = UPSTREAM
    )]
    pub upstream_client_key: Option<PathBuf>,

    /// Base URL of the JSON endpoints /auth/login, /auth/refresh and /auth/logout. Required without --token-endpoint
    #[arg(
        long,
        env = "GATEWAY_AUTH",
        value_name = "URL",
        conflicts_with = "token_endpoint",
        help_heading = AUTHORIZATION_SERVER
    )]
    pub auth: Option<String>,

    /// OAuth 2.0 token endpoint, instead of --auth; logins use the password grant
    #[arg(
        long,
        env = "GATEWAY_TOKEN_ENDPOINT",
        value_name = "URL",
        requires = "client_id",
        help_heading = AUTHORIZATION_SERVER
    )]
    pub token_endpoint: Option<String>,

    /// OAuth 2.0 client ID of the gateway
    #[arg(
        long,
        env = "GATEWAY_CLIENT_ID",
        value_name = "ID",
        value_parser = NonEmptyStringValueParser::new(),
        requires = "token_endpoint",
        help_heading = AUTHORIZATION_SERVER
    )]
    pub client_id: Option<String>,

    /// OAuth 2.0 client secret, sent with HTTP Basic; prefer the environment variable. Default: public client
    #[arg(
        long,
        env = "GATEWAY_CLIENT_SECRET",
        value_name = "SECRET",
        hide_env_values = true,
        requires = "client_id",
        help_heading = AUTHORIZATION_SERVER
    )]
    pub client_secret: Option<String>,

    /// OAuth 2.0 revocation endpoint (RFC 7009), called on sign-out
    #[arg(
        long,
        env = "GATEWAY_REVOCATION_ENDPOINT",
        value_name = "URL",
        requires = "token_endpoint",
        help_heading = AUTHORIZATION_SERVER
    )]
    pub revocation_endpoint: Option<String>,

    /// Trust the root certificates in this file for the authorization server, and no others [default: Mozilla's]
    #[arg(long, env = "GATEWAY_AUTH_CA", value_name = "FILE", help_heading = AUTHORIZATION_SERVER)]
    pub auth_ca: Option<PathBuf>,

    /// Present this certificate to the authorization server (RFC 8705), in PEM with those that have signed it
    #[arg(
        long,
        env = "GATEWAY_AUTH_CLIENT_CERT",
        value_name = "FILE",
        requires = "auth_client_key",
        help_heading = AUTHORIZATION_SERVER
    )]
    pub auth_client_cert: Option<PathBuf>,

    /// Private key of --auth-client-cert, in PEM, which no other user may read
    #[arg(
        long,
        env = "GATEWAY_AUTH_CLIENT_KEY",
        value_name = "FILE",
        requires = "auth_client_cert",
        help_heading = AUTHORIZATION_SERVER
    )]
    pub auth_client_key: Option<PathBuf>,

    /// Keep sessions in memory, file:DIR, redis://… or postgres://… [default: memory, where they end with the process]
    #[expect(clippy::doc_markdown, reason = "--help prints the text as it is")]
    #[arg(long, env = "GATEWAY_STORE", value_name = "STORE", hide_env_values = true)]
    pub store: Option<String>,

    /// Encrypt the tokens in the store with the first key of this file, of lines ID:BASE64 with 32 bytes each
    #[arg(long, env = "GATEWAY_STORE_KEYS", value_name = "FILE")]
    pub store_keys: Option<PathBuf>,

    /// Accept a PostgreSQL server without fsync or full_page_writes, such as Neon, whose commits survive a crash anyway
    #[expect(clippy::doc_markdown, reason = "--help prints the text as it is")]
    #[arg(long, env = "GATEWAY_STORE_ALLOW_FSYNC_OFF", value_parser = BoolishValueParser::new())]
    pub store_allow_fsync_off: bool,

    /// Maximum number of sessions in memory; further logins get a 503, unless --store can bring others back
    #[arg(
        long,
        env = "GATEWAY_MAX_SESSIONS",
        value_name = "COUNT",
        default_value = "100000",
        allow_hyphen_values = true
    )]
    pub max_sessions: usize,

    /// Sign a session out after this time without requests
    #[arg(long, env = "GATEWAY_IDLE", value_name = "TIME", default_value = "12h", value_parser = units::duration, allow_hyphen_values = true)]
    pub idle: Duration,

    /// Refresh in the background this long before a token's expiry [default: only after a 401]
    #[arg(long, env = "GATEWAY_REFRESH_EARLY", value_name = "TIME", value_parser = units::duration, allow_hyphen_values = true)]
    pub refresh_early: Option<Duration>,

    /// Maximum number of concurrent refreshes; further ones wait
    #[arg(
        long,
        env = "GATEWAY_REFRESHES_IN_FLIGHT",
        value_name = "COUNT",
        default_value = "256",
        allow_hyphen_values = true
    )]
    pub refreshes_in_flight: usize,

    /// Maximum number of concurrent logins at the authorization server; further ones get a 429
    #[arg(
        long,
        env = "GATEWAY_LOGINS_IN_FLIGHT",
        value_name = "COUNT",
        default_value = "64",
        allow_hyphen_values = true
    )]
    pub logins_in_flight: usize,

    /// Maximum number of concurrent logins of one address [default: no own limit]
    #[arg(
        long,
        env = "GATEWAY_LOGINS_IN_FLIGHT_PER_ADDRESS",
        value_name = "COUNT",
        allow_hyphen_values = true,
        help_heading = "Limits"
    )]
    pub logins_in_flight_per_address: Option<usize>,

    /// Maximum number of concurrent requests that are proxied; further ones get a 503 [default: a quarter of the file
    /// descriptors]
    #[arg(long, env = "GATEWAY_REQUESTS_IN_FLIGHT", value_name = "COUNT", allow_hyphen_values = true)]
    pub requests_in_flight: Option<usize>,

    /// Maximum number of concurrent requests of one session that are proxied; further ones get a 429
    #[arg(
        long,
        env = "GATEWAY_REQUESTS_IN_FLIGHT_PER_SESSION",
        value_name = "COUNT",
        default_value = "256",
        allow_hyphen_values = true
    )]
    pub requests_in_flight_per_session: u32,

    /// Maximum number of concurrent requests of one address that are proxied; further ones get a 429 [default: no own
    /// limit]
    #[arg(
        long,
        env = "GATEWAY_REQUESTS_IN_FLIGHT_PER_ADDRESS",
        value_name = "COUNT",
        allow_hyphen_values = true,
        help_heading = "Limits"
    )]
    pub requests_in_flight_per_address: Option<u32>,

    /// Maximum number of sessions of one user; a further login signs the oldest out [default: no own limit]
    #[arg(
        long,
        env = "GATEWAY_SESSIONS_PER_USER",
        value_name = "COUNT",
        allow_hyphen_values = true,
        help_heading = "Limits"
    )]
    pub sessions_per_user: Option<usize>,

    /// Timeout of a refresh
    #[arg(long, env = "GATEWAY_REFRESH_TIMEOUT", value_name = "TIME", default_value = "20s",
          value_parser = units::duration, allow_hyphen_values = true)]
    pub refresh_timeout: Duration,

    /// Remove this header from the requests of clients too, as one by which the upstream knows users; X-ACME-* for all
    /// that begin so. May be repeated; the variable has a comma between names
    #[arg(long, env = "GATEWAY_STRIP_HEADER", value_name = "NAME", value_delimiter = ',')]
    pub strip_header: Vec<String>,

    /// Maximum size of a request body; a larger one gets a 413
    #[arg(long, env = "GATEWAY_BODY_LIMIT", value_name = "SIZE", default_value = "64MiB", value_parser = units::size, allow_hyphen_values = true)]
    pub body_limit: u64,

    /// Longest time without progress of the upstream: a 504 before the response head, a cut-off response after it
    #[arg(long, env = "GATEWAY_UPSTREAM_TIMEOUT", value_name = "TIME", default_value = "30s",
          value_parser = units::duration, allow_hyphen_values = true)]
    pub upstream_timeout: Duration,

    /// Longest time in which a client sends nothing of its request, or reads nothing of its response
    #[arg(long, env = "GATEWAY_CLIENT_TIMEOUT", value_name = "TIME", default_value = "30s",
          value_parser = units::duration, allow_hyphen_values = true)]
    pub client_timeout: Duration,

    /// Maximum number of connections of clients; at the maximum, idle ones are closed for new ones [default: half of
    /// the file descriptors]
    #[arg(long, env = "GATEWAY_MAX_CONNECTIONS", value_name = "COUNT", allow_hyphen_values = true)]
    pub max_connections: Option<usize>,

    /// Maximum number of connections of one address that is no trusted proxy [default: no own limit]
    #[arg(
        long,
        env = "GATEWAY_MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "COUNT",
        allow_hyphen_values = true,
        help_heading = "Limits"
    )]
    pub max_connections_per_address: Option<usize>,

    /// Close a connection after this time without requests; a proxy in front should have a shorter time
    #[arg(long, env = "GATEWAY_IDLE_CONNECTION_TIMEOUT", value_name = "TIME", default_value = "75s",
          value_parser = units::duration, allow_hyphen_values = true)]
    pub idle_connection_timeout: Duration,

    /// Serve for this time after SIGTERM while /readyz fails, so that balancers send requests elsewhere first [default:
    /// none]
    #[arg(long, env = "GATEWAY_DRAIN_DELAY", value_name = "TIME", value_parser = units::duration,
          allow_hyphen_values = true, help_heading = "Process")]
    pub drain_delay: Option<Duration>,

    /// Longest wait after SIGTERM and --drain-delay for open requests, refreshes and sign-outs; then they are cut off
    #[arg(long, env = "GATEWAY_SHUTDOWN_TIMEOUT", value_name = "TIME", default_value = "30s",
          value_parser = units::duration, allow_hyphen_values = true, help_heading = "Process")]
    pub shutdown_timeout: Duration,

    /// Allow http:// to other hosts; tokens are then sent unencrypted, unless the network encrypts below HTTP
    #[arg(long, env = "GATEWAY_ALLOW_PLAIN_HTTP", value_parser = BoolishValueParser::new())]
    pub allow_plain_http: bool,

    /// Format of the log on stderr; RUST_LOG sets its filter
    #[expect(clippy::doc_markdown, reason = "--help prints the text as it is")]
    #[arg(long, env = "GATEWAY_LOG", value_name = "FORMAT", default_value = "text")]
    pub log: LogFormat,
}

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human-readable lines.
    Text,
    /// One JSON object per line.
    Json,
}

impl Args {
    /// Reads the command line and the environment.
    ///
    /// Exits the process after `--help` and `--version`.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if an argument is unknown, malformed, or conflicts with another.
    pub fn read() -> Result<Self, InvalidSetting> {
        let args = Self::try_parse().map_err(|error| {
            if !error.use_stderr() {
                error.exit();
            }
            // The first paragraph names the error; advice follows.
            let message = error.to_string();
            let lines = message.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
            let line = lines.collect::<Vec<_>>().join(" ");
            InvalidSetting::new(line.strip_prefix("error: ").unwrap_or(&line))
        })?;
        // Checked here: to clap's `conflicts_with`, a flag that the environment sets to `false` is present.
        if args.demo && (args.upstream.is_some() || args.auth.is_some() || args.token_endpoint.is_some()) {
            let conflict = "cannot be combined with --upstream, --auth or --token-endpoint";
            return Err(InvalidSetting::of("--demo", conflict));
        }
        Ok(args)
    }
}
