//! [`App`]: what all routes share.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tower_auth_refresh::SessionRegistry;

use crate::auth::Auth;
use crate::config::{PublicOrigin, Upstream};
use crate::cookie::{SessionCookie, SessionId};
use crate::errands::Errands;
use crate::metrics::Metrics;
use crate::proxy::UpstreamClient;

/// How long a sign-out is waited for: the authorization server may not answer.
const SIGN_OUT_PATIENCE: Duration = Duration::from_secs(1);

/// A handle, cloned for each request.
#[derive(Clone)]
pub(crate) struct App(Arc<Parts>);

pub(crate) struct Parts {
    pub(crate) sessions: SessionRegistry<SessionId>,
    pub(crate) auth: Auth,
    pub(crate) client: UpstreamClient,
    pub(crate) upstream: Upstream,
    pub(crate) public: PublicOrigin,
    pub(crate) cookie: SessionCookie,
    pub(crate) body_limit: u64,
    pub(crate) client_timeout: Duration,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) errands: Errands,
    /// Set when the gateway begins to stop: for answers that would never end.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl App {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Signs a user out, here and at the authorization server. Waits for it no longer than a second, and it goes on
    /// whether or not the caller waits.
    pub(crate) async fn sign_out(&self, id: SessionId) {
        // What panics in there is logged by then.
        let _ = timeout(SIGN_OUT_PATIENCE, self.errands.begin(self.clone().signing_out(id))).await;
    }

    /// The same, with nobody waiting for it.
    pub(crate) fn sign_out_later(&self, id: SessionId) {
        self.errands.begin_if_running(self.clone().signing_out(id));
    }

    async fn signing_out(self, id: SessionId) {
        if let Err(error) = self.sessions.sign_out(&id).await {
            // He is signed out here all the same.
            tracing::warn!(%error, "a user could not be signed out everywhere");
        }
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
