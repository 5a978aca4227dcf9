//! Lifetimes of sessions: idle ones, and those past the end of their sign-in, by a wall clock that the tests set.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tower::{BoxError, service_fn};

use super::*;
use crate::refresh::{RefreshErrorKind, RefreshRequest, RevokeRequest};
use crate::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, Epoch, InsertOutcome, Presented, Record, StoreFuture,
    Version,
};
use crate::wall_clock;
use crate::wall_clock::tests::{step_back, step_forward};
use crate::{AccessToken, NotRefreshed, RefreshError, RefreshToken, SessionState};

const MINUTE: Duration = Duration::from_secs(60);
/// The idle time-out.
const IDLE: Duration = Duration::from_secs(32 * 60);
/// The time after the last use by which an idle user is signed out.
const LATEST: Duration = Duration::from_secs(40 * 60);
const USER: u32 = 1;

/// A durable store that counts the calls of `extend`, which may fail.
#[derive(Default)]
struct Durable {
    memory: MemoryStore,
    extensions: AtomicUsize,
    is_down: AtomicBool,
}

impl Durable {
    async fn record(&self) -> Option<Record> {
        self.memory.load().await.unwrap()
    }

    /// The time until the record's end.
    async fn left(&self) -> Duration {
        let end = self.record().await.unwrap().entry().expires_at().unwrap();
        // The end is rounded down to a millisecond.
        end.duration_since(wall_clock::now()).unwrap() + Duration::from_millis(1)
    }

    fn extensions(&self) -> usize {
        self.extensions.swap(0, Ordering::SeqCst)
    }

    fn is_up(&self) -> Result<(), BoxError> {
        if self.is_down.load(Ordering::SeqCst) { Err("the store is down".into()) } else { Ok(()) }
    }
}

impl TokenStore for Durable {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        Box::pin(async {
            self.is_up()?;
            self.memory.load().await
        })
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.memory.insert(entry)
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.memory.replace(entry)
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.memory.claim(version, lease)
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.memory.renew(claim, lease)
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.memory.release(claim, presented)
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        self.memory.commit(claim, entry)
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.memory.clear(version)
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.extensions.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            self.is_up()?;
            self.memory.extend(version, expires_at).await
        })
    }

    fn is_durable(&self) -> bool {
        true
    }
}

/// Counts the looks that hang.
#[derive(Default)]
struct Hanging {
    hangs: AtomicBool,
    looks: AtomicUsize,
    under_way: AtomicUsize,
    most: AtomicUsize,
}

/// One session's store, whose looks hang once all do.
struct Row(Arc<Hanging>, MemoryStore);

impl TokenStore for Row {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        Box::pin(async {
            if self.0.hangs.load(Ordering::SeqCst) {
                self.0.looks.fetch_add(1, Ordering::SeqCst);
                let _under_way = UnderWay::new(&self.0);
                std::future::pending::<()>().await;
            }
            self.1.load().await
        })
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.1.insert(entry)
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.1.replace(entry)
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        self.1.claim(version, lease)
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        self.1.renew(claim, lease)
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        self.1.release(claim, presented)
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        self.1.commit(claim, entry)
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.1.clear(version)
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        self.1.extend(version, expires_at)
    }

    fn is_durable(&self) -> bool {
        true
    }
}

/// A look that hangs.
struct UnderWay<'a>(&'a Hanging);

impl<'a> UnderWay<'a> {
    fn new(store: &'a Hanging) -> Self {
        store.most.fetch_max(store.under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Self(store)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Registries over one store, as processes have them, and the revoked refresh tokens.
struct Fleet {
    store: Arc<Durable>,
    revoked: mpsc::UnboundedReceiver<String>,
    revoke: mpsc::UnboundedSender<String>,
}

fn tokens(number: u32) -> Tokens {
    Tokens::new(AccessToken::new(format!("a{number}")).unwrap(), RefreshToken::new(format!("r{number}")).unwrap())
}

impl Fleet {
    fn new() -> Self {
        let (revoke, revoked) = mpsc::unbounded_channel();
        Self { store: Arc::default(), revoked, revoke }
    }

    fn template(&self) -> SessionBuilder {
        let refresh = service_fn(|request: RefreshRequest| async move {
            let number: u32 = request.refresh_token().unwrap().expose_secret()[1..].parse().unwrap();
            Ok::<_, RefreshError>(tokens(number + 1))
        });
        let revoke = self.revoke.clone();
        Session::builder(refresh).revoke(service_fn(move |request: RevokeRequest| {
            revoke.send(request.tokens().refresh_token().unwrap().expose_secret().to_owned()).unwrap();
            async { Ok::<_, BoxError>(()) }
        }))
    }

    fn registry(&self, template: SessionBuilder) -> SessionRegistryBuilder<u32> {
        let store = Arc::clone(&self.store);
        SessionRegistry::builder(template).store_factory(move |_| Arc::clone(&store) as _)
    }

    fn idle_registry(&self) -> SessionRegistry<u32> {
        self.registry(self.template()).idle_timeout(IDLE).build().unwrap()
    }

    fn limited_registry(&self) -> SessionRegistry<u32> {
        self.registry(self.template().max_lifetime(60 * MINUTE)).build().unwrap()
    }

    fn revoked(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.revoked.try_recv().ok()).collect()
    }
}

async fn get(sessions: &SessionRegistry<u32>) -> Option<Session> {
    sessions.get(&USER).await.unwrap()
}

async fn use_for(sessions: &SessionRegistry<u32>, time: Duration, pause: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert!(get(sessions).await.is_some(), "after {:?}", start.elapsed());
        sleep(pause).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_user_of_a_durable_store_is_signed_out_within_a_quarter_of_the_time() {
    let mut fleet = Fleet::new();
    let sessions = fleet.idle_registry();
    sessions.sign_in(USER, tokens(1)).await.unwrap();
    use_for(&sessions, 90 * MINUTE, 7 * MINUTE).await;
    let last_use = Instant::now() - 7 * MINUTE;
    sleep(25 * MINUTE).await;
    assert!(fleet.store.record().await.is_some(), "not before the time");
    while fleet.store.record().await.is_some() {
        // Not in step with the sweeps: one that comes while a look is under way leaves the session to the next.
        sleep(Duration::from_secs(29)).await;
        // Polled, and looked at: neither is a use.
        let _ = sessions.peek(&USER);
        sessions.changed(&USER);
    }
    assert!(last_use.elapsed() <= LATEST + MINUTE, "{:?}", last_use.elapsed());
    assert_eq!((sessions.len(), fleet.revoked()), (0, vec!["r1".to_owned()]));
    assert!(get(&sessions).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_user_who_comes_back_in_time_is_signed_in_whatever_the_rhythm() {
    for pause in [Duration::from_secs(10), 3 * MINUTE, 9 * MINUTE, 20 * MINUTE, Duration::from_secs(32 * 60 - 1)] {
        let fleet = Fleet::new();
        // No look at the store is needed for it.
        let sessions = fleet.registry(fleet.template()).idle_timeout(IDLE).recheck(Duration::MAX).build().unwrap();
        sessions.sign_in(USER, tokens(1)).await.unwrap();
        fleet.store.extensions();
        use_for(&sessions, 10 * IDLE, pause).await;
        let extensions = fleet.store.extensions();
        assert!(extensions <= 80, "{extensions} extensions in ten times the idle time-out");
        // In another process, or after a restart.
        assert!(fleet.store.left().await + pause >= IDLE, "{pause:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_held_is_in_use() {
    let fleet = Fleet::new();
    let sessions = fleet.idle_registry();
    let held = sessions.sign_in(USER, tokens(1)).await.unwrap();
    sleep(3 * IDLE).await;
    assert!(held.state().is_signed_in() && fleet.store.left().await >= IDLE);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_used_in_another_process_is_only_evicted() {
    let mut fleet = Fleet::new();
    let (a, b) = (fleet.idle_registry(), fleet.idle_registry());
    a.sign_in(USER, tokens(1)).await.unwrap();
    assert!(get(&b).await.is_some());
    use_for(&a, 2 * IDLE, MINUTE).await;
    assert_eq!((b.len(), a.len()), (0, 1));
    assert_eq!(fleet.revoked(), [] as [String; 0]);
    assert!(get(&b).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_record_is_extended_although_a_look_has_found_its_end_as_it_was() {
    let fleet = Fleet::new();
    let sessions = fleet.idle_registry();
    sessions.sign_in(USER, tokens(1)).await.unwrap();
    let session = get(&sessions).await.unwrap();
    let end = fleet.store.record().await.unwrap().entry().expires_at();
    step_forward(10 * MINUTE);
    let last_use = wall_clock::now();
    let extension = session.cell().extension(last_use).unwrap();
    // While the extension waits for its turn.
    session.cell().note_end(end);
    extension.run().await;
    assert_eq!(fleet.store.extensions(), 1);
    assert!(fleet.store.record().await.unwrap().entry().expires_at() > end);
    assert!(session.cell().extension(last_use).is_none(), "the session knows of it");
}

#[tokio::test(start_paused = true)]
async fn the_next_process_ends_a_record_that_none_has_in_memory() {
    let mut fleet = Fleet::new();
    let sessions = fleet.idle_registry();
    sessions.sign_in(USER, tokens(1)).await.unwrap();
    drop(sessions);
    sleep(LATEST).await;
    let sessions = fleet.idle_registry();
    assert!(get(&sessions).await.is_none());
    assert_eq!(fleet.store.record().await, None);
    tokio::task::yield_now().await;
    assert_eq!(fleet.revoked(), ["r1"]);
    // So does a session in no registry, which then begins anew.
    fleet.store.replace(&Entry::new(Epoch::random(), 1, tokens(2)).with_expires_at(wall_clock::now())).await.unwrap();
    let builder = fleet.template().store(Arc::clone(&fleet.store)).tokens(tokens(3));
    let session = builder.build().await.unwrap();
    assert_eq!(session.tokens(), tokens(3));
    tokio::task::yield_now().await;
    assert_eq!(fleet.revoked(), ["r2"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_evicted_for_room_has_its_last_use_in_the_record() {
    let fleet = Fleet::new();
    let row = Arc::clone(&fleet.store);
    let store = move |user: &u32| if *user == USER { Arc::clone(&row) } else { Arc::default() } as Arc<dyn TokenStore>;
    let builder = SessionRegistry::builder(fleet.template()).store_factory(store).idle_timeout(IDLE).max_sessions(1);
    let sessions = builder.build().unwrap();
    sessions.sign_in(USER, tokens(1)).await.unwrap();
    for other in 2..12 {
        sleep(31 * MINUTE).await;
        assert!(get(&sessions).await.is_some());
        // Between two sweeps.
        sessions.sign_in(other, tokens(other)).await.unwrap();
        tokio::task::yield_now().await;
        assert!(fleet.store.left().await >= IDLE);
    }
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_fails_is_repeated_and_no_user_in_memory_is_signed_out_meanwhile() {
    let fleet = Fleet::new();
    let sessions = fleet.idle_registry();
    sessions.sign_in(USER, tokens(1)).await.unwrap();
    fleet.store.is_down.store(true, Ordering::SeqCst);
    use_for(&sessions, 2 * IDLE, MINUTE).await;
    assert!(fleet.store.record().await.unwrap().entry().expires_at().unwrap() < wall_clock::now());
    // The look at the store that comes first finds the record past its end.
    fleet.store.is_down.store(false, Ordering::SeqCst);
    use_for(&sessions, 3 * MINUTE, Duration::from_secs(1)).await;
    assert!(fleet.store.left().await >= IDLE);
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_is_late_does_not_shorten_what_another_process_has_extended_since() {
    let fleet = Fleet::new();
    let sessions = fleet.idle_registry();
    sessions.sign_in(USER, tokens(1)).await.unwrap();
    use_for(&sessions, 9 * MINUTE, MINUTE).await;
    fleet.store.is_down.store(true, Ordering::SeqCst);
    sleep(11 * MINUTE).await;
    // The user is active in another process.
    let memory = &fleet.store.memory;
    let extended = wall_clock::now() + IDLE + 6 * MINUTE;
    assert!(memory.extend(fleet.store.record().await.unwrap().version(), extended).await.unwrap());
    fleet.store.is_down.store(false, Ordering::SeqCst);
    sleep(5 * MINUTE).await;
    assert_eq!(fleet.store.record().await.unwrap().entry().expires_at().unwrap(), extended);
}

/// A thousand idle sessions, whose looks each take as long as a call may.
#[tokio::test(start_paused = true)]
async fn the_looks_at_idle_sessions_of_a_store_that_hangs_are_bounded() {
    const SESSIONS: usize = 1_000;
    let fleet = Fleet::new();
    let store = Arc::new(Hanging::default());
    let row = Arc::clone(&store);
    let builder = SessionRegistry::builder(fleet.template())
        .store_factory(move |_: &u32| Arc::new(Row(Arc::clone(&row), MemoryStore::new())) as _);
    let sessions = builder.idle_timeout(IDLE).build().unwrap();
    for user in 0..u32::try_from(SESSIONS).unwrap() {
        sessions.sign_in(user, tokens(1)).await.unwrap();
    }
    store.hangs.store(true, Ordering::SeqCst);
    sleep(LATEST + 10 * MINUTE).await;
    assert!(store.looks.load(Ordering::SeqCst) > 0, "sessions were idle");
    // 16 by the sweep that ends idle sessions, and 16 by extensions.
    assert!(store.most.load(Ordering::SeqCst) <= 32, "{:?}", store.most);
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_steps_signs_out_no_user_in_memory_and_is_corrected_in_the_record() {
    let fleet = Fleet::new();
    let sessions = fleet.idle_registry();
    sessions.sign_in(USER, tokens(1)).await.unwrap();
    for step in [step_forward, step_back] {
        step(24 * 60 * MINUTE);
        use_for(&sessions, 3 * MINUTE, Duration::from_secs(1)).await;
        let left = fleet.store.left().await;
        assert!((IDLE..=LATEST).contains(&left), "{left:?}");
    }
}

/// The monotonic clock stands still meanwhile, so that in memory the session seems to be in use.
#[tokio::test(start_paused = true)]
async fn the_time_for_which_the_machine_sleeps_counts_as_idle_in_the_record() {
    let mut fleet = Fleet::new();
    let sessions = fleet.idle_registry();
    sessions.sign_in(USER, tokens(1)).await.unwrap();
    use_for(&sessions, 10 * MINUTE, MINUTE).await;
    sleep(MINUTE).await;
    fleet.store.extensions();
    step_forward(60 * MINUTE);
    sleep(5 * MINUTE).await;
    assert_eq!(fleet.store.extensions(), 0, "the user has not come back");
    let next = fleet.idle_registry();
    assert!(get(&next).await.is_none());
    tokio::task::yield_now().await;
    assert_eq!(fleet.revoked(), ["r1"]);
}

#[tokio::test(start_paused = true)]
async fn a_user_who_comes_back_when_the_machine_wakes_up_has_the_record_extended() {
    let fleet = Fleet::new();
    let sessions = fleet.idle_registry();
    sessions.sign_in(USER, tokens(1)).await.unwrap();
    sleep(10 * MINUTE).await;
    step_forward(60 * MINUTE);
    assert!(get(&sessions).await.is_some(), "the clock may just as well have been set");
    sleep(2 * MINUTE).await;
    assert!((IDLE..=LATEST).contains(&(fleet.store.left().await + 2 * MINUTE)));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_moves_the_end_of_the_record_and_not_that_of_the_sign_in() {
    let fleet = Fleet::new();
    let sessions = fleet.registry(fleet.template().max_lifetime(60 * MINUTE)).idle_timeout(IDLE).build().unwrap();
    let session = sessions.sign_in(USER, tokens(1)).await.unwrap();
    let ends = async || {
        let record = fleet.store.record().await.unwrap();
        [record.entry().expires_at().unwrap(), record.entry().ends_at().unwrap()]
    };
    let before = ends().await;
    sleep(20 * MINUTE).await;
    session.refresh().await.unwrap();
    let after = ends().await;
    assert!(before[0] < after[0] && before[1] == after[1], "{before:?} {after:?}");
    assert!(fleet.store.left().await >= IDLE);
    sleep(20 * MINUTE).await;
    session.refresh().await.unwrap();
    assert_eq!(ends().await, [before[1]; 2], "no later than the sign-in ends");
    fleet.store.extensions();
    sleep(19 * MINUTE).await;
    assert!(session.state().is_signed_in());
    assert_eq!(fleet.store.extensions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_ends_after_its_longest_time_in_each_process_however_much_it_is_used_and_refreshed() {
    let mut fleet = Fleet::new();
    let (a, b) = (fleet.limited_registry(), fleet.limited_registry());
    let start = Instant::now();
    a.sign_in(USER, tokens(1)).await.unwrap();
    let (held, watched) = (get(&a).await.unwrap(), get(&b).await.unwrap());
    while start.elapsed() < 59 * MINUTE {
        get(&a).await.unwrap().refresh().await.unwrap();
        sleep(Duration::from_secs(590)).await;
        get(&b).await.unwrap().refresh().await.unwrap();
        sleep(MINUTE / 6).await;
    }
    sleep(2 * MINUTE).await;
    for session in [&held, &watched] {
        // The second one may find that the first has deleted the record.
        let state = session.state();
        let is_typed = |error: &RefreshError| error.kind() == RefreshErrorKind::LifetimeOver;
        assert!(matches!(&state, SessionState::Ended(error) if is_typed(error)), "{state:?}");
        let refused = session.refresh().await.unwrap_err();
        assert!(matches!(&refused, NotRefreshed::Ended(error) if is_typed(error)) && refused.requires_sign_in());
    }
    assert_eq!(fleet.store.record().await, None);
    let revoked = fleet.revoked();
    // One process knew an older token.
    assert!(revoked.contains(&"r13".to_owned()), "{revoked:?}");
    drop((held, watched));
    assert!(get(&a).await.is_none() && get(&b).await.is_none());
    // The next sign-in has its own time.
    a.sign_in(USER, tokens(20)).await.unwrap();
    use_for(&a, 59 * MINUTE, MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_in_no_registry_ends_when_it_would_refresh() {
    let mut fleet = Fleet::new();
    let builder = fleet.template().max_lifetime(60 * MINUTE).store(Arc::clone(&fleet.store)).tokens(tokens(1));
    let session = builder.build().await.unwrap();
    session.refresh().await.unwrap();
    // The end is rounded up to a second.
    sleep(60 * MINUTE + Duration::from_secs(1)).await;
    let refused = session.refresh().await.unwrap_err();
    assert!(matches!(refused, NotRefreshed::Ended(error) if error.kind() == RefreshErrorKind::LifetimeOver));
    sleep(MINUTE).await;
    assert_eq!((fleet.revoked(), fleet.store.record().await), (vec!["r2".to_owned()], None));
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_without_an_end_is_given_one_and_one_that_is_too_late_is_shortened() {
    let fleet = Fleet::new();
    let entry = Entry::new(Epoch::random(), 1, tokens(1));
    let late = entry.clone().with_ends_at(wall_clock::now() + 24 * 60 * MINUTE);
    for entry in [entry, late] {
        fleet.store.replace(&entry).await.unwrap();
        let sessions = fleet.limited_registry();
        let session = get(&sessions).await.unwrap();
        session.refresh().await.unwrap();
        let left = fleet.store.left().await;
        assert!((59 * MINUTE..=61 * MINUTE).contains(&left), "{left:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_bound_no_record_has_an_end() {
    let fleet = Fleet::new();
    let sessions = fleet.registry(fleet.template()).recheck(Duration::MAX).build().unwrap();
    let session = sessions.sign_in(USER, tokens(1)).await.unwrap();
    session.refresh().await.unwrap();
    sleep(24 * 60 * MINUTE).await;
    let record = fleet.store.record().await.unwrap();
    assert_eq!((record.entry().expires_at(), record.entry().ends_at()), (None, None));
    assert_eq!(fleet.store.extensions(), 0);
}
