//! Messages of changed records: a subscription to one channel, on a connection of its own.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::select;
use redis::aio::PubSub;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tower_auth_refresh::store::RecordChanged;

use super::Shared;
use super::line::{FIRST_PAUSE, LONGEST_PAUSE, with_jitter};

/// The pause between two questions whether the connection still works, and the time for the answer. A connection that
/// is dead without a sign is made anew within the sum.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// The length of a message.
pub(super) const MESSAGE: usize = 8 + 8 + PREFIX;
/// The part of a storage key that a message names.
const PREFIX: usize = 16;

/// The sessions that are told of changes.
pub(super) struct Push {
    /// Distinguishes the handles of this process from those of others.
    origin: [u8; 8],
    watchers: Mutex<BTreeMap<(Prefix, HandleId), RecordChanged>>,
    is_wanted: AtomicBool,
    is_listening: AtomicBool,
}

type Prefix = [u8; PREFIX];

/// A number of a handle, unlike that of any other handle in this process.
pub(super) type HandleId = u64;

impl Push {
    pub(super) fn new(origin: [u8; 8]) -> Self {
        Self {
            origin,
            watchers: Mutex::default(),
            is_wanted: AtomicBool::new(false),
            is_listening: AtomicBool::new(false),
        }
    }

    /// Returns the message that a handle has changed a record.
    pub(super) fn message(&self, key: &[u8; 32], handle: HandleId) -> [u8; MESSAGE] {
        let mut message = [0; MESSAGE];
        message[..8].copy_from_slice(&self.origin);
        message[8..16].copy_from_slice(&handle.to_be_bytes());
        message[16..].copy_from_slice(&prefix(key));
        message
    }

    /// Has a session watch the record of its handle, in place of the session before.
    pub(super) fn watch(&self, key: &[u8; 32], handle: HandleId, changed: RecordChanged) {
        let before = self.watchers().insert((prefix(key), handle), changed);
        drop(before);
        self.is_wanted.store(true, Ordering::Release);
    }

    pub(super) fn unwatch(&self, key: &[u8; 32], handle: HandleId) {
        let before = self.watchers().remove(&(prefix(key), handle));
        drop(before);
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

    /// Tells the sessions with this record, but for the one that has made the change.
    fn notify(&self, message: &[u8]) {
        let Ok(message) = <[u8; MESSAGE]>::try_from(message) else { return };
        let (origin, rest) = message.split_at(8);
        let (handle, key) = rest.split_at(8);
        let (Ok(handle), Ok(key)) = (handle.try_into(), Prefix::try_from(key)) else { return };
        let handle = (origin == self.origin).then_some(HandleId::from_be_bytes(handle));
        let watchers = self.watchers();
        let watching = watchers.range((key, HandleId::MIN)..=(key, HandleId::MAX));
        let told: Vec<_> =
            watching.filter(|((_, id), _)| Some(*id) != handle).map(|(_, changed)| changed.clone()).collect();
        // A session that ends meanwhile drops its handle, which calls `unwatch`.
        drop(watchers);
        for changed in told {
            changed.notify();
        }
    }

    /// Has all sessions look again: messages may have been missed.
    fn mark_stale(&self) {
        let all: Vec<_> = self.watchers().values().cloned().collect();
        for changed in all {
            changed.mark_stale();
        }
    }

    fn watchers(&self) -> MutexGuard<'_, BTreeMap<(Prefix, HandleId), RecordChanged>> {
        // Poisoning is ignored: each change is one call of the map.
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
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
            shared.push.mark_stale();
            drop(shared);
            pause = FIRST_PAUSE;
            receive(messages, &listening.0).await;
        } else {
            drop(shared);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        sleep(with_jitter(pause)).await;
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

fn prefix(key: &[u8; 32]) -> Prefix {
    std::array::from_fn(|at| key[at])
}
