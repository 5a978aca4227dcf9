//! [`AuthClient`]: the client that sends every call of this crate.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, timeout, timeout_at};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};
use tower_auth_refresh::SkipAuth;
use tower_service::Service;

use crate::answer::Answer;
use crate::endpoint::{Endpoint, InvalidEndpoint};
use crate::error::{AuthServerError, Kind, source_of};
use crate::oauth::{Authentication, ClientAuth, MetadataCache};

/// The largest time-out, so that deadlines don't overflow.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// No content coding.
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// Any `tower` HTTP client, made fit to carry secrets to an authorization server.
///
/// Every refresh call takes one. Clones are cheap and share the client. For all clients:
///
/// - Only `https://` URLs are called, and loopback ones ([`allow_plain_http`](Self::allow_plain_http) allows others).
/// - A redirect is never followed: 3xx is an error. **Give a client that doesn't follow redirects itself**: it would
///   carry the token along before this crate could refuse.
/// - At most 64 KiB of an answer are read, after decoding ([`answer_limit`](Self::answer_limit)). `Accept-Encoding:
///   identity` is sent. An answer in `gzip` or `deflate` is decoded all the same, since some CDNs ignore that header;
///   any other coding is malformed. The `Content-Type` of an answer is ignored: the body shows whether it is JSON.
/// - The whole call takes at most 10 s ([`timeout`](Self::timeout)).
/// - Each call skips the session's own layer, in case that layer is in this client's stack by mistake.
///
/// Calls that were never sent are distinguished from calls in doubt: a client that isn't ready and a refused connection
/// mean that nothing was sent; so do all connect errors (DNS and TLS among them) of hyper-util's client, with the crate
/// feature `client`. [`not_sent_when`](Self::not_sent_when) adds the errors of other clients. Any other error means
/// that the server may have acted on the call.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use tower::BoxError;
/// use tower_auth_refresh_http::AuthClient;
///
/// // Any tower HTTP client; here one that answers by itself.
/// let client = tower::service_fn(|_: Request<Full<Bytes>>| async {
///     Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(r#"{"access_token":"a1"}"#))))
/// });
///
/// let client = AuthClient::new(client).timeout(Duration::from_secs(5));
/// # let _ = client;
/// ```
#[cfg_attr(
    feature = "client",
    doc = r"
A ready-made client, with the crate feature `client`:

```
use tower_auth_refresh_http::AuthClient;

let client = AuthClient::rustls();
# let _ = client;
```
"
)]
#[derive(Clone)]
pub struct AuthClient {
    client: BoxCloneSyncService<Request<Full<Bytes>>, Response<UnsyncBoxBody<Bytes, BoxError>>, BoxError>,
    timeout: Duration,
    answer_limit: usize,
    plain_http: bool,
    headers: HeaderMap,
    not_sent_when: Option<Arc<NotSentWhen>>,
    metadata: MetadataCache,
}

type NotSentWhen = dyn Fn(&(dyn Error + 'static)) -> bool + Send + Sync;

impl AuthClient {
    /// Sends calls through `client`, any `tower` HTTP client that is `Clone`.
    ///
    /// A client that isn't `Clone` can be wrapped in `tower`'s `Buffer`. Each call uses a fresh clone, once it is
    /// ready.
    pub fn new<C, B>(client: C) -> Self
    where
        C: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>
            + Clone
            + Send
            + Sync
            + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let client = client.map_err(Into::into).map_response(|response: Response<B>| {
            response.map(|body| {
                body.map_frame(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
                    .map_err(Into::into)
                    .boxed_unsync()
            })
        });
        Self {
            client: BoxCloneSyncService::new(client),
            timeout: Duration::from_secs(10),
            answer_limit: 64 * 1024,
            plain_http: false,
            headers: HeaderMap::new(),
            not_sent_when: None,
            metadata: MetadataCache::new(),
        }
    }

    /// Sets the time-out of a whole call, the answer's body included. Default: 10 s; at most an hour.
    ///
    /// Keep it well below the session's own `refresh_timeout`, so that there is time for another attempt where one is
    /// allowed.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST_TIMEOUT);
        self
    }

    /// Sets the number of bytes of an answer that are read, after decoding. Default: 64 KiB.
    ///
    /// A longer answer is malformed.
    #[must_use]
    pub fn answer_limit(mut self, bytes: usize) -> Self {
        self.answer_limit = bytes;
        self
    }

    /// Allows `http://` URLs that are not on loopback. Default: they are refused.
    ///
    /// Tokens can then be read in transit.
    #[must_use]
    pub fn allow_plain_http(mut self) -> Self {
        self.plain_http = true;
        self
    }

    /// Sets the time for which the metadata of a discovery is shared. Default: 10 minutes. Zero: not at all.
    ///
    /// See [`AuthorizationServer::discover`](crate::AuthorizationServer::discover).
    #[must_use]
    pub fn metadata_lifetime(mut self, lifetime: Duration) -> Self {
        self.metadata.lifetime = lifetime;
        self
    }

    pub(crate) fn metadata(&self) -> &MetadataCache {
        &self.metadata
    }

    /// Sends a header with every call: an API key, `X-Requested-With`. Default: none.
    ///
    /// Headers that a call sets itself (`Authorization`, `Content-Type`, `Cookie`, `Accept`, `Accept-Encoding`) take
    /// precedence. The value is marked as sensitive, so that it isn't logged.
    #[must_use]
    pub fn header(mut self, name: HeaderName, mut value: HeaderValue) -> Self {
        value.set_sensitive(true);
        self.headers.insert(name, value);
        self
    }

    /// Adds a rule by which a failed call was certainly never sent. Default: the rules [above](Self).
    ///
    /// The predicate sees the error and each of its sources. If it returns `true`, the refresh token is unused, and may
    /// be presented again.
    ///
    /// For a custom hyper-util client, without the crate feature `client`:
    ///
    /// ```
    /// # use tower_auth_refresh_http::AuthClient;
    /// use hyper_util::client::legacy;
    ///
    /// # fn with(client: AuthClient) -> AuthClient {
    /// client.not_sent_when(|error| error.downcast_ref().is_some_and(legacy::Error::is_connect))
    /// # }
    /// ```
    #[must_use]
    pub fn not_sent_when(mut self, predicate: impl Fn(&(dyn Error + 'static)) -> bool + Send + Sync + 'static) -> Self {
        self.not_sent_when = Some(Arc::new(predicate));
        self
    }

    /// Sends any call, with the properties [above](Self): the asynchronous HTTP client of `oauth2` 5 and
    /// `openidconnect` 4.
    ///
    /// An answer of any status but a redirect is returned, with its body decoded. `Accept-Encoding` is replaced, and
    /// `Authorization` marked as sensitive.
    ///
    /// # Errors
    ///
    /// [`AuthServerError`] if no secret may be sent to the URL, if the answer is a redirect or too long, or if there is
    /// no whole answer by the time-out.
    ///
    /// # Panics
    ///
    /// If it is polled outside a `tokio` runtime whose timers are enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the call, which the server may have acted on.
    ///
    /// # Examples
    ///
    /// A sign-in by `oauth2`:
    ///
    /// ```
    /// # use oauth2::basic::BasicClient;
    /// # use oauth2::{AuthUrl, AuthorizationCode, ClientId, PkceCodeVerifier, RedirectUrl, TokenUrl};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
    /// # let answering = tower::service_fn(|_: http::Request<http_body_util::Full<bytes::Bytes>>| async {
    /// #     Ok::<_, tower::BoxError>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(
    /// #         r#"{"access_token":"a1","refresh_token":"r1","token_type":"bearer","expires_in":300}"#,
    /// #     ))))
    /// # });
    /// # let code = AuthorizationCode::new("c1".to_owned());
    /// # let verifier = PkceCodeVerifier::new("v".repeat(43));
    /// # let http = tower_auth_refresh_http::AuthClient::new(answering);
    /// # let refresh = tower_auth_refresh_http::JsonRefresh::new(http.clone(), "https://auth.example.com/refresh")?;
    /// # let session = tower_auth_refresh::Session::builder(refresh).build().await?;
    /// use tower_auth_refresh_http::TokenFields;
    ///
    /// let client = BasicClient::new(ClientId::new("app".to_owned()))
    ///     .set_token_uri(TokenUrl::new("https://auth.example.com/token".to_owned())?);
    /// let response = client
    ///     .exchange_code(code)
    ///     .set_pkce_verifier(verifier)
    ///     .request_async(&|request| http.call(request))
    ///     .await?;
    /// session.sign_in(TokenFields::default().tokens(&response)?).await?;
    /// # assert_eq!(session.tokens().refresh_token().unwrap().expose_secret(), "r1");
    /// # Ok(()) }
    /// ```
    pub fn call(
        &self,
        mut request: Request<Vec<u8>>,
    ) -> impl Future<Output = Result<Response<Vec<u8>>, AuthServerError>> + Send + use<> {
        request.headers_mut().insert(ACCEPT_ENCODING, IDENTITY);
        if let Some(value) = request.headers_mut().get_mut(AUTHORIZATION) {
            value.set_sensitive(true);
        }
        let endpoint = self.endpoint(&request.uri().to_string());
        let sent = endpoint.map(|endpoint| (self.send(request.map(|body| Full::new(Bytes::from(body)))), endpoint));
        async move {
            let (sent, endpoint) = sent.map_err(|invalid| {
                AuthServerError::misconfigured("no secret may be sent to the URL").with_source(invalid)
            })?;
            sent.await.and_then(Answer::into_response).map_err(|error| error.at(&endpoint))
        }
    }

    pub(crate) fn endpoint(&self, url: &str) -> Result<Endpoint, InvalidEndpoint> {
        Endpoint::parse(url, self.plain_http)
    }

    /// A request with no body and the headers that all calls share.
    pub(crate) fn request(method: Method, endpoint: &Endpoint) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::default());
        *request.method_mut() = method;
        *request.uri_mut() = endpoint.uri().clone();
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        request.headers_mut().insert(ACCEPT_ENCODING, IDENTITY);
        request
    }

    /// Sends a request and reads its answer. An `Err` means that not even a status is known.
    pub(crate) fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> impl Future<Output = Result<Answer, AuthServerError>> + Send + use<> {
        let this = self.clone();
        request.extensions_mut().insert(SkipAuth);
        for (name, value) in &this.headers {
            request.headers_mut().entry(name).or_insert_with(|| value.clone());
        }
        async move {
            let deadline = Instant::now() + this.timeout;
            let mut client = this.client.clone();
            let unsent = || AuthServerError::new(Kind::Unavailable, "the request was not sent");
            let unanswered = |problem| AuthServerError::new(Kind::InDoubt, problem);
            match timeout_at(deadline, client.ready()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(unsent().with_source(error)),
                Err(elapsed) => return Err(unsent().with_source(elapsed)),
            }
            let response = match timeout_at(deadline, client.call(request)).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) if this.was_not_sent(&*error) => return Err(unsent().with_source(error)),
                Ok(Err(error)) => return Err(unanswered("the call failed without an answer").with_source(error)),
                Err(elapsed) => return Err(unanswered("the call timed out").with_source(elapsed)),
            };
            Ok(Answer::read(response, this.answer_limit, deadline).await)
        }
    }

    /// Makes what authenticates the next request, within the time-out.
    pub(crate) fn authenticate(
        &self,
        auth: &ClientAuth,
    ) -> impl Future<Output = Result<Authentication, AuthServerError>> + Send + use<> {
        let (limit, authenticating) = (self.timeout, auth.authenticate());
        let unsigned = || AuthServerError::new(Kind::Unavailable, "the client assertion was not signed in time");
        async move { timeout(limit, authenticating).await.unwrap_or_else(|elapsed| Err(unsigned().with_source(elapsed))) }
    }

    fn was_not_sent(&self, error: &(dyn Error + 'static)) -> bool {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if is_unsent(error) || self.not_sent_when.as_ref().is_some_and(|predicate| predicate(error)) {
                return true;
            }
            cause = source_of(error);
        }
        false
    }
}

impl fmt::Debug for AuthClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthClient")
            .field("timeout", &self.timeout)
            .field("answer_limit", &self.answer_limit)
            .field("plain_http", &self.plain_http)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Recognises errors that end a call before it is sent. "Unreachable" and the like also end connections that were open.
fn is_unsent(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::AddrNotAvailable);
    }
    #[cfg(feature = "client")]
    {
        if let Some(error) = error.downcast_ref::<hyper_util::client::legacy::Error>() {
            return error.is_connect();
        }
        // hyper gives the request back with this error: its connection was gone before the first byte was written.
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.is_canceled();
        }
    }
    false
}
