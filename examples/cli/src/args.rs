//! The command line.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use serde::{Deserialize, Serialize};

use crate::profile::{Name, RotationPolicy};

const EXIT_CODES: &str = "\
Exit codes:
  0    success
  1    failure: a file, the profile, an answer that makes no sense
  2    invalid command line
  3    sign-in required: no user is signed in, or the session has ended
  4    the server can't be reached; still signed in, try again later
  5    the sign-in was denied, has expired, or was given up
  6    the API answered with an error status
  130  interrupted by Ctrl-C (128 + the signal)

Environment:
  APP_TOKEN        an access token to use instead of the session's; nothing is renewed then
  APP_PROFILE      the profile, as --profile
  NO_COLOR         no colours
  XDG_CONFIG_HOME  profiles are in app/profiles there
  XDG_STATE_HOME   sessions are in app/sessions there";

/// Signs in to an OAuth 2.0 or OpenID Connect provider, keeps the session alive, and calls APIs with it.
///
/// Without a command, a demonstration runs against built-in servers.
#[derive(Debug, Parser)]
#[command(name = "app", version, max_term_width = 100, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Use this sign-in; each has its own user and settings
    #[arg(long, global = true, env = "APP_PROFILE", value_name = "NAME", default_value = "default")]
    pub(crate) profile: Name,

    /// Print results on stdout and errors on stderr as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Sign in with the browser, or with a code on another device
    Login(Box<Login>),
    /// Show the user who is signed in
    Whoami,
    /// Print an access token that is worth sending, for scripts: renewed first, if need be
    Token(Token),
    /// Call an API with the access token, renewed whenever the API says that it has expired
    Call(Call),
    /// Revoke the tokens and forget them; forgets them even offline
    Logout,
    /// Show the session: until when it holds, where it is kept, and by which key
    Status,
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// Issuer whose endpoints are discovered [default: that of the profile]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub(crate) issuer: Option<String>,

    /// Token endpoint, for a server without discovery; needs --with-refresh-token
    #[arg(long, value_name = "URL", conflicts_with = "issuer", requires = "with_refresh_token")]
    pub(crate) token_endpoint: Option<String>,

    /// Client identifier that the provider has issued [default: that of the profile]
    #[arg(long, value_name = "ID")]
    pub(crate) client_id: Option<String>,

    /// Environment variable with the client secret [default: a public client has none]
    #[arg(long, value_name = "NAME")]
    pub(crate) client_secret_env: Option<String>,

    /// How the client secret is sent [default: basic]
    #[arg(long, value_name = "METHOD")]
    pub(crate) client_auth: Option<ClientAuthMethod>,

    /// Scopes to ask for, separated by spaces [default: openid profile email offline_access]
    #[expect(clippy::doc_markdown, reason = "--help prints the text as it is")]
    #[arg(long, value_name = "SCOPES")]
    pub(crate) scope: Option<String>,

    /// Further parameter of the sign-in, such as audience=API; repeatable
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = param)]
    pub(crate) params: Vec<(String, String)>,

    /// Redirect URI that the client is registered with [default: /callback on a free port of 127.0.0.1]
    #[arg(long, value_name = "URI", conflicts_with = "device")]
    pub(crate) redirect_uri: Option<String>,

    /// Origin of an API that the token is sent to; repeatable
    #[arg(long = "api", value_name = "ORIGIN", value_hint = ValueHint::Url)]
    pub(crate) apis: Vec<String>,

    /// Whether a refresh token may be presented again after a lost answer: strict, grace=SECONDS or reusable
    #[arg(long, value_name = "POLICY")]
    pub(crate) rotation: Option<RotationPolicy>,

    /// Sign in with a code on another device; the default where there is no display
    #[arg(long)]
    pub(crate) device: bool,

    /// Import a session: read a refresh token from stdin
    #[arg(long, conflicts_with = "device")]
    pub(crate) with_refresh_token: bool,

    /// Wait so long for the browser; a device code has a lifetime of its own
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) timeout: Duration,

    /// Where the key of the stored tokens is kept
    #[arg(long, value_name = "PLACE", default_value = "auto")]
    pub(crate) store: StorePlace,

    /// Allow plain HTTP to other machines, which exposes the tokens on the network
    #[arg(long)]
    pub(crate) allow_plain_http: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Token {
    /// Renew the token if it expires within this time
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) valid_for: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Method
    pub(crate) method: String,

    /// URL, or the path at the first API of the profile
    #[arg(value_hint = ValueHint::Url)]
    pub(crate) url: String,

    /// Request header; repeatable
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<String>,

    /// Request body: the text, @FILE, or - for stdin
    #[arg(short, long, value_name = "BODY")]
    pub(crate) data: Option<String>,

    /// Print the status and the headers of the response on stderr
    #[arg(short, long)]
    pub(crate) include: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClientAuthMethod {
    /// In the header `Authorization`
    #[default]
    Basic,
    /// In the body
    Post,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StorePlace {
    /// The system's keychain, and without one as `file`, after saying so
    Auto,
    /// The system's keychain
    Keychain,
    /// No key: the tokens are in a file that only the user may read
    File,
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let parsed = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    parsed.ok_or("not a number of seconds")
}

fn param(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_has_no_contradictions() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_follow_the_command() {
        let cli = Cli::try_parse_from(["app", "call", "POST", "/notes", "-d", "{}", "--profile", "work", "--json"]);
        let cli = cli.unwrap();
        assert_eq!((cli.global.profile.as_str(), cli.global.json), ("work", true));
        assert!(matches!(cli.command, Some(Command::Call(Call { data: Some(data), .. })) if data == "{}"));
        assert!(Cli::try_parse_from(["app"]).unwrap().command.is_none());
    }

    #[test]
    fn an_invalid_command_line_names_the_argument() {
        for (arguments, named) in [
            (&["app", "token", "--valid-for", "soon"][..], "--valid-for"),
            (&["app", "status", "--profile", "../x"], "--profile"),
            (&["app", "login", "--rotation", "grace=x"], "--rotation"),
            (&["app", "login", "--token-endpoint", "https://a"], "--with-refresh-token"),
            (&["app", "call", "GET"], "<URL>"),
        ] {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
