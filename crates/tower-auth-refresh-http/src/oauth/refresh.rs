use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::StatusCode;
use serde_json::Value;
use tower_auth_refresh::{RefreshError, RefreshRequest, Tokens};
use tower_service::Service;

use super::{ClientAuth, OAuthCall};
use crate::app::unsendable;
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::fields::TokenFields;
use crate::verdict::{Call, Judge};

/// The refresh token grant (RFC 6749 §6).
///
/// It is a [`RefreshService`](tower_auth_refresh::RefreshService): give it to a session, bare or layered.
///
/// # What an answer means
///
/// | answer | outcome |
/// | --- | --- |
/// | 2xx with an access token | the new tokens |
/// | 400 or 401 with `invalid_grant`, `login_required`, `interaction_required`, `consent_required`; a 401 that asks for a stronger sign-in (RFC 9470); what [`rejected_when`](Self::rejected_when) says | the session ends |
/// | any other 4xx (`invalid_client` among them), 3xx, a body that isn't JSON | misconfigured: the tokens are kept |
/// | `temporarily_unavailable`, `slow_down`; 429; 503 with `Retry-After` | unavailable: tried again, when the server says |
/// | nothing was sent | unavailable: tried again |
/// | any other 5xx, no answer, a broken one, 2xx without tokens or with a `token_type` other than Bearer | in doubt: the session's rotation policy decides |
///
/// An `error` in a 2xx answer counts as in a 400.
///
/// # Examples
///
/// ```
/// use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};
///
/// # fn configure(client: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
/// let refresh = OAuthRefresh::new(client, "https://auth.example.com/token", ClientAuth::basic("client", "s3cret"))?
///     .scope("read write")
///     .param("audience", "https://api.example.com");
/// # Ok(refresh) }
/// ```
///
/// Layered: this one makes at most two calls at a time, and logs those that fail.
///
/// ```
/// # use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};
/// # fn configure(client: AuthClient) -> Result<impl tower_auth_refresh::RefreshService, InvalidEndpoint> {
/// use tower::ServiceBuilder;
/// use tower_auth_refresh::RefreshError;
///
/// let refresh = OAuthRefresh::new(client, "https://auth.example.com/token", ClientAuth::public("app"))?;
/// let refresh = ServiceBuilder::new()
///     .concurrency_limit(2)
///     .map_err(|error: RefreshError| { eprintln!("{error}"); error })
///     .service(refresh);
/// # Ok(refresh) }
/// ```
#[derive(Clone, Debug)]
pub struct OAuthRefresh {
    call: OAuthCall,
    judge: Judge,
}

impl OAuthRefresh {
    /// The call to the token endpoint `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str, auth: ClientAuth) -> Result<Self, InvalidEndpoint> {
        Ok(Self { call: OAuthCall::new(client, url, auth)?, judge: Judge::new(Call::OAuth) })
    }

    /// Asks for fewer scopes than were granted, separated by spaces. Default: the server grants what it did before.
    #[must_use]
    pub fn scope(self, scope: impl Into<String>) -> Self {
        self.param("scope", scope)
    }

    /// A further parameter: `audience`, `resource` (RFC 8707). Default: none. May be called more than once.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.call.param(name, value);
        self
    }

    /// Says which answers mean that the refresh token is no good, and so end the session, besides those
    /// [above](Self). It is asked first, about every answer; the body is `null` where it isn't JSON. Default: none.
    ///
    /// Some servers answer a bad refresh token with a bare 400; where nothing else does:
    ///
    /// ```
    /// # use tower_auth_refresh_http::OAuthRefresh;
    /// # fn with(refresh: OAuthRefresh) -> OAuthRefresh {
    /// refresh.rejected_when(|status, body| status == 400 && body.is_null())
    /// # }
    /// ```
    #[must_use]
    pub fn rejected_when(mut self, says: impl Fn(StatusCode, &Value) -> bool + Send + Sync + 'static) -> Self {
        self.judge = self.judge.rejected_when(says);
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`RefreshError`], with a [`AuthServerError`](crate::AuthServerError) as its source.
    pub fn refresh(&self, tokens: &Tokens) -> impl Future<Output = Result<Tokens, RefreshError>> + Send + use<> {
        let sent = tokens
            .refresh_token()
            .map(|token| self.call.post(&[("grant_type", "refresh_token"), ("refresh_token", token.expose_secret())]));
        let judge = self.judge.clone();
        async move {
            let answer = sent.ok_or_else(|| unsendable("the session holds no refresh token"))?.await?;
            let status = answer.status;
            let granted = TokenFields::default().read(judge.judge(answer)?, status)?;
            Ok(granted.into_tokens())
        }
    }
}

impl Service<RefreshRequest> for OAuthRefresh {
    type Response = Tokens;
    type Error = RefreshError;
    type Future = Pin<Box<dyn Future<Output = Result<Tokens, RefreshError>> + Send>>;

    /// Always ready: the client's own readiness is part of the call and bounded with it.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RefreshError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RefreshRequest) -> Self::Future {
        Box::pin(self.refresh(request.tokens()))
    }
}
