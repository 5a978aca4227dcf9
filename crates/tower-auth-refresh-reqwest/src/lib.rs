//! [reqwest] with access tokens that [`tower_auth_refresh`] refreshes.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod api_client;
mod body;
#[cfg(feature = "rmcp")]
mod mcp;
#[cfg(feature = "middleware")]
mod middleware;
#[cfg(feature = "object-store")]
mod object_store;
mod options;
mod redirect;
mod request_builder;
mod service;

pub use api_client::ApiClient;
pub use body::{IntoReqwestBody, ResponseBody};
#[cfg(feature = "rmcp")]
#[cfg_attr(docsrs, doc(cfg(feature = "rmcp")))]
pub use mcp::McpClient;
#[cfg(feature = "middleware")]
#[cfg_attr(docsrs, doc(cfg(feature = "middleware")))]
pub use middleware::AuthRefreshMiddleware;
pub use request_builder::{RequestBuilder, SendWith};
pub use service::{ReqwestService, ResponseFuture};

pub use reqwest;
pub use tower_auth_refresh;
#[doc(no_inline)]
pub use tower_auth_refresh::{
    AccessToken, AuthRefreshLayer, Origin, Origins, RefreshReport, RefreshToken, Session, Tokens,
};
pub use tower_auth_refresh_http;
#[doc(no_inline)]
pub use tower_auth_refresh_http::{AuthClient, JsonLogin, JsonLogout, JsonRefresh, OAuthRefresh};

/// The README's code is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
