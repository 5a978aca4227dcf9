//! Durable stores beside the bare work: the sessions that a process reads after its start, and refreshes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use tower::service_fn;
use tower_auth_refresh::store::{Entry, Epoch, TokenStore};
use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionRegistry, Tokens};

/// The number of sessions that are stored, and read.
pub const SESSIONS: u64 = 100_000;

/// The numbers of sessions that are read at once.
pub const CONCURRENCY: [usize; 5] = [1, 16, 64, 256, 4096];

/// The reads of a round for each read at once: one after the other, all would take long.
const READS_AT_ONCE: u64 = 10_000;

/// The sessions that are filled in at once.
const WRITES_AT_ONCE: usize = 64;

/// Refreshes per round.
pub const REFRESHES: u32 = 64;

/// Stores tokens for each user: an access token of 230 bytes and a refresh token of 64 bytes.
///
/// # Panics
///
/// If the store fails.
pub async fn fill<S: Fn(u64) -> Arc<dyn TokenStore>>(store: &S) {
    let writes = stream::iter(0..SESSIONS).map(|user| {
        let store = store(user);
        async move { store.replace(&Entry::new(Epoch::random(), 1, tokens(user))).await }
    });
    writes.buffer_unordered(WRITES_AT_ONCE).for_each(|written| async { drop(written.expect("the store works")) }).await;
}

fn tokens(user: u64) -> Tokens {
    let access = AccessToken::new(format!("{user:0>230}")).expect("visible ASCII");
    let refresh = RefreshToken::new(format!("{user:0>64}")).expect("visible ASCII");
    Tokens::new(access, refresh).with_expires_in(Duration::from_secs(3600))
}

/// Returns the number of sessions that are read in a round with this concurrency.
#[must_use]
pub fn reads(concurrency: usize) -> u64 {
    SESSIONS.min(READS_AT_ONCE.saturating_mul(concurrency as u64))
}

/// Reads users' sessions at their first use, in a registry that has just been started. Returns the time.
///
/// # Panics
///
/// If a session isn't found.
pub async fn time_restart<S>(store: &S, concurrency: usize) -> Duration
where
    S: Fn(u64) -> Arc<dyn TokenStore> + Clone + Send + Sync + 'static,
{
    let store = store.clone();
    let sessions =
        SessionRegistry::builder(template()).store_factory(move |user: &u64| store(*user)).build().expect("runtime");
    let looked_up = sessions.clone();
    let read = move |user| {
        let sessions = looked_up.clone();
        async move { assert!(sessions.get(&user).await.is_ok_and(|session| session.is_some())) }
    };
    let time = time_reads(read, concurrency).await;
    // Not counted: to drop all sessions takes as long as to read many.
    drop(sessions);
    time
}

/// Times [`reads`] of different users.
///
/// # Panics
///
/// If a read panics.
pub async fn time_reads<R>(read: impl Fn(u64) -> R + Send + 'static, concurrency: usize) -> Duration
where
    R: Future<Output = ()> + Send + 'static,
{
    let begun = Instant::now();
    let reads = stream::iter((0..reads(concurrency)).map(move |user| tokio::spawn(read(user))));
    let reads = reads.buffer_unordered(concurrency);
    // In a task, as a server's: to wake the thread that blocks on it would cost more than a read.
    let all = tokio::spawn(reads.for_each(|read| async { read.expect("a read succeeds") }));
    all.await.expect("no panic");
    begun.elapsed()
}

/// Refreshes one session [`REFRESHES`] times, by a service that answers at once. Returns the time.
///
/// # Panics
///
/// If a refresh fails.
pub async fn time_refreshes(store: Arc<dyn TokenStore>) -> Duration {
    let session = template().store(store).build().await.expect("the store works");
    let begun = Instant::now();
    for _ in 0..REFRESHES {
        session.refresh().await.expect("the service answers");
    }
    begun.elapsed()
}

fn template() -> tower_auth_refresh::SessionBuilder {
    Session::builder(service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(tokens(fastrand::u64(..))) }))
}
