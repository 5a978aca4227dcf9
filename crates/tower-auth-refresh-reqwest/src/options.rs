//! [`Options`]: the settings of a request; and [`execute`], which sends it with them.

use http::Request;
use tower::{Service, ServiceExt};
use tower_auth_refresh::{ReplayLimit, Session, SkipAuth};

use crate::body::{RequestBody, ResponseBody, take_apart};
use crate::redirect::{Hop, LastHop};

/// The settings of a request.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) session: Option<Session>,
    pub(crate) replay_limit: Option<ReplayLimit>,
    pub(crate) skip_auth: bool,
    /// `None` if redirects aren't followed.
    pub(crate) max_redirects: Option<usize>,
    pub(crate) referer: bool,
}

impl Options {
    pub(crate) fn new() -> Self {
        Self { session: None, replay_limit: None, skip_auth: false, max_redirects: Some(10), referer: true }
    }
}

/// Sends a request and follows its redirects.
pub(crate) async fn execute<S>(
    mut service: S,
    options: Options,
    request: reqwest::Request,
) -> Result<reqwest::Response, S::Error>
where
    S: Service<Request<RequestBody>, Response = http::Response<ResponseBody>, Error: From<reqwest::Error>>,
{
    let mut request = Request::<reqwest::Body>::try_from(request)?.map(take_apart);
    if options.skip_auth {
        request.extensions_mut().insert(SkipAuth);
    }
    if let Some(limit) = options.replay_limit {
        request.extensions_mut().insert(limit);
    }
    let mut hops = 0;
    loop {
        let hop = options.max_redirects.filter(|max| hops <= *max).map(|_| Hop::of(&request));
        if options.max_redirects == Some(hops) {
            request.extensions_mut().insert(LastHop);
        }
        if let Some(session) = &options.session {
            request.extensions_mut().insert(session.clone());
        }
        let response = service.ready().await?.call(request).await?;
        match hop.and_then(|hop| hop.next(response.status(), response.headers(), options.referer)) {
            Some(next) => request = next,
            None => return Ok(ResponseBody::into_reqwest(response)),
        }
        hops += 1;
    }
}
