//! The command line, and the environment.

use std::net::SocketAddr;
use std::time::Duration;

use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{Parser, ValueEnum};

use super::{InvalidSetting, units};

/// A gateway that keeps the tokens of many users from their browsers.
///
/// A browser signs in at POST /login and gets a session cookie, nothing else. Its calls to /api/… go to the upstream
/// with the user's access token, which is refreshed once when it expires, however many calls notice.
///
/// Try it: gateway --demo
#[derive(Clone, Debug, Parser)]
#[command(name = "gateway", version, max_term_width = 110)]
pub struct Args {
    /// Bring an authorization server and an API along, and a page that shows what happens
    #[arg(long, env = "GATEWAY_DEMO", value_parser = BoolishValueParser::new())]
    pub demo: bool,

    /// Where to listen; browsers reach it through whatever terminates TLS
    #[arg(long, env = "GATEWAY_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// The origin that browsers see; may be left out when listening on loopback
    #[arg(long, env = "GATEWAY_PUBLIC_ORIGIN", value_name = "https://HOST")]
    pub public_origin: Option<String>,

    /// The API: /api/notes goes to URL/api/notes. Needed, unless it is a demo
    #[arg(long, env = "GATEWAY_UPSTREAM", value_name = "URL")]
    pub upstream: Option<String>,

    /// The base of /auth/login, /auth/refresh and /auth/logout, which speak JSON. This or --token-endpoint is needed
    #[arg(long, env = "GATEWAY_AUTH", value_name = "URL", conflicts_with = "token_endpoint")]
    pub auth: Option<String>,

    /// Instead of --auth: an OAuth 2.0 token endpoint (logins use the password grant)
    #[arg(long, env = "GATEWAY_TOKEN_ENDPOINT", value_name = "URL", requires = "client_id")]
    pub token_endpoint: Option<String>,

    /// The gateway's client id at the token endpoint
    #[arg(long, env = "GATEWAY_CLIENT_ID", value_name = "ID", value_parser = NonEmptyStringValueParser::new(), requires = "token_endpoint")]
    pub client_id: Option<String>,

    /// The gateway's client secret, sent by HTTP Basic; better set in the environment. Without one: a public client
    #[arg(long, env = "GATEWAY_CLIENT_SECRET", value_name = "SECRET", hide_env_values = true, requires = "client_id")]
    pub client_secret: Option<String>,

    /// Where tokens are revoked when a user signs out (RFC 7009)
    #[arg(long, env = "GATEWAY_REVOCATION_ENDPOINT", value_name = "URL", requires = "token_endpoint")]
    pub revocation_endpoint: Option<String>,

    /// How many users may be signed in; one more is answered 503
    #[arg(
        long,
        env = "GATEWAY_MAX_SESSIONS",
        value_name = "COUNT",
        default_value = "100000",
        allow_hyphen_values = true
    )]
    pub max_sessions: usize,

    /// How long a session may go unused; then its user is signed out
    #[arg(long, env = "GATEWAY_IDLE", value_name = "TIME", default_value = "12h", value_parser = units::duration, allow_hyphen_values = true)]
    pub idle: Duration,

    /// Refresh in the background when a token is this close to its expiry [default: when the API refuses it]
    #[arg(long, env = "GATEWAY_REFRESH_EARLY", value_name = "TIME", value_parser = units::duration, allow_hyphen_values = true)]
    pub refresh_early: Option<Duration>,

    /// How many refreshes may be under way at the same time; more wait for their turn
    #[arg(
        long,
        env = "GATEWAY_REFRESHES_IN_FLIGHT",
        value_name = "COUNT",
        default_value = "256",
        allow_hyphen_values = true
    )]
    pub refreshes_in_flight: usize,

    /// How long a refresh may take
    #[arg(long, env = "GATEWAY_REFRESH_TIMEOUT", value_name = "TIME", default_value = "15s",
          value_parser = units::duration, allow_hyphen_values = true)]
    pub refresh_timeout: Duration,

    /// The longest request body; a longer one is answered 413
    #[arg(long, env = "GATEWAY_BODY_LIMIT", value_name = "SIZE", default_value = "64MiB", value_parser = units::size, allow_hyphen_values = true)]
    pub body_limit: u64,

    /// How long the upstream may be silent: answered 504 before the head, cut off after it
    #[arg(long, env = "GATEWAY_UPSTREAM_TIMEOUT", value_name = "TIME", default_value = "30s",
          value_parser = units::duration, allow_hyphen_values = true)]
    pub upstream_timeout: Duration,

    /// How long a client may be silent in mid-request, or take nothing of its answer
    #[arg(long, env = "GATEWAY_CLIENT_TIMEOUT", value_name = "TIME", default_value = "30s",
          value_parser = units::duration, allow_hyphen_values = true)]
    pub client_timeout: Duration,

    /// How long to wait at SIGTERM for requests and refreshes that are under way; then they are cut off
    #[arg(long, env = "GATEWAY_SHUTDOWN_TIMEOUT", value_name = "TIME", default_value = "30s",
          value_parser = units::duration, allow_hyphen_values = true)]
    pub shutdown_timeout: Duration,

    /// Allow http:// off loopback, for networks that encrypt below HTTP: tokens cross them in clear
    #[arg(long, env = "GATEWAY_ALLOW_PLAIN_HTTP", value_parser = BoolishValueParser::new())]
    pub allow_plain_http: bool,

    /// How to write the log, to stderr; RUST_LOG says what
    #[expect(clippy::doc_markdown, reason = "the help shows it as it is")]
    #[arg(long, env = "GATEWAY_LOG", value_name = "FORMAT", default_value = "text")]
    pub log: LogFormat,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

impl Args {
    /// Reads the command line and the environment. Answers `--help` itself.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`].
    pub fn read() -> Result<Self, InvalidSetting> {
        let args = Self::try_parse().map_err(|error| {
            if !error.use_stderr() {
                error.exit();
            }
            // Its first paragraph says what is wrong; what follows is advice.
            let message = error.to_string();
            let lines = message.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
            let line = lines.collect::<Vec<_>>().join(" ");
            InvalidSetting::new(line.strip_prefix("error: ").unwrap_or(&line))
        })?;
        // Not for the parser to tell: to it a flag that the environment sets to `false` is there.
        if args.demo && (args.upstream.is_some() || args.auth.is_some() || args.token_endpoint.is_some()) {
            let brings = "brings its own servers along: it goes without --upstream, --auth and --token-endpoint";
            return Err(InvalidSetting::of("--demo", brings));
        }
        Ok(args)
    }
}
