//! Ctrl-C and other signals that end the program.

use std::io;
use std::time::Instant;

use crate::progress::UNNOTICED;

/// The signal of a terminal that is closed.
const HANGUP: u8 = 1;

/// Waits for the signals that end a program.
pub(crate) struct Signals {
    #[cfg(unix)]
    kinds: [(u8, tokio::signal::unix::Signal); 3],
}

#[cfg(unix)]
impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        let listen = |kind: SignalKind| {
            Ok::<_, io::Error>((u8::try_from(kind.as_raw_value()).unwrap_or_default(), signal(kind)?))
        };
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(listen);
        Ok(Self { kinds: [interrupt?, terminate?, hangup?] })
    }

    /// Returns the number of the next signal.
    pub(crate) async fn next(&mut self) -> u8 {
        let [interrupt, terminate, hangup] = &mut self.kinds;
        tokio::select! {
            _ = interrupt.1.recv() => interrupt.0,
            _ = terminate.1.recv() => terminate.0,
            _ = hangup.1.recv() => hangup.0,
        }
    }
}

impl Signals {
    /// Waits for a signal that ends the wait for the session too.
    ///
    /// A terminal that is closed may send two signals at once, and the end of a login session sends several of them. So a
    /// hangup doesn't count, nor does a signal before the user can have seen what it would end.
    pub(crate) fn again(&mut self) -> impl Future<Output = u8> {
        let begun = Instant::now();
        async move {
            loop {
                let signal = self.next().await;
                if signal != HANGUP && begun.elapsed() >= UNNOTICED {
                    return signal;
                }
            }
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    #[expect(clippy::unnecessary_wraps, reason = "as on Unix")]
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Returns the number of Ctrl-C on Unix.
    pub(crate) async fn next(&mut self) -> u8 {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        2
    }
}
