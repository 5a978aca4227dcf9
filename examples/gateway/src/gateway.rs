//! [`Gateway`]: builds the server from its settings.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout_at;
use tower::BoxError;
use tower_auth_refresh::{SessionRegistry, TokenStore, Tokens};

use crate::app::{App, Parts};
use crate::auth::Auth;
use crate::config::{InvalidSetting, Settings};
use crate::cookie::{SessionCookie, SessionId};
use crate::counted_store::CountedStore;
use crate::demo::Demo;
use crate::inherited::Inherited;
use crate::limits::{Logins, Requests};
use crate::metrics::Metrics;
use crate::observation::AccessLog;
use crate::phase::{self, Phase};
use crate::proxy::{CommonHeaders, UpstreamClient};
use crate::routes::Router;
use crate::server::{Limits, Listener};
use crate::stores::Stores;
use crate::task_tracker::TaskTracker;
use crate::tls::ServerTls;
use crate::user_sessions::UserSessions;
use crate::{descriptors, server};

/// A configured gateway that does not listen yet.
pub struct Gateway {
    settings: Settings,
    metrics: Arc<Metrics>,
    access_log: Option<AccessLog>,
    inherited: Inherited,
    demo: Option<Demo>,
    store_factory: Option<StoreFactory>,
    with_refresh: bool,
}

type StoreFactory = Box<dyn Fn(SessionId) -> Arc<dyn TokenStore> + Send + Sync>;

/// A gateway with an open socket. [`serve`](Self::serve) accepts its connections.
pub struct Listening {
    listener: Listener,
    admin: Option<Listener>,
    app: App,
    demo: Option<Demo>,
    settings: Settings,
    stores: Option<Arc<Stores>>,
    phase: watch::Sender<Phase>,
    tls: Option<Arc<ServerTls>>,
}

/// Reads the files again that may change while a gateway runs.
#[derive(Clone, Debug)]
pub struct Reload {
    tls: Option<Arc<ServerTls>>,
}

impl Gateway {
    /// Creates a gateway with these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            metrics: Arc::default(),
            access_log: None,
            inherited: Inherited::default(),
            demo: None,
            store_factory: None,
            with_refresh: true,
        }
    }

    /// Sets the counters, shared with a [`RefreshWatch`](crate::RefreshWatch).
    ///
    /// Default: new counters, without those of refreshes.
    #[must_use]
    pub fn metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Logs each request. Default: `None`, no lines.
    #[must_use]
    pub fn access_log(mut self, log: Option<AccessLog>) -> Self {
        self.access_log = log;
        self
    }

    /// Takes sockets that are open already, instead of opening those of the settings. Default: none.
    #[must_use]
    pub fn inherited(mut self, inherited: Inherited) -> Self {
        self.inherited = inherited;
        self
    }

    /// Serves the demo page. Default: none.
    #[must_use]
    pub fn demo(mut self, demo: Demo) -> Self {
        self.demo = Some(demo);
        self
    }

    /// Sets the function that creates the token store of each session. Default: in memory.
    #[doc(hidden)]
    #[must_use]
    pub fn store_factory(mut self, factory: impl Fn() -> Arc<dyn TokenStore> + Send + Sync + 'static) -> Self {
        self.store_factory = Some(Box::new(move |_| factory()));
        self
    }

    /// Attaches access tokens but never refreshes: the baseline that measures the cost of refreshing.
    #[doc(hidden)]
    #[must_use]
    pub fn without_refresh(mut self) -> Self {
        self.with_refresh = false;
        self
    }

    /// Opens the store and the socket.
    ///
    /// # Errors
    ///
    /// Returns [`StartError`] if a setting is invalid, the store can't be used safely, or the address can't be bound.
    ///
    /// # Panics
    ///
    /// Panics outside of a `tokio` runtime.
    pub async fn listen(self) -> Result<Listening, StartError> {
        let Self { settings, metrics, access_log, inherited, demo, store_factory, with_refresh } = self;
        let auth = Auth::new(&settings)?;
        let tls =
            settings.tls.as_ref().map(|identity| ServerTls::open(identity, metrics.clone())).transpose()?.map(Arc::new);
        let stores = Stores::open(&settings).await?.map(Arc::new);
        let store_factory = store_factory.or_else(|| {
            let stores = stores.clone()?;
            Some(Box::new(move |id| stores.store(id)) as StoreFactory)
        });
        let listener = open("--listen", settings.listen, inherited.listener)?;
        let admin = match settings.admin_listen {
            Some(address) => Some(open("--admin-listen", address, inherited.admin)?),
            None => None,
        };
        let (phase, phases) = watch::channel(Phase::Serving);
        let upstream = if with_refresh { UpstreamClient::new } else { UpstreamClient::without_refresh };
        let app = App::new(Parts {
            sessions: session_registry(&auth, &settings, store_factory, &metrics),
            has_store: stores.is_some(),
            auth,
            client: upstream(&settings)?,
            upstream: settings.upstream.clone(),
            common_headers: CommonHeaders::new(&settings.upstream.origin, &settings.public),
            public: settings.public.clone(),
            cookie: SessionCookie::new(settings.public.is_https()),
            strip: settings.strip_headers.clone(),
            body_limit: settings.body_limit,
            client_timeout: settings.client_timeout,
            requests: Arc::new(Requests::new(
                settings.requests_in_flight.unwrap_or_else(descriptors::for_requests),
                settings.requests_in_flight_per_session,
                settings.requests_in_flight_per_address,
            )),
            logins: Arc::new(Logins::new(
                settings.logins_in_flight,
                settings.logins_in_flight_per_address.unwrap_or(usize::MAX),
            )),
            user_sessions: settings.sessions_per_user.map(|max| UserSessions::new(max, settings.max_sessions)),
            metrics,
            access_log,
            tasks: TaskTracker::default(),
            phase: phases,
        });
        Ok(Listening { listener, admin, app, demo, settings, stores, phase, tls })
    }
}

impl Listening {
    /// Returns the address of the socket.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error if the address is unknown.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Returns `http` or, with a certificate, `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Returns a handle that reads the certificate again.
    #[must_use]
    pub fn reload(&self) -> Reload {
        Reload { tls: self.tls.clone() }
    }

    /// Returns the address of the admin listener, if there is one.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.local_addr().ok()
    }

    /// Signs a user in without a login and returns the session cookie: load tests need more users than can log in.
    ///
    /// # Errors
    ///
    /// Returns an error if the registry is full or the session can't be created.
    #[doc(hidden)]
    pub async fn sign_in(&self, tokens: Tokens) -> Result<String, BoxError> {
        let id = SessionId::random()?;
        self.app.sessions.sign_in(id, tokens).await?;
        Ok(self.app.cookie.pair(id))
    }

    /// Serves until `shutdown` completes, then shuts down gracefully.
    ///
    /// A shutdown first fails `/readyz`, and serves on for `drain_delay`. Then it stops accepting connections. It waits,
    /// up to `shutdown_timeout`, for the open requests, for the refreshes whose requests have been dropped, and for the
    /// sign-outs that the authorization server has not confirmed.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, admin, app, demo, settings, stores, phase, tls } = self;
        let sweep = stores.map(|stores| tokio::spawn(async move { stores.sweep().await }));
        let demo_routes = demo.as_ref().map(Demo::routes).unwrap_or_default();
        let router = Router::new(&app, demo_routes);
        // To the end: it shows how far the shutdown is.
        let (_open, always) = watch::channel(Phase::Serving);
        let admin = admin.map(|listener| {
            let proxies = Arc::default();
            tokio::spawn(server::serve(listener, Router::admin(&app), None, Limits::admin(&settings), proxies, always))
        });
        let proxies = Arc::new(settings.trusted_proxies.clone());
        let serving = server::serve(listener, router, tls, (&settings).into(), proxies, phase.subscribe());
        let (deadline, ()) = tokio::join!(serving, phase::run(phase, shutdown, settings.drain_delay));
        let idle = async {
            app.tasks.wait_idle().await;
            app.sessions.wait_idle().await;
        };
        if timeout_at(deadline, idle).await.is_err() {
            tracing::warn!("shutdown timed out: refreshes and sign-outs were cut off");
        }
        if let Some(sweep) = sweep {
            sweep.abort();
        }
        if let Some(admin) = admin {
            admin.abort();
        }
        if let Some(demo) = demo {
            demo.shutdown().await;
        }
    }
}

impl Reload {
    /// Reads the files again and logs the outcome. A file that can't be used changes nothing.
    pub fn run(&self) {
        let Some(tls) = &self.tls else {
            tracing::info!("there is nothing to reload");
            return;
        };
        if let Err(error) = tls.reload() {
            tracing::error!(%error, "the certificate was not reloaded: the previous one stays in use");
        }
    }
}

fn open(
    setting: &'static str,
    address: SocketAddr,
    inherited: Option<std::net::TcpListener>,
) -> Result<Listener, StartError> {
    inherited.map_or_else(|| Listener::bind(address), Listener::adopt).map_err(|error| StartError::Bind {
        setting,
        address,
        error,
    })
}

fn session_registry(
    auth: &Auth,
    settings: &Settings,
    store_factory: Option<StoreFactory>,
    metrics: &Arc<Metrics>,
) -> SessionRegistry<SessionId> {
    let template = auth.session_template().refresh_timeout(settings.refresh_timeout);
    let template = match settings.refresh_early {
        Some(window) => template.refresh_early(window),
        None => template,
    };
    let sessions = SessionRegistry::builder(template)
        .max_sessions(settings.max_sessions)
        .idle_timeout(settings.idle)
        .max_concurrent_refreshes(settings.refreshes_in_flight);
    let sessions = match store_factory {
        Some(factory) => {
            let metrics = metrics.clone();
            sessions.store_factory(move |id| Arc::new(CountedStore::new(factory(*id), metrics.clone())))
        }
        None => sessions,
    };
    sessions.build().expect("a runtime is running: it has opened the socket")
}

/// An error that prevents the start of a gateway. Its message is one line.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is invalid.
    Setting(InvalidSetting),
    /// The address can't be bound.
    Bind {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        error: io::Error,
    },
    /// The servers of the demo could not start.
    Demo(io::Error),
}

impl From<InvalidSetting> for StartError {
    fn from(invalid: InvalidSetting) -> Self {
        Self::Setting(invalid)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(invalid) => invalid.fmt(f),
            Self::Bind { setting, address, error } => write!(f, "{setting}: {address}: {error}"),
            Self::Demo(error) => write!(f, "--demo: {error}"),
        }
    }
}

impl Error for StartError {}
