//! The token API: tasks that hold credentials without the layer, and sliding tokens.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tower_auth_refresh::refresh::Trigger;
use tower_auth_refresh::session::SessionErrorKind;
use tower_auth_refresh::{Credential, NotRefreshed, RefreshError, RefreshReport, Session, SessionState, Tokens};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// The default refresh time-out.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The time that a caller waits for the store, beside the refresh time-out.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

type Renewing = JoinHandle<Result<Credential, NotRefreshed>>;

/// Asks for a newer credential in a new task.
fn renewed(session: &Session, refused: &Credential) -> Renewing {
    let (session, refused) = (session.clone(), refused.clone());
    tokio::spawn(async move { session.renewed(&refused).await })
}

/// Asks for a credential in a new task.
fn credential(session: &Session) -> Renewing {
    let session = session.clone();
    tokio::spawn(async move { session.credential().await })
}

/// The credential in force, which is returned at once.
fn in_force(session: &Session) -> Credential {
    session.credential().now_or_never().expect("a credential that needs no refresh").unwrap()
}

fn token(credential: &Credential) -> &str {
    credential.access_token().expose_secret()
}

/// Access token `a{n}` alone, as an API hands it out.
fn sliding(n: u32) -> Tokens {
    Tokens::from_access_token(access(&format!("a{n}")))
}

/// A session that was signed in with [`pair`]`(1)`, and its store.
async fn stored() -> (Fixture, FaultyStore) {
    let store = faulty_store();
    let it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    store.clear_calls();
    (it, store)
}

/// Another process on the same store.
async fn peer_on(store: &FaultyStore) -> Fixture {
    Fixture::with(|builder| builder.store(store.inner())).await
}

/// Refreshes a session from `pair(n)` to `pair(n + 1)`.
async fn refresh_from(it: &mut Fixture, n: u32) {
    let renewing = renewed(&it.session, &in_force(&it.session));
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), format!("r{n}"));
    refresh.answer(Ok(pair(n + 1)));
    assert_eq!(token(&renewing.await.unwrap().unwrap()), format!("a{}", n + 1));
}

// A credential that is worth sending.

#[tokio::test(start_paused = true)]
async fn a_token_in_force_is_returned_at_once_with_its_place_in_the_session() {
    let at = SystemTime::now() + HOUR;
    let mut it = Fixture::with(|builder| builder.tokens(pair(1).with_expires_at(at))).await;
    let held = in_force(&it.session);
    assert_eq!((token(&held), held.generation(), held.expires_at()), ("a1", it.session.generation(), Some(at)));
    assert!(it.auth.is_idle().await);
    assert!(!format!("{held:?}").contains("a1"), "{held:?}");
}

#[tokio::test(start_paused = true)]
async fn an_absent_an_expired_and_a_refused_token_are_refreshed_first() {
    let absent = Tokens::from_refresh_token(refresh("r1"));
    let expired = pair(1).with_expires_at(SystemTime::UNIX_EPOCH);
    for (tokens, trigger) in [(absent, Trigger::Acquire), (expired, Trigger::Early)] {
        let mut it = Fixture::with(|builder| builder.tokens(tokens)).await;
        let waiting: Vec<_> = (0..10).map(|_| credential(&it.session)).collect();
        let refresh = it.auth.next().await;
        assert_eq!(refresh.request.trigger(), trigger);
        refresh.answer(Ok(pair(2)));
        for waiting in waiting {
            assert_eq!(token(&waiting.await.unwrap().unwrap()), "a2");
        }
        assert!(it.auth.is_idle().await);
    }

    // Refused: the refresh that the refusal caused has failed, and the cool-down is over.
    let mut it = Fixture::new().await;
    let renewing = renewed(&it.session, &in_force(&it.session));
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no such client")));
    assert!(matches!(renewing.await.unwrap(), Err(NotRefreshed::Failed(_))));
    sleep(2 * SECOND).await;
    let waiting = credential(&it.session);
    it.auth.next().await.answer(Ok(pair(2)));
    assert_eq!(token(&waiting.await.unwrap().unwrap()), "a2");
}

#[tokio::test(start_paused = true)]
async fn while_refreshes_fail_an_expired_token_is_returned_all_the_same_and_a_refused_one_is_not() {
    let mut it = Fixture::with(|builder| builder.tokens(pair(1).with_expires_at(SystemTime::UNIX_EPOCH))).await;
    let waiting = credential(&it.session);
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no such client")));
    let expired = waiting.await.unwrap().unwrap();
    assert_eq!(token(&expired), "a1");
    // In the cool-down it is returned without a wait.
    assert_eq!(in_force(&it.session), expired);

    sleep(2 * SECOND).await;
    let renewing = renewed(&it.session, &expired);
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no such client")));
    assert!(matches!(renewing.await.unwrap(), Err(NotRefreshed::Failed(_))));
    let refused = it.session.credential().now_or_never().unwrap();
    assert!(matches!(refused, Err(NotRefreshed::CoolingDown(_))), "{refused:?}");
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn without_a_user_or_a_refresh_token_the_reason_is_returned() {
    let it = Fixture::with(|builder| builder).await;
    assert!(matches!(it.session.credential().await, Err(NotRefreshed::SignedOut)));
    let it = Fixture::with(|builder| builder.tokens(sliding(1))).await;
    let held = in_force(&it.session);
    assert!(matches!(it.session.renewed(&held).await, Err(NotRefreshed::NoRefreshToken)));
}

// Newer credentials than a refused one.

#[tokio::test(start_paused = true)]
async fn a_thousand_tasks_that_are_refused_at_once_share_one_refresh() {
    let mut it = Fixture::new().await;
    let held = join_all((0..1000).map(|_| credential(&it.session))).await;
    let renewing: Vec<_> = held.into_iter().map(|held| renewed(&it.session, &held.unwrap().unwrap())).collect();
    let refresh = it.auth.next().await;
    assert_eq!((refresh.presented(), refresh.request.trigger()), ("r1", Trigger::Challenge));
    assert!(it.auth.is_idle().await);
    refresh.answer(Ok(pair(2)));
    for renewing in renewing {
        let newer = renewing.await.unwrap().unwrap();
        assert_eq!((token(&newer), newer.generation().get()), ("a2", 2));
    }
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn tasks_and_requests_that_are_refused_at_once_share_one_refresh() {
    let mut it = Fixture::new().await;
    let held = in_force(&it.session);
    let response = it.get_refused().await;
    let renewing = renewed(&it.session, &held);
    it.auth.next().await.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
    assert_eq!(token(&renewing.await.unwrap().unwrap()), "a2");
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_late_refusal_of_an_older_token_returns_the_newer_one_at_once() {
    let mut it = Fixture::new().await;
    let oldest = in_force(&it.session);
    for n in 1..5 {
        refresh_from(&mut it, n).await;
    }
    let newer = it.session.renewed(&oldest).now_or_never().expect("no wait").unwrap();
    assert_eq!((token(&newer), newer.generation().get()), ("a5", 5));
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn dropping_every_caller_neither_cancels_nor_repeats_the_refresh() {
    let mut it = Fixture::new().await;
    let held = in_force(&it.session);
    let renewing: Vec<_> = (0..10).map(|_| renewed(&it.session, &held)).collect();
    let refresh = it.auth.next().await;
    for renewing in renewing {
        renewing.abort();
        assert!(renewing.await.unwrap_err().is_cancelled());
    }
    settle().await;
    refresh.answer(Ok(pair(2)));
    settle().await;
    assert_eq!(it.session.tokens(), pair(2));
    assert_eq!(token(&it.session.renewed(&held).now_or_never().unwrap().unwrap()), "a2");
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_dropped_before_its_first_poll_causes_no_refresh() {
    let mut it = Fixture::new().await;
    let held = in_force(&it.session);
    drop(it.session.renewed(&held));
    assert!(it.auth.is_idle().await);
    assert_eq!(in_force(&it.session), held);
}

#[tokio::test(start_paused = true)]
async fn every_caller_is_answered_by_its_deadline() {
    for refused in [false, true] {
        let tokens = if refused { pair(1) } else { Tokens::from_refresh_token(refresh("r1")) };
        let mut it = Fixture::with(|builder| builder.tokens(tokens)).await;
        let begun = Instant::now();
        let waiting = if refused { renewed(&it.session, &in_force(&it.session)) } else { credential(&it.session) };
        let _unanswered = it.auth.next().await;
        let why = waiting.await.unwrap().unwrap_err();
        assert!(matches!(why, NotRefreshed::Failed(_)), "{why:?}");
        let waited = begun.elapsed();
        assert!(TIMEOUT <= waited && waited <= TIMEOUT + STORE_TIMEOUT + SECOND, "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_sign_in_or_sign_out_a_waiting_caller_gets_no_token_of_another_user() {
    for signs_in in [true, false] {
        let mut it = Fixture::new().await;
        let held = in_force(&it.session);
        let renewing = renewed(&it.session, &held);
        let refresh = it.auth.next().await;
        // Waits because the token in force is refused.
        let waiting = credential(&it.session);
        settle().await;
        if signs_in {
            it.session.sign_in(pair(5)).await.unwrap();
        } else {
            it.session.sign_out().await.unwrap();
        }
        for caller in [renewing, waiting] {
            let why = caller.await.unwrap().unwrap_err();
            assert!(matches!(why, NotRefreshed::SessionChanged), "{why:?}");
        }
        refresh.answer(Ok(pair(2)));
        settle().await;
        let expected = if signs_in { pair(5) } else { Tokens::default() };
        assert_eq!(it.session.tokens(), expected);

        // A credential of the sign-in before is refused at once, and says nothing about this one.
        let why = it.session.renewed(&held).now_or_never().unwrap().unwrap_err();
        assert!(matches!(why, NotRefreshed::SessionChanged), "{why:?}");
        it.session.accepted(&held);
        assert!(it.auth.is_idle().await);
        if signs_in {
            assert_ne!(in_force(&it.session).epoch(), held.epoch());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_says_so_to_every_caller() {
    let mut it = Fixture::new().await;
    let held = in_force(&it.session);
    let renewing: Vec<_> = (0..3).map(|_| renewed(&it.session, &held)).collect();
    it.auth.next().await.answer(Err(RefreshError::rejected("revoked")));
    for renewing in renewing {
        assert!(matches!(renewing.await.unwrap(), Err(NotRefreshed::Ended(_))));
    }
    assert!(matches!(it.session.renewed(&held).await, Err(NotRefreshed::Ended(_))));
    assert!(matches!(it.session.credential().await, Err(NotRefreshed::Ended(_))));
    assert!(it.session.state().is_ended());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_issues_the_refused_token_again_causes_no_loop() {
    let mut it = Fixture::new().await;
    let renewing = renewed(&it.session, &in_force(&it.session));
    it.auth.next().await.answer(Ok(Tokens::new(access("a1"), refresh("r2"))));
    assert!(matches!(renewing.await.unwrap(), Err(NotRefreshed::SameToken)));
    assert!(it.auth.is_idle().await);
    assert_eq!(it.session.tokens().refresh_token(), Some(&refresh("r2")));
}

/// Answers every refresh with the next tokens, and returns the times of the refreshes.
fn serve_fresh_tokens(auth: AuthCalls) -> Arc<Mutex<Vec<Instant>>> {
    let refreshes = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&refreshes);
    auth.serve(move |_| {
        let mut log = log.lock().unwrap();
        log.push(Instant::now());
        Ok(pair(u32::try_from(log.len()).unwrap() + 1))
    });
    refreshes
}

#[tokio::test(start_paused = true)]
async fn an_api_that_refuses_every_credential_causes_at_most_75_refreshes_in_any_hour() {
    let it = Fixture::new().await;
    let refreshes = serve_fresh_tokens(it.auth);
    let end = Instant::now() + 2 * HOUR;
    let mut held = in_force(&it.session);
    let mut was_looping = false;
    while Instant::now() < end {
        match it.session.renewed(&held).await {
            Ok(newer) => held = newer,
            Err(why) => {
                was_looping |= matches!(why, NotRefreshed::Looping);
                sleep(SECOND / 4).await;
            }
        }
        // A task that starts anew each time is bounded too.
        if let Ok(newer) = it.session.credential().await {
            held = newer;
        }
    }
    assert!(was_looping);
    let refreshes = refreshes.lock().unwrap();
    let in_the_hour_from = |first: Instant| refreshes.iter().filter(|at| (first..first + HOUR).contains(at)).count();
    let busiest = refreshes.iter().copied().map(in_the_hour_from).max().unwrap();
    assert!(busiest <= 75, "{busiest} refreshes in an hour");
    // The guard slows refreshes down, it doesn't stop them.
    assert!(refreshes.len() > 80, "{} refreshes in two hours", refreshes.len());
}

#[tokio::test(start_paused = true)]
async fn tokens_that_live_for_seconds_cause_no_cool_down_if_their_acceptance_is_reported() {
    for reported in [true, false] {
        let it = Fixture::new().await;
        let refreshes = serve_fresh_tokens(it.auth);
        let mut held = in_force(&it.session);
        let mut failed = 0;
        for _ in 0..100 {
            if reported {
                it.session.accepted(&held);
            }
            sleep(10 * SECOND).await;
            match it.session.renewed(&held).await {
                Ok(newer) => held = newer,
                Err(_) => failed += 1,
            }
        }
        assert_eq!(failed == 0, reported, "{failed} failed");
        assert_eq!(refreshes.lock().unwrap().len() == 100, reported);
    }
}

#[tokio::test(start_paused = true)]
async fn a_credential_of_another_session_on_the_same_sign_in_is_told_apart_by_its_token() {
    let (mut one, store) = stored().await;
    let oldest = in_force(&one.session);
    for n in 1..5 {
        refresh_from(&mut one, n).await;
    }
    let newest = in_force(&one.session);
    // Loaded anew, as after an eviction: it counts its generations from 1.
    let mut two = peer_on(&store).await;
    assert_eq!((newest.generation().get(), two.session.generation().get()), (5, 1));

    let late = two.session.renewed(&oldest).now_or_never().expect("no wait").unwrap();
    assert_eq!(token(&late), "a5");
    two.session.renew(&oldest, sliding(2)).await.unwrap();
    assert_eq!(two.session.tokens(), pair(5));

    two.session.accepted(&newest);
    let renewing = renewed(&two.session, &newest);
    let refresh = two.auth.next().await;
    assert_eq!(refresh.presented(), "r5");
    refresh.answer(Ok(pair(6)));
    assert_eq!(token(&renewing.await.unwrap().unwrap()), "a6");
    assert!(two.auth.is_idle().await);
}

// Sliding tokens.

#[tokio::test(start_paused = true)]
async fn a_sliding_token_is_the_next_generation_of_the_same_sign_in_and_is_stored() {
    let (mut it, store) = stored().await;
    let (first, record) = (in_force(&it.session), store.record().await.unwrap());
    let mut states = it.session.subscribe();
    it.session.renew(&first, sliding(2).with_expires_in(HOUR)).await.unwrap();
    let second = in_force(&it.session);
    assert_eq!((token(&second), second.epoch()), ("a2", first.epoch()));
    assert_eq!(second.generation().get(), first.generation().get() + 1);
    assert!(second.expires_at().is_some());
    assert_eq!(it.session.tokens().refresh_token(), Some(&refresh("r1")), "kept, as the API omits it");
    let written = store.record().await.unwrap();
    assert_eq!((written.epoch(), written.generation()), (record.epoch(), record.generation() + 1));
    assert_eq!(*written.tokens(), it.session.tokens());
    assert!(!states.has_changed().unwrap() && *states.borrow_and_update() == SessionState::Active);

    // A refresh goes on from there.
    let renewing = renewed(&it.session, &second);
    let call = it.auth.next().await;
    assert_eq!(call.presented(), "r1");
    assert_eq!(call.request.tokens().access_token(), Some(&access("a2")));
    call.answer(Ok(pair(3)));
    assert_eq!(token(&renewing.await.unwrap().unwrap()), "a3");
    assert_eq!(store.record().await.unwrap().generation(), record.generation() + 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_under_way_that_is_refused_with_the_older_token_is_replayed_with_the_sliding_one() {
    let (mut it, _) = stored().await;
    let response = it.get();
    let call = it.api.next().await;
    assert_eq!(call.token(), Some("a1"));
    it.session.renew(&in_force(&it.session), sliding(2)).await.unwrap();
    call.reply(401).await;
    it.api.reply(1, "a2", 200).await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(matches!(report(&response), RefreshReport::Replayed));
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_sliding_token_to_an_older_credential_is_ignored() {
    let (mut it, store) = stored().await;
    let oldest = in_force(&it.session);
    refresh_from(&mut it, 1).await;
    let record = store.record().await;
    it.session.renew(&oldest, sliding(7)).await.unwrap();
    assert_eq!(it.session.tokens(), pair(2));
    assert_eq!(store.record().await, record);
    // Of many responses with the same credential, the first counts.
    let current = in_force(&it.session);
    for n in 3..6 {
        it.session.renew(&current, sliding(n)).await.unwrap();
    }
    assert_eq!(token(&in_force(&it.session)), "a3");
    // It waits for no refresh either: none is about to replace it.
    let renewing = renewed(&it.session, &in_force(&it.session));
    let call = it.auth.next().await;
    tokio::time::timeout(SECOND, it.session.renew(&current, sliding(7))).await.unwrap().unwrap();
    call.answer(Ok(pair(4)));
    assert_eq!(token(&renewing.await.unwrap().unwrap()), "a4");
}

#[tokio::test(start_paused = true)]
async fn a_sliding_token_during_a_refresh_is_ignored_if_the_refresh_succeeds_and_counts_if_it_fails() {
    for succeeds in [true, false] {
        let (mut it, store) = stored().await;
        let current = in_force(&it.session);
        let refreshing = tokio::spawn({
            let session = it.session.clone();
            async move { session.refresh().await }
        });
        let call = it.auth.next().await;
        let renewing = tokio::spawn({
            let session = it.session.clone();
            async move { session.renew(&current, sliding(7)).await }
        });
        settle().await;
        assert_eq!(it.session.tokens(), pair(1), "the refresh under way presents r1");
        call.answer(if succeeds { Ok(pair(2)) } else { Err(RefreshError::misconfigured("no such client")) });
        renewing.await.unwrap().unwrap();
        assert_eq!(refreshing.await.unwrap().is_ok(), succeeds);
        let expected = if succeeds { pair(2) } else { Tokens::new(access("a7"), refresh("r1")) };
        assert_eq!(it.session.tokens(), expected);
        let record = store.record().await.unwrap();
        assert_eq!((record.tokens(), record.generation()), (&expected, 2));
        assert!(it.auth.is_idle().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sliding_token_answers_the_callers_that_were_refused() {
    let mut it = Fixture::new().await;
    let held = in_force(&it.session);
    let renewing = renewed(&it.session, &held);
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no such client")));
    assert!(renewing.await.unwrap().is_err());
    it.session.renew(&held, sliding(2)).await.unwrap();
    assert_eq!(token(&it.session.renewed(&held).now_or_never().unwrap().unwrap()), "a2");
    assert_eq!(it.session.state(), SessionState::Active);
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_down_a_sliding_token_is_in_force_and_written_later() {
    let (mut it, store) = stored().await;
    let record = store.record().await.unwrap();
    store.inject_any(StoreFault::fail());
    let error = it.session.renew(&in_force(&it.session), sliding(2)).await.unwrap_err();
    assert!(error.took_effect() && error.kind() == SessionErrorKind::Store, "{error:?}");
    assert_eq!(token(&in_force(&it.session)), "a2");
    // The next one replaces it, unwritten.
    it.session.renew(&in_force(&it.session), sliding(3)).await.unwrap_err();
    assert_eq!(store.record().await, Some(record.clone()));
    store.clear_faults();
    sleep(120 * SECOND).await;
    let written = store.record().await.unwrap();
    assert_eq!((written.epoch(), written.generation()), (record.epoch(), record.generation() + 2));
    assert_eq!(*written.tokens(), it.session.tokens());
    assert_eq!(token(&in_force(&it.session)), "a3");
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn another_process_adopts_a_sliding_token_without_a_call() {
    let (mut one, store) = stored().await;
    let mut two = peer_on(&store).await;
    let held = in_force(&two.session);
    one.session.renew(&in_force(&one.session), sliding(2)).await.unwrap();
    let newer = two.session.renewed(&held).await.unwrap();
    assert_eq!((token(&newer), newer.epoch()), ("a2", held.epoch()));
    assert!(one.auth.is_idle().await && two.auth.is_idle().await);
    assert_eq!(two.session.tokens(), one.session.tokens());
    // The first process adopts what the second refreshes.
    let held = in_force(&one.session);
    let renewing = renewed(&two.session, &newer);
    two.auth.next().await.answer(Ok(pair(3)));
    assert_eq!(token(&renewing.await.unwrap().unwrap()), "a3");
    assert_eq!(token(&one.session.renewed(&held).await.unwrap()), "a3");
    assert!(one.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn of_two_processes_with_sliding_tokens_of_the_same_generation_one_adopts_the_other() {
    let (one, store) = stored().await;
    let two = peer_on(&store).await;
    one.session.renew(&in_force(&one.session), sliding(2)).await.unwrap();
    two.session.renew(&in_force(&two.session), sliding(3)).await.unwrap();
    let record = store.record().await.unwrap();
    assert_eq!((record.generation(), record.tokens()), (2, &two.session.tokens()));
    assert_eq!(two.session.tokens(), one.session.tokens());
}

#[tokio::test(start_paused = true)]
async fn the_same_token_again_changes_nothing_and_is_not_written() {
    let (it, store) = stored().await;
    let current = in_force(&it.session);
    it.session.renew(&current, sliding(1)).await.unwrap();
    it.session.renew(&current, pair(1)).await.unwrap();
    assert_eq!(in_force(&it.session), current);
    assert_eq!(store.calls(), []);
}

#[tokio::test(start_paused = true)]
async fn a_sliding_token_of_another_sign_in_is_ignored() {
    let (it, store) = stored().await;
    let before = in_force(&it.session);
    it.session.sign_in(pair(5)).await.unwrap();
    let record = store.record().await;
    it.session.renew(&before, sliding(2)).await.unwrap();
    assert_eq!((it.session.tokens(), store.record().await), (pair(5), record));

    let before = in_force(&it.session);
    it.session.sign_out().await.unwrap();
    it.session.renew(&before, sliding(2)).await.unwrap();
    assert_eq!((it.session.state(), it.session.tokens()), (SessionState::SignedOut, Tokens::default()));
    assert_eq!(store.record().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_beats_a_sliding_token_that_is_being_written() {
    let (it, store) = stored().await;
    let gate = store.hold(StoreCall::Commit);
    let renewing = tokio::spawn({
        let (session, current) = (it.session.clone(), in_force(&it.session));
        async move { session.renew(&current, sliding(2)).await }
    });
    gate.arrived(1).await;
    let signing_out = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_out().await }
    });
    settle().await;
    assert_eq!(it.session.state(), SessionState::SignedOut);
    gate.open();
    let _ = renewing.await.unwrap();
    signing_out.await.unwrap().unwrap();
    assert_eq!(store.record().await, None);
}

#[tokio::test(start_paused = true)]
async fn tokens_without_an_access_token_are_no_sliding_tokens() {
    let (it, store) = stored().await;
    let current = in_force(&it.session);
    for empty in [Tokens::default(), Tokens::from_refresh_token(refresh("r2"))] {
        let error = it.session.renew(&current, empty).await.unwrap_err();
        assert!(!error.took_effect() && error.kind() == SessionErrorKind::NoTokens, "{error:?}");
    }
    assert_eq!((it.session.tokens(), store.calls()), (pair(1), vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_sliding_token_whose_caller_is_dropped_is_stored_all_the_same() {
    let (it, store) = stored().await;
    let current = in_force(&it.session);
    assert!(it.session.renew(&current, sliding(2)).now_or_never().is_none());
    settle().await;
    assert_eq!(token(&in_force(&it.session)), "a2");
    assert_eq!(store.tokens().await, Some(it.session.tokens()));
}
