//! A gateway that keeps the tokens of many users from their browsers (a "backend for frontend").
//!
//! A browser signs in and gets a session cookie. Its calls to `/api/…` go to the upstream with the user's access token,
//! through [`AuthRefreshLayer::per_request`](tower_auth_refresh::AuthRefreshLayer::per_request): when the token has
//! expired it is refreshed once, however many calls notice, and they are all sent again. The browser sees none of it.
//!
//! The program is `main.rs`; here are its parts, in reading order: `config` (what it is told), `server` (connections),
//! `routes` (what it answers itself), `ambiguity`, `csrf` and `cookie` (who asks), `proxy` (what it passes on: `path`,
//! `headers`, `body` and `pump`, then `upstream` with `patience`, then `outcome`), `auth` (the authorization server),
//! `errands` (what goes on without its client), `metrics`, and `demo`.

#![forbid(unsafe_code)]

mod ambiguity;
mod app;
mod auth;
mod config;
mod cookie;
mod csrf;
mod demo;
mod errands;
mod gateway;
mod metrics;
mod problem;
mod proxy;
mod routes;
mod server;

pub use config::{Args, AuthServer, InvalidSetting, LogFormat, PublicOrigin, Settings, Upstream};
pub use demo::Demo;
pub use gateway::{Gateway, StartError};
pub use metrics::{Metrics, RefreshWatch};

/// The code in the workspace's README is compiled here, since a published crate can't reach that file.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme_of_the_workspace {}
