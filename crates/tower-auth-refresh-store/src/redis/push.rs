//! Messages of changed records: a subscription to one channel, on a connection of its own.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::select;
use redis::aio::PubSub;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tower_auth_refresh::store::RecordChanged;

use super::Shared;
use super::line::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::random;
use crate::watchers::{ShortKey, Watchers, short};

/// The pause between two questions whether the connection still works, and the time for the answer. A connection that
/// is dead without a sign is made anew within the sum.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// The length of a message: the stores and the handle that have changed a record, and the first half of its storage key.
pub(super) const MESSAGE: usize = 8 + 8 + size_of::<ShortKey>();

/// The sessions that are told of changes.
pub(super) struct Push {
    /// Distinguishes the handles of these stores from those of others.
    origin: [u8; 8],
    watchers: Watchers,
    is_wanted: AtomicBool,
    is_listening: AtomicBool,
}

impl Push {
    pub(super) fn new(origin: [u8; 8]) -> Self {
        Self {
            origin,
            watchers: Watchers::default(),
            is_wanted: AtomicBool::new(false),
            is_listening: AtomicBool::new(false),
        }
    }

    /// Returns the message that a handle has changed a record.
    pub(super) fn message(&self, key: &[u8; 32], handle: usize) -> [u8; MESSAGE] {
        let mut message = [0; MESSAGE];
        message[..8].copy_from_slice(&self.origin);
        message[8..16].copy_from_slice(&(handle as u64).to_be_bytes());
        message[16..].copy_from_slice(&short(key));
        message
    }

    /// Has a session watch the record of its handle, in place of the session before.
    pub(super) fn watch(&self, key: &[u8; 32], handle: usize, changed: RecordChanged) {
        self.watchers.insert(key, handle, changed);
        // Read first, so that sessions that begin at the same time don't contend for it.
        if !self.is_wanted.load(Ordering::Relaxed) {
            self.is_wanted.store(true, Ordering::Release);
        }
    }

    /// Returns the number of sessions that are told.
    pub(super) fn watched(&self) -> usize {
        self.watchers.len()
    }

    pub(super) fn unwatch(&self, key: &[u8; 32], handle: usize) {
        // Most handles that are dropped without a session are those of a sign-out.
        if self.is_wanted.load(Ordering::Acquire) {
            self.watchers.remove(key, handle);
        }
    }

    /// Starts the subscription if a session watches and there is a runtime, unless it is up.
    pub(super) fn start(shared: &Arc<Shared>) {
        let push = &shared.push;
        if !push.is_wanted.load(Ordering::Acquire) || push.is_listening.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if !push.is_listening.swap(true, Ordering::AcqRel) {
            runtime.spawn(listen(Listening(Arc::downgrade(shared))));
        }
    }

    /// Passes a message on to the sessions of the record, but for that which has sent it.
    fn notify(&self, message: &[u8]) {
        if let Some((key, by)) = self.read(message) {
            self.watchers.notify(key, by);
        }
    }

    /// Returns the key that a message is about, and the handle of these stores that has sent it, if one has.
    fn read(&self, message: &[u8]) -> Option<(ShortKey, Option<usize>)> {
        let (origin, rest) = message.split_first_chunk::<8>()?;
        let (handle, key) = rest.split_first_chunk::<8>()?;
        let by = usize::try_from(u64::from_be_bytes(*handle)).ok().filter(|_| *origin == self.origin);
        Some((key.try_into().ok()?, by))
    }
}

/// The task that listens. If its runtime ends it, the next call starts another one.
struct Listening(Weak<Shared>);

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.push.is_listening.store(false, Ordering::Release);
        }
    }
}

/// Listens until all stores are dropped.
async fn listen(listening: Listening) {
    let mut pause = FIRST_PAUSE;
    while let Some(shared) = listening.0.upgrade() {
        if let Ok(messages) = shared.line.connector().listen(&shared.channel).await {
            shared.push.watchers.mark_all_stale();
            drop(shared);
            pause = FIRST_PAUSE;
            receive(messages, &listening.0).await;
        } else {
            drop(shared);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        sleep(random::jittered(pause)).await;
    }
}

/// Passes the messages on until the connection is broken, or all stores are dropped.
async fn receive(messages: PubSub, stores: &Weak<Shared>) {
    let (mut questions, mut messages) = messages.split();
    let works = async {
        while stores.strong_count() > 0 {
            sleep(PING_INTERVAL).await;
            let answer = timeout(PING_TIMEOUT, questions.ping::<redis::Value>()).await;
            if !matches!(answer, Ok(Ok(_))) {
                break;
            }
        }
    };
    let notify = async {
        while let Some(message) = messages.next().await {
            let Some(shared) = stores.upgrade() else { break };
            shared.push.notify(message.get_payload_bytes());
        }
    };
    select(pin!(works), pin!(notify)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_its_key_and_the_handle_of_these_stores_that_has_sent_it() {
        let (here, there) = (Push::new([1; 8]), Push::new([2; 8]));
        let (key, short_key) = (std::array::from_fn(|at| u8::try_from(at).unwrap()), [0, 1, 2, 3, 4, 5, 6, 7]);
        let message = here.message(&key, 7);
        assert_eq!(here.read(&message), Some((short_key, Some(7))));
        assert_eq!(there.read(&message), Some((short_key, None)), "another process may have a handle at this address");
        for length in 0..MESSAGE {
            assert_eq!(here.read(&message[..length]), None);
        }
        assert_eq!(here.read(&[&message[..], &[0]].concat()), None);
    }
}
