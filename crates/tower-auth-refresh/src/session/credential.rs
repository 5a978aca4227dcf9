//! [`Credential`] and the token API: the session's promises for clients that are no stack of `tower` services.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
//! # use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, Tokens};
//! # let refresh = tower::service_fn(|_: RefreshRequest| async {
//! #     Ok::<_, RefreshError>(Tokens::new(AccessToken::new("a2").unwrap(), RefreshToken::new("r2").unwrap()))
//! # });
//! # let tokens = Tokens::new(AccessToken::new("a1")?, RefreshToken::new("r1")?);
//! # let session = Session::builder(refresh).tokens(tokens).build().await?;
//! # async fn connect(token: &AccessToken) -> u16 { if token.expose_secret() == "a1" { 401 } else { 101 } }
//! let mut credential = session.credential().await?;
//! if connect(credential.access_token()).await == 401 {
//!     credential = session.renewed(&credential).await?;
//!     assert_eq!(connect(credential.access_token()).await, 101);
//! }
//! # Ok(()) }
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::Session;
use super::error::SessionError;
use super::state::State;
use crate::refresh::{Generation, NotRefreshed, Trigger};
use crate::store::Epoch;
use crate::target::Target;
use crate::token::{AccessToken, Tokens};

/// An access token, and its place in the session: what [`Session::renewed`] needs to know of a token that was refused.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    access_token: AccessToken,
    epoch: Epoch,
    generation: Generation,
    expires_at: Option<SystemTime>,
}

impl Credential {
    fn in_force(state: &State) -> Option<Self> {
        let access_token = state.tokens.access_token()?.clone();
        let expires_at = state.tokens.expires_at();
        Some(Self { access_token, epoch: state.epoch, generation: state.generation, expires_at })
    }

    /// Returns the generation of the token as this session counts.
    ///
    /// Sessions of one epoch count generations apart: another process does, and so does a session that was evicted from a
    /// registry and loaded again. Whether the token is the one in force can be told by the token alone.
    fn generation_in(&self, state: &State) -> Generation {
        match state.tokens.access_token() {
            Some(token) if *token != self.access_token => {
                self.generation.min(Generation(state.generation.0.saturating_sub(1)))
            }
            _ => state.generation,
        }
    }

    /// Returns the access token.
    #[must_use]
    pub fn access_token(&self) -> &AccessToken {
        &self.access_token
    }

    /// Returns the sign-in that the token belongs to.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the generation of the token.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the time at which the token expires, if it is known.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("access_token", &self.access_token)
            .field("generation", &self.generation.get())
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Returns a credential that is worth sending now.
    ///
    /// Waits for a refresh if the access token in force is absent, was refused, or has expired as far as is known. If an
    /// access token has expired and can't be refreshed, it is returned all the same: the clocks may disagree, and the API
    /// decides.
    ///
    /// # Errors
    ///
    /// The reason why there is no access token, or none but a refused one.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future interrupts no refresh.
    pub async fn credential(&self) -> Result<Credential, NotRefreshed> {
        let (epoch, generation, trigger) = {
            let state = self.cell.snapshot();
            let trigger = self.cell.wait_before_send(&state).or_else(|| wait_before_handing_out(&state));
            match (trigger, Credential::in_force(&state)) {
                (None, Some(credential)) => return Ok(credential),
                (trigger, _) => (state.epoch, state.generation, trigger.unwrap_or(Trigger::Acquire)),
            }
        };
        let renewed = Arc::clone(&self.cell).wait_for_newer_tokens(epoch, generation, trigger, None, None).await;
        let state = self.cell.snapshot();
        if state.epoch != epoch {
            return Err(renewed.err().unwrap_or(NotRefreshed::SessionChanged));
        }
        let credential = Credential::in_force(&state).filter(|_| !state.is_rejected());
        match (credential, renewed) {
            (Some(credential), _) => Ok(credential),
            (None, Err(why)) => Err(why),
            (None, Ok(())) => Err(NotRefreshed::SameToken),
        }
    }

    /// Returns a newer credential than one that an API has refused.
    ///
    /// If a newer token is in force, it is returned at once. Otherwise one refresh is made, however many tasks were
    /// refused at the same time. The refusal counts as the layer's challenges do: an API that refuses every token causes
    /// at most 75 refreshes in an hour.
    ///
    /// The session doesn't know which request was refused, so all callers of this method count as one endpoint, beside
    /// those of the layer. Refusals of fresh tokens that are reported here delay further refreshes by this method; they
    /// stop no refresh that a request through the layer needs.
    ///
    /// # Errors
    ///
    /// The reason why there is no newer credential. [`NotRefreshed::SessionChanged`] if a user signed in or out since.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future interrupts no refresh.
    pub async fn renewed(&self, refused: &Credential) -> Result<Credential, NotRefreshed> {
        let (epoch, generation) = (refused.epoch, refused.generation_in(&self.cell.snapshot()));
        let (trigger, target) = (Trigger::Challenge, Some(Target::TOKEN_API));
        Arc::clone(&self.cell).wait_for_newer_tokens(epoch, generation, trigger, target, None).await?;
        let state = self.cell.snapshot();
        if state.epoch != epoch {
            return Err(NotRefreshed::SessionChanged);
        }
        Credential::in_force(&state).ok_or(NotRefreshed::SameToken)
    }

    /// Records that an API accepted a credential.
    ///
    /// Only tokens that live for less than a minute need it: their refusal is otherwise taken for that of a fresh token,
    /// and after six in a row [`renewed`](Self::renewed) cools down.
    pub fn accepted(&self, credential: &Credential) {
        let (epoch, generation) = {
            let state = self.cell.snapshot();
            (state.epoch, credential.generation_in(&state))
        };
        if epoch == credential.epoch {
            self.cell.accepted(Target::TOKEN_API, generation);
        }
    }

    /// Puts newer tokens of the same sign-in in force, and stores them.
    ///
    /// For APIs that hand out sliding tokens with their responses.
    ///
    /// `current` is the credential that the request carried. If it has been replaced since, or a user signed in or out,
    /// the tokens are dropped. A refresh token that they omit is kept.
    ///
    /// # Errors
    ///
    /// If the store fails: the tokens are in force all the same, and the write is retried in the background. If the
    /// tokens are empty, or the session's runtime has shut down: nothing has changed then.
    ///
    /// # Cancel safety
    ///
    /// Once it was polled it completes, whether or not the future is dropped.
    ///
    /// # Examples
    ///
    /// A service around the client that takes the tokens from the responses:
    ///
    /// ```
    /// use std::mem;
    /// use std::pin::Pin;
    /// use std::task::{Context, Poll};
    ///
    /// use http::{Request, Response};
    /// use tower::{Service, ServiceBuilder};
    /// use tower_auth_refresh::{AccessToken, AuthRefreshLayer, Origin, Session, Tokens};
    ///
    /// #[derive(Clone)]
    /// struct SlidingTokens<S> {
    ///     inner: S,
    ///     session: Session,
    /// }
    ///
    /// impl<S, B, R> Service<Request<B>> for SlidingTokens<S>
    /// where
    ///     S: Service<Request<B>, Response = Response<R>, Future: Send> + Clone + Send + 'static,
    ///     B: Send + 'static,
    ///     R: Send,
    /// {
    ///     type Response = S::Response;
    ///     type Error = S::Error;
    ///     type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;
    ///
    ///     fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
    ///         self.inner.poll_ready(cx)
    ///     }
    ///
    ///     fn call(&mut self, request: Request<B>) -> Self::Future {
    ///         // The clone isn't ready yet; the service is.
    ///         let clone = self.inner.clone();
    ///         let mut inner = mem::replace(&mut self.inner, clone);
    ///         let session = self.session.clone();
    ///         Box::pin(async move {
    ///             // The token that the request will carry. If the request is replayed with a newer one, the session
    ///             // ignores the response's token.
    ///             let current = session.credential().await.ok();
    ///             let response = inner.call(request).await?;
    ///             if let (Some(current), Some(token)) = (current, new_token(&response)) {
    ///                 // If the store fails, the token is in force all the same, and the write is retried.
    ///                 let _ = session.renew(&current, Tokens::from_access_token(token)).await;
    ///             }
    ///             Ok(response)
    ///         })
    ///     }
    /// }
    ///
    /// fn new_token<B>(response: &Response<B>) -> Option<AccessToken> {
    ///     AccessToken::new(response.headers().get("x-new-token")?.to_str().ok()?).ok()
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
    /// # use tower_auth_refresh::{RefreshError, RefreshRequest, RefreshToken, ReplayBody};
    /// # let refresh = tower::service_fn(|_: RefreshRequest| async { Err::<Tokens, _>(RefreshError::rejected("unused")) });
    /// # let tokens = Tokens::new(AccessToken::new("a1")?, RefreshToken::new("r1")?);
    /// # let session = Session::builder(refresh).tokens(tokens).build().await?;
    /// # let http_client = tower::service_fn(|request: Request<ReplayBody<String>>| async move {
    /// #     let token = request.headers()["authorization"].to_str()?.replace("Bearer a", "");
    /// #     let next = format!("a{}", token.parse::<u32>()? + 1);
    /// #     Ok::<_, tower::BoxError>(Response::builder().header("x-new-token", next).body(String::new())?)
    /// # });
    /// let mut client = ServiceBuilder::new()
    ///     .layer_fn(|inner| SlidingTokens { inner, session: session.clone() })
    ///     .layer(AuthRefreshLayer::new(session.clone(), Origin::parse("https://api.example.com")?))
    ///     .service(http_client);
    /// # use tower::ServiceExt;
    /// # for sent in 1..4 {
    /// #     let request = Request::get("https://api.example.com/").body(String::new())?;
    /// #     client.ready().await?.call(request).await?;
    /// #     let token = session.credential().await?.access_token().clone();
    /// #     assert_eq!(token.expose_secret(), format!("a{}", sent + 1));
    /// # }
    /// # assert_eq!(session.tokens().refresh_token().unwrap().expose_secret(), "r1");
    /// # Ok(()) }
    /// ```
    pub async fn renew(&self, current: &Credential, tokens: Tokens) -> Result<(), SessionError> {
        if tokens.access_token().is_none() {
            return Err(SessionError::no_tokens());
        }
        let generation = current.generation_in(&self.cell.snapshot());
        let task = self.cell.spawn(Arc::clone(&self.cell).renew(current.epoch, generation, tokens));
        task.await.map_err(SessionError::runtime)?
    }
}

/// Like `TokenCell::wait_before_send`, for a token that a replay can't mend: one that leaves the session without the layer
/// around it, or one for a request that can't be replayed. If it was refused or has expired, it is refreshed first,
/// whether or not the session refreshes early.
pub(crate) fn wait_before_handing_out(state: &State) -> Option<Trigger> {
    let has_expired = || state.tokens.expires_at().is_some_and(|at| at <= SystemTime::now());
    if state.is_rejected() {
        Some(Trigger::Acquire)
    } else if has_expired() {
        Some(Trigger::Early)
    } else {
        None
    }
}
