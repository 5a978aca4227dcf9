//! Random operations and faults.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::sleep;
use tower_auth_refresh::{RefreshError, RefreshRequest, Session, SessionState, Tokens};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, StoreFault};

use super::{LOST_ANSWERS, MINUTE};
use crate::support::*;

/// An authorization server that rotates refresh tokens, treats a second use as theft, and is sometimes unavailable.
struct RotatingServer {
    random: fastrand::Rng,
    reliable: bool,
    /// The number of rotations of each user's tokens; `None`: revoked.
    users: Vec<Option<u32>>,
    /// The refresh tokens that were used, or may have been.
    doubtful: HashSet<String>,
}

impl RotatingServer {
    fn tokens(user: usize, rotated: u32) -> Tokens {
        Tokens::new(access(&format!("a{user}.{rotated}")), refresh(&format!("r{user}.{rotated}")))
    }

    fn sign_in(&mut self) -> Tokens {
        self.users.push(Some(0));
        Self::tokens(self.users.len() - 1, 0)
    }

    /// Returns the delay of the answer, and the answer; `None` if it is lost.
    fn answer(&mut self, request: &RefreshRequest) -> (Duration, Option<Result<Tokens, RefreshError>>) {
        let delay = Duration::from_millis(self.random.u64(0..3_000));
        let fate = if self.reliable { 0 } else { self.random.u8(0..12) };
        match fate {
            8 => return (delay, Some(Err(RefreshError::unavailable("connection refused")))),
            9 => return (delay, Some(Err(RefreshError::misconfigured("a firewall's page")))),
            _ => {}
        }
        let presented = request.refresh_token().unwrap().expose_secret().to_owned();
        let (user, rotated) = presented[1..].split_once('.').unwrap();
        let (user, rotated) = (user.parse::<usize>().unwrap(), rotated.parse().unwrap());
        let fresh = self.doubtful.insert(presented);
        assert!(fresh || request.is_in_doubt(), "a token in doubt was presented again unmarked");
        if fate == 10 {
            // The request is lost.
            return (delay, None);
        }
        let answer = if self.users[user] == Some(rotated) {
            self.users[user] = Some(rotated + 1);
            Ok(Self::tokens(user, rotated + 1))
        } else {
            self.users[user] = None;
            Err(RefreshError::rejected("invalid_grant"))
        };
        (delay, Some(answer).filter(|_| fate != 11))
    }
}

/// Runs three processes on one store, with random operations and random faults.
async fn run_random_faults(seed: u64) {
    const CALLS: [StoreCall; 7] = [
        StoreCall::Load,
        StoreCall::Replace,
        StoreCall::Claim,
        StoreCall::Renew,
        StoreCall::Release,
        StoreCall::Commit,
        StoreCall::Clear,
    ];
    const FAULTS: [StoreFault; 5] = [
        StoreFault::fail(),
        StoreFault::hang_until_cleared(),
        StoreFault::fail().after_effect(),
        StoreFault::hang_until_cleared().after_effect(),
        StoreFault::panic(),
    ];
    // Seeds the jitter of the sessions too.
    fastrand::seed(seed);
    tower_auth_refresh::seed_random_numbers(seed);
    let mut random = fastrand::Rng::with_seed(seed);
    let server = RotatingServer { random: random.fork(), reliable: false, users: Vec::new(), doubtful: HashSet::new() };
    let server = Arc::new(Mutex::new(server));
    let first = server.lock().unwrap().sign_in();
    let store = faulty_store();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let server = Arc::clone(&server);
        let service = tower::service_fn(move |request: RefreshRequest| {
            let (delay, answer) = server.lock().unwrap().answer(&request);
            async move {
                sleep(delay).await;
                match answer {
                    Some(answer) => answer,
                    None if delay.subsec_millis() % 2 == 0 => Err(RefreshError::in_doubt("connection reset")),
                    None => std::future::pending().await,
                }
            }
        });
        let builder = Session::builder(service).tokens(first.clone()).store(store.clone());
        sessions.push(builder.build().await.unwrap());
    }
    for _ in 0..60 {
        let session = sessions[random.usize(0..sessions.len())].clone();
        match random.u8(0..20) {
            0 => {
                let tokens = server.lock().unwrap().sign_in();
                tokio::spawn(async move { session.sign_in(tokens).await });
            }
            1 => {
                tokio::spawn(async move { session.sign_out().await });
            }
            2..9 => {
                tokio::spawn(async move { session.refresh().await });
            }
            9..14 => {
                let (call, fault) = (*random.choice(&CALLS).unwrap(), *random.choice(&FAULTS).unwrap());
                // A sign-in whose answer was lost, and whose record a peer's sign-out has deleted since, can't be
                // distinguished from one that was never written.
                let lost_sign_in = call == StoreCall::Replace && LOST_ANSWERS.contains(&fault);
                store.clear_faults_of(call);
                store.inject(call, if lost_sign_in { StoreFault::fail() } else { fault });
            }
            14..16 => store.clear_faults(),
            _ => sleep(Duration::from_millis(random.u64(0..40_000))).await,
        }
        for _ in 0..random.u8(0..10) {
            tokio::task::yield_now().await;
        }
    }
    store.clear_faults();
    server.lock().unwrap().reliable = true;
    // Pending writes are made and claims expire; after that, the sessions agree.
    sleep(20 * MINUTE).await;
    for _ in 0..2 {
        for session in &sessions {
            let _ = session.refresh().await;
            sleep(MINUTE).await;
        }
    }
    let stored = store.tokens().await;
    for session in &sessions {
        assert_ne!(session.state(), SessionState::Refreshing);
        assert!(session.state() != SessionState::Active || stored.is_some());
    }
    let Some(stored) = stored else { return };
    assert!(sessions.iter().any(|session| session.tokens() == stored));
    let live = |user: usize| {
        let server = server.lock().unwrap();
        server.users[user].is_some_and(|rotated| RotatingServer::tokens(user, rotated) == stored)
    };
    let users = server.lock().unwrap().users.len();
    assert!((0..users).any(live), "the stored tokens are used up");
}

#[tokio::test(start_paused = true)]
async fn under_random_faults_no_refresh_token_is_presented_twice_unmarked_and_all_sessions_recover() {
    for seed in 0..300 {
        let failed = std::panic::AssertUnwindSafe(run_random_faults(seed)).catch_unwind().await;
        if let Err(panic) = failed {
            eprintln!("with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
