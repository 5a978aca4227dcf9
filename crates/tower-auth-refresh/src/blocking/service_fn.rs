//! [`ServiceFn`]: a blocking function as a `tower` service.

use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::spawn_blocking;
use tower::BoxError;
use tower_service::Service;

/// Creates a `tower` service from a blocking function, such as a refresh call by ureq.
///
/// Each call runs on a thread of the runtime's pool, so that the session's own thread stays free. A call can't be
/// interrupted: after the session's refresh time-out its answer is lost, and a refresh token that it presented is in
/// doubt. So the function should have a shorter time-out of its own.
///
/// # Examples
///
/// All calls of `tower-auth-refresh-http` over ureq, so that a program needs no second HTTP client:
///
/// ```
/// use std::time::Duration;
///
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use tower_auth_refresh::blocking::service_fn;
/// use tower_auth_refresh_http::AuthClient;
///
/// fn auth_client() -> AuthClient {
///     let config = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0);
///     let agent = config.timeout_global(Some(Duration::from_secs(9))).build().new_agent();
///     let client = service_fn(move |request: Request<Full<Bytes>>| {
///         let response = agent.run(request.map(|body| body.into_inner().unwrap_or_default().to_vec()))?;
///         let (head, mut body) = response.into_parts();
///         // One byte more than `AuthClient` reads.
///         let body = body.with_config().limit(64 * 1024 + 1).read_to_vec()?;
///         Ok::<_, ureq::Error>(Response::from_parts(head, Full::new(Bytes::from(body))))
///     });
///     AuthClient::new(client).not_sent_when(|error| {
///         matches!(error.downcast_ref(), Some(ureq::Error::HostNotFound | ureq::Error::ConnectionFailed))
///     })
/// }
/// # fn main() -> Result<(), tower::BoxError> {
/// # use tower_auth_refresh_http::{JsonLogin, JsonRefresh};
/// # let servers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
/// # let server = servers.block_on(tower_auth_refresh_testkit::TestServer::start())?;
/// # let refresh = JsonRefresh::new(auth_client(), &server.url("/auth/refresh"))?;
/// # let session = tower_auth_refresh::Session::builder(refresh).build();
/// # let session = tower_auth_refresh::blocking::Session::start(session)?;
/// # let login = JsonLogin::new(auth_client(), &server.url("/auth/login"))?;
/// # let form = serde_json::json!({"username": "ada", "password": "any"});
/// # session.block_on(login.sign_in(session.as_async(), &form))?;
/// # session.refresh()?;
/// # assert_eq!(server.counters().refreshes, 1);
/// # Ok(()) }
/// ```
pub fn service_fn<F>(function: F) -> ServiceFn<F> {
    ServiceFn(Arc::new(function))
}

/// A blocking function as a `tower` service: see [`service_fn`].
#[derive(Debug)]
pub struct ServiceFn<F>(Arc<F>);

impl<F> Clone for ServiceFn<F> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<F, Request, Response, E> Service<Request> for ServiceFn<F>
where
    F: Fn(Request) -> Result<Response, E> + Send + Sync + 'static,
    Request: Send + 'static,
    Response: Send + 'static,
    E: Into<BoxError> + 'static,
{
    type Response = Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let function = Arc::clone(&self.0);
        Box::pin(async move {
            match spawn_blocking(move || function(request).map_err(Into::into)).await {
                Ok(result) => result,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    Err(cancelled) => Err(cancelled.into()),
                },
            }
        })
    }
}
