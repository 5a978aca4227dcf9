//! The gateway's own routes, and the layers around all routes.

mod health;
mod login;
mod logout;
mod metrics;
mod session;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use http::header::{AUTHORIZATION, COOKIE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::set_header::SetResponseHeaderLayer;

use crate::app::App;
use crate::csrf;
use crate::metrics::observe;
use crate::problem::Kind;
use crate::proxy::proxy;
use crate::reject_ambiguous::reject_ambiguous;

/// Builds the router. `demo` has the routes of the demo page.
pub(crate) fn router(app: &App, demo: Router<App>) -> Router {
    let x_frame_options = HeaderName::from_static("x-frame-options");
    let own = Router::new()
        .route("/login", post(login::login))
        .route("/logout", post(logout::logout))
        .route("/session", get(session::session))
        .route("/healthz", get(health::healthz))
        .route("/metrics", get(metrics::metrics))
        .merge(demo)
        .fallback(async || Kind::NotFound)
        .method_not_allowed_fallback(async || Kind::MethodNotAllowed)
        .layer(SetResponseHeaderLayer::overriding(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
        .layer(SetResponseHeaderLayer::overriding(x_frame_options, HeaderValue::from_static("DENY")));
    Router::new()
        .route("/api", any(proxy))
        .route("/api/", any(proxy))
        .route("/api/{*path}", any(proxy))
        .merge(own)
        .layer(from_fn_with_state(app.public.clone(), csrf::reject_cross_origin))
        .layer(from_fn(reject_ambiguous))
        .layer(CatchPanicLayer::custom(|_| -> Response { Kind::Internal.into_response() }))
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, COOKIE]))
        .layer(from_fn_with_state(app.clone(), observe))
        .with_state(app.clone())
}
