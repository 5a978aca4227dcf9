//! [`FaultProxy`]: loses answers between a server and its client.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A TCP proxy that can close a connection once the answer to its request has arrived.
///
/// The server has rotated the refresh token then, and the client doesn't receive its successor.
pub(crate) struct FaultProxy {
    address: SocketAddr,
    loses_next: Arc<AtomicBool>,
}

impl FaultProxy {
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let loses_next = Arc::new(AtomicBool::new(false));
        let flag = loses_next.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, upstream, flag.clone()));
            }
        });
        Self { address, loses_next }
    }

    pub(crate) fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn lose_next_answer(&self) {
        self.loses_next.store(true, Ordering::Relaxed);
    }
}

async fn forward(client: TcpStream, upstream: SocketAddr, loses_next: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = TcpStream::connect(upstream).await.unwrap().into_split();
    let requests = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let mut answer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from_server.read(&mut answer).await {
        if loses_next.swap(false, Ordering::Relaxed) || to_client.write_all(&answer[..read]).await.is_err() {
            break;
        }
    }
    requests.abort();
}
