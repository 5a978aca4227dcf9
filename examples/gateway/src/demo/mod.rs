//! `--demo`: an authorization server and an API inside, and a page that shows what silently happens.

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

/// Slow enough to be seen.
const API_TAKES: Duration = Duration::from_millis(40);

/// A refresh crosses half the internet.
const REFRESH_TAKES: Duration = Duration::from_millis(150);

/// The servers that a demo brings along.
#[derive(Debug)]
pub struct Demo {
    server: TestServer,
}

#[derive(Deserialize)]
struct User {
    user: String,
}

impl Demo {
    /// Starts the servers, and tells the gateway where they are.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub async fn start(args: &mut Args) -> Result<Self, StartError> {
        let server = TestServer::start().await.map_err(StartError::Demo)?;
        server.inject(Route::Api, Fault::delay(API_TAKES));
        server.inject(Route::Refresh, Fault::delay(REFRESH_TAKES));
        args.upstream = Some(server.origin());
        args.auth = Some(server.origin());
        Ok(Self { server })
    }

    /// The servers themselves.
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

/// The API refuses the user's access tokens from now on, as expired.
async fn expire(State(kit): State<TestKit>, Json(User { user }): Json<User>) -> StatusCode {
    kit.expire_access_tokens_of(&user);
    StatusCode::NO_CONTENT
}

/// The authorization server refuses his refresh tokens too.
async fn revoke(State(kit): State<TestKit>, Json(User { user }): Json<User>) -> StatusCode {
    kit.revoke(&user);
    StatusCode::NO_CONTENT
}
