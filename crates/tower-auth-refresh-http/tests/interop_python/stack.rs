//! [`Stack`]: an API client with the layer around it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::TokioExecutor;
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt, service_fn};
use tower_auth_refresh::{AuthRefreshLayer, ChallengePolicy, Origin, RefreshReport, ReplayBody, Session};

use crate::server::Server;

/// Calls the API of a server.
#[derive(Clone)]
pub(crate) struct Stack {
    base: String,
    client: BoxCloneSyncService<Request<Full<Bytes>>, Response<hyper::body::Incoming>, Error>,
    refusals: Arc<Refusals>,
}

/// The 401s that the innermost client has received.
#[derive(Default)]
struct Refusals {
    answers: AtomicUsize,
    tokens: Mutex<HashSet<String>>,
}

/// The answer that a caller gets.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) report: Option<RefreshReport>,
}

impl Stack {
    pub(crate) fn new(server: &Server, session: &Session) -> Self {
        Self::with_policy(server, session, ChallengePolicy::default())
    }

    pub(crate) fn with_policy(server: &Server, session: &Session, policy: ChallengePolicy) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http::<ReplayBody<Full<Bytes>>>();
        let refusals = Arc::<Refusals>::default();
        let seen = refusals.clone();
        let client = service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| {
            let token = request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
            let (answer, seen) = (client.request(request), seen.clone());
            async move {
                let answer = answer.await?;
                if answer.status() == StatusCode::UNAUTHORIZED {
                    seen.answers.fetch_add(1, Ordering::Relaxed);
                    seen.tokens.lock().unwrap().extend(token);
                }
                Ok::<_, Error>(answer)
            }
        });
        let base = server.url("");
        let layer = AuthRefreshLayer::new(session.clone(), Origin::parse(&base).unwrap()).challenge(policy);
        Self { base, client: BoxCloneSyncService::new(layer.layer(client)), refusals }
    }

    /// Sends a GET and reads the answer to its end.
    pub(crate) async fn get(&self, path: &str) -> Result<Answer, Error> {
        let request = Request::get(format!("{}{path}", self.base)).body(Full::default()).unwrap();
        let answer = self.client.clone().oneshot(request).await?;
        let report = answer.extensions().get().cloned();
        let status = answer.status();
        answer.into_body().collect().await.unwrap();
        Ok(Answer { status, report })
    }

    /// Returns the status of a GET.
    pub(crate) async fn status(&self, path: &str) -> StatusCode {
        self.get(path).await.unwrap().status
    }

    /// The number of 401s that the innermost client has received.
    pub(crate) fn refusals(&self) -> usize {
        self.refusals.answers.load(Ordering::Relaxed)
    }

    /// The number of different tokens that were refused by a 401.
    pub(crate) fn expiries(&self) -> usize {
        self.refusals.tokens.lock().unwrap().len()
    }
}
