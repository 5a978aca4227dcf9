//! A backend for frontend: browsers get a session cookie, the tokens stay here.
//!
//! A browser signs in and gets a session cookie. Its calls to `/api/…` are proxied to the upstream with the user's
//! access token, through [`AuthRefreshLayer::per_request`](tower_auth_refresh::AuthRefreshLayer::per_request). When the
//! token has expired, the gateway refreshes it once, however many calls fail at the same moment, and replays them all.
//!
//! `main.rs` is the program. The modules, in reading order: `config` (settings), `tls`, `server` (connections),
//! `client_address` (the client of a request), `routes` (the gateway's own routes), `fields` (header values),
//! `reject_ambiguous`, `csrf` and `cookie` (request checks), `proxy` (`path`, `headers`, `body` and `slow_client`, then
//! `upstream` with `stall_timeout`, then `outcome`), `auth` (the authorization server), `user` (the name of a session's
//! user), `limits` (requests and logins in flight), `user_sessions` (sessions of a user), `task_tracker` (tasks that
//! outlive their request), `observation` (a request's line of the log and its ids), `phase` (the shutdown), `inherited`
//! and `supervisor` (systemd), `check`, `descriptors`, `metrics`, `log` with `ascii`, and `demo`.

#![forbid(unsafe_code)]

mod app;
mod ascii;
mod auth;
mod check;
mod client_address;
mod config;
mod cookie;
mod counted_store;
mod csrf;
mod demo;
mod descriptors;
mod fields;
mod gateway;
mod gather;
mod inherited;
mod limits;
mod log;
mod metrics;
mod observation;
mod phase;
mod problem;
mod proxy;
mod reject_ambiguous;
mod routes;
mod server;
mod stall_timer;
mod stores;
mod supervisor;
mod task_tracker;
mod tls;
mod user;
mod user_sessions;

pub use check::check;
pub use config::{
    Args, AuthServer, Identity, InvalidSetting, LogFormat, PeerTls, PublicOrigin, Settings, Store, StripHeaders,
    TrustedProxies, UnknownVariable, Upstream,
};
pub use demo::Demo;
pub use descriptors::raise_descriptor_limit;
pub use gateway::{Gateway, Reload, StartError};
pub use inherited::Inherited;
pub use log::LogWriter;
pub use metrics::{Metrics, RefreshWatch};
pub use observation::AccessLog;
pub use supervisor::Supervisor;

/// Compiles the examples of the workspace's README, which a published crate can't include.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme_of_the_workspace {}
