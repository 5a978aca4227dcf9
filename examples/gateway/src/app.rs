//! [`App`]: what all routes share.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tower_auth_refresh::Sessions;

use crate::auth::Auth;
use crate::config::{PublicOrigin, Upstream};
use crate::cookie::{SessionCookie, SessionId};
use crate::metrics::Metrics;
use crate::proxy::UpstreamClient;

/// A handle, cloned for each request.
#[derive(Clone)]
pub(crate) struct App(Arc<Parts>);

pub(crate) struct Parts {
    pub(crate) sessions: Sessions<SessionId>,
    pub(crate) auth: Auth,
    pub(crate) client: UpstreamClient,
    pub(crate) upstream: Upstream,
    pub(crate) public: PublicOrigin,
    pub(crate) cookie: SessionCookie,
    pub(crate) body_limit: u64,
    pub(crate) client_timeout: Duration,
    pub(crate) metrics: Arc<Metrics>,
    /// Set when the gateway begins to stop: for answers that would never end.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl App {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
