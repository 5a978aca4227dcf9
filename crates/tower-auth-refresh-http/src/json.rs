//! [`JsonRefresh`]: the refresh call to an app's own JSON endpoint.

use std::future::Future;

use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::Value;
use tower_auth_refresh::{RefreshError, Tokens};

use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;
use crate::fields::TokenFields;
use crate::json_call::{JsonCall, JsonRequest, bearer, no_refresh_token};
use crate::oauth::ClientAuth;
use crate::path::Path;

/// The refresh call to an app's own endpoint: `POST /auth/refresh` with `{"refresh_token": …}`.
///
/// It is a [`RefreshService`](tower_auth_refresh::RefreshService): give it to a session, bare or layered.
/// [`recipes`](crate::recipes) has settings for many servers.
///
/// # Outcomes
///
/// | answer | outcome |
/// | --- | --- |
/// | 2xx, a JSON object with an access token | the new tokens |
/// | 401 with a JSON object, unless it challenges with the schemes of proxies only (`Basic`, `Digest`, `Negotiate`, `NTLM`, `Kerberos`) | the session ends |
/// | 401 without a body, unless it challenges with other schemes than `Bearer` and `DPoP` only | the session ends |
/// | 4xx with the JSON `error` `invalid_grant` and its like; a match of [`rejected_when`](Self::rejected_when) | the session ends |
/// | 3xx, any other 4xx, a body that isn't JSON; `invalid_client` and its like, at any status | misconfigured: the tokens are kept |
/// | 2xx with a JSON object, but no access token at its path | misconfigured; a new refresh token in it is kept |
/// | 503 with `Retry-After`; `temporarily_unavailable` | unavailable: tried again, no earlier than the server asked for |
/// | 429 | as above; without `Retry-After`, not within the same flight |
/// | nothing was sent | unavailable: tried again |
/// | any other 5xx, no answer, a broken one, any other 2xx | in doubt: the session's rotation policy decides; a new refresh token in a 2xx is kept |
///
/// # Paths
///
/// The names of members, here and in [`TokenFields`], are paths: `variables.refreshToken`, or the JSON Pointer
/// `/variables/refreshToken`. Objects on the way are created.
///
/// # Examples
///
/// ```
/// use serde_json::json;
/// use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonRefresh, TokenFields};
///
/// # fn configure(client: AuthClient) -> Result<JsonRefresh, InvalidEndpoint> {
/// let refresh = JsonRefresh::new(client, "https://api.example.com/auth/refresh")?
///     .refresh_token_field("refreshToken")
///     .member("device_id", json!("7f9c"))
///     .fields(TokenFields::camel_case())
///     .rejected_when(|status, body| status == 403 && body["code"] == "REFRESH_TOKEN_REVOKED");
/// # Ok(refresh) }
/// ```
///
/// By itself, without a session:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
/// # use tower_auth_refresh_http::{AuthClient, JsonRefresh};
/// # let client = AuthClient::new(tower::service_fn(|_: http::Request<http_body_util::Full<bytes::Bytes>>| async {
/// #     Ok::<_, tower::BoxError>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(
/// #         r#"{"access_token":"a2","refresh_token":"r2","expires_in":300}"#,
/// #     ))))
/// # }));
/// use tower_auth_refresh::{RefreshToken, Tokens};
///
/// let refresh = JsonRefresh::new(client, "https://api.example.com/auth/refresh")?;
/// let tokens = refresh.refresh(&Tokens::from_refresh_token(RefreshToken::new("r1")?)).await?;
/// assert_eq!(tokens.access_token().unwrap().expose_secret(), "a2");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct JsonRefresh {
    call: JsonCall,
    placement: Placement,
    fields: TokenFields,
    classifier: Classifier,
}

/// The place of the refresh token in the request.
#[derive(Clone, Debug)]
enum Placement {
    Member(Path),
    Bearer,
}

impl JsonRefresh {
    /// Creates the call to `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str) -> Result<Self, InvalidEndpoint> {
        Ok(Self {
            call: JsonCall::new(client, url)?,
            placement: Placement::Member(Path::parse("refresh_token")),
            fields: TokenFields::default(),
            classifier: Classifier::new(Call::Refresh),
        })
    }

    /// Sets the path of the refresh token in the request. Default: `refresh_token`.
    #[must_use]
    pub fn refresh_token_field(mut self, path: impl AsRef<str>) -> Self {
        self.placement = Placement::Member(Path::parse(path.as_ref()));
        self
    }

    /// Sends the refresh token as `Authorization: Bearer …`, not in the body. Default: in the body.
    #[must_use]
    pub fn refresh_token_as_bearer(mut self) -> Self {
        self.placement = Placement::Bearer;
        self
    }

    /// Sends the expired access token too, at this path of the request. Default: it isn't sent.
    #[must_use]
    pub fn access_token_field(mut self, path: impl AsRef<str>) -> Self {
        self.call.access_token_field(path.as_ref());
        self
    }

    /// Sends the expired access token too, as `Authorization: Bearer …`. Default: it isn't sent.
    #[must_use]
    pub fn access_token_as_bearer(mut self) -> Self {
        self.call.access_token_as_bearer();
        self
    }

    /// Adds a member to the request: a device id, a GraphQL query. Default: none. May be called more than once.
    #[must_use]
    pub fn member(mut self, path: impl AsRef<str>, value: impl Into<Value>) -> Self {
        self.call.member(path.as_ref(), value.into());
        self
    }

    /// Sends a header, which may replace the `Accept` of all calls. Default: none.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.call.header(name, value);
        self
    }

    /// Sets the `Content-Type` of the request. Default: `application/json`.
    #[must_use]
    pub fn content_type(mut self, value: HeaderValue) -> Self {
        self.call.content_type(value);
        self
    }

    /// Authenticates the client, as OAuth 2.0 does: by HTTP Basic, or by members of the body. Default: it doesn't.
    #[must_use]
    pub fn client_auth(mut self, auth: ClientAuth) -> Self {
        self.call.client_auth(auth);
        self
    }

    /// Sets the places of the tokens in the answer. Default: [`TokenFields::default`].
    #[must_use]
    pub fn fields(mut self, fields: TokenFields) -> Self {
        self.fields = fields;
        self
    }

    /// Adds a rule by which an answer rejects the refresh token and ends the session. Default: the table
    /// [above](Self).
    ///
    /// The predicate sees every answer first, with a body of `null` where it isn't JSON.
    #[must_use]
    pub fn rejected_when(mut self, predicate: impl Fn(StatusCode, &Value) -> bool + Send + Sync + 'static) -> Self {
        self.classifier = self.classifier.rejected_when(predicate);
        self
    }

    /// Applies the table of [`OAuthRefresh`](crate::OAuthRefresh): a 401 without `invalid_grant` keeps the tokens.
    /// Default: a 401 of the app ends the session.
    ///
    /// For a server that answers 401 for other reasons too: a wrong API key, a CSRF token that doesn't match. Name the
    /// answers that reject the refresh token by [`rejected_when`](Self::rejected_when).
    #[must_use]
    pub fn with_oauth_rules(mut self) -> Self {
        self.classifier = self.classifier.with_oauth_rules();
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`RefreshError`], with an [`AuthServerError`] as its source.
    pub fn refresh(&self, tokens: &Tokens) -> impl Future<Output = Result<Tokens, RefreshError>> + Send + use<> {
        let sent = self.request(tokens).map(|request| self.call.send(request));
        let presented = tokens.refresh_token().cloned();
        let this = self.clone();
        async move {
            let granted = async { this.classifier.tokens(sent?.await?, &this.fields, None, presented.as_ref()) };
            let granted = granted.await.map_err(|error| error.at(&this.call.endpoint))?;
            Ok(granted.into_tokens())
        }
    }

    fn request(&self, tokens: &Tokens) -> Result<JsonRequest, AuthServerError> {
        let refresh = tokens.refresh_token().ok_or_else(no_refresh_token)?;
        let mut request = self.call.request(tokens)?;
        match &self.placement {
            Placement::Member(path) => request.member(path, refresh.expose_secret().into())?,
            Placement::Bearer => request.authorization(bearer(refresh.expose_secret())?)?,
        }
        Ok(request)
    }
}
