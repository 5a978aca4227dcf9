//! A TCP proxy between a store and its server, which counts round trips and makes connections fail.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// A failure of a connection, at the next bytes that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server receives nothing, and the connection is closed.
    CutBefore,
    /// The server acts, its answer is lost, and the connection is closed.
    CutAfter,
    /// The server receives nothing, and the connection stays open.
    HoleBefore,
    /// The server acts, its answer is lost, and the connection stays open.
    HoleAfter,
    /// The answer arrives byte by byte, with this pause between two.
    Trickle(Duration),
}

/// A proxy on a free port of the loopback interface, which ends with it.
pub(crate) struct Proxy {
    port: u16,
    control: watch::Sender<Control>,
    seen: Arc<Mutex<Seen>>,
    acceptor: AbortHandle,
}

#[derive(Clone, Copy, Default)]
struct Control {
    /// New connections go to this port of the loopback interface.
    target: u16,
    /// No byte passes, in either direction. The bytes of the meantime pass afterwards.
    is_partitioned: bool,
    /// New connections are closed at once.
    refuses: bool,
    /// What a server sends unasked is swallowed.
    mutes: bool,
    /// The number of times that all connections were cut.
    cuts: usize,
}

#[derive(Default)]
struct Seen {
    round_trips: usize,
    answers: usize,
    attempts: usize,
    connections: usize,
    open: usize,
    fault: Option<Fault>,
}

impl Proxy {
    pub(crate) async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let control = watch::Sender::new(Control { target, ..Control::default() });
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let acceptor = tokio::spawn(accept(listener, control.subscribe(), Arc::clone(&seen))).abort_handle();
        Self { port, control, seen, acceptor }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Makes the connection fail that a client uses next.
    pub(crate) fn inject(&self, fault: Fault) {
        self.seen().fault = Some(fault);
    }

    /// Returns `true` if the fault that was injected last has struck.
    pub(crate) fn has_struck(&self) -> bool {
        self.seen().fault.is_none()
    }

    /// Closes all connections.
    pub(crate) fn cut(&self) {
        self.control.send_modify(|control| control.cuts += 1);
    }

    /// Closes new connections at once, or no longer.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.control.send_modify(|control| control.refuses = refuses);
    }

    /// Holds all bytes back, or no longer.
    pub(crate) fn partition(&self, is_partitioned: bool) {
        self.control.send_modify(|control| control.is_partitioned = is_partitioned);
    }

    /// Swallows what the server sends without being asked, or no longer.
    pub(crate) fn mute(&self, mutes: bool) {
        self.control.send_modify(|control| control.mutes = mutes);
    }

    /// Has new connections go to this port.
    pub(crate) fn retarget(&self, target: u16) {
        self.control.send_modify(|control| control.target = target);
    }

    /// Returns the number of times that a client has sent something and waited for the answer, on connections that aren't
    /// subscribed to a channel.
    pub(crate) fn round_trips(&self) -> usize {
        self.seen().round_trips
    }

    /// Returns the number of times that bytes of a server have arrived.
    pub(crate) fn answers(&self) -> usize {
        self.seen().answers
    }

    /// Returns the number of connections that were made.
    pub(crate) fn connections(&self) -> usize {
        self.seen().connections
    }

    /// Returns the number of connections that were made or refused.
    pub(crate) fn attempts(&self) -> usize {
        self.seen().attempts
    }

    /// Returns the number of connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.seen().open
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn accept(listener: TcpListener, control: watch::Receiver<Control>, seen: Arc<Mutex<Seen>>) {
    while let Ok((client, _)) = listener.accept().await {
        seen.lock().unwrap().attempts += 1;
        if control.borrow().refuses {
            continue;
        }
        let (control, seen) = (control.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            seen.lock().unwrap().connections += 1;
            seen.lock().unwrap().open += 1;
            // An error ends the connection.
            let _ = pass(client, control, Arc::clone(&seen)).await;
            seen.lock().unwrap().open -= 1;
        });
    }
}

/// Passes bytes on, until one side closes the connection or the proxy ends.
async fn pass(mut client: TcpStream, mut control: watch::Receiver<Control>, seen: Arc<Mutex<Seen>>) -> io::Result<()> {
    let Control { target, cuts, .. } = *control.borrow_and_update();
    let mut server = TcpStream::connect(("127.0.0.1", target)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut question, mut answer) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut fault = None;
    let (mut is_answered, mut is_subscribed) = (true, false);
    loop {
        let Control { is_partitioned, mutes, cuts: now, .. } = *control.borrow_and_update();
        if now != cuts {
            return Ok(());
        }
        tokio::select! {
            // What was ordered before the next bytes arrive is done first.
            biased;
            // The proxy has ended.
            changed = control.changed() => if changed.is_err() { return Ok(()) },
            count = client.read(&mut question), if !is_partitioned => {
                let count = count?;
                if count == 0 {
                    return Ok(());
                }
                {
                    let mut seen = seen.lock().unwrap();
                    is_subscribed |= question[..count].windows(9).any(|word| word == b"SUBSCRIBE");
                    seen.round_trips += usize::from(std::mem::take(&mut is_answered) && !is_subscribed);
                    fault = fault.or_else(|| seen.fault.take());
                }
                match fault {
                    Some(Fault::CutBefore) => return Ok(()),
                    Some(Fault::HoleBefore) => {}
                    _ => server.write_all(&question[..count]).await?,
                }
            }
            count = server.read(&mut answer), if !is_partitioned => {
                let count = count?;
                if count == 0 {
                    return Ok(());
                }
                let is_unasked = std::mem::replace(&mut is_answered, true);
                seen.lock().unwrap().answers += 1;
                match fault {
                    _ if is_unasked && mutes => {}
                    Some(Fault::CutBefore | Fault::CutAfter) => return Ok(()),
                    Some(Fault::HoleBefore | Fault::HoleAfter) => {}
                    Some(Fault::Trickle(pause)) => {
                        for byte in &answer[..count] {
                            client.write_all(&[*byte]).await?;
                            sleep(pause).await;
                        }
                    }
                    None => client.write_all(&answer[..count]).await?,
                }
            }
        }
    }
}
