//! Connections: the names of hosts, sentinels, TLS, and the greeting of a server.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, RedisConnectionInfo, cmd};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::address::{Address, Host};
use super::failure::describe;
use crate::error::{Problem, StoreErrorKind};

/// The time for a connection to one host, greeting included.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);

/// The way to the server.
pub(super) struct Connector {
    address: Address,
    tls: Option<Arc<ClientConfig>>,
    /// The user and password at the sentinels.
    sentinel_user: Option<(String, Zeroizing<String>)>,
    /// The sentinel that has answered last.
    sentinel: AtomicUsize,
}

/// A connection that many calls share.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) redis: MultiplexedConnection,
    clock: Clock,
    driver: Arc<Driver>,
}

/// The server's clock: its time, in milliseconds since 1970, at a moment of this process.
#[derive(Clone, Copy)]
struct Clock {
    time: u64,
    at: Instant,
}

/// The task of a connection, which ends with it.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Connector {
    /// A connector to this address. `tls`: used if the URL asks for TLS.
    pub(super) fn new(
        address: Address,
        tls: Option<Arc<ClientConfig>>,
        sentinel_user: Option<(String, Zeroizing<String>)>,
    ) -> Self {
        Self { address, tls, sentinel_user, sentinel: AtomicUsize::new(0) }
    }

    /// Makes a connection for calls.
    pub(super) async fn connect(&self) -> Result<Connection, Problem> {
        let server = self.server().await?;
        within_time(&server, async {
            let (mut redis, driver) = greet(self.stream(&server).await?, &self.greeting()).await?;
            let (seconds, micros): (u64, u64) = query(&mut redis, cmd("TIME")).await?;
            // After the answer, so that the server's time is never taken for a later one.
            let clock = Clock { time: seconds * 1000 + micros / 1000, at: Instant::now() };
            Ok(Connection { redis, clock, driver: Arc::new(driver) })
        })
        .await
    }

    /// Makes a connection for the messages of a channel.
    pub(super) async fn listen(&self, channel: &str) -> Result<PubSub, Problem> {
        let server = self.server().await?;
        within_time(&server, async {
            let stream = self.stream(&server).await?;
            let mut messages = PubSub::new(&self.greeting(), stream).await.map_err(|error| describe(&error))?;
            messages.subscribe(channel).await.map_err(|error| describe(&error))?;
            Ok(messages)
        })
        .await
    }

    /// Returns the server's host: that of the URL, or that which a sentinel names.
    async fn server(&self) -> Result<Host, Problem> {
        let sentinels = &self.address.hosts;
        let Some(master) = &self.address.master else { return Ok(sentinels[0].clone()) };
        let first = self.sentinel.load(Ordering::Relaxed);
        let mut failed = None;
        for at in (first..first + sentinels.len()).map(|at| at % sentinels.len()) {
            match within_time(&sentinels[at], self.ask(&sentinels[at], master)).await {
                Ok(server) => {
                    self.sentinel.store(at, Ordering::Relaxed);
                    return Ok(server);
                }
                Err(problem) => failed = Some(problem),
            }
        }
        Err(failed.unwrap_or_else(|| Problem::new(StoreErrorKind::Misconfigured, "there is no sentinel")))
    }

    /// Asks a sentinel for the host of the server.
    async fn ask(&self, sentinel: &Host, master: &str) -> Result<Host, Problem> {
        let mut greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some((user, password)) = &self.sentinel_user {
            greeting = greeting.set_password(password.as_str());
            greeting = if user.is_empty() { greeting } else { greeting.set_username(user) };
        }
        let (mut redis, _driver) = greet(self.stream(sentinel).await?, &greeting).await?;
        let mut question = cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let host: Option<(String, u16)> = query(&mut redis, question).await?;
        let (name, port) = host.ok_or_else(|| {
            let reason = format!("the sentinel {sentinel} doesn't know {master:?}");
            Problem::new(StoreErrorKind::Misconfigured, reason)
        })?;
        Ok(Host { name, port })
    }

    fn greeting(&self) -> RedisConnectionInfo {
        let Address { database, user, password, .. } = &self.address;
        let mut greeting = RedisConnectionInfo::default()
            .set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            .set_db(*database);
        if let Some(user) = user {
            greeting = greeting.set_username(user);
        }
        if let Some(password) = password {
            greeting = greeting.set_password(password.as_str());
        }
        greeting
    }

    async fn stream(&self, host: &Host) -> Result<Box<dyn Stream>, Problem> {
        // Names are resolved for each connection, as they change in a failover.
        let stream = TcpStream::connect((host.name.as_str(), host.port)).await;
        let stream = stream.map_err(|error| Problem::io(&format!("connect to {host}"), error))?;
        // It would only cost some milliseconds.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(host.name.clone()).map_err(|_| {
            Problem::new(StoreErrorKind::Misconfigured, format!("{} can't be the name in a certificate", host.name))
        })?;
        match TlsConnector::from(Arc::clone(tls)).connect(name, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            // The certificate, or a server without TLS.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err(Problem::new(StoreErrorKind::Misconfigured, format!("TLS with {host} failed: {error}")))
            }
            Err(error) => Err(Problem::io(&format!("begin TLS with {host}"), error)),
        }
    }
}

impl Connection {
    /// Returns the server's time `after` from now, in milliseconds, or one that is earlier by at most a round trip.
    pub(super) fn server_time(&self, after: Duration) -> u64 {
        let passed = (self.clock.at.elapsed() + after).as_millis();
        self.clock.time.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// Returns `true` if the connection is known to be broken: nothing can have been sent since.
    pub(super) fn is_closed(&self) -> bool {
        self.driver.0.is_finished()
    }

    /// Returns `true` if this is the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.driver, &other.driver)
    }
}

/// Returns the settings of TLS that trust these root certificates, or Mozilla's.
pub(super) fn trust(pem: Option<&[u8]>) -> Result<Arc<ClientConfig>, Problem> {
    let misconfigured = |reason: &str| Problem::new(StoreErrorKind::Misconfigured, reason);
    let mut roots = RootCertStore::empty();
    match pem {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|_| misconfigured("the root certificates aren't PEM"))?;
                roots.add(certificate).map_err(|_| misconfigured("a root certificate is invalid"))?;
            }
            if roots.is_empty() {
                return Err(misconfigured("there is no root certificate"));
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions();
    let config = config.map_err(|_| misconfigured("the TLS library has no protocol version"))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// Sends the greeting, and starts the task that drives the connection.
async fn greet(
    stream: Box<dyn Stream>,
    greeting: &RedisConnectionInfo,
) -> Result<(MultiplexedConnection, Driver), Problem> {
    // Each call has its own time-out.
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(1024);
    let greeted = MultiplexedConnection::new_with_config(greeting, stream, config).await;
    let (redis, driver) = greeted.map_err(|error| describe(&error))?;
    Ok((redis, Driver(tokio::spawn(driver).abort_handle())))
}

async fn query<T: FromRedisValue>(redis: &mut MultiplexedConnection, command: Cmd) -> Result<T, Problem> {
    command.query_async(redis).await.map_err(|error| describe(&error))
}

async fn within_time<T>(host: &Host, connected: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    timeout(CONNECT_TIMEOUT, connected)
        .await
        .unwrap_or_else(|_| Err(Problem::new(StoreErrorKind::Unavailable, format!("{host} doesn't answer"))))
}
