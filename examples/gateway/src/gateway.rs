//! [`Gateway`]: all parts put together.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tower::BoxError;
use tower_auth_refresh::{SessionRegistry, TokenStore, Tokens};

use crate::app::{App, Parts};
use crate::auth::Auth;
use crate::config::{InvalidSetting, Settings};
use crate::cookie::{SessionCookie, SessionId};
use crate::demo::Demo;
use crate::errands::Errands;
use crate::metrics::Metrics;
use crate::{proxy, routes, server};

/// A gateway, about to start.
pub struct Gateway {
    settings: Settings,
    metrics: Arc<Metrics>,
    demo: Option<Demo>,
    stores: Option<Stores>,
    with_refresh: bool,
}

type Stores = Box<dyn Fn() -> Arc<dyn TokenStore> + Send + Sync>;

/// A gateway that listens, and answers once it [serves](Self::serve).
pub struct Listening {
    listener: TcpListener,
    app: App,
    demo: Option<Demo>,
    settings: Settings,
    stopping: watch::Sender<bool>,
}

impl Gateway {
    /// A gateway with these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, metrics: Arc::default(), demo: None, stores: None, with_refresh: true }
    }

    /// The counters, shared with a [`RefreshWatch`](crate::RefreshWatch). Default: its own, that hear of no refresh.
    #[must_use]
    pub fn metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// The page that shows what happens. Default: none.
    #[must_use]
    pub fn demo(mut self, demo: Demo) -> Self {
        self.demo = Some(demo);
        self
    }

    /// Where each session's tokens are kept. Default: in memory.
    #[doc(hidden)]
    #[must_use]
    pub fn stores(mut self, stores: impl Fn() -> Arc<dyn TokenStore> + Send + Sync + 'static) -> Self {
        self.stores = Some(Box::new(stores));
        self
    }

    /// Sends requests on with a user's access token as it is, and lets the 401s pass: to measure what refreshing costs.
    #[doc(hidden)]
    #[must_use]
    pub fn without_refresh(mut self) -> Self {
        self.with_refresh = false;
        self
    }

    /// Opens the socket, on the `tokio` runtime that it is called on.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn listen(self) -> Result<Listening, StartError> {
        let Self { settings, metrics, demo, stores, with_refresh } = self;
        let auth = Auth::new(&settings)?;
        let listener =
            server::bind(settings.listen).map_err(|error| StartError::Bind { address: settings.listen, error })?;
        let (stopping, stopped) = watch::channel(false);
        let app = App::new(Parts {
            sessions: sessions(&auth, &settings, stores),
            auth,
            client: if with_refresh { proxy::client(&settings) } else { proxy::client_without_refresh(&settings) },
            upstream: settings.upstream.clone(),
            public: settings.public.clone(),
            cookie: SessionCookie::new(settings.public.is_https()),
            body_limit: settings.body_limit,
            client_timeout: settings.client_timeout,
            metrics,
            errands: Errands::default(),
            stopping: stopped,
        });
        Ok(Listening { listener, app, demo, settings, stopping })
    }
}

impl Listening {
    /// Where it listens.
    ///
    /// # Errors
    ///
    /// If the operating system doesn't say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Signs a user in without a login, and returns his cookie: to load a gateway with more users than a test can log in.
    ///
    /// # Errors
    ///
    /// If he can't be signed in.
    #[doc(hidden)]
    pub async fn sign_in(&self, tokens: Tokens) -> Result<String, BoxError> {
        let id = SessionId::random()?;
        self.app.sessions.sign_in(id, tokens).await?;
        Ok(self.app.cookie.pair(id))
    }

    /// Serves until `shutdown`. Then it accepts no more, and waits for the requests under way, for the refreshes whose
    /// requests have gone, and for the sign-outs that the authorization server is still to be told of.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, app, demo, settings, stopping } = self;
        let pages = demo.as_ref().map(Demo::routes).unwrap_or_default();
        let router = routes::router(&app, pages);
        let shutdown = async {
            shutdown.await;
            stopping.send_replace(true);
            Instant::now() + settings.shutdown_timeout
        };
        let deadline = server::serve(listener, router, settings.client_timeout, shutdown).await;
        let landed = async {
            app.errands.done().await;
            app.sessions.wait_idle().await;
        };
        if timeout_at(deadline, landed).await.is_err() {
            tracing::warn!("refreshes and sign-outs were cut off: they took too long");
        }
        if let Some(demo) = demo {
            demo.shutdown().await;
        }
    }
}

/// All users' sessions.
fn sessions(auth: &Auth, settings: &Settings, stores: Option<Stores>) -> SessionRegistry<SessionId> {
    let template = auth.sessions().refresh_timeout(settings.refresh_timeout);
    let template = match settings.refresh_early {
        Some(window) => template.refresh_early(window),
        None => template,
    };
    let sessions = SessionRegistry::builder(template)
        .max_sessions(settings.max_sessions)
        .idle_timeout(settings.idle)
        .max_concurrent_refreshes(settings.refreshes_in_flight);
    let sessions = match stores {
        Some(stores) => sessions.store_factory(move |_| stores()),
        None => sessions,
    };
    sessions.build().expect("the runtime is there: it has opened the socket")
}

/// A gateway could not start. The message is one line.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is wrong.
    Setting(InvalidSetting),
    /// The address can't be listened on.
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        error: io::Error,
    },
    /// The demo's servers could not start.
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
            Self::Bind { address, error } => write!(f, "--listen: {address}: {error}"),
            Self::Demo(error) => write!(f, "--demo: {error}"),
        }
    }
}

impl Error for StartError {}
