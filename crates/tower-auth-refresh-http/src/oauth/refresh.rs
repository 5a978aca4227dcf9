//! [`OAuthRefresh`]: the refresh token grant.

use std::future::Future;

use serde_json::Value;
use tower_auth_refresh::{RefreshError, Tokens};

use super::{ClientAuth, OAuthCall};
use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::cookie::ReceivedCookies;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;
use crate::fields::{Granted, jwt_claims};
use crate::json_call::no_refresh_token;
use crate::setters::setters;

/// The member of an answer that holds the ID token (OpenID Connect Core §3.1.3.3).
const ID_TOKEN: &str = "id_token";

/// The refresh token grant (RFC 6749 §6).
///
/// It is a [`RefreshService`](tower_auth_refresh::RefreshService): give it to a session, bare or layered.
/// [`recipes`](crate::recipes) has settings for many providers.
///
/// # Outcomes
///
/// | answer | outcome |
/// | --- | --- |
/// | 2xx with an access token | the new tokens |
/// | 4xx with the JSON `error` `invalid_grant`, `login_required`, `interaction_required`, `consent_required`; a 401 that asks for a stronger sign-in (RFC 9470); a match of [`rejected_when`](Self::rejected_when) | the session ends |
/// | any other 4xx (`invalid_client` among them), 3xx, a body that isn't JSON | misconfigured: the tokens are kept |
/// | 2xx with a JSON object, but no access token at its path | misconfigured; a new refresh token in it is kept |
/// | `temporarily_unavailable`, `slow_down`; 503 with `Retry-After` | unavailable: tried again, no earlier than the server asked for |
/// | 429 | as above; without `Retry-After`, not within the same flight |
/// | nothing was sent | unavailable: tried again |
/// | any other 5xx, no answer, a broken one, any other 2xx | in doubt: the session's rotation policy decides; a new refresh token in a 2xx is kept |
///
/// A known `error` code in a 2xx answer counts as in a 400. Any other `error` beside an access token is ignored.
///
/// If the session holds an ID token and the answer has one of another `sub` (OpenID Connect Core §12.2), the tokens are
/// another user's: all of them are dropped, and the call is misconfigured. Not even the refresh token is kept: it would
/// bring the other user's access tokens into this session. If the answer's ID token can't be read, the one before is
/// kept.
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
/// Layered: at most two calls at a time, and failures are logged.
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
    refresh_token_field: String,
    classifier: Classifier,
}

impl OAuthRefresh {
    /// Creates the call to the token endpoint `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str, auth: ClientAuth) -> Result<Self, InvalidEndpoint> {
        Ok(Self {
            call: OAuthCall::new(client, url, auth)?,
            refresh_token_field: "refresh_token".to_owned(),
            classifier: Classifier::new(Call::OAuth),
        })
    }

    /// Requests fewer scopes than were granted, separated by spaces. Default: the scopes stay as they are.
    #[must_use]
    pub fn scope(self, scope: impl Into<String>) -> Self {
        self.param("scope", scope)
    }

    setters!(param, header, fields, rejected_when);

    /// Sets the name of the parameter that holds the refresh token. Default: `refresh_token`.
    #[must_use]
    pub fn refresh_token_field(mut self, name: impl Into<String>) -> Self {
        self.refresh_token_field = name.into();
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`RefreshError`], with an [`AuthServerError`](crate::AuthServerError) as its source.
    pub fn refresh(&self, tokens: &Tokens) -> impl Future<Output = Result<Tokens, RefreshError>> + Send + use<> {
        let presented = tokens.refresh_token().cloned();
        let sent = presented.as_ref().map(|token| {
            let token = (&*self.refresh_token_field, token.expose_secret());
            self.call.post(&[("grant_type", "refresh_token"), token])
        });
        let (this, subject) = (self.clone(), tokens.extra(ID_TOKEN).and_then(subject));
        async move {
            let granted = async {
                let answer = sent.ok_or_else(no_refresh_token)?.await?;
                let mut granted = this.classifier.tokens(answer, ReceivedCookies::default(), presented.as_ref())?;
                check_subject(&mut granted, subject.as_ref())?;
                Ok(granted)
            };
            let granted = granted.await.map_err(|error: AuthServerError| error.at(&this.call.endpoint))?;
            Ok(granted.into_tokens())
        }
    }
}

/// Refuses tokens whose ID token has another subject than the one before.
fn check_subject(granted: &mut Granted, known: Option<&Value>) -> Result<(), AuthServerError> {
    let Some(known) = known else { return Ok(()) };
    match granted.extra.get(ID_TOKEN).and_then(subject) {
        Some(issued) if issued == *known => {}
        Some(_) => return Err(AuthServerError::misconfigured("the answer holds an ID token of another user")),
        // The session keeps the ID token before, so that later answers are checked as well.
        None => drop(granted.extra.remove(ID_TOKEN)),
    }
    Ok(())
}

/// The `sub` of an ID token, if it can be read.
fn subject(id_token: &Value) -> Option<Value> {
    jwt_claims(id_token.as_str()?)?.get("sub").cloned()
}
