//! [`Options`]: the settings of a request; and [`execute`], which sends it with them.

use std::future::poll_fn;
use std::mem;

use http::Request;
use http_body_util::Full;
use tower::Service;
use tower_auth_refresh::{ReplayLimit, SkipAuth};

use crate::body::{RequestBody, ResponseBody, take_apart};
use crate::redirect::Kept;
use crate::shell;

/// The settings of a request.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) replay_limit: Option<ReplayLimit>,
    pub(crate) skip_auth: bool,
    /// `None` if redirects aren't followed.
    pub(crate) max_redirects: Option<usize>,
    pub(crate) referer: bool,
}

impl Options {
    pub(crate) fn new() -> Self {
        Self { replay_limit: None, skip_auth: false, max_redirects: Some(10), referer: true }
    }

    /// Sets the options in the extensions of a request, where the layer reads them.
    fn insert_into<B>(&self, request: &mut Request<B>) {
        let extensions = request.extensions_mut();
        if let Some(limit) = self.replay_limit {
            extensions.insert(limit);
        }
        if self.skip_auth {
            extensions.insert(SkipAuth);
        }
    }
}

/// The services that send the hops of a request.
pub(crate) trait Hops {
    type Service<'a>: Service<Request<RequestBody>, Response = http::Response<ResponseBody>, Error = Self::Error>;
    type Error: From<reqwest::Error>;

    /// Returns the service of a hop. `last`: a redirect of this hop is one too many.
    fn service<'a>(&self, shell: &'a reqwest::Request, last: bool) -> Self::Service<'a>;
}

/// Sends a request and follows its redirects.
///
/// The future is moved as it is built, and begins where its arguments are: an `async fn` would copy them once more.
#[expect(clippy::manual_async_fn, reason = "see above")]
pub(crate) fn execute<H: Hops>(
    hops: H,
    mut options: Options,
    mut request: reqwest::Result<reqwest::Request>,
) -> impl Future<Output = Result<reqwest::Response, H::Error>> {
    async move {
        let shell = match request {
            Ok(ref mut shell) => shell,
            Err(error) => return Err(error.into()),
        };
        let mut headers = mem::take(shell.headers_mut());
        let mut body = shell.body_mut().take().map_or_else(|| RequestBody::Left(Full::default()), take_apart);
        let mut followed = 0;
        loop {
            let mut service = hops.service(shell, options.max_redirects == Some(followed));
            poll_fn(|cx| service.poll_ready(cx)).await?;
            let may_follow = options.max_redirects.is_some_and(|max| followed < max);
            let kept = may_follow.then(|| Kept::of(&headers, &body));
            let mut request = Request::new(body);
            *request.method_mut() = shell.method().clone();
            *request.uri_mut() = shell::uri(shell)?;
            *request.version_mut() = shell.version();
            *request.headers_mut() = headers;
            options.insert_into(&mut request);
            let response = service.call(request).await?;
            let next = kept.and_then(|kept| kept.next(shell, response.status(), response.headers(), options.referer));
            let Some(next) = next else { return Ok(ResponseBody::into_reqwest(response)) };
            // A later hop doesn't get the session's credentials in the place of the caller's own.
            options.skip_auth |= next.lost_credentials;
            drop(service);
            (*shell.method_mut(), *shell.url_mut()) = (next.method, next.url);
            (headers, body) = (next.headers, next.body);
            followed += 1;
        }
    }
}
