//! A `tower` middleware for HTTP **client** stacks: it attaches the access token to each request, refreshes it when an
//! API answers that it has expired, and replays the requests that failed. The caller sees one ordinary response.
//!
//! However many requests fail at the same moment, the refresh happens **once**, and what it bought is stored before
//! anybody uses it: made for refresh tokens that rotate, where presenting an old one signs the user out.
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
//! The layer is transparent: its responses and its errors are the inner service's own. Whatever goes wrong with a
//! refresh, the caller gets the server's own 401, its body intact, with a [`RefreshReport`] in its extensions.
//!
//! # For many users
//!
//! A gateway keeps its users' sessions in [`SessionRegistry`], and puts each user's own [`Session`] into the extensions of his
//! requests:
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
//! # What it promises
//!
//! 1. At most one refresh is in flight per signed-in session; with a shared [store](TokenStore), per fleet.
//! 2. A refresh token is presented once per claim on the store, and again only as [`Rotation`] allows.
//! 3. [Generations](Generation) only grow. A loser never overwrites or ends a newer one.
//! 4. Every waiter is answered by its deadline: the refresh time-out and 5 s, waiting for a turn among many
//!    [`SessionRegistry`] included.
//! 5. Dropping any caller, at any await, never cancels, loses or repeats a refresh.
//! 6. A panic, an abort or a shutdown of the runtime frees the slot and answers the waiters.
//! 7. A request is sent at most twice.
//! 8. An API that answers 401 for ever, beside an authorization server that answers 200 for ever, causes at most 75
//!    refreshes in any hour. An endpoint that refuses tokens which others accept causes no more, and stops no refresh that
//!    another endpoint needs.
//! 9. A 401 to an older token than the one in force causes no refresh, only a replay.
//! 10. One session's token is never on another's request, nor is a request made before a sign-in or sign-out attached
//!     to, replayed as, or kept waiting for whoever is signed in afterwards. (One whose 401 has been read for a replay
//!     by then can't have it back: it goes out again without a token, and is refused again.)
//! 11. A token goes only to an allowed [origin](Origin), on every hop.
//! 12. No byte of a secret is in any `Debug`, `Display`, error, span, event or panic of this crate.
//! 13. A replay is identical to the first attempt byte by byte, trailers included, or doesn't happen.
//! 14. A sign-out beats a late refresh: tokens that arrive afterwards are discarded, and revoked where the session has
//!     a service for it.
//! 15. Only the authorization server's own word ends a session. Any other failure keeps the tokens.
//! 16. The inner service is only called when its `poll_ready` has said ready, for the replay too.
//!
//! # Tracing
//!
//! All under the target `tower_auth_refresh`, with names that stay:
//!
//! | what | level | fields |
//! | --- | --- | --- |
//! | span `refresh`: one refresh | info | `generation` that is replaced, `trigger` (`challenge`, `early`, `acquire`, `manual`), `attempts`, `outcome` (`refreshed`, `refresh_failed`, `session_ended`, …), `waiters`, `duration_ms` |
//! | event `refresh attempt failed` | debug | `attempt`, `kind` (`rejected`, `misconfigured`, `unavailable`, `in_doubt`) |
//! | event `replaying` | debug | `refused`: the generation that was refused; `generation` that the replay carries |
//! | event `reported`: a [`RefreshReport`] was attached | debug | `report`, `status` |
//! | event `session ended` | info | `generation` |
//! | event `tokens not saved` | warn | |
//! | event `tokens saved`, after they were not | info | |
//! | event `tokens not revoked` | warn | |
//! | event `claim not released` | debug | |
//!
//! # Modules, in reading order
//!
//! `layer` → `service` → `future` (the way of a request, in one place) → `credentials` → `session` (`state`, `cell`,
//! `flight`, `sync`, `pace`, `traffic`) → `refresh`, [`store`], `token`; over `session`, for many of them, `sessions`
//! (`table`, `sweep`); and the leaves `replay`, `drain`, `alarm`, `scope`, `challenge`, `report`.

mod challenge;
mod credentials;
mod drain;
mod future;
mod layer;
mod refresh;
mod registry;
mod replay;
mod report;
mod scope;
mod service;
mod session;
mod shared;
pub mod store;
mod target;
mod timer;
mod token;

pub use challenge::ChallengePolicy;
pub use future::ResponseFuture;
pub use layer::{AuthRefreshLayer, PerRequest, SessionSource, SkipAuth};
pub use refresh::{
    Generation, NotRefreshed, RefreshError, RefreshErrorKind, RefreshRequest, RefreshService, RevokeRequest,
    RevokeService, Trigger,
};
pub use registry::{SessionRegistry, SessionRegistryBuilder, SessionRegistryError};
pub use replay::{NotReplayable, ReplayBody, ReplayLimit, Superseded};
pub use report::RefreshReport;
pub use scope::{InvalidOrigin, Origin, Origins};
pub use service::AuthRefresh;
pub use session::{
    Credential, RefreshFailure, Rotation, Session, SessionBuilder, SessionError, SessionErrorKind, SessionState,
};
pub use store::{MemoryStore, TokenStore};
pub use token::{AccessToken, InvalidToken, RefreshToken, Tokens};

/// The target of all spans and events.
const TARGET: &str = "tower_auth_refresh";

/// The README's code is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
