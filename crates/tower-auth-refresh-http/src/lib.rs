//! The refresh call of [`tower_auth_refresh`], ready-made, over any `tower` HTTP client.
//!
//! | server | refresh call | further calls |
//! | --- | --- | --- |
//! | an app's own, JSON | [`JsonRefresh`] | [`JsonLogin`], [`JsonLogout`] |
//! | an app's own, the refresh token in a cookie | [`JsonRefresh::cookie`] | [`JsonLogin::cookie`], [`JsonLogout::cookie`] |
//! | OAuth 2.0 | [`OAuthRefresh`], [`ClientCredentials`] | [`OAuthRevoke`], [`AuthorizationServer`] (discovery); sign-in by `BrowserSignIn`, `DeviceSignIn` |
//!
//! Each of them is a `tower` service, so that time-outs, limits and tracing can be layered around it, and can be called
//! by itself, without a session. All are sent by an [`AuthClient`]: https only, redirects never followed, size and time
//! bounded, and calls that were never sent distinguished from calls in doubt. [`recipes`] has settings for many
//! providers.
//!
//! An app that signs its users in by `oauth2` or `openidconnect` itself uses the same client, by [`AuthClient::call`], and
//! hands the response to [`TokenFields::tokens`].
//!
//! # Examples
//!
//! An app with a JSON `/auth/refresh`:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! # use tower_auth_refresh_http::AuthClient;
//! # let client = tower::service_fn(|_: http::Request<http_body_util::Full<bytes::Bytes>>| async {
//! #     Ok::<_, tower::BoxError>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(
//! #         r#"{"access_token":"a1","refresh_token":"r1","expires_in":300}"#,
//! #     ))))
//! # });
//! use serde_json::json;
//! use tower_auth_refresh::{Session, SessionState};
//! use tower_auth_refresh_http::{JsonLogin, JsonLogout, JsonRefresh};
//!
//! let http = AuthClient::new(client); // or, with the crate feature `client`: AuthClient::rustls()
//! let session = Session::builder(JsonRefresh::new(http.clone(), "https://api.example.com/auth/refresh")?)
//!     .revoke(JsonLogout::new(http.clone(), "https://api.example.com/auth/logout")?)
//!     .build()
//!     .await?;
//!
//! let login = JsonLogin::new(http, "https://api.example.com/auth/login")?;
//! login.sign_in(&session, &json!({"email": "ada@example.com", "password": "correct horse"})).await?;
//! assert_eq!(session.state(), SessionState::Active);
//!
//! session.sign_out().await?; // calls the logout endpoint, and clears the tokens whatever the answer
//! # Ok(()) }
//! ```
//!
//! OAuth 2.0, endpoints discovered, tokens revoked at sign-out:
//!
//! ```
//! # use tower_auth_refresh::{RefreshToken, Session, Tokens};
//! # use tower_auth_refresh_http::{AuthClient, AuthorizationServer, ClientAuth, OAuthRefresh, OAuthRevoke};
//! # async fn example(http: AuthClient, stored: RefreshToken) -> Result<Session, tower::BoxError> {
//! let server = AuthorizationServer::discover(&http, "https://auth.example.com").await?;
//! let app = ClientAuth::basic("my-app", "s3cret");
//!
//! let mut session = Session::builder(OAuthRefresh::new(http.clone(), server.token_endpoint(), app.clone())?)
//!     .tokens(Tokens::from_refresh_token(stored));
//! if let Some(endpoint) = server.revocation_endpoint() {
//!     session = session.revoke(OAuthRevoke::new(http, endpoint, app)?);
//! }
//! let session = session.build().await?;
//! # Ok(session) }
//! ```
//!
//! An app on the user's machine signs in with the system's browser; without one, `DeviceSignIn` shows a code to enter on
//! another device. With the crate features `client` and `oidc`:
//!
//! ```
//! # #[cfg(all(feature = "client", feature = "oidc"))]
//! # async fn example(session: tower_auth_refresh::Session) -> Result<(), tower::BoxError> {
//! use tower_auth_refresh_http::{AuthClient, AuthorizationServer, BrowserSignIn, ClientAuth};
//!
//! let http = AuthClient::rustls();
//! let server = AuthorizationServer::discover(&http, "https://auth.example.com").await?;
//! let sign_in = BrowserSignIn::new(http, &server, ClientAuth::public("my-cli"))?.scope("openid offline_access");
//!
//! let pending = sign_in.begin().await?;
//! println!("Open {} in a browser.", pending.url());
//! let signed_in = pending.finish().await?;
//! println!("Signed in as {}.", signed_in.subject().unwrap_or_default());
//! session.sign_in(signed_in.tokens).await?;
//! # Ok(()) }
//! ```
//!
//! A service that acts for itself:
//!
//! ```
//! # use tower_auth_refresh::Session;
//! # use tower_auth_refresh_http::{AuthClient, ClientAuth, ClientCredentials};
//! # async fn example(http: AuthClient) -> Result<Session, tower::BoxError> {
//! let auth = ClientAuth::basic("billing", "s3cret");
//! let grant = ClientCredentials::new(http, "https://auth.example.com/token", auth)?.scope("invoices:read");
//! let session = Session::client_credentials(grant).build().await?;
//! # Ok(session) }
//! ```
//!
//! # Errors
//!
//! Every failure is an [`AuthServerError`]: the endpoint, the cause, the status and the OAuth error code; never the
//! body, a token or anything else that the server chose. In a session it is the source of the
//! [`RefreshError`](tower_auth_refresh::RefreshError), whose kind it decides.
//!
//! A server that rotates refresh tokens may answer a refresh with something unusable, and a new refresh token in it.
//! The `RefreshError` carries that token
//! ([`RefreshError::refresh_token`](tower_auth_refresh::RefreshError::refresh_token)), and the session saves it, so
//! that the next refresh doesn't present a superseded one.
//!
//! # Features
//!
//! - `client`: a ready-made HTTPS client, `AuthClient::rustls()`: that of hyper-util, with rustls, ring and Mozilla's
//!   root certificates; by `AuthClient::rustls_builder()` with other roots, a proxy or a client certificate. With it the
//!   connect errors of every hyper-util client are recognised.
//! - `sign-in`: `BrowserSignIn` and `DeviceSignIn`, over `oauth2`. Adds 54 crates to an app with the feature `client`.
//! - `oidc`: the validation of ID tokens at a sign-in, by `openidconnect`. Adds 68 more.
//! - `private-key-jwt`: client authentication by signed assertions, `ClientAuth::private_key_jwt`, with ring.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod answer;
mod client;
mod decode;
mod endpoint;
mod error;
#[cfg(feature = "client")]
mod rustls;

mod challenges;
mod classify;
mod fields;
mod path;
mod retry_after;

mod cookie;
mod json;
mod json_call;
mod login;
mod logout;
mod oauth;
mod service;
mod setters;
#[cfg(feature = "sign-in")]
mod sign_in;
mod token_response;

pub mod recipes;

pub use self::client::AuthClient;
pub use self::endpoint::InvalidEndpoint;
pub use self::error::AuthServerError;
pub use self::fields::TokenFields;
pub use self::json::JsonRefresh;
pub use self::login::{JsonLogin, LoginError};
pub use self::logout::JsonLogout;
pub use self::oauth::{AuthorizationServer, ClientAuth, ClientCredentials, OAuthRefresh, OAuthRevoke};
#[cfg(feature = "private-key-jwt")]
#[cfg_attr(docsrs, doc(cfg(feature = "private-key-jwt")))]
pub use self::oauth::{InvalidKey, JwtSigner};
#[cfg(feature = "client")]
pub use self::rustls::{InvalidTls, RustlsBuilder};
#[cfg(feature = "sign-in")]
#[cfg_attr(docsrs, doc(cfg(feature = "sign-in")))]
pub use self::sign_in::{
    BrowserSignIn, DeviceSignIn, PendingBrowserSignIn, PendingDeviceSignIn, SignInError, SignInErrorKind, SignedIn,
};

/// The README's example, compiled.
#[cfg(all(doctest, feature = "client", feature = "oidc"))]
#[doc = include_str!("../README.md")]
mod readme {}
