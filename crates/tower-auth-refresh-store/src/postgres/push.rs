//! Sign-outs by other processes, as the server pushes them: one connection listens for all sessions.

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::{AsyncMessage, Client};
use tower_auth_refresh::store::RecordChanged;

use super::fault::fault_of;
use super::link::Attempts;
use super::server::{Connected, Driver, Server};
use super::{CHECK_TIMEOUT, aside};
use crate::error::StoreError;
use crate::watchers::{ShortKey, Watchers};

/// The time between two questions whether the connection still works.
const PING: Duration = Duration::from_secs(2);
/// The time for an answer. After [`PING`] and this, a connection that is half open is noticed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The sessions that are told, and the connection that listens for them.
pub(super) struct Push {
    server: Arc<Server>,
    channel: String,
    watchers: Arc<Watchers>,
    runtime: Handle,
    /// Started by the first session that watches.
    listener: OnceLock<AbortHandle>,
}

impl Push {
    pub(super) fn new(server: Arc<Server>, channel: &str, runtime: Handle) -> Self {
        Self { server, channel: channel.into(), watchers: Arc::default(), runtime, listener: OnceLock::new() }
    }

    /// Tests that a connection can listen.
    pub(super) async fn check(&self) -> Result<(), StoreError> {
        let listen = listen(&self.channel);
        aside(&self.server, CHECK_TIMEOUT, async |client| {
            client
                .batch_execute(&listen)
                .await
                .map_err(|error| fault_of(&error).into_problem().while_doing("failed to listen"))
        })
        .await
    }

    /// Has a session told of changes, in place of the one before on this handle.
    pub(super) fn watch(&self, key: &[u8; 32], handle: usize, changed: RecordChanged) {
        self.watchers.insert(key, handle, changed);
        self.listener.get_or_init(|| {
            let (server, watchers) = (Arc::clone(&self.server), Arc::clone(&self.watchers));
            self.runtime.spawn(keep_listening(server, self.channel.clone(), watchers)).abort_handle()
        });
    }

    /// Returns the number of sessions that are told.
    pub(super) fn watched(&self) -> usize {
        self.watchers.len()
    }

    pub(super) fn forget(&self, key: &[u8; 32], handle: usize) {
        if self.listener.get().is_some() {
            self.watchers.remove(key, handle);
        }
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.get() {
            listener.abort();
        }
    }
}

async fn keep_listening(server: Arc<Server>, channel: String, watchers: Arc<Watchers>) {
    let mut attempts = Attempts::default();
    loop {
        if let Ok(Connected { client, driver, .. }) = server.connect(attempts.patience).await
            && listen_on(&client, driver, &channel, &watchers).await
        {
            attempts = Attempts::default();
        }
        sleep(attempts.next_pause()).await;
    }
}

/// Listens until the connection fails. Returns false if it never was up.
async fn listen_on(client: &Client, mut driver: Driver, channel: &str, watchers: &Watchers) -> bool {
    let mut is_up = false;
    // The future of the statement under way: first `LISTEN`, then the pings.
    let listen = listen(channel);
    let ask =
        async |sql: &str| timeout(ANSWER_TIMEOUT, client.batch_execute(sql)).await.is_ok_and(|asked| asked.is_ok());
    let mut ticks = interval(PING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = Box::pin(ask(&listen));
    let mut is_asking = true;
    loop {
        tokio::select! {
            message = poll_fn(|cx| driver.poll_message(cx)) => match message {
                Some(Ok(AsyncMessage::Notification(notification))) if notification.channel() == channel => {
                    if let Some(key) = read_key(notification.payload()) {
                        watchers.notify(key, None);
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return is_up,
            },
            is_answered = &mut asked, if is_asking => {
                is_asking = false;
                if !is_answered {
                    return is_up;
                }
                if !is_up {
                    is_up = true;
                    // What was signed out before is not pushed any more.
                    watchers.mark_all_stale();
                }
            }
            _ = ticks.tick(), if !is_asking => {
                asked = Box::pin(ask(""));
                is_asking = true;
            }
        }
    }
}

fn listen(channel: &str) -> String {
    format!("LISTEN \"{channel}\"")
}

/// Reads the first bytes of a storage key, in hexadecimal digits.
fn read_key(payload: &str) -> Option<ShortKey> {
    let digits = |at: usize| u8::from_str_radix(payload.get(2 * at..2 * at + 2)?, 16).ok();
    let mut key = ShortKey::default();
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = digits(at)?;
    }
    (payload.len() == 2 * key.len()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_a_key_in_hexadecimal_digits_or_nothing() {
        assert_eq!(read_key("0123456789abcdef"), Some([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]));
        for payload in
            ["", "0123456789abcde", "0123456789abcdef0", "0123456789abcdef01", "0123456789abcdeg", "ééééééééé"]
        {
            assert_eq!(read_key(payload), None, "{payload}");
        }
    }
}
