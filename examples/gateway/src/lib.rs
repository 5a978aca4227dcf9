//! A backend for frontend: browsers get a session cookie, the tokens stay here.
//!
//! A browser signs in and gets a session cookie. Its calls to `/api/…` are proxied to the upstream with the user's
//! access token, through [`AuthRefreshLayer::per_request`](tower_auth_refresh::AuthRefreshLayer::per_request). When the
//! token has expired, the gateway refreshes it once, however many calls fail at the same moment, and replays them all.
//!
//! `main.rs` is the program. The modules, in reading order: `config` (settings), `tls`, `server` (connections), `routes` (the
//! gateway's own routes), `fields` (header values), `reject_ambiguous`, `csrf` and `cookie` (request checks), `proxy`
//! (`path`, `headers`, `body` and `slow_client`, then `upstream` with `stall_timeout`, then `outcome`), `auth` (the
//! authorization server), `limits` (requests and logins in flight), `task_tracker` (tasks that outlive their request),
//! `metrics`, `log`, and `demo`.

#![forbid(unsafe_code)]

mod app;
mod auth;
mod config;
mod cookie;
mod csrf;
mod demo;
mod descriptors;
mod fields;
mod gateway;
mod limits;
mod log;
mod metrics;
mod problem;
mod proxy;
mod reject_ambiguous;
mod routes;
mod server;
mod stores;
mod task_tracker;
mod tls;

pub use config::{
    Args, AuthServer, Identity, InvalidSetting, LogFormat, PeerTls, PublicOrigin, Settings, Store, StripHeaders,
    Upstream,
};
pub use demo::Demo;
pub use gateway::{Gateway, Reload, StartError};
pub use log::LogWriter;
pub use metrics::{Metrics, RefreshWatch};

/// Compiles the examples of the workspace's README, which a published crate can't include.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme_of_the_workspace {}
