//! What is shown: one expiry under five calls, a late 401, a network failure, a revoked session.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use tokio::task::JoinSet;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_auth_refresh::{AuthRefresh, AuthRefreshLayer, Origin, RefreshReport, ReplayBody, Session, SessionState};
use tower_auth_refresh_testkit::{Entry, Fault, Route, TestServer};

use crate::auth::AuthServer;
use crate::inspector::Inspector;

const USER: &str = "ada";
const CALLS: usize = 5;

/// What happened, counted from the servers' log.
#[derive(Serialize)]
pub(crate) struct Figures {
    calls: usize,
    unauthorized: usize,
    refreshes: usize,
    replays: usize,
    ok: usize,
    late_401_refreshes: usize,
    network_failure_kept_session: bool,
    revoked_ended_session: bool,
    violations: u64,
}

type ApiClient = AuthRefresh<Client<HttpConnector, ReplayBody<Full<Bytes>>>, Session>;

/// The servers, the app's session, and its client stack.
struct Stage<'a> {
    server: TestServer,
    auth: AuthServer,
    session: Session,
    client: ApiClient,
    inspector: &'a Inspector,
}

pub(crate) async fn play(inspector: &Inspector) -> Result<Figures, BoxError> {
    let stage = Stage::set(inspector).await?;

    inspector.headline("Ada signs in; a second later her access token has expired. Five calls at once:");
    let seen = stage.five_calls_with_an_expired_token().await?;
    let api = |status| seen.iter().filter(|entry| entry.route == Route::Api && entry.status == Some(status)).count();
    let (unauthorized, ok) = (api(401), api(200));
    let refreshes = count(&seen, Route::Refresh);
    let replays = count(&seen, Route::Api).saturating_sub(CALLS);

    inspector.headline("A 401 that arrives late, when the token has been replaced already, is only replayed:");
    let late_401_refreshes = stage.a_late_401().await?;

    inspector
        .headline("The network fails during a refresh. That is no logout: the caller gets the API's own 401, then:");
    let network_failure_kept_session = stage.a_network_failure().await?;

    inspector.headline("The refresh token is revoked: the session ends, and the app is told.");
    let revoked_ended_session = stage.a_revoked_session().await?;

    let violations = stage.server.counters().violations;
    inspector.headline(&format!("Superseded refresh tokens presented: {violations}."));
    Ok(Figures {
        calls: CALLS,
        unauthorized,
        refreshes,
        replays,
        ok,
        late_401_refreshes,
        network_failure_kept_session,
        revoked_ended_session,
        violations,
    })
}

impl<'a> Stage<'a> {
    async fn set(inspector: &'a Inspector) -> Result<Self, BoxError> {
        let server = TestServer::start().await?;
        let auth = AuthServer::at(server.origin());

        // The whole of what an app sets up: a session, and the layer in its client stack.
        let service = auth.clone();
        let session = Session::builder(service_fn(move |request| service.clone().refresh(request))).build().await?;
        let client = ServiceBuilder::new()
            .layer(AuthRefreshLayer::new(session.clone(), Origin::parse(&server.origin())?))
            .service(Client::builder(TokioExecutor::new()).build_http());

        Ok(Self { server, auth, session, client, inspector })
    }

    async fn five_calls_with_an_expired_token(&self) -> Result<Vec<Entry>, BoxError> {
        let begin = self.mark();
        self.server.configure(|settings| settings.access_lifetime = Duration::from_secs(1));
        self.session.sign_in(self.auth.login(USER).await?).await?;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        self.server.configure(|settings| settings.access_lifetime = Duration::from_secs(3600));

        // So that the five are at once: the API answers none of them before all have arrived.
        self.server.hold_unauthorized_until(CALLS);
        let mut calls = JoinSet::new();
        for number in 1..=CALLS {
            calls.spawn(get(self.client.clone(), self.server.url(&format!("/api/notes/{number}"))));
        }
        while let Some(status) = calls.join_next().await {
            status??;
        }
        Ok(self.show(begin))
    }

    async fn a_late_401(&self) -> Result<usize, BoxError> {
        let begin = self.mark();
        self.server.expire_access_tokens();
        let gate = self.server.hold_unauthorized();
        let call = tokio::spawn(get(self.client.clone(), self.server.url("/api/late")));
        gate.arrived(1).await;
        self.session.refresh().await?;
        let released = self.mark();
        gate.open();
        call.await??;
        let refreshes = count(&self.since(released), Route::Refresh);
        self.show(begin);
        Ok(refreshes)
    }

    async fn a_network_failure(&self) -> Result<bool, BoxError> {
        let begin = self.mark();
        self.server.expire_access_tokens();
        self.server.inject(Route::Refresh, Fault::drop_connection().times(1));
        let failed = get(self.client.clone(), self.server.url("/api/offline")).await?;
        self.inspector.note(&format!("the call: {failed}; the session: {:?}", self.session.state()));
        let kept = self.session.state() == SessionState::Active;

        // A session cools down for a second before it asks again.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let mended = get(self.client.clone(), self.server.url("/api/online")).await?;
        let seen = self.show(begin);
        self.inspector.note(&format!("the next call: {mended}; the session: {:?}", self.session.state()));
        let refreshes: Vec<_> = seen.iter().filter(|entry| entry.route == Route::Refresh).collect();
        // The same refresh token bought a new pair in the end.
        let recovered = matches!(refreshes[..], [lost, granted]
            if lost.status.is_none() && granted.status == Some(200) && lost.generation == granted.generation);
        let served = seen.iter().any(|entry| entry.path == "/api/online" && entry.status == Some(200));
        Ok(kept && recovered && served)
    }

    async fn a_revoked_session(&self) -> Result<bool, BoxError> {
        let begin = self.mark();
        let mut changes = self.session.subscribe();
        self.server.revoke(USER);
        self.server.expire_access_tokens();
        let refused = get(self.client.clone(), self.server.url("/api/revoked")).await?;
        let told = *changes.wait_for(|state| *state == SessionState::Ended).await?;
        self.inspector.note(&format!("the call: {refused}; the app is told: {told:?}"));

        self.session.sign_in(self.auth.login(USER).await?).await?;
        let again = get(self.client.clone(), self.server.url("/api/again")).await?;
        let seen = self.show(begin);
        self.inspector.note(&format!("Ada signs in again; her call: {again}"));
        let rejected = seen.iter().filter(|entry| entry.route == Route::Refresh && entry.status == Some(401)).count();
        let served = seen.iter().any(|entry| entry.path == "/api/again" && entry.status == Some(200));
        Ok(rejected == 1 && count(&seen, Route::Refresh) == 1 && served)
    }

    /// Where the log stands now.
    fn mark(&self) -> u64 {
        self.server.counters().requests
    }

    /// What arrived since, in that order.
    fn since(&self, mark: u64) -> Vec<Entry> {
        let mut entries: Vec<_> = self.server.log().into_iter().filter(|entry| entry.number > mark).collect();
        entries.sort_by_key(|entry| entry.number);
        entries
    }

    fn show(&self, mark: u64) -> Vec<Entry> {
        let entries = self.since(mark);
        self.inspector.requests(&entries);
        entries
    }
}

/// One call of the app: it knows nothing of tokens.
async fn get(mut client: ApiClient, url: String) -> Result<String, BoxError> {
    let response = client.ready().await?.call(Request::get(url).body(Full::default())?).await?;
    let report = response.extensions().get::<RefreshReport>();
    Ok(match report {
        Some(report) => format!("{} ({report})", response.status()),
        None => response.status().to_string(),
    })
}

fn count(entries: &[Entry], route: Route) -> usize {
    entries.iter().filter(|entry| entry.route == route).count()
}
