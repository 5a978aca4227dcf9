//! An authorization server and an API on loopback, for testing clients that refresh access tokens.
//!
//! Real hyper, HTTP/1 and HTTP/2, on a free port; short lifetimes, expire and revoke at will, faults to switch on,
//! gates that make a stampede exact, a log of every request, and an oracle: **whoever presents a superseded refresh
//! token is caught**.
//!
//! ```
//! use std::time::Duration;
//!
//! use http::Request;
//! use http_body_util::Full;
//! use hyper_util::{client::legacy::Client, rt::TokioExecutor};
//! use tower_auth_refresh_testkit::{Fault, Route, TestServer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = TestServer::start().await?;
//! server.configure(|settings| settings.access_lifetime = Duration::from_secs(2));
//! let tokens = server.sign_in("ada");
//!
//! let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
//! let call = || {
//!     Request::get(server.url("/api/notes"))
//!         .header("authorization", format!("Bearer {}", tokens.access_token))
//!         .body(Full::default())
//! };
//! assert_eq!(client.request(call()?).await?.status(), 200);
//!
//! server.expire_access_tokens();
//! assert_eq!(client.request(call()?).await?.status(), 401);
//!
//! server.inject(Route::Api, Fault::status(503).header("retry-after", "1").times(1));
//! assert_eq!(client.request(call()?).await?.status(), 503);
//!
//! for entry in server.log() {
//!     println!("{:?} {} {} {:?}", entry.at, entry.method, entry.path, entry.status);
//! }
//! assert_eq!(server.counters().unauthorized(), 1);
//! assert_eq!(server.violations(), []);
//! # Ok(()) }
//! ```
//!
//! The same servers are a `tower` service, without a socket: for benches, and on paused time.
//!
//! ```
//! use http::Request;
//! use http_body_util::{BodyExt, Full};
//! use tower::ServiceExt;
//! use tower_auth_refresh_testkit::{TestKit, TokenPair};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let kit = TestKit::new();
//! let credentials = Full::<bytes::Bytes>::from(r#"{"username":"ada","password":"any"}"#);
//! let answer = kit.clone().oneshot(Request::post("/auth/login").body(credentials)?).await?;
//! let answer = answer.into_body().collect().await.map_err(|_| "cut short")?.to_bytes();
//! let tokens: TokenPair = serde_json::from_slice(&answer)?;
//! assert_eq!(tokens.expires_in, 60);
//! # Ok(()) }
//! ```
//!
//! # Routes
//!
//! | route | answer |
//! | --- | --- |
//! | `POST /auth/login` | `{"username": …, "password": …}` → a [`TokenPair`]; 401 if refused |
//! | `POST /auth/refresh` | `{"refresh_token": …}` → its successor, a [`TokenPair`]; 401 `{"error":"invalid_grant"}` |
//! | `POST /auth/logout` | `{"refresh_token": …}` → 204; the sign-in is over |
//! | `/api/echo` | the request's body, as it streams in |
//! | `/api/bytes/{n}` | `n` bytes; byte `i` is `i % 251` |
//! | `/api/upload` | as below, and `body_checksum`: the [`Checksum`] of the body |
//! | `/api/headers` | as below, and `headers`: all that came, `authorization` aside |
//! | `/api/…` | `{"user", "generation", "method", "path", "query", "body_length"}` |
//!
//! The API wants `Authorization: Bearer …`. Without it, it answers 401 with `WWW-Authenticate: Bearer`; with a token
//! that is expired, revoked or unknown, 401 with `Bearer error="invalid_token"`.
//!
//! A request may announce its body by [`BODY_LENGTH`] and [`BODY_CHECKSUM`]; what arrives whole and differs (from
//! `Content-Length` too) is counted in [`Counters::body_mismatches`].
//!
//! # The oracle
//!
//! Under [`Rotation::Strict`] and [`Rotation::Grace`] each refresh supersedes the refresh token presented. Presenting
//! it once more is a [`Violation`], whatever the server answers. Not so if the kit itself kept the successor from the
//! client, by a [`Fault`] or a [`Gate`]: then one more use of the old token is counted in [`Counters::excused`].
//!
//! # Features
//!
//! - `conformance`: the module of that name, a test suite for token stores of `tower-auth-refresh`; a refresh service
//!   for its sessions, `TestKit::refresh_service`; and `TryFrom<TokenPair>` for its `Tokens`.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod answer;
mod body;
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;
mod exchange;
mod families;
mod faults;
mod gate;
mod journal;
mod kit;
mod log;
#[cfg(feature = "conformance")]
mod refresher;
mod routes;
mod server;
mod service;
mod settings;
mod token;

pub use body::{Checksum, ResponseBody};
pub use faults::{Fault, Route};
pub use gate::Gate;
pub use kit::TestKit;
pub use log::{Counters, Entry, UserCounters, Violation};
pub use server::TestServer;
pub use service::{ConnectionDropped, ResponseFuture};
pub use settings::{Rotation, Settings, UnreadBody};
pub use token::TokenPair;

/// A request header that announces the body's length in bytes.
pub const BODY_LENGTH: &str = "x-body-length";

/// A request header that announces the body's [`Checksum`].
pub const BODY_CHECKSUM: &str = "x-body-checksum";

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
