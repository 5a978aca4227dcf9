//! A store that has gone back in time: a failover or a restored backup has lost its last writes, and claims.
//!
//! An older refresh token is never presented, nor an older token adopted, where a newer one of the same epoch is known.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tower_auth_refresh::store::{ClaimOutcome, CommitOutcome, Entry, Record};
use tower_auth_refresh::{NotRefreshed, RefreshError, RefreshErrorKind, SessionState, Tokens};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};

use crate::stores::{FAILURES, LOST_ANSWERS, is_unavailable, peer_on, stored};
use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A session that has refreshed to [`pair`]`(4)`, its store, and the record of each generation, the first one first.
async fn four_generations() -> (Fixture, FaultyStore, Vec<Record>) {
    let (mut it, store) = stored().await;
    let mut records = vec![store.record().await.unwrap()];
    for n in 1..=3 {
        it.refreshes_from(n, false).await;
        records.push(store.record().await.unwrap());
    }
    let generations: Vec<_> = records.iter().map(Record::generation).collect();
    assert_eq!(generations, [1, 2, 3, 4]);
    store.clear_calls();
    (it, store, records)
}

/// [`four_generations`], after the store has gone back to the second one. `is_pending`: the session has noticed it, and
/// the write over the older record is still to be made.
async fn gone_back(is_pending: bool) -> (Fixture, FaultyStore, Vec<Record>) {
    let (mut it, store, records) = four_generations().await;
    store.rewind(Some(records[1].clone())).await;
    if is_pending {
        let _claim = store.claim_as_peer(10 * MINUTE).await;
        it.get_refused().await.await.unwrap();
    }
    (it, store, records)
}

/// Asserts that the store holds [`pair`]`(n)`, the tokens of generation `n`.
async fn assert_stored(store: &FaultyStore, n: u32) {
    let record = store.record().await.unwrap();
    assert_eq!((record.generation(), record.tokens()), (u64::from(n), &pair(n)));
}

#[tokio::test(start_paused = true)]
async fn an_older_record_that_is_found_by_a_claim_is_written_over_and_the_newest_token_presented() {
    for generations_lost in 1..=3 {
        let (mut it, store, records) = four_generations().await;
        store.rewind(Some(records[3 - generations_lost].clone())).await;
        // Requests don't read the store.
        it.sends(4).await;
        assert_eq!(it.session.tokens(), pair(4));

        let response = it.get_refused().await;
        let refresh = it.auth.next().await;
        assert_eq!(refresh.presented(), "r4", "{generations_lost} generations lost");
        // Before the token is presented, the store holds it again.
        assert_stored(&store, 4).await;
        refresh.answer(Ok(pair(5)));
        it.accepts(response, 5).await;
        assert_stored(&store, 5).await;
        it.refreshes_from(5, false).await;
        assert_stored(&store, 6).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_record_that_is_found_by_a_commit_is_written_over() {
    for generations_lost in 0..=3 {
        let (mut it, store, records) = four_generations().await;
        let response = it.get_refused().await;
        let refresh = it.auth.next().await;
        assert_eq!(refresh.presented(), "r4");
        store.rewind(Some(records[3 - generations_lost].clone())).await;
        refresh.answer(Ok(pair(5)));
        it.accepts(response, 5).await;
        assert_eq!(it.session.state(), SessionState::Active);
        // In the background.
        settle().await;
        assert_stored(&store, 5).await;
        it.refreshes_from(5, false).await;
        assert_stored(&store, 6).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_goes_back_repeatedly_makes_no_session_present_an_older_token() {
    let (mut it, store, records) = four_generations().await;
    for n in 4..10 {
        store.rewind(Some(records[n as usize % 4].clone())).await;
        let response = it.get_refused().await;
        let refresh = it.auth.next().await;
        assert_eq!(refresh.presented(), format!("r{n}"));
        store.rewind(Some(records[(n as usize + 1) % 4].clone())).await;
        refresh.answer(Ok(pair(n + 1)));
        it.accepts(response, n + 1).await;
        settle().await;
        assert_stored(&store, n + 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_waits_for_the_claim_of_another_process_on_an_older_record() {
    for committed in [Some(4), Some(2), None] {
        let (mut it, store, records) = four_generations().await;
        store.rewind(Some(records[0].clone())).await;
        let claim = store.claim_as_peer(20 * SECOND).await;
        let response = it.get_refused().await;
        assert!(it.auth.is_idle().await);
        // It writes the same tokens back, or its own, or dies.
        if let Some(n) = committed {
            let entry = Entry::new(records[0].epoch(), n, records[usize::try_from(n).unwrap() - 1].tokens().clone());
            assert!(matches!(store.inner().commit(&claim, &entry).await.unwrap(), CommitOutcome::Stored(_)));
        }
        let refresh = it.auth.next().await;
        assert_eq!(refresh.presented(), "r4", "{committed:?}");
        assert_stored(&store, 4).await;
        refresh.answer(Ok(pair(5)));
        it.accepts(response, 5).await;
        assert_stored(&store, 5).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_record_is_written_over_once_the_claim_of_another_process_on_it_ends() {
    let (mut it, store, records) = four_generations().await;
    store.rewind(Some(records[1].clone())).await;
    // The other process has known nothing newer.
    let claim = store.claim_as_peer(40 * SECOND).await;
    let response = it.get_refused().await.await.unwrap();
    assert!(is_unavailable(not_refreshed(&response)), "{response:?}");
    assert!(it.auth.is_idle().await);
    assert_eq!(failing(&it.session).kind(), RefreshErrorKind::Unavailable);
    it.sends(4).await;

    // Its successor is of a lower generation too.
    store.commit_as_peer(&claim, &pair(12)).await;
    sleep(2 * MINUTE).await;
    assert_stored(&store, 4).await;
    it.sends(4).await;
    it.refreshes_from(4, false).await;

    // The other process dies with the claim.
    store.rewind(Some(records[0].clone())).await;
    let _abandoned = store.claim_as_peer(40 * SECOND).await;
    let response = it.get_refused().await.await.unwrap();
    assert!(is_unavailable(not_refreshed(&response)), "{response:?}");
    sleep(2 * MINUTE).await;
    assert_stored(&store, 5).await;
    it.refreshes_from(5, false).await;
}

#[tokio::test(start_paused = true)]
async fn an_older_record_is_written_over_when_the_store_recovers() {
    for call in [StoreCall::Claim, StoreCall::Commit] {
        for fault in [FAILURES.as_slice(), &LOST_ANSWERS].concat() {
            let (mut it, store, records) = four_generations().await;
            let response = it.get_refused().await;
            let refresh = it.auth.next().await;
            store.rewind(Some(records[1].clone())).await;
            // The first commit finds the older record. The write over it fails.
            store.inject(call, if call == StoreCall::Commit { fault.after_calls(1) } else { fault });
            refresh.answer(Ok(pair(5)));
            it.accepts(response, 5).await;
            sleep(SECOND).await;
            let response = it.get_refused().await.await.unwrap();
            assert!(is_unavailable(not_refreshed(&response)), "{call:?}, {fault:?}");
            assert!(it.auth.is_idle().await, "{call:?}, {fault:?}: presented before it was stored");
            it.sends(5).await;

            store.clear_faults();
            sleep(2 * MINUTE).await;
            assert_stored(&store, 5).await;
            it.refreshes_from(5, false).await;
            assert_stored(&store, 6).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_overrides_a_store_that_has_gone_back() {
    for is_pending in [false, true] {
        let (mut it, store, records) = gone_back(is_pending).await;
        it.session.sign_in(pair(20)).await.unwrap();
        let record = store.record().await.unwrap();
        assert_eq!((record.generation(), record.tokens()), (1, &pair(20)));
        assert_ne!(record.epoch(), records[0].epoch());
        sleep(20 * MINUTE).await;
        assert_eq!(store.record().await.unwrap(), record, "nothing is written over the new sign-in");
        it.sends(20).await;
        it.refreshes_from(20, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_by_another_process_is_adopted_after_the_store_has_gone_back() {
    for is_pending in [false, true] {
        let (mut it, store, _) = gone_back(is_pending).await;
        store.sign_in_as_peer(&pair(20)).await;
        if is_pending {
            sleep(2 * MINUTE).await;
        } else {
            let response = it.get_refused().await.await.unwrap();
            assert!(matches!(not_refreshed(&response), NotRefreshed::SessionChanged), "{response:?}");
        }
        assert!(it.auth.is_idle().await);
        it.sends(20).await;
        it.refreshes_from(20, false).await;
        let record = store.record().await.unwrap();
        assert_eq!((record.generation(), record.tokens()), (2, &pair(21)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_deletes_an_older_record() {
    for is_pending in [false, true] {
        let (it, store, _) = gone_back(is_pending).await;
        it.session.sign_out().await.unwrap();
        assert_eq!(store.tokens().await, None);
        sleep(20 * MINUTE).await;
        assert_eq!(store.tokens().await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_knows_older_tokens_adopts_what_another_writes_over_the_older_record() {
    for known in 1..=4 {
        let (mut one, store, records) = four_generations().await;
        // Built while the store shows an older record.
        store.rewind(Some(records[known - 1].clone())).await;
        let mut two = peer_on(&store).await;
        assert_eq!(two.session.tokens(), pair(u32::try_from(known).unwrap()));
        one.refreshes_from(4, false).await;
        let response = two.get_refused().await;
        two.accepts(response, 5).await;
        assert!(two.auth.is_idle().await, "the older token was presented");
        two.refreshes_from(5, false).await;
        let response = one.get_refused().await;
        one.accepts(response, 6).await;
        assert_stored(&store, 6).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_knows_the_newest_tokens_writes_over_what_another_obtained_with_an_older_one() {
    let (mut one, store, records) = four_generations().await;
    store.rewind(Some(records[0].clone())).await;
    let mut two = peer_on(&store).await;
    // It knows nothing newer, and the server answers a repeated call.
    let response = two.get_refused().await;
    let refresh = two.auth.next().await;
    assert_eq!(refresh.presented(), "r1");
    refresh.answer(Ok(pair(12)));
    two.accepts(response, 12).await;

    one.refreshes_from(4, false).await;
    assert_stored(&store, 5).await;
    let response = two.get_refused().await;
    two.accepts(response, 5).await;
    assert!(two.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_ends_nothing_while_the_store_shows_an_older_record() {
    let (mut it, store, records) = four_generations().await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    store.rewind(Some(records[1].clone())).await;
    refresh.answer(Err(RefreshError::rejected("invalid_grant")));
    let response = response.await.unwrap();
    assert!(is_unavailable(not_refreshed(&response)), "{response:?}");
    assert_eq!((failing(&it.session).kind(), it.session.tokens()), (RefreshErrorKind::Unavailable, pair(4)));

    // The next refresh decides.
    sleep(MINUTE).await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r4");
    assert_stored(&store, 4).await;
    refresh.answer(Err(RefreshError::rejected("invalid_grant")));
    assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::Ended(_)));
    settle().await;
    assert_eq!(store.tokens().await, None);
}

#[tokio::test(start_paused = true)]
async fn the_doubt_about_a_token_outlives_the_write_over_an_older_record() {
    let (mut it, store, records) = four_generations().await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(RefreshError::in_doubt("connection reset")));
    response.await.unwrap();
    store.rewind(Some(records[2].clone())).await;
    sleep(MINUTE).await;
    it.refreshes_from(4, true).await;
    assert_stored(&store, 5).await;
}

#[tokio::test(start_paused = true)]
async fn tokens_that_are_handed_in_are_written_over_an_older_record() {
    let (mut it, store, records) = four_generations().await;
    store.rewind(Some(records[1].clone())).await;
    let current = it.session.credential().await.unwrap();
    it.session.renew(&current, Tokens::from_access_token(access("a5"))).await.unwrap();
    let record = store.record().await.unwrap();
    assert_eq!((record.generation(), record.tokens()), (5, &Tokens::new(access("a5"), refresh("r4"))));
    it.sends(5).await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r4");
    refresh.answer(Ok(pair(6)));
    it.accepts(response, 6).await;
    assert_stored(&store, 6).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_token_that_a_failed_call_issued_is_written_over_an_older_record() {
    let (mut it, store, records) = four_generations().await;
    let response = it.get_refused().await;
    let call = it.auth.next().await;
    store.rewind(Some(records[1].clone())).await;
    call.answer(Err(RefreshError::in_doubt("no access token").with_refresh_token(refresh("r5"))));
    response.await.unwrap();
    settle().await;
    let record = store.record().await.unwrap();
    assert_eq!((record.generation(), record.tokens()), (5, &Tokens::new(access("a4"), refresh("r5"))));
    sleep(MINUTE).await;
    let response = it.get_refused().await;
    let call = it.auth.next().await;
    assert_eq!((call.presented(), call.request.is_in_doubt()), ("r5", false));
    call.answer(Ok(pair(6)));
    it.accepts(response, 6).await;
}

/// A refused request whose refresh goes on from the third generation, which another process stored, when the store goes
/// back to the second. Its second claim is made once the faults are cleared.
async fn rewound_between_claims() -> (Fixture, FaultyStore, JoinHandle<Response<Full<Bytes>>>) {
    let (mut it, store) = stored().await;
    let expired = |n| pair(n).with_expires_at(SystemTime::UNIX_EPOCH);
    store.refresh_as_peer(&expired(2)).await;
    let second = store.snapshot().await;
    store.refresh_as_peer(&expired(3)).await;
    // The first claim finds the third generation, whose access token has expired. The second is still to be made.
    store.inject(StoreCall::Claim, StoreFault::hang_until_cleared().after_calls(1));
    let response = it.get_refused().await;
    settle().await;
    assert_eq!(store.count(StoreCall::Claim), 2);
    store.rewind(second).await;
    (it, store, response)
}

#[tokio::test(start_paused = true)]
async fn a_store_that_goes_back_while_a_refresh_goes_on_from_another_processes_tokens_makes_it_present_none_older() {
    let (mut it, store, response) = rewound_between_claims().await;
    store.clear_faults();
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r3");
    refresh.answer(Ok(pair(4)));
    it.accepts(response, 4).await;
    settle().await;
    assert_stored(&store, 4).await;
}

#[tokio::test(start_paused = true)]
async fn while_another_process_holds_the_older_record_a_refresh_waits_for_it_until_the_deadline() {
    for lease in [10 * SECOND, MINUTE] {
        let (mut it, store, response) = rewound_between_claims().await;
        store.claim_as_peer(lease).await;
        store.clear_faults();
        let begun = Instant::now();
        if lease < MINUTE {
            let refresh = it.auth.next().await;
            assert_eq!((refresh.presented(), refresh.request.is_in_doubt()), ("r3", false));
            assert!((lease..lease + SECOND).contains(&begun.elapsed()), "{:?}", begun.elapsed());
            refresh.answer(Ok(pair(4)));
            it.accepts(response, 4).await;
        } else {
            let why = failure(&response.await.unwrap());
            let cause = std::error::Error::source(&*why).unwrap().to_string();
            assert_eq!(cause, "another process has claimed an older record");
            assert!((29 * SECOND..=30 * SECOND).contains(&begun.elapsed()), "{:?}", begun.elapsed());
            assert!(it.auth.is_idle().await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_lost_with_the_last_writes_is_not_made_up_for_by_the_record() {
    // The record is the newest, but the store no longer knows that its refresh token is about to be presented.
    let (mut it, store, records) = four_generations().await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    store.rewind(Some(records[3].clone())).await;
    let claimed = store.inner().claim(records[3].version(), SECOND).await.unwrap();
    assert!(matches!(claimed, ClaimOutcome::Claimed(claim) if !claim.is_in_doubt()));
    refresh.answer(Ok(pair(5)));
    it.accepts(response, 5).await;
    assert_stored(&store, 5).await;
}
