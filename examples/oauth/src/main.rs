//! Calls an API with an OAuth refresh token from a file.
//!
//! ```sh
//! cargo run -p oauth -- --token-endpoint https://auth.example.com/token --client-id my-app \
//!     --refresh-token-file ~/.my-app-token GET https://api.example.com/me
//! ```
//!
//! Without arguments, runs a demo against built-in servers.

mod args;
mod demo;
mod token_file;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use tower::{BoxError, ServiceBuilder, ServiceExt};
use tower_auth_refresh::{AuthRefreshLayer, Origin, RefreshReport, Session, Tokens};
use tower_auth_refresh_http::{AuthClient, AuthorizationServer, OAuthRefresh};

use crate::args::{Args, Command};
use crate::token_file::TokenFile;

#[tokio::main]
async fn main() -> ExitCode {
    let result = match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            print!("{}", args::HELP);
            Ok(())
        }
        Ok(Command::Demo) => demo::run().await,
        Ok(Command::Call(args)) => call(*args).await,
        Err(error) => {
            eprintln!("oauth: {error} (try --help)");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oauth: {}", error_chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Makes the requested calls, through a session that keeps its refresh token in the file.
async fn call(args: Args) -> Result<(), BoxError> {
    let file = TokenFile::open(&args.refresh_token_file)?;
    let auth_client = if args.plain_http { AuthClient::rustls().allow_plain_http() } else { AuthClient::rustls() };
    let token_endpoint = match args.token_endpoint {
        args::TokenEndpoint::Url(url) => url,
        args::TokenEndpoint::DiscoverFrom(issuer) => {
            let server = AuthorizationServer::discover(&auth_client, &issuer).await;
            let server = server.map_err(|error| format!("discovery of the issuer failed: {}", error_chain(&error)))?;
            server.token_endpoint().to_owned()
        }
    };
    let mut refresh = OAuthRefresh::new(auth_client, &token_endpoint, args.client_auth)?;
    if let Some(scope) = args.scope {
        refresh = refresh.scope(scope);
    }
    let session = Session::builder(refresh)
        .tokens(Tokens::from_refresh_token(file.refresh_token().clone()))
        .store(file)
        .rotation(args.rotation)
        .build()
        .await?;

    let origin = format!(
        "{}://{}",
        args.url.scheme_str().unwrap_or_default(),
        args.url.authority().ok_or("the URL has no host")?
    );
    let origin = if args.plain_http { Origin::parse_allowing_http(&origin)? } else { Origin::parse(&origin)? };
    let client = ServiceBuilder::new().layer(AuthRefreshLayer::new(session.clone(), origin)).service(
        Client::builder(TokioExecutor::new()).build(
            HttpsConnectorBuilder::new()
                .with_provider_and_webpki_roots(ring::default_provider())?
                .https_or_http()
                .enable_http1()
                .build(),
        ),
    );

    for round in 0..args.repeat {
        if round > 0 {
            tokio::time::sleep(args.every).await;
        }
        let mut request = Request::new(Full::new(Bytes::from(args.data.clone().unwrap_or_default())));
        *request.method_mut() = args.method.clone();
        *request.uri_mut() = args.url.clone();
        *request.headers_mut() = args.headers.clone();
        let generation = session.generation();
        let response = client.clone().oneshot(request).await?;
        let refreshed = if session.generation() > generation { ", tokens refreshed" } else { "" };
        eprintln!("{}{refreshed}", response.status());
        let (status, mut refusal) = (response.status(), refusal(&response));
        let body = response.into_body().collect().await?.to_bytes();
        let mut out = std::io::stdout().lock();
        out.write_all(&body)?;
        if !body.is_empty() && !body.ends_with(b"\n") {
            out.write_all(b"\n")?;
        }
        if !status.is_success() {
            return Err(refusal.take().unwrap_or_else(|| format!("the API returned {status}")).into());
        }
    }
    Ok(())
}

/// Returns the reason why a 401 was passed on to the caller, in one line.
fn refusal<B>(response: &Response<B>) -> Option<String> {
    match response.extensions().get()? {
        RefreshReport::Replayed => None,
        RefreshReport::NotRefreshed(error) => Some(format!("the API refused the token: {}", error_chain(error))),
        other => Some(format!("the API refused the token: {other}")),
    }
}

/// Formats an error and its causes in one line.
fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some errors repeat their cause.
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}
