//! All stacks of the `overhead` group.

use std::sync::Arc;

use toolkit_auth::oauth2::BearerAuthAutoRefreshLayer;
use toolkit_http::HttpError;
use tower::{BoxError, Layer};
use tower_auth_refresh::Session;
use tower_auth_refresh_benches::api::Api;
use tower_auth_refresh_benches::shape::{Body, Shape};
use tower_auth_refresh_benches::stack::{Candidate, TOKEN, light};

use crate::tokens::Tokens;
use crate::{cf_gears, kube};

/// Returns all stacks of the `overhead` group, the bare one first.
pub async fn all(shape: Shape, session: &Session) -> Vec<Candidate> {
    let mut all = light(shape, session);
    all.push(Candidate::new("kube", kube::layer::<Body>().layer(Api::<BoxError>::new())));
    let provider = cf_gears::provider(Arc::new(Tokens::always(TOKEN))).await;
    all.push(Candidate::new("cf_gears", BearerAuthAutoRefreshLayer::new(provider).layer(Api::<HttpError>::new())));
    all
}
