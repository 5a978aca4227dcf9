//! The session's thread: its end, callers on async runtimes and on the thread itself.

use std::future::pending;
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::time::Instant;

use futures_util::FutureExt;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};

use super::*;

/// Starts a refresh that no caller waits for.
fn start_refresh(session: &Session) {
    let refused = session.credential().unwrap();
    session.block_on(async { assert!(session.as_async().renewed(&refused).now_or_never().is_none()) });
}

/// Waits for a call of the refresh service, without a session.
fn next(auth: &mut AuthCalls) -> Call<RefreshRequest, Tokens, RefreshError> {
    Builder::new_current_thread().enable_time().build().unwrap().block_on(auth.next())
}

fn stored(store: &FaultyStore) -> Option<Tokens> {
    store.tokens().now_or_never().expect("a store in memory")
}

/// A value that lives as long as the session's runtime.
fn held_by_the_runtime(session: &Session) -> Weak<()> {
    let held = Arc::new(());
    let weak = Arc::downgrade(&held);
    session.block_on(async {
        tokio::spawn(async move {
            pending::<()>().await;
            drop(held);
        });
    });
    weak
}

#[test]
fn the_drop_of_the_last_handle_ends_the_thread() {
    let (session, _auth) = signed_in();
    let (held, clone) = (held_by_the_runtime(&session), session.clone());
    drop(session);
    assert!(held.upgrade().is_some() && token_in_force(&clone) == "a1");
    drop(clone);
    assert!(held.upgrade().is_none());
}

#[test]
fn a_clone_for_async_code_does_not_keep_the_thread() {
    let (session, _auth) = signed_in();
    let (asynchronous, held) = (session.as_async().clone(), held_by_the_runtime(&session));
    drop(session);
    assert!(held.upgrade().is_none());
    let late = Builder::new_current_thread().build().unwrap().block_on(asynchronous.sign_in(pair(2)));
    assert_eq!(late.unwrap_err().kind(), SessionErrorKind::Runtime);
}

#[test]
fn the_drop_waits_for_a_refresh_under_way_whose_tokens_are_stored() {
    let store = faulty_store();
    let (session, mut auth) = started(|builder| builder.tokens(pair(1)).store(store.clone()));
    let held = held_by_the_runtime(&session);
    start_refresh(&session);
    let call = next(&mut auth);
    os::scope(|scope| {
        let dropping = scope.spawn(move || drop(session));
        assert!(!dropping.is_finished() && held.upgrade().is_some());
        call.answer(Ok(pair(2)));
        dropping.join().unwrap();
    });
    assert!(held.upgrade().is_none());
    assert_eq!(stored(&store), Some(pair(2)));
}

#[test]
fn the_drop_tries_once_more_to_store_tokens_that_the_store_has_refused() {
    let store = faulty_store();
    let (session, auth) = started(|builder| builder.tokens(pair(1)).store(store.clone()));
    auth.serve_in(&session, |_| Ok(pair(2)));
    // The store is repaired while the background task pauses for a second.
    store.inject(StoreCall::Commit, StoreFault::fail());
    assert_eq!(session.refresh().unwrap(), pair(2));
    while store.count(StoreCall::Commit) < 2 {
        os::yield_now();
    }
    store.clear_faults();
    drop(session);
    assert_eq!(stored(&store), Some(pair(2)));
}

#[test]
fn the_drop_waits_no_longer_than_the_sessions_deadline() {
    let store = faulty_store();
    let (session, mut auth) = started(|builder| builder.tokens(pair(1)).store(store.clone()));
    start_refresh(&session);
    let call = next(&mut auth);
    // Seconds of the session's runtime pass at once from here on, unless it has something to do.
    store.inject_any(StoreFault::hang());
    session.block_on(async { tokio::time::pause() });
    let begun = Instant::now();
    drop(session);
    assert!(begun.elapsed() < Duration::from_secs(20));
    drop(call);
}

#[test]
fn the_drop_on_the_sessions_own_thread_waits_for_nothing() {
    struct Ended(mpsc::Sender<()>);
    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let (session, _auth) = signed_in();
    let (ended, end) = mpsc::channel();
    let (give, given) = oneshot::channel::<Session>();
    session.block_on(async {
        tokio::spawn(async move {
            let ended = Ended(ended);
            drop(given.await);
            pending::<()>().await;
            drop(ended);
        });
    });
    give.send(session).unwrap();
    end.recv_timeout(Duration::from_secs(60)).expect("the runtime ends, and with it its tasks");
}

// Callers on async runtimes.

#[test]
fn a_caller_on_an_async_runtime_waits_and_gets_its_answer() {
    for runtime in [Builder::new_current_thread().build().unwrap(), Builder::new_multi_thread().build().unwrap()] {
        runtime.block_on(async {
            tokio::spawn(async {
                let (session, auth) = signed_in();
                auth.serve_in(&session, |_| Ok(pair(2)));
                let api = Api::accepting("a2");
                assert_eq!(send(&session, &api).unwrap(), 200);
                session.sign_out().unwrap();
            })
            .await
            .unwrap();
        });
    }
}

#[test]
fn a_caller_whose_task_has_used_up_its_budget_gets_its_answer() {
    let (session, auth) = signed_in();
    auth.serve_in(&session, |_| Ok(pair(2)));
    Builder::new_current_thread().build().unwrap().block_on(async {
        let semaphore = tokio::sync::Semaphore::new(1);
        while semaphore.acquire().now_or_never().is_some() {}
        assert_eq!(session.refresh().unwrap(), pair(2));
        session.sign_in(pair(3)).unwrap();
        assert!(session.block_on(semaphore.acquire()).is_ok());
    });
}

#[test]
fn a_future_may_borrow_use_timers_and_wait_for_another_session() {
    let ((outer, _auth), (inner, inner_auth)) = (signed_in(), signed_in());
    inner_auth.serve_in(&inner, |_| Ok(pair(2)));
    let mut log = Vec::new();
    outer.block_on(async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        log.push(inner.refresh().unwrap());
        tokio::time::sleep(Duration::from_millis(1)).await;
    });
    assert_eq!(log, [pair(2)]);
}

// Callers that would wait for themselves.

#[test]
fn a_call_on_the_sessions_own_thread_fails_at_once() {
    let (session, _auth) = started(|builder| builder.tokens(pair(1).with_expires_in(HOUR)));
    let held = session.credential().unwrap();
    let own = session.clone();
    let on_the_thread = async move {
        for why in [own.credential().unwrap_err(), own.renewed(&held).unwrap_err(), own.refresh().unwrap_err()] {
            assert!(root_cause(&why).contains("the session's own thread"), "{why:?}");
        }
        for error in [own.sign_in(pair(2)).unwrap_err(), own.sign_out().unwrap_err()] {
            assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Runtime, false));
        }
        let panic = catch_unwind(AssertUnwindSafe(|| own.block_on(async {}))).unwrap_err();
        panic.downcast::<String>().unwrap()
    };
    let message = session.block_on(async { tokio::spawn(on_the_thread).await.unwrap() });
    assert!(message.contains("the session's own thread"), "{message}");
    assert_eq!(token_in_force(&session), "a1");
    assert_eq!(session.as_async().state(), SessionState::Active);
}

#[test]
fn a_caller_is_answered_by_the_deadline_though_the_refresh_service_blocks_the_sessions_thread() {
    let (unblock, blocked) = mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let refresh = tower::service_fn(move |_: RefreshRequest| {
        let blocked = Arc::clone(&blocked);
        async move {
            let _ = blocked.lock().unwrap().recv();
            Ok::<_, RefreshError>(pair(2))
        }
    });
    let builder = tower_auth_refresh::Session::builder(refresh).tokens(pair(1));
    let builder = builder.refresh_timeout(Duration::from_millis(500));
    let session = Session::start(builder.build()).unwrap();
    // Dropped before the session, whose drop waits for its thread.
    let unblock = unblock;
    let begun = Instant::now();
    let why = session.refresh().unwrap_err();
    assert!(root_cause(&why).contains("the thread of the session is blocked"), "{why:?}");
    assert!((6..60).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    drop(unblock);
}
