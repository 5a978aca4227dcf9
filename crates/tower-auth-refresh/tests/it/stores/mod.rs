//! Sessions and their store: peers on the same store, and stores that fail.

mod claims;
mod failing;
mod overtaken;
mod peers;
mod random_faults;
mod sign_out;
mod unreadable;

use std::time::Duration;

use tower_auth_refresh::{NotRefreshed, RefreshErrorKind, SessionBuilder};
use tower_auth_refresh_testkit::conformance::{FaultyStore, StoreFault};

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The default refresh time-out.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The time-out of a store call.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Faults that leave the store unchanged.
pub const FAILURES: [StoreFault; 4] =
    [StoreFault::fail(), StoreFault::hang_until_cleared(), StoreFault::panic_on_call(), StoreFault::panic()];

/// Faults after the effect of a call, whose answer is lost.
pub const LOST_ANSWERS: [StoreFault; 2] =
    [StoreFault::fail().after_effect(), StoreFault::hang_until_cleared().after_effect()];

/// A client over a session that was signed in with [`pair`]`(1)`, and its store.
pub async fn stored() -> (Fixture, FaultyStore) {
    stored_with(|builder| builder).await
}

async fn stored_with(configure: impl FnOnce(SessionBuilder) -> SessionBuilder) -> (Fixture, FaultyStore) {
    let store = faulty_store();
    let shared = store.clone();
    let it = Fixture::with(|builder| configure(builder.tokens(pair(1)).store(shared))).await;
    store.clear_calls();
    (it, store)
}

/// Another process on the same store, which the faults do not affect.
pub async fn peer_on(store: &FaultyStore) -> Fixture {
    let store = store.inner();
    Fixture::with(|builder| builder.store(store)).await
}

fn kind(why: &NotRefreshed) -> RefreshErrorKind {
    match why {
        NotRefreshed::Failed(error) => error.kind(),
        other => panic!("{other:?}"),
    }
}

pub fn is_unavailable(why: &NotRefreshed) -> bool {
    matches!(kind(why), RefreshErrorKind::Unavailable)
}

impl Fixture {
    /// Asserts that a new request carries no token.
    async fn sends_no_token(&mut self) {
        let response = self.get();
        let call = self.api.next().await;
        assert_eq!(call.token(), None);
        call.reply(200).await;
        assert_eq!(response.await.unwrap().status(), 200);
    }
}
