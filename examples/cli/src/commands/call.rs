//! `app call METHOD URL`: calls an API with the session's token.

use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt;
use tower_auth_refresh::Origin;
use tower_auth_refresh_reqwest::reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tower_auth_refresh_reqwest::reqwest::{Method, Response, Url};

use crate::api;
use crate::app::App;
use crate::args;
use crate::failure::{Failure, Kind};
use crate::output::{self, note};
use crate::profile::Profile;

pub(super) async fn run(app: &App, call: args::Call) -> Result<(), Failure> {
    let method: Method =
        call.method.to_ascii_uppercase().parse().map_err(|_| usage(format!("invalid method {:?}", call.method)))?;
    let headers = call.headers.iter().map(|text| header(text)).collect::<Result<HeaderMap, _>>()?;
    let (session, origins, url) = match (app.override_token()?, Profile::load(&app.paths, &app.name)?) {
        // The user has named both the token and the URL.
        (Some(token), None) => {
            let url = api::url(&call.url)?;
            (app.session_of(token).await?, vec![api::origin(&url, false)?], url)
        }
        (_, Some(profile)) => {
            let origins = profile.origins()?;
            let url = target(app, &profile, &origins, &call.url)?;
            (app.session(&profile).await?, origins, url)
        }
        (None, None) => return Err(app.no_profile()),
    };
    let mut request = api::client(session, origins)?.request(method, url).headers(headers);
    if let Some(data) = &call.data {
        request = request.body(body(data).await?);
    }
    let response = api::send(app, request).await?;
    let status = response.status();
    if app.output.json {
        print_json(response).await?;
    } else {
        if call.include {
            note(&format!("{:?} {status}", response.version()));
            for (name, value) in response.headers() {
                note(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
            }
        }
        print_body(response).await?;
    }
    if status.is_success() { Ok(()) } else { Err(Failure::new(Kind::ApiError, format!("the API answered {status}"))) }
}

/// Returns the URL of a request that the token may be sent with.
fn target(app: &App, profile: &Profile, origins: &[Origin], text: &str) -> Result<Url, Failure> {
    let file = app.paths.profile(app.name.as_str());
    let url = match (text.starts_with('/'), profile.apis.first()) {
        (true, Some(api)) => api::url(&format!("{}{text}", api.trim_end_matches('/')))?,
        (true, None) => return Err(usage("the profile has no API, so the URL must be complete")),
        (false, _) => api::url(text)?,
    };
    if origins.contains(&api::origin(&url, true)?) {
        return Ok(url);
    }
    let origin = url.origin().ascii_serialization();
    let failure = usage(format!("{origin} is no API of this profile, so it gets no token"));
    Err(failure
        .with_hint(format!("to trust it, add it to \"apis\" in {}, or sign in with --api {origin}", file.display())))
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), Failure> {
    let parsed = text
        .split_once(':')
        .and_then(|(name, value)| Some((name.trim().parse().ok()?, HeaderValue::from_str(value.trim()).ok()?)));
    parsed.ok_or_else(|| usage("a header must be 'NAME: VALUE'"))
}

/// The body is in memory as one piece, so that it can be sent again with a new token.
async fn body(data: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let (read, name) = match data.strip_prefix('@') {
        Some(path) => (tokio::fs::read(path).await.map(|file| bytes = file), path),
        None if data == "-" => (tokio::io::stdin().read_to_end(&mut bytes).await.map(drop), "stdin"),
        None => return Ok(data.as_bytes().to_vec()),
    };
    read.map(|()| bytes).map_err(|error| Failure::other(name, error))
}

/// Prints the body as it comes.
async fn print_body(mut response: Response) -> Result<(), Failure> {
    let mut ends_line = true;
    while let Some(chunk) = response.chunk().await.map_err(api::unavailable)? {
        ends_line = chunk.last().map_or(ends_line, |last| *last == b'\n');
        output::bytes(&chunk)?;
    }
    if ends_line { Ok(()) } else { output::bytes(b"\n") }
}

async fn print_json(response: Response) -> Result<(), Failure> {
    let status = response.status().as_u16();
    let mut headers = Map::new();
    for (name, value) in response.headers() {
        let values = headers.entry(name.as_str()).or_insert_with(|| json!([]));
        if let Some(values) = values.as_array_mut() {
            values.push(String::from_utf8_lossy(value.as_bytes()).into());
        }
    }
    let bytes = response.bytes().await.map_err(api::unavailable)?;
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
    output::line(&json!({"status": status, "headers": headers, "body": body}).to_string())
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Kind::Usage, message)
}
