//! The HTTPS client of the crate feature `client`: hyper-util's, with rustls.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Builder, Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt, service_fn};
use tower_auth_refresh::Origin;

use crate::client::AuthClient;

/// The time-out of DNS, TCP, the proxy and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl AuthClient {
    /// Creates an HTTPS client: hyper-util's, with rustls, ring and Mozilla's root certificates.
    ///
    /// It speaks HTTP/1.1. Every call has a connection of its own: calls are minutes apart, and a server that closes an
    /// idle connection at the wrong moment would leave a refresh in doubt. A connection attempt, TLS included, fails
    /// after 5 s, before anything was sent.
    ///
    /// For other roots, a proxy or a client certificate see [`rustls_builder`](Self::rustls_builder).
    ///
    /// # Panics
    ///
    /// Never: ring supports the protocol versions that rustls defaults to.
    #[cfg_attr(docsrs, doc(cfg(feature = "client")))]
    #[must_use]
    pub fn rustls() -> Self {
        Self::rustls_builder().build().expect("ring supports the default protocol versions")
    }

    /// Configures an HTTPS client like that of [`rustls`](Self::rustls): roots, client certificate, proxy.
    #[cfg_attr(docsrs, doc(cfg(feature = "client")))]
    pub fn rustls_builder() -> RustlsBuilder {
        RustlsBuilder {
            roots: Roots::Mozilla,
            added_roots: Vec::new(),
            identity: None,
            proxy: Proxy::None,
            no_proxy: String::new(),
        }
    }
}

/// The settings of an HTTPS client, by [`AuthClient::rustls_builder`].
///
/// `Debug` shows neither the key nor the proxy's URL, which may hold a password.
///
/// # Examples
///
/// The client of a company: the roots of the operating system, a CA of its own, and the proxy of the environment.
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_auth_refresh_http::AuthClient;
///
/// let client = AuthClient::rustls_builder()
///     .platform_roots()
///     .add_roots(&std::fs::read("/etc/company/ca.pem")?)
///     .proxy_from_environment()
///     .build()?;
/// # Ok(()) }
/// ```
///
/// A client certificate, for mutual TLS (RFC 8705) with [`ClientAuth::tls`](crate::ClientAuth::tls):
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_auth_refresh_http::AuthClient;
///
/// let (certificate, key) = (std::fs::read("client.pem")?, std::fs::read("client-key.pem")?);
/// let client = AuthClient::rustls_builder().client_certificate(&certificate, &key).build()?;
/// # Ok(()) }
/// ```
#[cfg_attr(docsrs, doc(cfg(feature = "client")))]
#[must_use = "the builder does nothing until it builds a client"]
pub struct RustlsBuilder {
    roots: Roots,
    added_roots: Vec<Vec<u8>>,
    /// The chain and the key, in PEM.
    identity: Option<(Vec<u8>, Vec<u8>)>,
    proxy: Proxy,
    no_proxy: String,
}

#[derive(Clone, Copy, Debug)]
enum Roots {
    Mozilla,
    Platform,
    Added,
}

enum Proxy {
    None,
    Environment,
    Fixed(String),
}

impl RustlsBuilder {
    /// Trusts the root certificates of the operating system. Default: Mozilla's.
    ///
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR` replace them.
    pub fn platform_roots(mut self) -> Self {
        self.roots = Roots::Platform;
        self
    }

    /// Trusts these root certificates in PEM too. Default: none. May be called more than once.
    pub fn add_roots(mut self, pem: &[u8]) -> Self {
        self.added_roots.push(pem.to_vec());
        self
    }

    /// Trusts only the [added](Self::add_roots) root certificates. Default: Mozilla's as well.
    pub fn only_added_roots(mut self) -> Self {
        self.roots = Roots::Added;
        self
    }

    /// Presents a client certificate: its chain and its private key, in PEM. Default: none.
    ///
    /// A proxy isn't shown it.
    pub fn client_certificate(mut self, chain_pem: &[u8], key_pem: &[u8]) -> Self {
        self.identity = Some((chain_pem.to_vec(), key_pem.to_vec()));
        self
    }

    /// Uses the proxy in `HTTPS_PROXY`, `HTTP_PROXY` or `ALL_PROXY`, except for hosts in `NO_PROXY`. Default: no proxy.
    ///
    /// The variables are read once, by [`build`](Self::build), in upper or lower case. See [`proxy`](Self::proxy) for what a proxy is asked.
    pub fn proxy_from_environment(mut self) -> Self {
        self.proxy = Proxy::Environment;
        self
    }

    /// Uses this proxy: `http://user:password@proxy.example:3128`, or `https://`. Default: none.
    ///
    /// Each call goes through a tunnel (`CONNECT`), so that the proxy sees the host and the port only. Loopback is
    /// called without a proxy.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Proxy::Fixed(url.into());
        self
    }

    /// Calls these hosts without a proxy, be it given or of the environment: a list as in `NO_PROXY`. Default: none.
    ///
    /// The entries are domains (with their subdomains), addresses and networks, separated by commas; `*` is any host.
    pub fn no_proxy(mut self, hosts: impl Into<String>) -> Self {
        self.no_proxy = hosts.into();
        self
    }

    /// Builds the client.
    ///
    /// # Errors
    ///
    /// [`InvalidTls`] if a certificate or a key can't be read, if the key isn't that of the certificate, if there is no
    /// root certificate at all, or if the proxy's URL, given or of the environment, is none.
    pub fn build(self) -> Result<AuthClient, InvalidTls> {
        let proxies = Arc::new(self.proxies()?);
        let outside = Arc::new(self.outside_no_proxy());
        let (tls, tls_to_proxy) = self.tls()?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let to_proxy = HttpsConnectorBuilder::new()
            .with_tls_config(tls_to_proxy)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp.clone());
        // A connection to the host or through the proxy; TLS with the host comes on top.
        let transport: Transport = BoxCloneSyncService::new(service_fn(move |uri: Uri| {
            let may_be_proxied = !is_loopback(&uri) && outside.intercept(&uri).is_some();
            let proxy = if may_be_proxied { proxies.intercept(&uri) } else { None };
            let (tcp, to_proxy) = (tcp.clone(), to_proxy.clone());
            async move {
                match proxy {
                    None => tcp.oneshot(uri).await.map(MaybeHttpsStream::Http).map_err(io::Error::other),
                    Some(proxy) => tunnel(&proxy, to_proxy)?.oneshot(with_port(uri)).await.map_err(io::Error::other),
                }
            }
        }));
        let https =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(transport);
        let connector = service_fn(move |uri: Uri| {
            let connecting = https.clone().oneshot(uri);
            Box::pin(async {
                tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(BoxError::from).flatten()
            })
        });
        Ok(AuthClient::new(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector)))
    }

    /// The configurations for servers, with the client certificate, and for proxies, without.
    fn tls(&self) -> Result<(ClientConfig, ClientConfig), InvalidTls> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| InvalidTls::new("the protocol versions aren't supported", error))?
            .with_root_certificates(self.root_store()?);
        let bare = config.clone().with_no_client_auth();
        let Some((chain, key)) = &self.identity else { return Ok((bare.clone(), bare)) };
        let chain = certificates(chain, "the client certificate can't be read")?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| InvalidTls::new("the key of the client certificate can't be read", error))?;
        let with_identity = config
            .with_client_auth_cert(chain, key)
            .map_err(|error| InvalidTls::new("the key isn't that of the client certificate", error))?;
        Ok((with_identity, bare))
    }

    fn root_store(&self) -> Result<RootCertStore, InvalidTls> {
        let mut roots = RootCertStore::empty();
        match self.roots {
            Roots::Mozilla => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Roots::Platform => {
                // Some systems have certificates that can't be read: the others count.
                let loaded = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(loaded.certs);
            }
            Roots::Added => {}
        }
        for pem in &self.added_roots {
            for certificate in certificates(pem, "a root certificate can't be read")? {
                roots.add(certificate).map_err(|error| InvalidTls::new("a root certificate can't be used", error))?;
            }
        }
        if roots.is_empty() { Err(InvalidTls::because("there is no root certificate")) } else { Ok(roots) }
    }

    fn proxies(&self) -> Result<Matcher, InvalidTls> {
        let url = match &self.proxy {
            Proxy::None => return Ok(Matcher::builder().build()),
            Proxy::Environment => return of_environment(),
            Proxy::Fixed(url) => url,
        };
        // A URL that can't be read would silently be no proxy.
        let readable = Uri::try_from(&**url).is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
        if !readable {
            return Err(InvalidTls::because("the proxy's URL is neither http:// nor https://"));
        }
        Ok(every(url).build())
    }

    /// Matches all hosts but those of [`no_proxy`](Self::no_proxy).
    fn outside_no_proxy(&self) -> Matcher {
        every("http://any").no(self.no_proxy.clone()).build()
    }
}

impl fmt::Debug for RustlsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RustlsBuilder")
            .field("roots", &self.roots)
            .field("has_client_certificate", &self.identity.is_some())
            .field("has_proxy", &!matches!(self.proxy, Proxy::None))
            .finish_non_exhaustive()
    }
}

/// One proxy for every host.
fn every(proxy: &str) -> Builder {
    Matcher::builder().all(proxy.to_owned())
}

fn of_environment() -> Result<Matcher, InvalidTls> {
    let readable = |value: &str| every(value).build().intercept(&Uri::from_static("https://any")).is_some();
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        // One that can't be read would silently be no proxy.
        if std::env::var_os(name).is_some_and(|value| !value.is_empty() && !value.to_str().is_some_and(readable)) {
            return Err(InvalidTls::because("a proxy's URL in the environment can't be read"));
        }
    }
    Ok(Matcher::from_env())
}

/// Names the port of an `http://` URL, where a tunnel would take that of `https://`.
fn with_port(uri: Uri) -> Uri {
    match uri.host() {
        Some(host) if uri.scheme_str() == Some("http") && uri.port().is_none() => {
            let named =
                Uri::builder().scheme("http").authority(format!("{host}:80")).path_and_query(uri.path()).build();
            named.unwrap_or(uri)
        }
        _ => uri,
    }
}

fn is_loopback(uri: &Uri) -> bool {
    let origin = uri.scheme_str().zip(uri.authority()).map(|(scheme, authority)| format!("{scheme}://{authority}"));
    origin.is_some_and(|origin| Origin::parse_allowing_http(&origin).is_ok_and(|origin| origin.is_loopback()))
}

type Transport = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, io::Error>;

type ToProxy = hyper_rustls::HttpsConnector<HttpConnector>;

/// A tunnel through a proxy, with the user and password of its URL.
fn tunnel(proxy: &Intercept, connector: ToProxy) -> Result<Tunnel<ToProxy>, io::Error> {
    if !matches!(proxy.uri().scheme_str(), Some("http" | "https")) {
        return Err(io::Error::other("the proxy is neither http:// nor https://"));
    }
    let tunnel = Tunnel::new(proxy.uri().clone(), connector);
    Ok(match proxy.basic_auth() {
        Some(credentials) => tunnel.with_auth(credentials.clone()),
        None => tunnel,
    })
}

fn certificates(pem: &[u8], problem: &'static str) -> Result<Vec<CertificateDer<'static>>, InvalidTls> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => Err(InvalidTls::because(problem)),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(InvalidTls::new(problem, error)),
    }
}

/// Settings of an HTTPS client that can't be used. The message doesn't repeat a key or a URL.
#[derive(Debug)]
#[cfg_attr(docsrs, doc(cfg(feature = "client")))]
pub struct InvalidTls {
    problem: &'static str,
    source: Option<BoxError>,
}

impl InvalidTls {
    fn because(problem: &'static str) -> Self {
        Self { problem, source: None }
    }

    fn new(problem: &'static str, source: impl Into<BoxError>) -> Self {
        Self { problem, source: Some(source.into()) }
    }
}

impl fmt::Display for InvalidTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.problem)
    }
}

impl Error for InvalidTls {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
