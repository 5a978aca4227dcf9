//! Calls to an API with the session's token.

use tower_auth_refresh::{Origin, RefreshReport, Session};
use tower_auth_refresh_reqwest::reqwest::{self, Response, StatusCode, Url};
use tower_auth_refresh_reqwest::{ApiClient, RequestBuilder};

use crate::app::{self, App};
use crate::failure::{Failure, Kind};
use crate::profile::layer_origins;
use crate::progress::Progress;

/// Returns a client that sends the token of the session to these origins.
pub(crate) fn client(session: Session, origins: Vec<Origin>) -> Result<ApiClient, Failure> {
    Ok(ApiClient::new(session, layer_origins(origins), app::http(reqwest::Client::builder())?))
}

pub(crate) fn url(text: &str) -> Result<Url, Failure> {
    Url::parse(text).map_err(|error| Failure::new(Kind::Usage, format!("{text:?} is no URL")).with_source(error))
}

/// Returns the origin of a URL, to send a token there.
pub(crate) fn origin(url: &Url, allow_http: bool) -> Result<Origin, Failure> {
    let parse = if allow_http { Origin::parse_allowing_http } else { Origin::parse };
    let origin = parse(&url.origin().ascii_serialization());
    origin.map_err(|error| Failure::new(Kind::Usage, format!("no token is sent to {url}")).with_source(error))
}

/// Sends a request. A 401 is a failure that says what to do.
pub(crate) async fn send(app: &App, request: RequestBuilder) -> Result<Response, Failure> {
    let sent = {
        let _progress = Progress::start("waiting for the API");
        request.send().await
    };
    let response = sent.map_err(unavailable)?;
    if response.status() == StatusCode::UNAUTHORIZED && app.override_token()?.is_some() {
        let failure = Failure::new(Kind::SignInRequired, "the API refused the token of APP_TOKEN");
        return Err(failure.with_hint("set a newer one, or none to use the session"));
    }
    match response.extensions().get::<RefreshReport>() {
        Some(report) if response.status() == StatusCode::UNAUTHORIZED => {
            Err(Failure::refused(report, &app.login_command()))
        }
        _ => Ok(response),
    }
}

pub(crate) fn unavailable(error: reqwest::Error) -> Failure {
    let kind = if error.is_builder() { Kind::Usage } else { Kind::Unavailable };
    Failure::new(kind, "the API can't be reached").with_source(error)
}
