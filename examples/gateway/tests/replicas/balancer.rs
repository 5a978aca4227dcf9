//! A plain TCP balancer in front of two gateways.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// Passes each connection to one of two gateways, in turns, or to the other one if that refuses it.
#[derive(Clone)]
pub(crate) struct Balancer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    gateways: Mutex<[SocketAddr; 2]>,
    next: AtomicUsize,
    /// The gateway of each connection, by the client's address.
    connections: Mutex<HashMap<SocketAddr, SocketAddr>>,
    /// Each gateway that is started has an address of its own.
    killed: Mutex<HashSet<SocketAddr>>,
}

impl Balancer {
    pub(crate) async fn start(gateways: [SocketAddr; 2]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared {
            gateways: Mutex::new(gateways),
            next: AtomicUsize::new(0),
            connections: Mutex::default(),
            killed: Mutex::default(),
        });
        let balancer = Self { address: listener.local_addr().unwrap(), shared };
        let accepting = balancer.clone();
        tokio::spawn(async move {
            while let Ok((client, address)) = listener.accept().await {
                tokio::spawn(accepting.clone().pass(client, address));
            }
        });
        balancer
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Notes that a gateway is about to be killed.
    pub(crate) fn killed(&self, gateway: SocketAddr) {
        self.shared.killed.lock().unwrap().insert(gateway);
    }

    /// Replaces a gateway by its successor.
    pub(crate) fn replace(&self, index: usize, gateway: SocketAddr) {
        self.shared.gateways.lock().unwrap()[index] = gateway;
    }

    /// Returns `true` if the connection of this client was with a gateway that was killed.
    pub(crate) fn was_killed(&self, client: SocketAddr) -> bool {
        let gateway = self.shared.connections.lock().unwrap().get(&client).copied();
        gateway.is_some_and(|gateway| self.shared.killed.lock().unwrap().contains(&gateway))
    }

    async fn pass(self, mut client: TcpStream, address: SocketAddr) {
        let first = self.shared.next.fetch_add(1, Ordering::Relaxed);
        for index in [first % 2, (first + 1) % 2] {
            let gateway = self.shared.gateways.lock().unwrap()[index];
            if let Ok(mut server) = TcpStream::connect(gateway).await {
                self.shared.connections.lock().unwrap().insert(address, gateway);
                let _ = copy_bidirectional(&mut client, &mut server).await;
                return;
            }
        }
    }
}
