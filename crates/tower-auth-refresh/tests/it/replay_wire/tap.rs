//! A relay before a server, which records the bytes that each connection carries to the server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone)]
pub struct Tap {
    address: SocketAddr,
    /// In the order in which they were opened.
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let tap = Self { address: listener.local_addr().unwrap(), connections: Arc::default() };
        let accepting = tap.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = {
                    let mut connections = accepting.connections.lock().unwrap();
                    connections.push(Vec::new());
                    connections.len() - 1
                };
                let server = TcpStream::connect(server).await.unwrap();
                tokio::spawn(accepting.clone().relay(number, client, server));
            }
        });
        tap
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The bytes recorded so far, by connection.
    pub fn connections(&self) -> Vec<Vec<u8>> {
        self.connections.lock().unwrap().clone()
    }

    async fn relay(self, number: usize, client: TcpStream, server: TcpStream) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
            self.connections.lock().unwrap()[number].extend_from_slice(&buffer[..read]);
            if to_server.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    }
}
