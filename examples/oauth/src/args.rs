//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use lexopt::prelude::*;
use tower::BoxError;
use tower_auth_refresh::Rotation;
use tower_auth_refresh_http::ClientAuth;

pub(crate) const HELP: &str = "\
Calls an API with an OAuth refresh token from a file.

Usage: oauth [OPTIONS] [METHOD] URL
       oauth             run a demo against built-in servers

The access token is requested with the refresh token, renewed whenever the API rejects it as expired, and never
written to disk. If the server rotates the refresh token, the new one is saved to the file before it is used.

Server:
  --token-endpoint URL         URL of the token endpoint
  --issuer URL                 discover the token endpoint from this issuer instead (RFC 8414)
  --client-id ID               client identifier
  --client-secret-env NAME     environment variable with the client secret; default: none (public client)
  --client-auth METHOD         how to send the secret: basic or post; default: basic
  --scope SCOPES               request fewer scopes than were granted
  --rotation POLICY            whether to present the refresh token again after a lost response: strict (never),
                               grace=SECONDS (within that time of the first attempt), reusable (always: the server
                               doesn't rotate refresh tokens); default: strict

Token:
  --refresh-token-file PATH    file that contains only the refresh token

Call:
  --header 'NAME: VALUE'       request header; repeatable
  --data TEXT                  request body; changes the default method from GET to POST
  --repeat N                   number of calls; default: 1
  --every SECONDS              pause between calls; default: 1

  --allow-plain-http           allow http:// to other machines, which exposes the tokens on the network
  --help                       print this help
";

pub(crate) enum Command {
    Help,
    Demo,
    Call(Box<Args>),
}

pub(crate) struct Args {
    pub(crate) token_endpoint: TokenEndpoint,
    pub(crate) client_auth: ClientAuth,
    pub(crate) scope: Option<String>,
    pub(crate) rotation: Rotation,
    pub(crate) refresh_token_file: PathBuf,
    pub(crate) method: Method,
    pub(crate) url: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) data: Option<String>,
    pub(crate) repeat: u32,
    pub(crate) every: Duration,
    pub(crate) plain_http: bool,
}

pub(crate) enum TokenEndpoint {
    Url(String),
    DiscoverFrom(String),
}

pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, BoxError> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let (mut token_endpoint, mut client_id, mut secret_env, mut post) = (None, None, None, false);
    let (mut scope, mut rotation, mut file, mut data) = (None, Rotation::Strict, None, None);
    let (mut repeat, mut every, mut plain_http) = (1, Duration::from_secs(1), false);
    let (mut headers, mut positional) = (HeaderMap::new(), Vec::new());
    let mut any = false;
    while let Some(argument) = parser.next()? {
        any = true;
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("token-endpoint") => token_endpoint = Some(TokenEndpoint::Url(parser.value()?.string()?)),
            Long("issuer") => token_endpoint = Some(TokenEndpoint::DiscoverFrom(parser.value()?.string()?)),
            Long("client-id") => client_id = Some(parser.value()?.string()?),
            Long("client-secret-env") => secret_env = Some(parser.value()?.string()?),
            Long("client-auth") => {
                post = match parser.value()?.string()?.as_str() {
                    "basic" => false,
                    "post" => true,
                    other => return Err(format!("--client-auth must be basic or post, not {other:?}").into()),
                }
            }
            Long("scope") => scope = Some(parser.value()?.string()?),
            Long("rotation") => rotation = self::rotation(&parser.value()?.string()?)?,
            Long("refresh-token-file") => file = Some(PathBuf::from(parser.value()?)),
            Long("header") => {
                let (name, value) = header(&parser.value()?.string()?)?;
                headers.append(name, value);
            }
            Long("data") => data = Some(parser.value()?.string()?),
            Long("repeat") => repeat = parser.value()?.parse()?,
            Long("every") => every = seconds(&parser.value()?.string()?)?,
            Long("allow-plain-http") => plain_http = true,
            Value(text) => positional.push(text.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if !any {
        return Ok(Command::Demo);
    }

    let id = client_id.ok_or("--client-id is missing")?;
    let client_auth = match secret_env {
        None => ClientAuth::public(id),
        Some(name) => {
            let secret = std::env::var(&name).map_err(|_| format!("the environment variable {name} isn't set"))?;
            if post { ClientAuth::post(id, secret) } else { ClientAuth::basic(id, secret) }
        }
    };
    let url = positional.pop().ok_or("the URL to call is missing")?;
    let method = match positional.pop() {
        Some(method) => method.parse().map_err(|_| format!("invalid HTTP method {method:?}"))?,
        None if data.is_some() => Method::POST,
        None => Method::GET,
    };
    if let Some(more) = positional.pop() {
        return Err(format!("unexpected argument {more:?}").into());
    }
    Ok(Command::Call(Box::new(Args {
        token_endpoint: token_endpoint.ok_or("--token-endpoint or --issuer is missing")?,
        client_auth,
        scope,
        rotation,
        refresh_token_file: file.ok_or("--refresh-token-file is missing")?,
        method,
        url: url.parse().map_err(|_| format!("invalid URL {url:?}"))?,
        headers,
        data,
        repeat,
        every,
        plain_http,
    })))
}

fn rotation(text: &str) -> Result<Rotation, BoxError> {
    match (text, text.strip_prefix("grace=")) {
        ("strict", _) => Ok(Rotation::Strict),
        ("reusable", _) => Ok(Rotation::Reusable),
        (_, Some(window)) => Ok(Rotation::Grace(seconds(window)?)),
        _ => Err(format!("--rotation must be strict, grace=SECONDS or reusable, not {text:?}").into()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), BoxError> {
    let parsed = text
        .split_once(':')
        .and_then(|(name, value)| Some((name.trim().parse().ok()?, HeaderValue::from_str(value.trim()).ok()?)));
    parsed.ok_or_else(|| "--header must be 'NAME: VALUE'".into())
}

fn seconds(text: &str) -> Result<Duration, BoxError> {
    let parsed = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    parsed.ok_or_else(|| format!("invalid number of seconds {text:?}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn no_arguments_run_the_demo() {
        assert!(matches!(parsed(""), Ok(Command::Demo)));
        assert!(matches!(parsed("GET --help"), Ok(Command::Help)));
    }

    #[test]
    fn a_complete_command_line_is_parsed() {
        let line = "--token-endpoint https://a/t --client-id app --refresh-token-file f --rotation grace=2.5 \
                    --repeat 3 --header x-a:b --data {} https://api/x";
        let Ok(Command::Call(args)) = parsed(line) else { panic!("{:?}", parsed(line).err()) };
        assert_eq!((args.method.as_str(), args.url.host()), ("POST", Some("api")));
        assert_eq!((args.rotation, args.repeat), (Rotation::Grace(Duration::from_millis(2500)), 3));
        assert_eq!(args.headers["x-a"], "b");
    }

    #[test]
    fn an_invalid_command_line_is_reported_in_one_line() {
        let complete = "--token-endpoint https://a/t --client-id app --refresh-token-file f";
        for (line, expected) in [
            ("GET https://api/x", "--client-id is missing"),
            ("--client-id app GET https://api/x", "--token-endpoint or --issuer is missing"),
            ("--client-id app --issuer https://a https://api/x", "--refresh-token-file is missing"),
            (complete, "the URL to call is missing"),
            (&format!("{complete} a GET https://api/x"), "unexpected argument \"a\""),
            (
                &format!("{complete} --rotation no https://api/x"),
                "--rotation must be strict, grace=SECONDS or reusable, not \"no\"",
            ),
            (
                &format!("{complete} --client-secret-env NO_SUCH_VARIABLE x"),
                "the environment variable NO_SUCH_VARIABLE isn't set",
            ),
            ("--unknown", "invalid option '--unknown'"),
        ] {
            assert_eq!(parsed(line).err().as_deref(), Some(expected), "{line}");
        }
    }
}
