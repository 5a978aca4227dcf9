//! [reqwest] with access tokens that [`tower_auth_refresh`] refreshes.
//!
//! | | for | |
//! | --- | --- | --- |
//! | [`ApiClient`] | apps and SDKs over reqwest | `api.get(url).send().await?`, as with [`reqwest::Client`] |
//! | [`AuthRefreshMiddleware`](#reqwest-middleware) | stacks of reqwest-middleware, with the feature `middleware` | one more `.with(…)` |
//! | [`ReqwestService`] | `tower` stacks, and the calls to the authorization server | a service of [`http::Request`] |
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! # use tower_auth_refresh_reqwest::tower_auth_refresh_http;
//! # let server = tower_auth_refresh_testkit::TestServer::start().await?;
//! # let url = |path| server.url(path);
//! # let origin = server.origin();
//! use tower_auth_refresh_reqwest::{ApiClient, JsonRefresh, Origin, ReqwestService, Session, reqwest};
//!
//! let http = ReqwestService::new(reqwest::Client::builder())?;
//! let session = Session::builder(JsonRefresh::new(http.auth_client(), &url("/auth/refresh"))?).build().await?;
//! let api = ApiClient::new(session.clone(), Origin::parse(&origin)?, http);
//! # session.sign_in(server.sign_in("ada").try_into()?).await?;
//! # server.expire_access_tokens();
//!
//! let response = api.get(url("/api/notes")).query(&[("page", 2)]).send().await?.error_for_status()?;
//! assert_eq!(response.status(), 200);
//! # assert_eq!(server.counters().refreshes, 1);
//! # Ok(()) }
//! ```
//!
//! The promises are those of [`tower_auth_refresh`](tower_auth_refresh#promises). Responses and errors are reqwest's
//! own. If a refresh fails, the caller gets the API's 401 with a [`RefreshReport`] in its
//! [extensions](reqwest::Response::extensions).
//!
//! # Errors
//!
//! All errors are those that the bare client returns: [`reqwest::Error`] can't be made by others, and nothing needs it.
//! A redirect too many is an error of reqwest's redirect policy, with the URL, and
//! [`is_redirect`](reqwest::Error::is_redirect) is `true`. A request that can't get a token is sent without one, and
//! the report of its 401 says why. To have such a request refused instead, build a `tower` stack of
//! [`AuthRefreshLayer::require_token`] and [`ReqwestService`], whose errors are boxed.
//!
//! # Bodies
//!
//! A body in memory as one piece is sent as reqwest would send it, with its `Content-Length`, and reqwest's own
//! [retries](reqwest::retry) work. A stream is sent as it comes and replayed within the
//! [limit](tower_auth_refresh::ReplayLimit); a stream that has outgrown the limit is not replayed, and the caller gets
//! the 401. On the wire, requests are identical to those of the bare client.
//!
//! # Redirects
//!
//! reqwest follows redirects inside of a request, where a layer can't see them. So they are switched off, and followed
//! outside, by the rules of reqwest 0.13: at most 10, methods, `Referer` and cookies as there, a body of one piece sent
//! again after 307 and 308. Each hop is a request of its own, which may be refreshed and replayed:
//!
//! - A token is sent to the session's origins only, in whatever header it is. A 401 of another host causes no refresh.
//! - On the way to another host, `Authorization`, `Cookie` and `Proxy-Authorization` of the caller's own are removed, and
//!   stay removed on later hops.
//! - [`ClientBuilder::redirect`](reqwest::ClientBuilder::redirect) and
//!   [`referer`](reqwest::ClientBuilder::referer) have no effect. See [`ApiClient::with_max_redirects`],
//!   [`without_redirects`](ApiClient::without_redirects) and [`without_referer`](ApiClient::without_referer).
//! - [Default headers](reqwest::ClientBuilder::default_headers) of the client are sent with each hop, to other hosts too.
//!   **Put no credentials there.**
//! - With [`https_only`](reqwest::ClientBuilder::https_only), the error of a hop to `http` is one of
//!   [the builder](reqwest::Error::is_builder).
//!
//! # Time-outs
//!
//! A [total time-out](reqwest::ClientBuilder::timeout), of the client or of a request, is that of **each sending**: the
//! first attempt, the replay, each hop of a redirect; the last one includes the response's body. The wait for a refresh
//! doesn't count, and has a [deadline of its own](tower_auth_refresh::SessionBuilder::refresh_timeout). To bound the
//! whole, wrap the call in `tokio::time::timeout`: a refresh goes on, for the next request.
//!
//! # Cookies
//!
//! The cookies of a cookie store are added inside of a request. So a cookie that a 401 sets is sent with the replay. The
//! calls of [`ReqwestService::auth_client`] share the store.
//!
//! # reqwest-middleware
//!
#![cfg_attr(feature = "middleware", doc = "[`AuthRefreshMiddleware`] is for clients of reqwest-middleware.")]
#![cfg_attr(not(feature = "middleware"), doc = "With the feature `middleware`, for clients of reqwest-middleware.")]
//!
//! # Features
//!
//! | feature | |
//! | --- | --- |
//! | `default` | the default features of reqwest: TLS by rustls, HTTP/2, character sets, the system's proxies |
//! | `middleware` | `AuthRefreshMiddleware` |
//! | `multipart` | `RequestBuilder::multipart` |
//!
//! The features `json`, `form` and `query` of reqwest are always on. For others (`cookies`, `gzip`, `stream`, `socks`,
//! …), depend on `reqwest` 0.13 as well and name them there: Cargo unites them. For another TLS, or none, do so with
//! `default-features = false` in both. There is no TLS beside that of reqwest.

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
mod shell;

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
#[cfg(all(doctest, feature = "middleware"))]
#[doc = include_str!("../README.md")]
mod readme {}
