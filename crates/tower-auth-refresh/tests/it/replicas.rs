//! Replicas: registries that share their stores, the time within which each sees what another has done, and looks at a
//! session that are no use of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use tower_auth_refresh::registry::SessionRegistryBuilder;
use tower_auth_refresh::session::SessionErrorKind;
use tower_auth_refresh::store::{ClaimOutcome, CommitOutcome, Entry, Epoch, MemoryStore, Record, TokenStore};
use tower_auth_refresh::{RefreshError, RefreshRequest, Session, SessionRegistry, SessionState, Tokens};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};

use crate::secrets::Watch;
use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The default bound of a recheck.
const RECHECK: Duration = Duration::from_secs(5);

/// The time-out of a store call.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// The only user's key.
const USER: u32 = 1;

type Builder = SessionRegistryBuilder<u32>;

/// A registry over a store that it shares with other replicas, and that has its own faults.
struct Replica {
    sessions: SessionRegistry<u32>,
    store: FaultyStore,
    auth: AuthCalls,
    revoked: Arc<Mutex<Vec<Tokens>>>,
}

impl Replica {
    fn of(shared: &FaultyStore) -> Self {
        Self::with(shared, |builder| builder)
    }

    fn with(shared: &FaultyStore, configure: impl FnOnce(Builder) -> Builder) -> Self {
        Self::over(FaultyStore::new(shared.clone()).yielding().durable(), configure)
    }

    fn over(store: FaultyStore, configure: impl FnOnce(Builder) -> Builder) -> Self {
        let (service, auth) = script();
        let (revoke, revoked) = revocations();
        let template = Session::builder(service).revoke(revoke);
        let row = store.clone();
        let builder = SessionRegistry::builder(template).store_factory(move |_: &u32| Arc::new(row.clone()));
        Self { sessions: configure(builder).build().unwrap(), store, auth, revoked }
    }

    async fn get(&self) -> Option<Session> {
        self.sessions.get(&USER).await.unwrap()
    }

    /// Returns the time that a look-up takes; the user must be signed in.
    async fn time_to_get(&self) -> Duration {
        let start = Instant::now();
        assert!(self.get().await.is_some_and(|session| session.state().is_signed_in()));
        start.elapsed()
    }

    /// Reports a change, as a store's push connection does.
    async fn changed(&self) {
        self.sessions.changed(&USER);
        settle().await;
    }

    fn loads(&self) -> usize {
        self.store.count(StoreCall::Load)
    }

    /// Starts a refresh, and returns the call that waits for its answer.
    async fn refresh(&mut self) -> (AuthCall, Session) {
        let session = self.get().await.unwrap();
        tokio::spawn({
            let session = session.clone();
            async move { session.refresh().await }
        });
        (self.auth.next().await, session)
    }
}

type AuthCall = Call<RefreshRequest, Tokens, RefreshError>;

fn shared_store() -> FaultyStore {
    FaultyStore::new(MemoryStore::new())
}

/// Two replicas on one store, with the user signed in and in the memory of both.
async fn fleet() -> (Replica, Replica, FaultyStore) {
    fleet_with(|builder| builder).await
}

async fn fleet_with(configure: impl Fn(Builder) -> Builder) -> (Replica, Replica, FaultyStore) {
    let shared = shared_store();
    let (a, b) = (Replica::with(&shared, &configure), Replica::with(&shared, &configure));
    a.sessions.sign_in(USER, pair(1)).await.unwrap();
    assert!(b.get().await.is_some());
    settle().await;
    a.store.clear_calls();
    (a, b, shared)
}

async fn stored(shared: &FaultyStore) -> Option<Record> {
    shared.snapshot().await
}

/// Signs a user in on another replica.
async fn sign_in_elsewhere(shared: &FaultyStore, tokens: Tokens) {
    shared.replace(&Entry::new(Epoch::random(), 1, tokens)).await.unwrap();
}

async fn sign_out_elsewhere(shared: &FaultyStore) {
    shared.clear(stored(shared).await.unwrap().version()).await.unwrap();
}

/// Refreshes on another replica.
async fn refresh_elsewhere(shared: &FaultyStore, tokens: Tokens) {
    let record = stored(shared).await.unwrap();
    let ClaimOutcome::Claimed(claim) = shared.claim(record.version(), MINUTE).await.unwrap() else { panic!() };
    let entry = Entry::new(record.epoch(), record.generation() + 1, tokens);
    assert!(matches!(shared.commit(&claim, &entry).await.unwrap(), CommitOutcome::Stored(_)));
}

mod a_sign_out_elsewhere {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn is_in_force_within_the_bound_however_often_the_session_is_looked_up() {
        for pause in [10, 100, 500, 1_000, 2_400, 2_600, 4_900, 5_100] {
            for offset in [0, 150, 1_700] {
                let (a, b, _) = fleet().await;
                sleep(Duration::from_millis(offset)).await;
                b.sessions.sign_out(&USER).await.unwrap();
                let signed_out = Instant::now();
                while a.get().await.is_some() {
                    assert!(signed_out.elapsed() < RECHECK, "looked up every {pause} ms");
                    sleep(Duration::from_millis(pause)).await;
                }
                assert!(a.sessions.is_empty(), "nothing keeps the session in memory");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn is_in_force_at_the_first_look_up_after_an_idle_hour() {
        let (a, b, _) = fleet().await;
        b.sessions.sign_out(&USER).await.unwrap();
        sleep(60 * MINUTE).await;
        assert_eq!(a.loads(), 0, "an idle session is not looked at");
        assert!(a.get().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn is_in_force_at_once_where_it_is_pushed() {
        let (a, b, _) = fleet().await;
        b.sessions.sign_out(&USER).await.unwrap();
        // Not settled: the look-up waits for the look that the push has started.
        a.sessions.changed(&USER);
        assert!(a.get().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn signs_out_the_handles_and_notifies_the_watchers() {
        let (a, b, _) = fleet().await;
        let session = a.get().await.unwrap();
        let mut changes = session.subscribe();
        b.sessions.sign_out(&USER).await.unwrap();
        a.changed().await;
        assert_eq!(session.state(), SessionState::SignedOut);
        assert_eq!(session.tokens(), Tokens::default());
        assert!(changes.has_changed().unwrap());
        assert_eq!(*changes.borrow_and_update(), SessionState::SignedOut);
        assert!(a.revoked.lock().unwrap().is_empty(), "the other replica has revoked the tokens");
    }

    #[tokio::test(start_paused = true)]
    async fn is_in_force_during_a_refresh_whose_tokens_are_revoked() {
        let (mut a, b, shared) = fleet().await;
        let (call, session) = a.refresh().await;
        b.sessions.sign_out(&USER).await.unwrap();
        a.changed().await;
        assert_eq!(session.state(), SessionState::SignedOut);
        call.answer(Ok(pair(2)));
        settle().await;
        assert_eq!(session.state(), SessionState::SignedOut);
        assert_eq!(stored(&shared).await, None);
        assert_eq!(*a.revoked.lock().unwrap(), [pair(2)]);
    }
}

mod a_change_elsewhere {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_the_tokens_is_adopted() {
        let (a, _, shared) = fleet().await;
        let session = a.get().await.unwrap();
        let before = session.generation();
        refresh_elsewhere(&shared, pair(2)).await;
        a.changed().await;
        assert_eq!(session.tokens(), pair(2));
        assert!(session.generation() > before);
        assert_eq!(session.state(), SessionState::Active);
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_tokens_is_adopted_within_the_bound_without_push() {
        let (a, _, shared) = fleet().await;
        refresh_elsewhere(&shared, pair(2)).await;
        sleep(RECHECK).await;
        assert_eq!(a.get().await.unwrap().tokens(), pair(2));
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_user_is_adopted_as_another_sign_in() {
        let (a, b, _) = fleet().await;
        let session = a.get().await.unwrap();
        let before = session.credential().await.unwrap();
        b.sessions.sign_out(&USER).await.unwrap();
        b.sessions.sign_in(USER, pair(7)).await.unwrap();
        a.changed().await;
        let after = session.credential().await.unwrap();
        assert_eq!(session.tokens(), pair(7));
        assert_ne!(before.epoch(), after.epoch());
    }

    /// A failed call issued a new refresh token: the access token is the same.
    #[tokio::test(start_paused = true)]
    async fn of_the_refresh_token_alone_keeps_the_failure_of_the_last_refresh() {
        let (mut a, _, shared) = fleet().await;
        let (call, session) = a.refresh().await;
        call.answer(Err(RefreshError::misconfigured("no client secret")));
        settle().await;
        assert!(matches!(session.state(), SessionState::Failing(_)));
        let before = session.generation();
        refresh_elsewhere(&shared, Tokens::new(access("a1"), refresh("r2"))).await;
        a.changed().await;
        assert_eq!(session.tokens(), Tokens::new(access("a1"), refresh("r2")));
        assert!(matches!(session.state(), SessionState::Failing(_)));
        assert_eq!(session.generation(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn that_lost_the_last_writes_is_written_over() {
        let (mut a, _, shared) = fleet().await;
        let old = stored(&shared).await;
        let (call, session) = a.refresh().await;
        call.answer(Ok(pair(2)));
        settle().await;
        let new = stored(&shared).await.unwrap();
        shared.rewind(old).await;
        a.changed().await;
        a.sessions.wait_idle().await;
        assert_eq!(session.tokens(), pair(2));
        assert_eq!(stored(&shared).await.unwrap().entry(), new.entry());
    }

    #[tokio::test(start_paused = true)]
    async fn that_lost_a_refresh_token_alone_is_written_over() {
        let (mut a, _, shared) = fleet().await;
        let old = stored(&shared).await;
        let (call, session) = a.refresh().await;
        call.answer(Err(RefreshError::in_doubt("no access token").with_refresh_token(refresh("r2"))));
        settle().await;
        let salvaged = Tokens::new(access("a1"), refresh("r2"));
        assert_eq!(stored(&shared).await.unwrap().tokens(), &salvaged);
        shared.rewind(old).await;
        a.changed().await;
        a.sessions.wait_idle().await;
        assert_eq!(session.tokens(), salvaged);
        let record = stored(&shared).await.unwrap();
        assert_eq!((record.generation(), record.tokens()), (2, &salvaged));
    }

    #[tokio::test(start_paused = true)]
    async fn that_is_none_leaves_a_refresh_token_in_doubt() {
        let (mut a, _, _) = fleet().await;
        let (call, _) = a.refresh().await;
        call.answer(Err(RefreshError::in_doubt("connection reset")));
        settle().await;
        a.changed().await;
        let (call, _) = a.refresh().await;
        assert!(call.request.is_in_doubt());
    }

    #[tokio::test(start_paused = true)]
    async fn that_is_none_leaves_the_session_as_it_is() {
        let (a, _, shared) = fleet().await;
        let session = a.get().await.unwrap();
        let (before, record) = (session.credential().await.unwrap(), stored(&shared).await);
        let changes = session.subscribe();
        a.changed().await;
        assert!(session.credential().await.unwrap() == before);
        assert!(!changes.has_changed().unwrap());
        assert_eq!(stored(&shared).await, record);
        assert_eq!(a.store.calls(), [StoreCall::Load]);
    }

    #[tokio::test(start_paused = true)]
    async fn to_a_session_that_is_not_in_memory_loads_nothing() {
        let shared = shared_store();
        let a = Replica::of(&shared);
        sign_in_elsewhere(&shared, pair(1)).await;
        a.changed().await;
        assert_eq!(a.loads(), 0);
        assert!(a.sessions.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn during_a_load_makes_it_load_again() {
        let shared = shared_store();
        let a = Replica::of(&shared);
        sign_in_elsewhere(&shared, pair(1)).await;
        // The record has been read, and the answer is on its way.
        a.store.inject(StoreCall::Load, StoreFault::hang_until_cleared().after_effect().times(1));
        let found = tokio::spawn({
            let sessions = a.sessions.clone();
            async move { sessions.get(&USER).await }
        });
        settle().await;
        sign_out_elsewhere(&shared).await;
        a.changed().await;
        a.store.clear_faults();
        // The store fails the call whose fault was cleared, or returns what it has read.
        let found = found.await.unwrap();
        assert!(!found.is_ok_and(|found| found.is_some()));
        assert!(a.get().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn during_a_load_is_not_undone_while_another_load_is_under_way() {
        let shared = shared_store();
        let a = Replica::of(&shared);
        sign_in_elsewhere(&shared, pair(1)).await;
        let get = || {
            let sessions = a.sessions.clone();
            tokio::spawn(async move { sessions.get(&USER).await })
        };
        // The record has been read, and the answer is on its way.
        a.store.inject(StoreCall::Load, StoreFault::delay(SECOND).after_effect().times(1));
        let first = get();
        settle().await;
        sign_out_elsewhere(&shared).await;
        a.store.inject(StoreCall::Load, StoreFault::delay(2 * SECOND).times(1));
        // The first caller loads again.
        a.changed().await;
        let second = get();
        settle().await;
        assert_eq!(a.loads(), 2);
        for found in [first, second] {
            assert!(found.await.unwrap().unwrap().is_none());
        }
        assert!(a.sessions.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn during_a_look_is_seen_by_another_look() {
        let (a, _, shared) = fleet().await;
        let session = a.get().await.unwrap();
        a.store.inject(StoreCall::Load, StoreFault::delay(SECOND).after_effect().times(1));
        a.changed().await;
        sign_out_elsewhere(&shared).await;
        a.changed().await;
        a.changed().await;
        assert!(session.state().is_signed_in(), "the first look has read the record before");
        assert!(!a.get().await.is_some_and(|session| session.state().is_signed_in()), "waits for the second look");
        assert_eq!(session.state(), SessionState::SignedOut);
        assert_eq!(a.loads(), 2, "two reads for three changes");
    }
}

/// With real threads and time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_threads_each_sees_every_sign_in_and_sign_out_that_is_pushed() {
    let shared = shared_store();
    let a = Arc::new(Replica::of(&shared));
    let signed_in = async || {
        let look_ups = (0..16).map(|_| {
            let a = Arc::clone(&a);
            tokio::spawn(async move { a.get().await.is_some_and(|session| session.state().is_signed_in()) })
        });
        join_all(look_ups).await.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    for round in 0..300 {
        sign_in_elsewhere(&shared, pair(round)).await;
        a.sessions.changed(&USER);
        assert_eq!(signed_in().await, [true; 16], "round {round}");
        // In every other round a handle keeps the session in memory while it is over.
        let _held = if round % 2 == 0 { a.get().await } else { None };
        sign_out_elsewhere(&shared).await;
        a.sessions.changed(&USER);
        assert_eq!(signed_in().await, [false; 16], "round {round}");
    }
}

mod a_session_that_is_over {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn adopts_the_next_sign_in_elsewhere() {
        let (a, _, shared) = fleet().await;
        let session = a.get().await.unwrap();
        session.sign_out().await.unwrap();
        sign_in_elsewhere(&shared, pair(2)).await;
        a.changed().await;
        assert_eq!((session.state(), session.tokens()), (SessionState::Active, pair(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn adopts_the_next_sign_in_elsewhere_within_the_bound_without_push() {
        for pushed in [false, true] {
            let (mut a, _, shared) = fleet().await;
            let (call, session) = a.refresh().await;
            call.answer(Err(RefreshError::rejected("invalid_grant")));
            settle().await;
            assert!(session.state().is_ended());
            assert_eq!(stored(&shared).await, None);
            sign_in_elsewhere(&shared, pair(2)).await;
            if pushed {
                a.sessions.changed(&USER);
            } else {
                sleep(RECHECK).await;
            }
            assert_eq!(a.get().await.unwrap().tokens(), pair(2));
            assert_eq!(session.state(), SessionState::Active, "its handles are the same session");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stays_as_it_is_while_there_is_no_record() {
        let (mut a, _, shared) = fleet().await;
        let (call, session) = a.refresh().await;
        call.answer(Err(RefreshError::rejected("invalid_grant")));
        settle().await;
        assert_eq!(stored(&shared).await, None);
        session.recheck().await.unwrap();
        assert!(session.state().is_ended());
    }

    #[tokio::test(start_paused = true)]
    async fn is_looked_at_at_most_once_in_a_third_of_the_bound() {
        let (a, _, _) = fleet().await;
        let session = a.get().await.unwrap();
        session.sign_out().await.unwrap();
        a.store.clear_calls();
        for _ in 0..600 {
            a.get().await;
            sleep(SECOND / 10).await;
        }
        assert!((12..=36).contains(&a.loads()), "{} loads in a minute", a.loads());
        assert_eq!(session.state(), SessionState::SignedOut);
    }
}

mod a_look {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn is_shared_by_a_thousand_callers() {
        let (a, _, _) = fleet().await;
        sleep(RECHECK).await;
        a.store.inject(StoreCall::Load, StoreFault::delay(SECOND));
        let found = join_all((0..1_000).map(|_| a.get())).await;
        assert!(found.iter().all(Option::is_some));
        assert_eq!(a.loads(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn that_finds_a_sign_out_answers_a_thousand_callers_with_none() {
        let (a, _, shared) = fleet().await;
        sign_out_elsewhere(&shared).await;
        sleep(RECHECK).await;
        let found = join_all((0..1_000).map(|_| a.get())).await;
        assert!(found.iter().all(Option::is_none));
        assert_eq!(a.loads(), 2, "one look, and one load of a session that is not in memory");
    }

    #[tokio::test(start_paused = true)]
    async fn is_made_in_the_background_from_half_the_bound_on() {
        let (a, _, shared) = fleet().await;
        refresh_elsewhere(&shared, pair(2)).await;
        sleep(RECHECK / 4).await;
        a.get().await;
        settle().await;
        assert_eq!(a.loads(), 0, "looked at lately");
        sleep(RECHECK * 3 / 8).await;
        for _ in 0..3 {
            let found = a.sessions.get(&USER).now_or_never().expect("ready at once").unwrap();
            assert_eq!(found.unwrap().tokens(), pair(1));
        }
        settle().await;
        assert_eq!(a.loads(), 1);
        assert_eq!(a.get().await.unwrap().tokens(), pair(2));
    }

    #[tokio::test(start_paused = true)]
    async fn goes_on_when_its_callers_are_dropped() {
        let (a, _, shared) = fleet().await;
        let session = a.get().await.unwrap();
        sign_out_elsewhere(&shared).await;
        sleep(RECHECK).await;
        assert!(a.sessions.get(&USER).now_or_never().is_none());
        settle().await;
        assert_eq!(session.state(), SessionState::SignedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn that_fails_in_any_way_serves_the_session_from_memory() {
        let faults = [
            StoreFault::fail(),
            StoreFault::fail().after_effect(),
            StoreFault::panic(),
            StoreFault::panic_on_call(),
            StoreFault::hang(),
        ];
        for fault in faults {
            let (a, _, shared) = fleet().await;
            sign_out_elsewhere(&shared).await;
            a.store.inject(StoreCall::Load, fault);
            sleep(RECHECK).await;
            assert!(a.time_to_get().await <= STORE_TIMEOUT, "{fault:?}");
            a.store.clear_faults();
            sleep(RECHECK / 4).await;
            // Starts a look in the background.
            a.time_to_get().await;
            settle().await;
            assert!(a.get().await.is_none(), "{fault:?}: found once the store is up again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn that_hangs_is_waited_for_once_by_a_session_in_use() {
        let (a, _, _) = fleet().await;
        a.store.inject(StoreCall::Load, StoreFault::hang());
        sleep(RECHECK).await;
        let (start, mut waits) = (Instant::now(), Vec::new());
        while start.elapsed() < 5 * MINUTE {
            let wait = a.time_to_get().await;
            waits.extend((wait > Duration::ZERO).then_some(wait));
            sleep(SECOND / 10).await;
        }
        assert_eq!(waits.len(), 1, "{waits:?}");
        assert!(waits[0] <= STORE_TIMEOUT + SECOND / 100);
        assert!(a.loads() <= 60, "{} loads in five minutes, one at a time", a.loads());
    }

    #[tokio::test(start_paused = true)]
    async fn that_fails_at_once_is_repeated_after_an_eighth_of_the_bound() {
        let (a, _, shared) = fleet().await;
        a.store.inject(StoreCall::Load, StoreFault::fail());
        sleep(RECHECK).await;
        for _ in 0..600 {
            assert_eq!(a.time_to_get().await, Duration::ZERO);
            sleep(SECOND / 10).await;
        }
        assert!((60..=200).contains(&a.loads()), "{} loads in a minute", a.loads());
        sign_out_elsewhere(&shared).await;
        a.store.clear_faults();
        let up = Instant::now();
        while a.get().await.is_some() {
            assert!(up.elapsed() < RECHECK / 4);
            sleep(SECOND / 10).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn that_fails_is_logged_once_until_one_succeeds() {
        let (watch, _capture) = Watch::start();
        let logged = || watch.count("session not rechecked");
        let (a, _, _) = fleet().await;
        a.changed().await;
        assert_eq!(logged(), 0);
        for outages in 1..=2 {
            a.store.inject(StoreCall::Load, StoreFault::fail());
            for _ in 0..60 {
                a.time_to_get().await;
                sleep(SECOND).await;
            }
            assert_eq!(logged(), outages);
            a.store.clear_faults();
            sleep(RECHECK).await;
            a.time_to_get().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn that_is_pushed_is_waited_for_though_the_last_one_failed() {
        let (a, _, shared) = fleet().await;
        a.store.inject(StoreCall::Load, StoreFault::fail());
        sleep(RECHECK).await;
        a.time_to_get().await;
        a.store.clear_faults();
        a.store.inject(StoreCall::Load, StoreFault::delay(SECOND));
        sign_out_elsewhere(&shared).await;
        a.sessions.changed(&USER);
        assert!(a.get().await.is_none());
    }

    /// A failure that is long over is no reason to serve a session unchecked.
    #[tokio::test(start_paused = true)]
    async fn that_failed_before_an_idle_hour_is_repeated_first() {
        let (a, _, shared) = fleet().await;
        a.store.inject(StoreCall::Load, StoreFault::fail());
        a.sessions.recheck_all();
        a.time_to_get().await;
        a.store.clear_faults();
        sign_out_elsewhere(&shared).await;
        sleep(60 * MINUTE).await;
        assert!(a.get().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn during_a_refresh_leaves_newer_and_older_records_of_the_sign_in_to_it() {
        for older in [false, true] {
            let (mut a, _, shared) = fleet().await;
            let first = stored(&shared).await.unwrap();
            let (call, session) = a.refresh().await;
            call.answer(Ok(pair(2)));
            settle().await;
            let (call, _) = a.refresh().await;
            if older {
                shared.rewind(Some(first.clone())).await;
            } else {
                // Written by a replica that doesn't respect the claim.
                let entry = Entry::new(first.epoch(), 3, pair(9));
                shared.replace(&entry).await.unwrap();
            }
            a.store.clear_calls();
            a.changed().await;
            assert_eq!(a.store.calls(), [StoreCall::Load]);
            assert_eq!((session.state(), session.tokens()), (SessionState::Refreshing, pair(2)));
            call.answer(Ok(pair(3)));
            a.sessions.wait_idle().await;
            settle().await;
            let decided = if older { pair(3) } else { pair(9) };
            assert_eq!((session.state(), session.tokens()), (SessionState::Active, decided.clone()));
            assert_eq!(*stored(&shared).await.unwrap().tokens(), decided);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn that_began_before_a_refresh_and_ends_after_it_changes_nothing() {
        let (mut a, _, shared) = fleet().await;
        a.store.inject(StoreCall::Load, StoreFault::delay(SECOND).after_effect().times(1));
        let session = a.get().await.unwrap();
        a.changed().await;
        let refreshed = tokio::spawn({
            let session = session.clone();
            async move { session.refresh().await }
        });
        a.auth.next().await.answer(Ok(pair(2)));
        refreshed.await.unwrap().unwrap();
        a.store.clear_calls();
        sleep(2 * SECOND).await;
        assert_eq!(session.tokens(), pair(2));
        assert_eq!(*stored(&shared).await.unwrap().tokens(), pair(2));
        assert_eq!(a.store.calls(), [], "nothing is written back");
    }

    #[tokio::test(start_paused = true)]
    async fn that_began_before_a_sign_in_and_ends_after_it_changes_nothing() {
        for with_record in [false, true] {
            let (a, _, shared) = fleet().await;
            let session = a.get().await.unwrap();
            if !with_record {
                session.sign_out().await.unwrap();
            }
            a.store.inject(StoreCall::Load, StoreFault::delay(SECOND).after_effect().times(1));
            a.changed().await;
            session.sign_in(pair(5)).await.unwrap();
            sleep(2 * SECOND).await;
            assert_eq!((session.state(), session.tokens()), (SessionState::Active, pair(5)));
            assert_eq!(*stored(&shared).await.unwrap().tokens(), pair(5));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reads_nothing_while_a_write_is_pending() {
        let (mut a, _, shared) = fleet().await;
        let (call, session) = a.refresh().await;
        a.store.inject(StoreCall::Commit, StoreFault::fail());
        call.answer(Ok(pair(2)));
        settle().await;
        a.store.clear_calls();
        a.changed().await;
        assert_eq!(a.loads(), 0);
        assert_eq!(session.tokens(), pair(2), "the older record isn't adopted");
        a.store.clear_faults();
        a.sessions.wait_idle().await;
        assert_eq!(*stored(&shared).await.unwrap().tokens(), pair(2));
    }

    #[tokio::test(start_paused = true)]
    async fn leaves_a_write_alone_that_becomes_pending_during_it() {
        let (a, _, shared) = fleet().await;
        let session = a.get().await.unwrap();
        sign_out_elsewhere(&shared).await;
        a.store.inject(StoreCall::Load, StoreFault::delay(SECOND).after_effect().times(1));
        a.store.inject(StoreCall::Claim, StoreFault::fail());
        a.changed().await;
        session.renew(&session.credential().await.unwrap(), pair(2)).await.unwrap_err();
        sleep(2 * SECOND).await;
        a.store.clear_faults();
        a.sessions.wait_idle().await;
        // By the write, which alone knows that no process has these tokens but this one.
        assert_eq!(session.state(), SessionState::SignedOut);
        assert_eq!(*a.revoked.lock().unwrap(), [pair(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn leaves_a_sign_in_and_a_sign_out_alone_that_are_still_to_be_written() {
        let (a, _, shared) = fleet().await;
        let session = a.get().await.unwrap();
        a.store.inject(StoreCall::Replace, StoreFault::fail());
        session.sign_in(pair(5)).await.unwrap_err();
        a.changed().await;
        assert_eq!(session.tokens(), pair(5));
        a.store.clear_faults();
        a.sessions.wait_idle().await;
        assert_eq!(*stored(&shared).await.unwrap().tokens(), pair(5));

        a.store.inject(StoreCall::Clear, StoreFault::fail());
        session.sign_out().await.unwrap_err();
        a.changed().await;
        assert_eq!(session.state(), SessionState::SignedOut, "the record of the sign-out isn't adopted");
        a.store.clear_faults();
        a.sessions.wait_idle().await;
        assert_eq!(stored(&shared).await, None);
    }
}

mod the_bound {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn can_be_set() {
        for bound in [SECOND / 10, SECOND, MINUTE] {
            let (a, _, shared) = fleet_with(|builder| builder.recheck(bound)).await;
            sign_out_elsewhere(&shared).await;
            let signed_out = Instant::now();
            while a.get().await.is_some() {
                sleep(bound / 20).await;
            }
            let elapsed = signed_out.elapsed();
            assert!((bound / 4..bound).contains(&elapsed), "{bound:?}: {elapsed:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_zero_looks_at_the_store_on_each_look_up() {
        let (a, _, shared) = fleet_with(|builder| builder.recheck(Duration::ZERO)).await;
        for _ in 0..3 {
            a.time_to_get().await;
        }
        assert_eq!(a.loads(), 3);
        sign_out_elsewhere(&shared).await;
        assert!(a.get().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn can_be_switched_off() {
        let (a, _, shared) = fleet_with(|builder| builder.recheck(Duration::MAX)).await;
        sleep(60 * MINUTE).await;
        a.time_to_get().await;
        settle().await;
        assert_eq!(a.loads(), 0);
        // The store that pushes its changes is still believed.
        sign_out_elsewhere(&shared).await;
        a.sessions.recheck_all();
        assert!(a.get().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn that_is_switched_off_repeats_a_look_that_failed() {
        let (a, _, shared) = fleet_with(|builder| builder.recheck(Duration::MAX)).await;
        a.store.inject(StoreCall::Load, StoreFault::fail());
        sign_out_elsewhere(&shared).await;
        a.sessions.recheck_all();
        a.time_to_get().await;
        a.store.clear_faults();
        // In the background.
        a.time_to_get().await;
        settle().await;
        assert!(a.get().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_apply_to_stores_that_are_not_durable() {
        let a = Replica::over(shared_store(), |builder| builder);
        a.sessions.sign_in(USER, pair(1)).await.unwrap();
        a.store.clear_calls();
        for _ in 0..60 {
            a.time_to_get().await;
            sleep(SECOND).await;
        }
        a.sessions.recheck_all();
        a.time_to_get().await;
        settle().await;
        assert_eq!(a.loads(), 0);
    }

    /// Sessions that are looked at at the same moment are spread from then on.
    #[tokio::test(start_paused = true)]
    async fn spreads_the_looks_at_many_sessions() {
        let (service, _auth): (_, AuthCalls) = script();
        let stores: Vec<_> = (0..200).map(|_| FaultyStore::new(MemoryStore::new()).durable()).collect();
        let rows = stores.clone();
        let sessions = SessionRegistry::builder(Session::builder(service))
            .store_factory(move |user: &usize| Arc::new(rows[*user].clone()))
            .build()
            .unwrap();
        for user in 0..200 {
            sessions.sign_in(user, pair(1)).await.unwrap();
        }
        sessions.recheck_all();
        let (start, mut total, mut looks) = (Instant::now(), 0, Vec::new());
        while start.elapsed() < MINUTE {
            stores.iter().for_each(FaultyStore::clear_calls);
            for user in 0..200 {
                sessions.get(&user).await.unwrap();
            }
            settle().await;
            let now: usize = stores.iter().map(|store| store.count(StoreCall::Load)).sum();
            total += now;
            looks.push(now);
            sleep(SECOND / 20).await;
        }
        assert_eq!(looks[0], 200, "those of `recheck_all`");
        let busiest = looks[looks.len() / 2..].iter().max().unwrap();
        assert!(*busiest <= 80, "{busiest} of 200 at one moment after half a minute");
        assert!(total <= 200 * 36, "{total} looks in a minute");
    }
}

mod recheck_all {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn makes_the_next_look_up_wait_for_a_look() {
        let (a, _, shared) = fleet().await;
        sign_out_elsewhere(&shared).await;
        assert!(a.get().await.is_some());
        a.sessions.recheck_all();
        settle().await;
        assert_eq!(a.loads(), 0, "nothing is read before a look-up");
        assert!(a.get().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn is_not_satisfied_by_a_look_that_began_before_it() {
        let (a, _, shared) = fleet().await;
        a.store.inject(StoreCall::Load, StoreFault::delay(SECOND).after_effect().times(1));
        a.changed().await;
        sign_out_elsewhere(&shared).await;
        a.sessions.recheck_all();
        sleep(2 * SECOND).await;
        assert!(a.get().await.is_none());
        assert_eq!(a.loads(), 3, "two looks, and a load");
    }

    #[tokio::test(start_paused = true)]
    async fn applies_to_a_session_that_is_being_loaded() {
        let shared = shared_store();
        let a = Replica::of(&shared);
        sign_in_elsewhere(&shared, pair(1)).await;
        a.store.inject(StoreCall::Load, StoreFault::delay(SECOND).after_effect().times(1));
        let found = tokio::spawn({
            let sessions = a.sessions.clone();
            async move { sessions.get(&USER).await.unwrap() }
        });
        settle().await;
        sign_out_elsewhere(&shared).await;
        a.sessions.recheck_all();
        drop(found.await.unwrap());
        assert!(a.get().await.is_none());
    }
}

mod peek {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn returns_the_state_the_generation_and_the_expiry() {
        let shared = shared_store();
        let a = Replica::of(&shared);
        assert!(a.sessions.peek(&USER).is_none());
        let expires_at = SystemTime::now() + MINUTE;
        let session = a.sessions.sign_in(USER, pair(1).with_expires_at(expires_at)).await.unwrap();
        let status = a.sessions.peek(&USER).unwrap();
        assert_eq!(*status.state(), SessionState::Active);
        assert_eq!(status.generation(), session.generation());
        assert_eq!(status.expires_at(), Some(expires_at));
        session.sign_out().await.unwrap();
        let status = a.sessions.peek(&USER).unwrap();
        assert_eq!((status.state(), status.expires_at()), (&SessionState::SignedOut, None));
    }

    #[tokio::test(start_paused = true)]
    async fn loads_nothing() {
        let (a, _, shared) = fleet().await;
        sleep(60 * MINUTE).await;
        assert!(a.sessions.peek(&USER).is_some());
        let b = Replica::of(&shared);
        assert!(b.sessions.peek(&USER).is_none());
        settle().await;
        assert_eq!((a.loads(), b.loads()), (0, 0));
    }

    /// Polls the session's status every second, and returns the time until it is no longer in memory.
    async fn lifetime_of(replica: &Replica, each_second: impl Fn(&SessionRegistry<u32>)) -> Duration {
        let start = Instant::now();
        while replica.sessions.peek(&USER).is_some_and(|status| status.state().is_signed_in()) {
            each_second(&replica.sessions);
            sleep(SECOND).await;
            assert!(start.elapsed() < 10 * MINUTE, "kept alive");
        }
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn every_second_does_not_keep_a_durable_session_in_memory() {
        let (a, _, shared) = fleet_with(|builder| builder.idle_timeout(MINUTE)).await;
        let lifetime = lifetime_of(&a, |_| ()).await;
        assert!((MINUTE..=MINUTE * 5 / 4 + SECOND).contains(&lifetime), "{lifetime:?}");
        assert!(stored(&shared).await.is_some(), "only evicted");
    }

    #[tokio::test(start_paused = true)]
    async fn every_second_does_not_keep_a_user_signed_in() {
        let a = Replica::over(shared_store(), |builder| builder.idle_timeout(MINUTE));
        a.sessions.sign_in(USER, pair(1)).await.unwrap();
        let lifetime = lifetime_of(&a, |_| ()).await;
        assert!((MINUTE..=MINUTE * 5 / 4 + SECOND).contains(&lifetime), "{lifetime:?}");
        assert_eq!(*a.revoked.lock().unwrap(), [pair(1)]);
    }

    /// A look is under way during every other sweep.
    #[tokio::test(start_paused = true)]
    async fn and_changes_every_second_do_not_keep_a_session_in_memory() {
        let (a, _, _) = fleet_with(|builder| builder.idle_timeout(MINUTE)).await;
        a.store.inject(StoreCall::Load, StoreFault::delay(SECOND * 3 / 10));
        let lifetime = lifetime_of(&a, |sessions| sessions.changed(&USER)).await;
        assert!(lifetime >= MINUTE, "{lifetime:?}");
    }
}

mod a_single_session {
    use super::*;

    async fn session_on(shared: &FaultyStore) -> (Session, FaultyStore) {
        let store = FaultyStore::new(shared.clone()).yielding().durable();
        let (service, _auth): (_, AuthCalls) = script();
        let session = Session::builder(service).store(store.clone()).tokens(pair(1)).build().await.unwrap();
        store.clear_calls();
        (session, store)
    }

    #[tokio::test(start_paused = true)]
    async fn can_be_rechecked_by_hand() {
        let shared = shared_store();
        let (session, store) = session_on(&shared).await;
        session.recheck().await.unwrap();
        assert_eq!((session.state(), session.tokens()), (SessionState::Active, pair(1)));
        refresh_elsewhere(&shared, pair(2)).await;
        session.recheck().await.unwrap();
        assert_eq!(session.tokens(), pair(2));
        sign_out_elsewhere(&shared).await;
        session.recheck().await.unwrap();
        assert_eq!(session.state(), SessionState::SignedOut);
        sign_in_elsewhere(&shared, pair(3)).await;
        session.recheck().await.unwrap();
        assert_eq!((session.state(), session.tokens()), (SessionState::Active, pair(3)));
        assert_eq!(store.count(StoreCall::Load), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn reports_that_its_store_fails_and_changes_nothing() {
        for fault in [StoreFault::fail(), StoreFault::hang(), StoreFault::panic()] {
            let shared = shared_store();
            let (session, store) = session_on(&shared).await;
            sign_out_elsewhere(&shared).await;
            store.inject(StoreCall::Load, fault);
            let start = Instant::now();
            let errors = join_all((0..10).map(|_| session.recheck())).await;
            assert!(start.elapsed() <= 2 * STORE_TIMEOUT + SECOND);
            for error in errors.into_iter().map(Result::unwrap_err) {
                assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Store, false));
            }
            assert!(store.count(StoreCall::Load) <= 2, "shared by all callers");
            assert_eq!(session.state(), SessionState::Active);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn completes_a_recheck_whose_caller_is_dropped() {
        let shared = shared_store();
        let (session, _store) = session_on(&shared).await;
        sign_out_elsewhere(&shared).await;
        assert!(session.recheck().now_or_never().is_none());
        settle().await;
        assert_eq!(session.state(), SessionState::SignedOut);
    }

    #[test]
    fn reports_that_its_runtime_has_shut_down() {
        let build = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (first, second) = (build(), build());
        let (session, store) = first.block_on(session_on(&shared_store()));
        // A look is under way.
        store.inject(StoreCall::Load, StoreFault::hang());
        let waiting = session.clone();
        let waiting = second.spawn(async move { waiting.recheck().await });
        second.block_on(settle());
        first.block_on(settle());
        drop(first);
        for error in [second.block_on(waiting).unwrap(), second.block_on(session.recheck())].map(Result::unwrap_err) {
            assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Runtime, false));
        }
        assert_eq!(session.state(), SessionState::Active);
    }
}
