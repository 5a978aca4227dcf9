//! A `tower` middleware for HTTP clients that refreshes expired access tokens.
//!
//! It attaches the access token to each request, refreshes the token when an API answers that the token has expired,
//! and replays the requests that failed. The caller sees one ordinary response.
//!
//! However many requests fail at the same moment, the refresh happens **once**, and the new tokens are stored before a
//! request carries them. This is made for refresh tokens that rotate, where presenting an old one signs the user out.
//!
//! # A client stack
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! use tower::{ServiceBuilder, service_fn};
//! use tower_auth_refresh::{AccessToken, AuthRefreshLayer, Origin, RefreshError, RefreshRequest, RefreshToken};
//! use tower_auth_refresh::{Session, Tokens};
//!
//! // The call to `/auth/refresh`: any `tower` service. `tower-auth-refresh-http` has ready-made ones.
//! let refresh = service_fn(|request: RefreshRequest| async move {
//!     # fn ask(_: Option<&RefreshToken>) -> Result<(String, String), RefreshError> { Ok(("a2".into(), "r2".into())) }
//!     let (access, refresh) = ask(request.refresh_token())?;
//!     let access = AccessToken::new(access).map_err(RefreshError::in_doubt)?;
//!     let refresh = RefreshToken::new(refresh).map_err(RefreshError::in_doubt)?;
//!     Ok::<_, RefreshError>(Tokens::new(access, refresh))
//! });
//!
//! let session = Session::builder(refresh).build().await?;
//! # let hyper_client = service_fn(|request: http::Request<tower_auth_refresh::ReplayBody<String>>| async move {
//! #     let old = request.headers()["authorization"] == "Bearer a1";
//! #     Ok::<_, tower::BoxError>(http::Response::builder().status(if old { 401 } else { 200 }).body(String::new())?)
//! # });
//! let mut client = ServiceBuilder::new()
//!     .layer(AuthRefreshLayer::new(session.clone(), Origin::parse("https://api.example.com")?))
//!     .service(hyper_client);
//!
//! session.sign_in(Tokens::new(AccessToken::new("a1")?, RefreshToken::new("r1")?)).await?;
//! # use tower::{Service, ServiceExt};
//! # let request = http::Request::get("https://api.example.com/").body(String::new())?;
//! # let response = client.ready().await?.call(request).await?;
//! # assert_eq!(response.status(), 200);
//! # assert_eq!(session.tokens().access_token().unwrap().expose_secret(), "a2");
//! # Ok(()) }
//! ```
//!
//! The layer is transparent: its responses and errors are the inner service's own. If a refresh fails, the caller gets
//! the server's own 401, its body intact, with a [`RefreshReport`] in its extensions.
//!
//! [`from_axios`] has the pieces of an axios interceptor, a wrapper around fetch, Alamofire and Ktor, and what takes their
//! place here. The crate feature `blocking` has a session for programs without an async runtime.
//!
//! # For many users
//!
//! A gateway keeps its users' sessions in a [`SessionRegistry`] and inserts each user's [`Session`] into the extensions
//! of that user's requests:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! use tower_auth_refresh::{AuthRefreshLayer, Origin, Session, SessionRegistry};
//! # use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Tokens};
//! # let refresh = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
//! # let tokens = Tokens::new(AccessToken::new("a1")?, RefreshToken::new("r1")?);
//!
//! let layer = AuthRefreshLayer::per_request(Origin::parse("https://api.example.com")?);
//! let sessions = SessionRegistry::builder(Session::builder(refresh)).max_sessions(1_000_000).build()?;
//!
//! sessions.sign_in("alice", tokens).await?;
//!
//! let mut request = http::Request::get("https://api.example.com/orders").body(String::new())?;
//! if let Some(session) = sessions.get(&"alice").await? {
//!     request.extensions_mut().insert(session);
//! }
//! # assert!(request.extensions().get::<Session>().is_some());
//! # let _ = layer;
//! # Ok(()) }
//! ```
//!
//! # Promises
//!
//! 1. At most one refresh is in flight per signed-in session; with a shared [store](TokenStore), per fleet.
//! 2. A refresh token is presented once per claim on the store, and again only as [`Rotation`] allows.
//! 3. [Generations](refresh::Generation) only grow. A session that loses a race never overwrites or ends a newer generation.
//! 4. Every waiter is answered by its deadline: the refresh time-out and 5 s, including the time that a
//!    [`SessionRegistry`] keeps the refresh waiting for a permit.
//! 5. Dropping any caller, at any await, never cancels, loses or repeats a refresh.
//! 6. A panic, an abort or a shutdown of the runtime frees the slot and answers the waiters.
//! 7. A request is sent at most twice.
//! 8. An API that always answers 401, beside an authorization server that always answers 200, causes at most 75
//!    refreshes in any hour.
//! 9. A 401 to an older token than the one in force causes no refresh, only a replay.
//! 10. One session's token is never on another session's request. A request that is made before a sign-in or sign-out
//!     never carries the token of a user that is signed in afterwards, nor waits for that token. (If its 401 has been
//!     drained for a replay by then, the 401 can't be returned: the request is sent again without a token, and refused
//!     again.)
//! 11. A token is only sent to an allowed [origin](Origin), on every hop.
//! 12. No byte of a secret is in any `Debug`, `Display`, error, span, event or panic of this crate.
//! 13. A replay is identical to the first attempt byte by byte, trailers included, or doesn't happen.
//! 14. A sign-out beats a late refresh: tokens that arrive afterwards are discarded, and revoked if the session has a
//!     revoke service.
//! 15. Only a rejection by the authorization server ends a session. Any other failure keeps the tokens.
//! 16. The inner service is only called when its `poll_ready` has returned ready, for the replay too.
//! 17. A well-formed refresh token that the server has issued is never dropped, whatever else is wrong with its answer,
//!     unless the answer says that it is another user's.
//! 18. One endpoint's refusals never stop a refresh that another endpoint needs. Beside endpoints that accept the
//!     session's tokens, those that refuse every token cause at most 75 refreshes in any hour beyond those of expired
//!     tokens, and one more for each of them that gets nothing but uploads that can't be replayed. (An endpoint is a
//!     method, an origin and a path without the segments that contain a digit. Up to 16 endpoints that refuse every
//!     token are told apart.)
//! 19. Every 401 that the layer passes to the caller has a [`RefreshReport`] with the reason. (The layer doesn't look at
//!     responses to requests that pass untouched: to foreign origins, with [`SkipAuth`], or with a header of the
//!     caller's own.)
//! 20. A store that has lost its last writes (a failover, a restored backup) never makes an older refresh token be
//!     presented, nor an older token be adopted, where a newer one of the same sign-in is known: it is written back.
//! 21. A sign-out on one replica is in force on all replicas that share its store within the stated
//!     [bound](registry::SessionRegistryBuilder::recheck), as far as the store can be read.
//! 22. A record that can't be read is an error, never a sign-out.
//!
//! # Tracing
//!
//! All spans and events have the target `tower_auth_refresh` and stable names:
//!
//! | span or event | level | fields |
//! | --- | --- | --- |
//! | span `refresh`: one refresh | info | `generation` to be replaced, `trigger` (`challenge`, `early`, `acquire`, `manual`), `attempts`, `outcome` (`refreshed`, `refresh_failed`, `session_ended`, …), `waiters`, `duration_ms` |
//! | event `refresh attempt failed` | debug | `attempt`, `kind` (`rejected`, `misconfigured`, `unavailable`, `in_doubt`) |
//! | event `replaying` | debug | `refused`: the generation that was refused; `generation`: the one that the replay carries |
//! | event `reported`: a [`RefreshReport`] was attached | debug | `report`, `status` |
//! | event `session ended` | info | `generation` |
//! | event `tokens not saved` | warn | |
//! | event `tokens saved`, after `tokens not saved` | info | |
//! | event `tokens not revoked` | warn | `repeated`: `true` if the call is repeated in the background |
//! | event `tokens revoked`, after `tokens not revoked` | info | |
//! | event `claim not released` | debug | |
//! | event `session not rechecked`: its store can't be read, and it is served from memory | warn | |

#[cfg(feature = "blocking")]
pub mod blocking;
pub mod challenge;
mod credentials;
mod drain;
#[cfg(feature = "serde")]
mod exposed_tokens;
#[cfg(any(doc, doctest))]
#[doc = include_str!("from_axios.md")]
pub mod from_axios {}
mod future;
pub mod inspect;
pub mod layer;
mod options;
mod random;
pub mod refresh;
pub mod registry;
pub mod replay;
mod report;
mod require_token;
mod scope;
mod service;
pub mod session;
mod shared;
mod shared_setup;
pub mod store;
mod target;
mod timer;
mod token;
mod wall_clock;

#[doc(inline)]
pub use challenge::ChallengePolicy;
#[cfg(feature = "serde")]
pub use exposed_tokens::ExposedTokens;
#[doc(inline)]
pub use layer::AuthRefreshLayer;
pub use options::SkipAuth;
#[doc(hidden)]
pub use random::seed_random_numbers;
#[doc(inline)]
pub use refresh::{NotRefreshed, RefreshError, RefreshErrorKind, RefreshRequest, RefreshService};
#[doc(inline)]
pub use registry::{SessionRegistry, SessionRegistryError};
#[doc(inline)]
pub use replay::{ReplayBody, ReplayLimit};
pub use report::RefreshReport;
pub use scope::{InvalidOrigin, Origin, Origins};
pub use service::AuthRefresh;
#[doc(inline)]
pub use session::{Credential, Rotation, Session, SessionBuilder, SessionError, SessionState};
#[doc(inline)]
pub use store::{MemoryStore, TokenStore};
pub use token::{AccessToken, InvalidToken, RefreshToken, Tokens};

/// The target of all spans and events.
const TARGET: &str = "tower_auth_refresh";

/// The README's code is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
