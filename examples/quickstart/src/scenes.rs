//! The scenes: five calls with an expired token, a late 401, a network failure, a revoked session.

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

/// Figures of all scenes, counted in the servers' log.
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

/// The servers, the app's session and the app's client stack.
struct Demo<'a> {
    server: TestServer,
    auth: AuthServer,
    session: Session,
    client: ApiClient,
    inspector: &'a Inspector,
}

pub(crate) async fn run(inspector: &Inspector) -> Result<Figures, BoxError> {
    let demo = Demo::start(inspector).await?;

    inspector.headline("Ada signs in; the access token expires after one second. Five concurrent calls:");
    let seen = demo.five_calls_with_an_expired_token().await?;
    let api = |status| seen.iter().filter(|entry| entry.route == Route::Api && entry.status == Some(status)).count();
    let (unauthorized, ok) = (api(401), api(200));
    let refreshes = count(&seen, Route::Refresh);
    let replays = count(&seen, Route::Api).saturating_sub(CALLS);

    inspector
        .headline("A late 401, for a token that has already been replaced, causes a replay but no further refresh:");
    let late_401_refreshes = demo.a_late_401().await?;

    inspector
        .headline("The network fails during a refresh. The caller gets the API's own 401; the session stays active:");
    let network_failure_kept_session = demo.a_network_failure().await?;

    inspector.headline("The refresh token is revoked. The session ends, and the app is notified:");
    let revoked_ended_session = demo.a_revoked_session().await?;

    let violations = demo.server.counters().violations;
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

impl<'a> Demo<'a> {
    async fn start(inspector: &'a Inspector) -> Result<Self, BoxError> {
        let server = TestServer::start().await?;
        let auth = AuthServer::new(server.origin());

        // The complete setup of an app: a session, and the layer in the client stack.
        let service = auth.clone();
        let session = Session::builder(service_fn(move |request| service.clone().refresh(request))).build().await?;
        let client = ServiceBuilder::new()
            .layer(AuthRefreshLayer::new(session.clone(), Origin::parse(&server.origin())?))
            .service(Client::builder(TokioExecutor::new()).build_http());

        Ok(Self { server, auth, session, client, inspector })
    }

    async fn five_calls_with_an_expired_token(&self) -> Result<Vec<Entry>, BoxError> {
        let start = self.last_request();
        self.server.configure(|settings| settings.access_lifetime = Duration::from_secs(1));
        self.session.sign_in(self.auth.login(USER).await?).await?;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        self.server.configure(|settings| settings.access_lifetime = Duration::from_secs(3600));

        // Makes the calls concurrent: the API answers none of them until all have arrived.
        self.server.hold_unauthorized_until(CALLS);
        let mut calls = JoinSet::new();
        for number in 1..=CALLS {
            calls.spawn(get(self.client.clone(), self.server.url(&format!("/api/notes/{number}"))));
        }
        while let Some(status) = calls.join_next().await {
            status??;
        }
        Ok(self.show(start))
    }

    async fn a_late_401(&self) -> Result<usize, BoxError> {
        let start = self.last_request();
        self.server.expire_access_tokens();
        let gate = self.server.hold_unauthorized();
        let call = tokio::spawn(get(self.client.clone(), self.server.url("/api/late")));
        gate.arrived(1).await;
        self.session.refresh().await?;
        let released = self.last_request();
        gate.open();
        call.await??;
        let refreshes = count(&self.since(released), Route::Refresh);
        self.show(start);
        Ok(refreshes)
    }

    async fn a_network_failure(&self) -> Result<bool, BoxError> {
        let start = self.last_request();
        self.server.expire_access_tokens();
        self.server.inject(Route::Refresh, Fault::drop_connection().times(1));
        let failed = get(self.client.clone(), self.server.url("/api/offline")).await?;
        self.inspector.note(&format!("the call: {failed}; the session: {}", name(&self.session.state())));
        let kept = matches!(self.session.state(), SessionState::Failing(_));

        // After a failure, the session backs off for a second before the next refresh.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let retried = get(self.client.clone(), self.server.url("/api/online")).await?;
        let seen = self.show(start);
        self.inspector.note(&format!("the next call: {retried}; the session: {}", name(&self.session.state())));
        let refreshes: Vec<_> = seen.iter().filter(|entry| entry.route == Route::Refresh).collect();
        // The second refresh presented the same refresh token and succeeded.
        let recovered = matches!(refreshes[..], [lost, granted]
            if lost.status.is_none() && granted.status == Some(200) && lost.generation == granted.generation);
        let served = seen.iter().any(|entry| entry.path == "/api/online" && entry.status == Some(200));
        Ok(kept && recovered && served)
    }

    async fn a_revoked_session(&self) -> Result<bool, BoxError> {
        let start = self.last_request();
        let mut changes = self.session.subscribe();
        self.server.revoke(USER);
        self.server.expire_access_tokens();
        let refused = get(self.client.clone(), self.server.url("/api/revoked")).await?;
        let state = changes.wait_for(SessionState::is_ended).await?.clone();
        self.inspector.note(&format!("the call: {refused}; the app is notified: {}", name(&state)));

        self.session.sign_in(self.auth.login(USER).await?).await?;
        let again = get(self.client.clone(), self.server.url("/api/again")).await?;
        let seen = self.show(start);
        self.inspector.note(&format!("Ada signs in again; the next call: {again}"));
        let rejected = seen.iter().filter(|entry| entry.route == Route::Refresh && entry.status == Some(401)).count();
        let served = seen.iter().any(|entry| entry.path == "/api/again" && entry.status == Some(200));
        Ok(rejected == 1 && count(&seen, Route::Refresh) == 1 && served)
    }

    /// Returns the number of the last request in the log.
    fn last_request(&self) -> u64 {
        self.server.counters().requests
    }

    /// Returns the requests after `start`, in order of arrival.
    fn since(&self, start: u64) -> Vec<Entry> {
        let mut entries: Vec<_> = self.server.log().into_iter().filter(|entry| entry.number > start).collect();
        entries.sort_by_key(|entry| entry.number);
        entries
    }

    fn show(&self, start: u64) -> Vec<Entry> {
        let entries = self.since(start);
        self.inspector.requests(&entries);
        entries
    }
}

/// Makes one call, without handling tokens, and describes its outcome.
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

fn name(state: &SessionState) -> String {
    match state {
        SessionState::Failing(failure) => format!("Failing, {}", failure.error()),
        SessionState::Ended(error) => format!("Ended, {error}"),
        state => format!("{state:?}"),
    }
}
