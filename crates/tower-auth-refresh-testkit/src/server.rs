//! [`TestServer`]: a kit on a socket.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, ToSocketAddrs};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tower_service::Service;

use crate::TestKit;
use crate::exchange::Connection;

/// The longest that a shutdown waits for requests under way, some of which may hang on purpose.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// A [`TestKit`] on a socket, over HTTP/1 and HTTP/2 with prior knowledge.
///
/// The server dereferences to its kit: all methods of [`TestKit`] can be called on it. Dropping the server closes the
/// socket and all connections at once.
pub struct TestServer {
    kit: TestKit,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl TestServer {
    /// Starts a new kit on a free port of `127.0.0.1`.
    ///
    /// # Errors
    ///
    /// If no port is free.
    pub async fn start() -> io::Result<Self> {
        TestKit::new().serve((Ipv4Addr::LOCALHOST, 0)).await
    }

    /// Returns the address that the server listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the server's origin, such as `http://127.0.0.1:34567`.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the URL of a path: `http://127.0.0.1:34567/api/me` for `/api/me`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Returns the kit.
    ///
    /// A clone of the kit outlives the server, and can be served on another address.
    #[must_use]
    pub fn kit(&self) -> &TestKit {
        &self.kit
    }

    /// Shuts the server down gracefully.
    ///
    /// Stops accepting connections, waits for the requests under way, and closes all connections. Requests that haven't
    /// ended after 5 s are aborted.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, &mut self.accepting).await;
    }
}

impl Deref for TestServer {
    type Target = TestKit;

    fn deref(&self) -> &TestKit {
        &self.kit
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl fmt::Debug for TestServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl TestKit {
    /// Serves the kit on this address.
    ///
    /// A kit can be served on several addresses at once, and again after a server has been dropped.
    ///
    /// # Errors
    ///
    /// If the address can't be bound.
    pub async fn serve(&self, address: impl ToSocketAddrs) -> io::Result<TestServer> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(self.clone(), listener, stopped));
        Ok(TestServer { kit: self.clone(), address, stop, accepting })
    }

    /// Serves one connection until the client closes it.
    ///
    /// For tests with a simulated network.
    pub async fn serve_connection<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.connection(io, std::future::pending()).await;
    }

    async fn connection<I>(&self, io: I, stopped: impl Future<Output = ()>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let number = {
            let connections = &mut self.state().journal.counters.connections;
            *connections += 1;
            Connection(*connections)
        };
        let dropped = Arc::new(Notify::new());
        let service = service_fn(|mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(number);
            let (response, dropped) = (self.clone().call(request), dropped.clone());
            async move {
                if let Ok(response) = response.await {
                    return Ok::<_, std::convert::Infallible>(response);
                }
                dropped.notify_one();
                std::future::pending().await
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // hyper's own limits must not interfere with a test.
        builder.http2().max_concurrent_streams(None).max_pending_accept_reset_streams(Some(100_000));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        let mut stopped = pin!(stopped);
        let mut is_stopping = false;
        loop {
            tokio::select! {
                biased;
                // Dropping the connection closes it.
                () = dropped.notified() => return,
                _ = connection.as_mut() => return,
                () = stopped.as_mut(), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

async fn accept(kit: TestKit, listener: TcpListener, stopped: watch::Receiver<bool>) {
    let mut stop = pin!(is_set(stopped.clone()));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // A response of two small writes must not wait for the client's delayed acknowledgement.
                    let _ = stream.set_nodelay(true);
                    let (kit, stopped) = (kit.clone(), is_set(stopped.clone()));
                    connections.spawn(async move { kit.connection(stream, stopped).await });
                }
                Err(error) => {
                    // The process has probably run out of file descriptors: other connections may close soon.
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits until the flag is set or its server has been dropped.
async fn is_set(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}
