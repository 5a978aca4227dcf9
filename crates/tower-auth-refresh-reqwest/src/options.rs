//! [`Options`]: the settings of a request; and [`execute`], which sends it with them.

use std::future::poll_fn;

use http::Request;
use tower::Service;
use tower_auth_refresh::{ReplayLimit, SkipAuth};

use crate::body::{RequestBody, ResponseBody};
use crate::redirect::Hop;
use crate::shell::Shell;

/// The settings of a request.
#[derive(Clone)]
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

/// Sends a request and follows its redirects.
///
/// `service` makes the service of a hop: from the part of the request that the service is to add, and `true` if a
/// redirect of it is one too many.
pub(crate) async fn execute<S>(
    mut options: Options,
    request: reqwest::Result<reqwest::Request>,
    service: impl Fn(Shell, bool) -> S,
) -> Result<reqwest::Response, S::Error>
where
    S: Service<Request<RequestBody>, Response = http::Response<ResponseBody>, Error: From<reqwest::Error>>,
{
    let mut hop = Hop::first(request?);
    let mut hops = 0;
    loop {
        let may_follow = options.max_redirects.is_some_and(|max| hops < max);
        let (shell, mut request, kept) = hop.split(may_follow)?;
        let mut service = service(shell, options.max_redirects == Some(hops));
        poll_fn(|cx| service.poll_ready(cx)).await?;
        options.insert_into(&mut request);
        let response = service.call(request).await?;
        let Some(next) = kept.and_then(|kept| kept.next(response.status(), response.headers(), options.referer)) else {
            return Ok(ResponseBody::into_reqwest(response));
        };
        // A later hop doesn't get the session's credentials in the place of the caller's own.
        options.skip_auth |= next.lost_credentials;
        hop = next.hop;
        hops += 1;
    }
}
