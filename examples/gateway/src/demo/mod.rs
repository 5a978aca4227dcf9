//! `--demo`: a built-in authorization server and API, and a page that draws refreshes and replays.

mod calls;
mod events;
mod page;

use std::time::Duration;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use tower_auth_refresh_testkit::{Fault, Route, TestKit, TestServer};

use crate::app::App;
use crate::config::Args;
use crate::gateway::StartError;

/// The latency of the API: long enough to be visible.
const API_LATENCY: Duration = Duration::from_millis(40);

/// The latency of a refresh, as over a long network path.
const REFRESH_LATENCY: Duration = Duration::from_millis(150);

/// The built-in servers of a demo.
#[derive(Debug)]
pub struct Demo {
    server: TestServer,
}

#[derive(Deserialize)]
struct User {
    user: String,
}

impl Demo {
    /// Starts the servers and sets their origin as `upstream` and `auth`.
    ///
    /// # Errors
    ///
    /// Returns [`StartError::Demo`] if no port is free.
    pub async fn start(args: &mut Args) -> Result<Self, StartError> {
        let server = TestServer::start().await.map_err(StartError::Demo)?;
        server.inject(Route::Api, Fault::delay(API_LATENCY));
        server.inject(Route::Refresh, Fault::delay(REFRESH_LATENCY));
        args.upstream = Some(server.origin());
        args.auth = Some(server.origin());
        Ok(Self { server })
    }

    /// Returns the handle that controls the servers.
    #[must_use]
    pub fn kit(&self) -> &TestKit {
        self.server.kit()
    }

    pub(crate) fn routes(&self) -> Router<App> {
        let kit = self.server.kit().clone();
        Router::new()
            .route("/", get(page::page))
            .route("/demo/style.css", get(page::style))
            .route("/demo/timeline.js", get(page::script))
            .route("/demo/calls", post(calls::calls))
            .route("/demo/expire", post(expire).with_state(kit.clone()))
            .route("/demo/revoke", post(revoke).with_state(kit.clone()))
            .route("/demo/events", get(async move |State(app): State<App>| events::events(&kit, &app)))
    }

    pub(crate) async fn shutdown(self) {
        self.server.shutdown().await;
    }
}

/// Expires all access tokens of a user at the API.
async fn expire(State(kit): State<TestKit>, Json(User { user }): Json<User>) -> StatusCode {
    kit.expire_access_tokens_of(&user);
    StatusCode::NO_CONTENT
}

/// Revokes all tokens of a user at the authorization server.
async fn revoke(State(kit): State<TestKit>, Json(User { user }): Json<User>) -> StatusCode {
    kit.revoke(&user);
    StatusCode::NO_CONTENT
}
