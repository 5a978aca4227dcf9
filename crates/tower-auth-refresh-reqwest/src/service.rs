//! [`ReqwestService`]: a `tower` service of `http::Request` over a reqwest client.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Request;
use pin_project_lite::pin_project;
use tower_auth_refresh_http::AuthClient;
use tower_service::Service;

use crate::body::{IntoReqwestBody, ResponseBody};
use crate::redirect::{self, HopFuture};
use crate::shell;

/// A `tower` service of `http::Request` over a [`reqwest::Client`].
///
/// It follows no redirect itself: [`ApiClient`](crate::ApiClient) and `AuthRefreshMiddleware` do, outside of the layer,
/// and `tower-http`'s `FollowRedirect` may. Clones are cheap and share the connections.
///
/// As the innermost service of a `tower` stack:
///
/// ```
/// # use tower_auth_refresh_reqwest::tower_auth_refresh::InvalidOrigin;
/// use tower::ServiceBuilder;
/// use tower_auth_refresh_reqwest::{AuthRefreshLayer, Origin, ReqwestService, Session};
///
/// # fn example(session: Session, http: ReqwestService) -> Result<(), InvalidOrigin> {
/// let client = ServiceBuilder::new()
///     .layer(AuthRefreshLayer::new(session, Origin::parse("https://api.example.com")?).require_token())
///     .service(http);
/// # let _ = client;
/// # Ok(()) }
/// ```
///
/// A request of it is an `http::Request` whose URI is absolute. The layer needs no
/// [`one_piece`](tower_auth_refresh::AuthRefreshLayer::one_piece) for `String` and `Full<Bytes>`.
#[derive(Clone, Debug)]
pub struct ReqwestService {
    client: reqwest::Client,
}

impl ReqwestService {
    /// Builds the client, with redirects switched off.
    ///
    /// # Errors
    ///
    /// Those of [`reqwest::ClientBuilder::build`].
    pub fn new(builder: reqwest::ClientBuilder) -> reqwest::Result<Self> {
        Ok(Self { client: builder.redirect(redirect::policy()).build()? })
    }

    /// Returns the client of the calls to the authorization server, over the same connections.
    ///
    /// A call that found no connection (DNS, a refused connection, TLS) was never sent, and may be repeated. The
    /// settings of the client hold for these calls too: its proxies, roots, time-outs and cookies.
    ///
    /// A call may be sent over a connection that has been idle, and that the server closes at the same moment. Its
    /// answer is then in doubt. To rule that out, build a client for these calls alone, with
    /// [`pool_max_idle_per_host(0)`](reqwest::ClientBuilder::pool_max_idle_per_host).
    #[must_use]
    pub fn auth_client(&self) -> AuthClient {
        AuthClient::new(self.clone())
            .not_sent_when(|error| error.downcast_ref().is_some_and(reqwest::Error::is_connect))
    }

    /// Returns the client, which follows no redirect.
    ///
    /// For `reqwest_middleware::ClientBuilder::new(http.client().clone())`.
    #[must_use]
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }
}

impl<B: IntoReqwestBody> Service<Request<B>> for ReqwestService {
    type Response = http::Response<ResponseBody>;
    type Error = reqwest::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<reqwest::Result<()>> {
        self.client.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let request = reqwest::Request::try_from(request.map(IntoReqwestBody::into_reqwest_body));
        ResponseFuture::send(&mut self.client, request, false)
    }
}

/// The client, for one hop of a request.
#[derive(Clone)]
pub(crate) struct HopService<'a> {
    client: reqwest::Client,
    shell: &'a reqwest::Request,
    last: bool,
}

impl<'a> HopService<'a> {
    /// `last`: a redirect of this hop is one too many.
    pub(crate) fn new(service: &ReqwestService, shell: &'a reqwest::Request, last: bool) -> Self {
        Self { client: service.client.clone(), shell, last }
    }
}

impl<B: IntoReqwestBody> Service<Request<B>> for HopService<'_> {
    type Response = http::Response<ResponseBody>;
    type Error = reqwest::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<reqwest::Result<()>> {
        self.client.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        ResponseFuture::send(&mut self.client, Ok(shell::fill(self.shell, request)), self.last)
    }
}

type Call = <reqwest::Client as Service<reqwest::Request>>::Future;

pin_project! {
    /// The response future of [`ReqwestService`].
    pub struct ResponseFuture {
        #[pin]
        state: State,
    }
}

pin_project! {
    #[project = StateProj]
    enum State {
        Sent { #[pin] call: HopFuture<Call> },
        // The URL is none of reqwest's.
        Failed { error: Option<reqwest::Error> },
    }
}

impl ResponseFuture {
    fn send(client: &mut reqwest::Client, request: reqwest::Result<reqwest::Request>, last: bool) -> Self {
        let state = match request {
            Ok(request) => State::Sent { call: HopFuture::new(client.call(request), last) },
            Err(error) => State::Failed { error: Some(error) },
        };
        Self { state }
    }
}

impl Future for ResponseFuture {
    type Output = reqwest::Result<http::Response<ResponseBody>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Sent { call } => Poll::Ready(ready!(call.poll(cx)).map(ResponseBody::split)),
            StateProj::Failed { error } => {
                Poll::Ready(Err(error.take().expect("a future is not polled after it has completed")))
            }
        }
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
