//! Tests of the conditions under which a session may be evicted.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::super::{At, Event, Results, State, Stored};
use crate::refresh::{Generation, Trigger};
use crate::store::{Epoch, Version};
use crate::target::Target;
use crate::token::{AccessToken, RefreshToken, Tokens};

const NONE: Generation = Generation(0);
const NO_RESULTS: Results = Results { accepted: NONE, refused: NONE };

fn epoch() -> Epoch {
    Epoch::from(1)
}

fn pair(n: u32) -> Tokens {
    let (access, refresh) = (AccessToken::new(format!("a{n}")), RefreshToken::new(format!("r{n}")));
    Tokens::new(access.unwrap(), refresh.unwrap())
}

fn started() -> Event {
    Event::Started { trigger: Trigger::Challenge, target: Some(Target::TOKEN_API), results: NO_RESULTS }
}

fn refreshed(n: u32) -> Event {
    Event::Refreshed {
        epoch: epoch(),
        place: 2,
        tokens: pair(n),
        stored: Stored::Clean(Some(Version::from(1_u64))),
        due: None,
    }
}

fn after(at: At, events: impl IntoIterator<Item = Event>) -> State {
    let signed_in = State::signed_out(Epoch::from(0))
        .step(Event::SignedIn { next: epoch(), tokens: pair(1), due: None, ends_at: None }, at)
        .0;
    events.into_iter().fold(signed_in, |state, event| state.step(event, at).0)
}

#[test]
fn a_session_is_at_rest_without_a_flight_and_without_a_pending_write() {
    let at = At { now: Instant::now(), wall: SystemTime::now(), jitter: 0.0 };
    let saved = || Event::Saved { epoch: epoch(), tokens: pair(1), version: Version::from(1_u64) };
    assert!(!after(at, []).is_at_rest(NO_RESULTS, at.now));
    assert!(after(at, [saved()]).is_at_rest(NO_RESULTS, at.now));
    assert!(!after(at, [saved(), started()]).is_at_rest(NO_RESULTS, at.now));
    assert!(after(at, [saved(), started(), refreshed(2)]).is_at_rest(NO_RESULTS, at.now));
}

#[test]
fn refusals_of_fresh_tokens_are_remembered_for_an_hour() {
    let at = At { now: Instant::now(), wall: SystemTime::now(), jitter: 0.0 };
    let hour = at.now + Duration::from_secs(3_600);
    let almost = at.now + Duration::from_secs(3_599);
    // One wasted flight; the tokens after it are not refused yet.
    let fresh = Generation(2);
    let refusal = Event::Challenged { target: Target::TOKEN_API, generation: fresh, results: NO_RESULTS };
    let state = after(at, [started(), refreshed(2), refusal, started(), refreshed(3)]);
    assert!(!state.is_at_rest(NO_RESULTS, at.now) && !state.is_at_rest(NO_RESULTS, almost));
    assert!(state.is_at_rest(NO_RESULTS, hour));
    // The flight is not settled yet, but the replay was refused.
    let refused = Results { refused: fresh, ..NO_RESULTS };
    let state = after(at, [started(), refreshed(2)]);
    assert!(!state.is_at_rest(refused, almost) && state.is_at_rest(refused, hour));
}
