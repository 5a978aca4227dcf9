//! [`App`]: the state shared by all routes.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tower_auth_refresh::{Session, SessionRegistry, SessionRegistryError};

use crate::auth::Auth;
use crate::config::{PublicOrigin, StripHeaders, Upstream};
use crate::cookie::{SessionCookie, SessionId};
use crate::limits::{Logins, RequestPermit, Requests};
use crate::metrics::Metrics;
use crate::observation::AccessLog;
use crate::phase::Phase;
use crate::proxy::{CommonHeaders, UpstreamClient};
use crate::task_tracker::TaskTracker;
use crate::user_sessions::UserSessions;

/// The longest wait for a sign-out: the authorization server may not respond.
const SIGN_OUT_TIMEOUT: Duration = Duration::from_secs(1);

/// A handle to the shared state, cloned for each request.
///
/// A count of references that all threads write for each request is moved between their caches (cache-line contention).
/// So the handles of each connection have a count of their own.
#[derive(Clone)]
#[expect(clippy::redundant_allocation, reason = "the outer count belongs to one connection, the inner one to all")]
pub(crate) struct App(Arc<Arc<Parts>>);

pub(crate) struct Parts {
    pub(crate) sessions: SessionRegistry<SessionId>,
    /// The sessions are in a store, which other gateways may share.
    pub(crate) has_store: bool,
    pub(crate) auth: Auth,
    pub(crate) client: UpstreamClient,
    pub(crate) upstream: Upstream,
    pub(crate) common_headers: CommonHeaders,
    pub(crate) public: PublicOrigin,
    pub(crate) cookie: SessionCookie,
    pub(crate) strip: StripHeaders,
    pub(crate) body_limit: u64,
    pub(crate) client_timeout: Duration,
    pub(crate) requests: Arc<Requests>,
    pub(crate) logins: Arc<Logins>,
    /// Absent if a user may have any number of sessions.
    pub(crate) user_sessions: Option<UserSessions>,
    pub(crate) metrics: Arc<Metrics>,
    /// `None` if requests aren't logged.
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) tasks: TaskTracker,
    /// `Stopping` ends responses that would never end.
    pub(crate) phase: watch::Receiver<Phase>,
}

impl App {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(Arc::new(parts)))
    }

    /// Returns a handle with a count of its own.
    pub(crate) fn for_connection(&self) -> Self {
        Self(Arc::new(Arc::clone(&self.0)))
    }

    /// Looks a session up. The permit is returned with the session, or dropped when the look-up ends: the store is read
    /// to the end, also if the client disconnects.
    pub(crate) async fn look_up(
        &self,
        id: SessionId,
        permit: RequestPermit,
    ) -> Result<Option<(Session, RequestPermit)>, SessionRegistryError> {
        let mut look_up = LookUp { app: self, id, permit: Some(permit) };
        let found = self.sessions.get(&id).await;
        let permit = look_up.permit.take();
        Ok(found?.zip(permit))
    }

    /// Signs a user out, here and at the authorization server.
    ///
    /// Waits at most a second for the authorization server. The call continues in a task after that, or after the
    /// caller is dropped.
    pub(crate) async fn sign_out(&self, id: SessionId) {
        self.sign_out_with(id, None).await;
    }

    /// Signs a user out, as [`sign_out`](Self::sign_out) does, and keeps a permit to the end of that call.
    pub(crate) async fn sign_out_with(&self, id: SessionId, permit: Option<RequestPermit>) {
        let app = self.clone();
        let task = async move {
            app.run_sign_out(id).await;
            drop(permit);
        };
        // A panic in the task has been logged already.
        let _ = timeout(SIGN_OUT_TIMEOUT, self.tasks.spawn(task)).await;
    }

    /// Signs a user out in a detached task.
    pub(crate) fn sign_out_detached(&self, id: SessionId) {
        self.tasks.spawn_detached(self.clone().run_sign_out(id));
    }

    async fn run_sign_out(self, id: SessionId) {
        if let Err(error) = self.sessions.sign_out(&id).await {
            // The local session has ended all the same.
            tracing::warn!(%error, "sign-out failed in part");
        }
    }
}

/// A look-up under way. If it is dropped, the permit is kept to the end of the same look-up in a task.
struct LookUp<'a> {
    app: &'a App,
    id: SessionId,
    permit: Option<RequestPermit>,
}

impl Drop for LookUp<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            let (app, id) = (self.app.clone(), self.id);
            self.app.tasks.spawn_detached(async move {
                // Joins the read that is under way. No request waits for its outcome.
                let _ = app.sessions.get(&id).await;
                drop(permit);
            });
        }
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
