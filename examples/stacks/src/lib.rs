//! Clients of all kinds, each with a session of `tower-auth-refresh`.
//!
//! Each module is the recipe of one stack and its tests. The marked regions are the code of `docs/stacks.md`.

use tower_auth_refresh::{AuthRefreshLayer, InvalidOrigin, Origin, Session};

pub mod async_openai;
pub mod events;
pub mod hyper_util;
pub mod jsonrpsee;
pub mod kube;
pub mod oauth2;
pub mod object_store;
pub mod octocrab;
pub mod progenitor;
pub mod reqwest;
pub mod reqwest_middleware;
pub mod rmcp;
pub mod tonic;
pub mod websocket;

#[cfg(test)]
mod support;

/// Makes the layer that most recipes begin with.
///
/// # Errors
///
/// If the text isn't an origin.
pub fn layer(session: Session, api: &str) -> Result<AuthRefreshLayer, InvalidOrigin> {
    // [recipe: layer]
    let layer = AuthRefreshLayer::new(session, Origin::parse(api)?);
    // [end]
    Ok(layer)
}
