//! The gateway's own routes, and the checks of all requests.

mod health;
mod login;
mod logout;
mod metrics;
mod session;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::FutureExt;
use http::header::{AUTHORIZATION, COOKIE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue};
use tower::ServiceExt;
use tower_http::set_header::SetResponseHeaderLayer;

use crate::app::App;
use crate::client_address::ClientAddress;
use crate::csrf::is_cross_origin;
use crate::metrics::Metrics;
use crate::observation::{Observation, Observed};
use crate::problem::Kind;
use crate::proxy::proxy;
use crate::reject_ambiguous::is_ambiguous;

/// Answers the requests of a gateway: checks each, and routes it.
///
/// Calls of the API, which are nearly all requests, don't pass axum's router: its layers box and clone a service each.
#[derive(Clone)]
pub(crate) struct Router {
    app: App,
    own: axum::Router,
    proxies: bool,
}

impl Router {
    /// Creates the router. `demo` has the routes of the demo page.
    pub(crate) fn new(app: &App, demo: axum::Router<App>) -> Self {
        let own = axum::Router::new()
            .route("/login", post(login::login))
            .route("/logout", post(logout::logout))
            .route("/session", get(session::session))
            .merge(demo);
        Self::with_routes(app, own, true)
    }

    /// Creates the router of the admin listener.
    pub(crate) fn admin(app: &App) -> Self {
        Self::with_routes(app, axum::Router::new().route("/metrics", get(metrics::metrics)), false)
    }

    /// Adds what both listeners have.
    fn with_routes(app: &App, own: axum::Router<App>, proxies: bool) -> Self {
        let x_frame_options = HeaderName::from_static("x-frame-options");
        let own = own
            .route("/healthz", get(health::healthz))
            // HAProxy asks by OPTIONS, unless it is told otherwise.
            .route("/readyz", get(health::readyz).options(health::readyz))
            .fallback(async || Kind::NotFound)
            .method_not_allowed_fallback(async || Kind::MethodNotAllowed)
            .layer(SetResponseHeaderLayer::overriding(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
            .layer(SetResponseHeaderLayer::overriding(x_frame_options, HeaderValue::from_static("DENY")))
            .with_state(app.clone());
        Self { app: app.clone(), own, proxies }
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.app.metrics
    }

    /// Returns a router whose requests share nothing that they count with those of other connections.
    pub(crate) fn for_connection(&self) -> Self {
        Self { app: self.app.for_connection(), own: self.own.clone(), proxies: self.proxies }
    }

    /// Begins to observe a request.
    pub(crate) fn observe<B>(&self, request: &http::Request<B>, client: &ClientAddress, is_proxied: bool) -> Observed {
        Observation::start(&self.app, request, client, is_proxied)
    }

    /// Answers a request, also if that panics.
    ///
    /// The request is in a box, since each function on its way has a place for it in its future, and moves it there.
    pub(crate) async fn answer(
        &self,
        mut request: Box<Request>,
        client: ClientAddress,
        observation: &Arc<Observation>,
    ) -> Response {
        mark_credentials(request.headers_mut());
        // Boxed, since each function on the way to hyper would copy the future, of several kilobytes.
        let answer = AssertUnwindSafe(Box::pin(self.route(request, client, observation))).catch_unwind().await;
        let mut response = answer.unwrap_or_else(|_| Kind::Internal.into_response());
        observation.respond(&mut response);
        response
    }

    async fn route(
        &self,
        mut request: Box<Request>,
        client: ClientAddress,
        observation: &Arc<Observation>,
    ) -> Response {
        if is_ambiguous(&request) {
            return Kind::MalformedRequest.into_response();
        }
        if is_cross_origin(&self.app.public, &request) {
            return Kind::CrossOrigin.into_response();
        }
        let path = request.uri().path();
        if self.proxies && path.strip_prefix("/api").is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            return proxy(&self.app, request, &client, observation).await;
        }
        request.extensions_mut().insert(client);
        request.extensions_mut().insert(observation.clone());
        // In a box, so that calls of the API take no room for it.
        Box::pin(self.own.clone().oneshot(*request)).await.into_response()
    }
}

/// Keeps the credentials of a request out of `Debug` output, and out of the compression tables of HTTP/2.
fn mark_credentials(headers: &mut HeaderMap) {
    for (name, value) in headers {
        if [AUTHORIZATION, COOKIE].contains(name) {
            value.set_sensitive(true);
        }
    }
}
