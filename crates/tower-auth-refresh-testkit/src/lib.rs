//! An authorization server and an API on loopback, for testing clients that refresh access tokens.
//!
//! - [`TestServer`] serves HTTP/1 and HTTP/2 by hyper on a free port. [`TestKit`] is the same as a `tower` service.
//! - A test sets lifetimes and the rotation of refresh tokens ([`Settings`]), expires and revokes tokens, injects
//!   failures ([`Fault`]), and holds responses back ([`Gate`]).
//! - A test reads the log ([`Entry`]) and the [`Counters`]. An oracle reports each use of a superseded refresh token
//!   as a [`Violation`].
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
//! The same servers without a socket, as a `tower` service, for benchmarks and for tests on paused time:
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
//! let response = kit.clone().oneshot(Request::post("/auth/login").body(credentials)?).await?;
//! let body = response.into_body().collect().await.map_err(|_| "the body was cut short")?.to_bytes();
//! let tokens: TokenPair = serde_json::from_slice(&body)?;
//! assert_eq!(tokens.expires_in, 60);
//! # Ok(()) }
//! ```
//!
//! # Routes
//!
//! | route | response |
//! | --- | --- |
//! | `POST /auth/login` | `{"username": …, "password": …}` → a [`TokenPair`], or 401 |
//! | `POST /auth/refresh` | `{"refresh_token": …}` → a new [`TokenPair`], or 401 `{"error":"invalid_grant"}` |
//! | `POST /auth/logout` | `{"refresh_token": …}` → 204; the sign-in has ended |
//! | `GET /.well-known/oauth-authorization-server` | the metadata of the routes below (RFC 8414) |
//! | `GET /oauth/authorize` | a redirect with a code, at once and without a page, for the user `login_hint` or `ada` |
//! | `POST /oauth/device` | a device code and a user code (RFC 8628) |
//! | `GET /oauth/verify?user_code=…` | approves a device at once, for `user` or `ada` |
//! | `POST /oauth/token` | the tokens for a code with its PKCE verifier, a device code or a refresh token; or 400 |
//! | `POST /oauth/revoke` | 200; the sign-in of `token` has ended (RFC 7009) |
//! | `/api/echo` | the request's body, as it streams in |
//! | `/api/bytes/{n}` | `n` bytes; byte `i` is `i % 251` |
//! | `/api/upload` | as `/api/…`, and `body_checksum`: the [`Checksum`] of the body |
//! | `/api/headers` | as `/api/…`, and `headers`: all request headers but `authorization` |
//! | `/api/…` | `{"user", "generation", "method", "path", "query", "body_length"}` |
//!
//! `/oauth/…` accepts any client id, and doesn't check how clients authenticate.
//! [`TestKit::approve_device`](crate::TestKit::approve_device) and [`TestKit::deny_device`](crate::TestKit::deny_device)
//! decide about a device grant. The issuer is the origin that a request is sent to.
//!
//! The API requires `Authorization: Bearer …`. Without a token, the API responds with 401 and
//! `WWW-Authenticate: Bearer`; if the token is expired, revoked or unknown, with 401 and
//! `WWW-Authenticate: Bearer error="invalid_token"` (RFC 6750 §3.1).
//!
//! A request may announce its body's length and checksum in the headers [`BODY_LENGTH`] and [`BODY_CHECKSUM`]. A
//! complete body that differs from them, or from `Content-Length`, is counted in [`Counters::body_mismatches`].
//!
//! # The oracle
//!
//! Under [`Rotation::Strict`] and [`Rotation::Grace`], each refresh supersedes the refresh token that was presented.
//! Presenting that token again is a [`Violation`], whether or not the server grants the refresh. If the kit itself kept
//! the successor from the client, by a [`Fault`] or a [`Gate`], one more use of the superseded token is allowed and
//! counted in [`Counters::allowed_reuses`].
//!
//! # Features
//!
//! - `conformance`: for tests of `tower-auth-refresh`. Adds the module `conformance`, a test suite for token stores;
//!   `TestKit::refresh_service`, for sessions; and `TryFrom<TokenPair>` for `Tokens`.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod answer;
mod body;
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;
mod error;
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
mod sign_ins;
mod successor;
mod token;

pub use body::{Checksum, ResponseBody};
pub use error::ConnectionDropped;
pub use faults::{Fault, Route};
pub use gate::Gate;
pub use kit::TestKit;
pub use log::{Counters, Entry, UserCounters, Violation};
pub use server::TestServer;
pub use service::ResponseFuture;
pub use settings::{Rotation, Settings, UnreadBody};
pub use token::TokenPair;

/// The request header that announces the body's length in bytes.
pub const BODY_LENGTH: &str = "x-body-length";

/// The request header that announces the body's [`Checksum`].
pub const BODY_CHECKSUM: &str = "x-body-checksum";

/// Runs the README's examples. The last of them needs the feature.
#[cfg(all(doctest, feature = "conformance"))]
#[doc = include_str!("../README.md")]
struct Readme;
