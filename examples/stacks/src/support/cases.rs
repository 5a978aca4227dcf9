//! The cases, written once for all stacks.

use futures_util::future::join_all;
use http::StatusCode;
use tower_auth_refresh::SessionState;
use tower_auth_refresh_testkit::{Fault, Route};

use super::api::{Attempt, Protocol};
use super::world::World;

/// A client that holds a session by its recipe, and can make a call.
pub(crate) trait Stack: Sized {
    type Protocol: Protocol + Default;

    async fn build(world: &World) -> Self;

    /// Makes a call whose content has this many bytes.
    async fn call(&self, content: usize) -> Answer;

    /// The calls that the stack sends at the same moment, if there are as many.
    const CONCURRENCY: usize = 50;
}

/// The outcome of a call, as far as the cases are concerned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Accepted,
    /// The API's refusal of the token has reached the caller.
    Refused,
    Failed(String),
}

impl Answer {
    /// Judges by a status code.
    pub(crate) fn of(status: u16) -> Self {
        match status {
            200..300 => Self::Accepted,
            401 => Self::Refused,
            status => Self::Failed(status.to_string()),
        }
    }

    pub(crate) fn failed(error: impl std::fmt::Debug) -> Self {
        Self::Failed(format!("{error:?}"))
    }
}

/// Makes a test of each of these cases, for a [`Stack`].
macro_rules! cases {
    ($stack:ty: $($case:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $case() {
                $crate::support::cases::$case::<$stack>().await;
            }
        )+
    };
}
pub(crate) use cases;

const SMALL: usize = 1_000;
/// More than a layer keeps for a replay.
const LARGE: usize = 100_000;

/// The access token has expired at the API: it is refreshed once, and the same bytes are sent again.
pub(crate) async fn expired_token<S: Stack>() {
    let (world, stack) = signed_in::<S>().await;
    assert_eq!(stack.call(SMALL).await, Answer::Accepted);
    assert_eq!(world.auth.counters().refreshes, 0);

    world.auth.expire_access_tokens();
    assert_eq!(stack.call(SMALL).await, Answer::Accepted);
    assert_eq!(world.auth.counters().refreshes, 1);
    judge_replays(&world, 1);

    assert_eq!(stack.call(SMALL).await, Answer::Accepted);
    assert_eq!(world.auth.counters().refreshes, 1);
}

/// The API refuses the calls that are under way at the same moment: one refresh serves all fifty.
pub(crate) async fn stampede_of_50<S: Stack>() {
    let (world, stack) = signed_in::<S>().await;
    world.auth.expire_access_tokens();
    world.auth.hold_unauthorized_until(S::CONCURRENCY);
    for answer in join_all((0..50).map(|_| stack.call(SMALL))).await {
        assert_eq!(answer, Answer::Accepted);
    }
    let counters = world.auth.counters();
    assert_eq!(counters.refreshes, 1);
    judge_replays(&world, S::CONCURRENCY);
}

/// The network fails during the refresh: the tokens are kept, and work once the network does.
pub(crate) async fn network_failure_while_refreshing<S: Stack>() {
    let (world, stack) = signed_in::<S>().await;
    world.auth.expire_access_tokens();
    world.auth.inject(Route::Refresh, Fault::drop_connection());
    assert_eq!(stack.call(SMALL).await, Answer::Refused);
    assert!(matches!(world.session.state(), SessionState::Failing(_)));
    assert!(world.session.tokens().refresh_token().is_some());

    world.auth.clear_faults();
    // During the cool-down, only the app itself starts a refresh.
    world.session.refresh().await.unwrap();
    assert_eq!(stack.call(SMALL).await, Answer::Accepted);
    assert_eq!(world.session.state(), SessionState::Active);
    assert_eq!(world.auth.violations(), []);
}

/// The authorization server has ended the sign-in: the tokens are dropped, and the app is notified.
pub(crate) async fn ended_session<S: Stack>() {
    let (world, stack) = signed_in::<S>().await;
    let mut states = world.session.subscribe();
    world.auth.revoke("ada");
    assert_eq!(stack.call(SMALL).await, Answer::Refused);
    states.wait_for(SessionState::is_ended).await.unwrap();
    assert!(world.session.tokens().is_empty());

    // Without a token, and without another refresh.
    assert_eq!(stack.call(SMALL).await, Answer::Refused);
    assert_eq!(world.auth.counters().refreshes, 1);
}

/// The API redirects to a foreign host, which gets no token and whose 401 causes no refresh.
pub(crate) async fn redirect_to_a_foreign_host<S: Stack>() {
    let world = World::new(S::Protocol::default()).await.with_custom_header();
    let stack = S::build(&world).await;
    assert_eq!(stack.call(SMALL).await, Answer::Accepted);
    world.redirect_once();
    assert_ne!(stack.call(SMALL).await, Answer::Accepted);

    let token = world.session.tokens();
    let token = token.access_token().unwrap().expose_secret();
    assert!(world.api.attempts().iter().any(|attempt| attempt.holds(token)));
    for attempt in world.foreign.attempts() {
        assert!(attempt.token.is_none() && !attempt.holds(token), "the foreign host was sent the token");
    }
    assert_eq!(world.auth.counters().refreshes, 0);
    assert_eq!(stack.call(SMALL).await, Answer::Accepted);
}

/// More was sent than is kept: the caller gets the refusal, and the next call has a newer token.
pub(crate) async fn body_over_the_limit<S: Stack>() {
    let (world, stack) = signed_in::<S>().await;
    world.auth.expire_access_tokens();
    let (refused, mut states) = (world.session.generation(), world.session.subscribe());
    assert_eq!(stack.call(LARGE).await, Answer::Refused);
    // The caller didn't wait for the refresh.
    while world.session.generation() == refused {
        states.changed().await.unwrap();
    }
    assert_eq!(stack.call(LARGE).await, Answer::Accepted);
    let counters = world.auth.counters();
    assert_eq!((counters.unauthorized(), counters.refreshes), (1, 1));
}

async fn signed_in<S: Stack>() -> (World, S) {
    let world = World::new(S::Protocol::default()).await;
    let stack = S::build(&world).await;
    (world, stack)
}

/// Checks that each refused request was sent again once, with another token and otherwise byte for byte.
fn judge_replays(world: &World, expected: usize) {
    let mut attempts = world.api.attempts();
    let refused: Vec<Attempt> = attempts.extract_if(.., |attempt| attempt.status == StatusCode::UNAUTHORIZED).collect();
    assert_eq!(refused.len(), expected);
    for refused in refused {
        let replay = attempts.iter().position(|attempt| refused.is_repeated_by(attempt));
        attempts.remove(replay.expect("the request was sent again as it was"));
    }
    assert_eq!(world.auth.violations(), []);
}
