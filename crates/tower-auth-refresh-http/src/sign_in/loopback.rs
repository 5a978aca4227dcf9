//! [`Listener`]: the loopback address that the browser is redirected to (RFC 8252 §7.3).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Uri};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{self, AbortHandle, JoinSet};
use tokio::time::timeout;

use super::error::{SignInError, SignInErrorKind};
use super::page::Page;

/// The time in which a connection has to send its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The most bytes of a request that are read. All programs on loopback share their cookies, whatever the port.
const HEAD_LIMIT: usize = 64 * 1024;

/// The most connections at once. Browsers open some in advance and leave them idle.
const MOST_CONNECTIONS: usize = 32;

/// The time in which the browser has to take the last page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after a failure to accept a connection: the process has probably run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The redirect URI as the client is registered with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RedirectUri {
    host: &'static str,
    address: IpAddr,
    /// 0: a free one.
    port: u16,
    path: String,
}

impl RedirectUri {
    pub(super) fn any_port() -> Self {
        Self { host: "127.0.0.1", address: Ipv4Addr::LOCALHOST.into(), port: 0, path: "/callback".to_owned() }
    }

    /// Reads `http://127.0.0.1:8400/callback`. Without a port, a free one is taken.
    pub(super) fn parse(uri: &str) -> Result<Self, SignInError> {
        let invalid = || SignInError::misconfigured("the redirect URI isn't http:// on 127.0.0.1, [::1] or localhost");
        if uri.contains(['#', '?']) {
            return Err(SignInError::misconfigured("the redirect URI has a query or a fragment"));
        }
        let uri = Uri::try_from(uri).map_err(|_| invalid())?;
        let (host, address) = match (uri.scheme_str(), uri.host()) {
            (Some("http"), Some("127.0.0.1")) => ("127.0.0.1", Ipv4Addr::LOCALHOST.into()),
            (Some("http"), Some("localhost")) => ("localhost", Ipv4Addr::LOCALHOST.into()),
            (Some("http"), Some("[::1]")) => ("[::1]", Ipv6Addr::LOCALHOST.into()),
            _ => return Err(invalid()),
        };
        // A port that is none reads as an absent one.
        let port = match uri.authority().and_then(|authority| authority.as_str().strip_prefix(host)) {
            Some("") => 0,
            Some(_) => uri.port_u16().ok_or_else(invalid)?,
            None => return Err(invalid()),
        };
        Ok(Self { host, address, port, path: uri.path().to_owned() })
    }
}

/// A socket that waits for the redirect.
#[derive(Debug)]
pub(super) struct Listener {
    tcp: TcpListener,
    redirect_uri: String,
    path: String,
}

/// The parameters of a redirect, and the browser that waits for a page.
pub(super) struct Redirect {
    pub(super) params: Params,
    page: oneshot::Sender<Page>,
    /// The task of the browser's connection.
    connection: task::Id,
    connections: JoinSet<()>,
}

/// The parameters in the query of a redirect.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    fn read(uri: &Uri) -> Self {
        Self(form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// A parameter that is there once. RFC 6749 §3.1 forbids repeated ones.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(other, _)| other == name);
        match (values.next(), values.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(other, _)| other == name)
    }

    /// Returns `true` for the answer of the authorization server to the request with this `state`.
    fn are_an_answer(&self, state: &str) -> bool {
        self.get("state") == Some(state) && (self.get("code").is_some() != self.get("error").is_some())
    }
}

impl Listener {
    pub(super) async fn bind(uri: &RedirectUri) -> Result<Self, SignInError> {
        let failed = |error: io::Error| {
            match error.kind() {
                io::ErrorKind::AddrInUse => {
                    SignInError::new(SignInErrorKind::PortTaken, "another program listens on the redirect URI's port")
                }
                _ => SignInError::new(SignInErrorKind::NoListener, "the redirect URI's address can't be listened on"),
            }
            .with_source(error)
        };
        let tcp = TcpListener::bind(SocketAddr::new(uri.address, uri.port)).await.map_err(failed)?;
        let port = tcp.local_addr().map_err(failed)?.port();
        let redirect_uri = format!("http://{}:{port}{}", uri.host, uri.path);
        Ok(Self { tcp, redirect_uri, path: uri.path.clone() })
    }

    pub(super) fn redirect_uri(&self) -> &str {
        &self.redirect_uri
    }

    /// Serves requests until one has the `state`, and closes the socket.
    ///
    /// Any other request is answered by itself. Dropping the future closes the socket and all connections.
    pub(super) async fn redirect(self, state: &str) -> Redirect {
        let mut connections = JoinSet::new();
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        let (found, mut redirects) = mpsc::channel(1);
        let site = Arc::new(Site { path: self.path, state: state.to_owned(), found });
        loop {
            tokio::select! {
                biased;
                Some((params, page, connection)) = redirects.recv() => {
                    return Redirect { params, page, connection, connections };
                }
                Some(_) = connections.join_next() => open.retain(|connection| !connection.is_finished()),
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, _)) => {
                        if open.len() >= MOST_CONNECTIONS
                            && let Some(oldest) = open.pop_front()
                        {
                            oldest.abort();
                        }
                        open.push_back(connections.spawn(serve(stream, Arc::clone(&site))));
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
            }
        }
    }
}

impl Redirect {
    /// Shows a page to the browser, and closes all connections.
    pub(super) async fn answer(self, page: Page) {
        let Self { page: sender, connection, mut connections, .. } = self;
        let is_closed = async {
            while let Some(ended) = connections.join_next_with_id().await {
                if ended.map_or_else(|error| error.id(), |(id, ())| id) == connection {
                    break;
                }
            }
        };
        if sender.send(page).is_ok() {
            let _ = timeout(PAGE_TIMEOUT, is_closed).await;
        }
    }
}

type Found = (Params, oneshot::Sender<Page>, task::Id);

/// What all connections share.
struct Site {
    path: String,
    state: String,
    found: mpsc::Sender<Found>,
}

impl Site {
    /// Returns the page for a request. For the answer of the authorization server, the sign-in decides.
    async fn page(&self, request: &Request<Incoming>) -> Page {
        if request.uri().path() != self.path {
            return Page::NotFound;
        }
        if request.method() != Method::GET {
            return Page::NotGet;
        }
        let params = Params::read(request.uri());
        if !params.are_an_answer(&self.state) {
            return Page::NotOurs;
        }
        let (sender, page) = oneshot::channel();
        // The channel holds one: a second answer is too late.
        match self.found.try_send((params, sender, task::id())) {
            Ok(()) => page.await.unwrap_or(Page::Failed),
            Err(_) => Page::NotOurs,
        }
    }
}

/// Serves one request of a connection.
async fn serve(stream: TcpStream, site: Arc<Site>) {
    let service = service_fn(|request: Request<Incoming>| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(site.page(&request).await.response()) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_LIMIT).keep_alive(false);
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}
