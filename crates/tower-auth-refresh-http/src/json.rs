//! An app's own JSON endpoints: [`JsonRefresh`], [`JsonLogin`](crate::JsonLogin), [`JsonLogout`](crate::JsonLogout).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};
use tower_auth_refresh::{RefreshError, RefreshRequest, Tokens};
use tower_service::Service;

use crate::app::{AppCall, bearer, unsendable};
use crate::client::AuthClient;
use crate::endpoint::InvalidEndpoint;
use crate::error::AuthServerError;
use crate::fields::TokenFields;
use crate::verdict::{Call, Judge};

/// The refresh call to an app's own endpoint: `POST /auth/refresh` with `{"refresh_token": …}`.
///
/// It is a [`RefreshService`](tower_auth_refresh::RefreshService): give it to a session, bare or layered.
///
/// # What an answer means
///
/// | answer | outcome |
/// | --- | --- |
/// | 2xx, a JSON object with an access token | the new tokens |
/// | 401, empty or with a JSON object, unless it challenges with foreign schemes only (`Basic`, `Negotiate`) | the session ends |
/// | 400 or 401 with `{"error": "invalid_grant"}` and its like; what [`rejected_when`](Self::rejected_when) says | the session ends |
/// | 3xx, 403, any other 4xx, a body that isn't JSON | misconfigured: the tokens are kept |
/// | 429; 503 with `Retry-After`; `temporarily_unavailable` | unavailable: tried again, when the server says |
/// | nothing was sent | unavailable: tried again |
/// | any other 5xx, no answer, a broken one, 2xx without tokens | in doubt: the session's rotation policy decides |
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
    call: AppCall,
    carrier: Carrier,
    access_token_field: Option<String>,
    members: Map<String, Value>,
    fields: TokenFields,
    judge: Judge,
}

/// How the refresh token travels.
#[derive(Clone, Debug)]
enum Carrier {
    Member(String),
    Bearer,
}

impl JsonRefresh {
    /// The call to `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] if no token may be sent there.
    pub fn new(client: AuthClient, url: &str) -> Result<Self, InvalidEndpoint> {
        Ok(Self {
            call: AppCall::new(client, url)?,
            carrier: Carrier::Member("refresh_token".to_owned()),
            access_token_field: None,
            members: Map::new(),
            fields: TokenFields::default(),
            judge: Judge::new(Call::Refresh),
        })
    }

    /// The member of the request that holds the refresh token. Default: `refresh_token`.
    #[must_use]
    pub fn refresh_token_field(mut self, name: impl Into<String>) -> Self {
        self.carrier = Carrier::Member(name.into());
        self
    }

    /// Sends the refresh token as `Authorization: Bearer …`, not in the body. Default: in the body.
    #[must_use]
    pub fn refresh_token_as_bearer(mut self) -> Self {
        self.carrier = Carrier::Bearer;
        self
    }

    /// Sends the expired access token too, as this member of the request. Default: it isn't sent.
    #[must_use]
    pub fn access_token_field(mut self, name: impl Into<String>) -> Self {
        self.access_token_field = Some(name.into());
        self
    }

    /// A further member of the request: a device id, a client id. Default: none. May be called more than once.
    #[must_use]
    pub fn member(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.members.insert(name.into(), value.into());
        self
    }

    /// Where the tokens stand in the answer. Default: [`TokenFields::default`].
    #[must_use]
    pub fn fields(mut self, fields: TokenFields) -> Self {
        self.fields = fields;
        self
    }

    /// Says which answers mean that the refresh token is no good, and so end the session, besides those
    /// [above](Self). It is asked first, about every answer; the body is `null` where it isn't JSON. Default: none.
    #[must_use]
    pub fn rejected_when(mut self, says: impl Fn(StatusCode, &Value) -> bool + Send + Sync + 'static) -> Self {
        self.judge = self.judge.rejected_when(says);
        self
    }

    /// Makes the call by itself, without a session.
    ///
    /// # Errors
    ///
    /// [`RefreshError`], with a [`AuthServerError`] as its source.
    pub fn refresh(&self, tokens: &Tokens) -> impl Future<Output = Result<Tokens, RefreshError>> + Send + use<> {
        let sent = self.request(tokens).map(|(headers, members)| self.call.post(headers, &members));
        let (judge, fields) = (self.judge.clone(), self.fields.clone());
        async move {
            let answer = sent?.await?;
            let status = answer.status;
            let granted = fields.read(judge.judge(answer)?, status)?;
            Ok(granted.into_tokens())
        }
    }

    fn request(&self, tokens: &Tokens) -> Result<(HeaderMap, Map<String, Value>), AuthServerError> {
        let refresh = tokens.refresh_token().ok_or_else(|| unsendable("the session holds no refresh token"))?;
        let (mut headers, mut members) = (HeaderMap::new(), self.members.clone());
        if let (Some(name), Some(access)) = (&self.access_token_field, tokens.access_token()) {
            members.insert(name.clone(), access.expose_secret().into());
        }
        match &self.carrier {
            Carrier::Member(name) => {
                members.insert(name.clone(), refresh.expose_secret().into());
            }
            Carrier::Bearer => {
                headers.insert(AUTHORIZATION, bearer(refresh.expose_secret())?);
            }
        }
        Ok((headers, members))
    }
}

impl Service<RefreshRequest> for JsonRefresh {
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
