//! A session in a large registry takes at most one kibibyte of its process's memory.

use std::env;
use std::time::Duration;

use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionRegistry, Tokens};

use crate::{memory, report, run_in_own_process};

const SESSIONS: usize = 100_000;

/// Measured in all: the table, the store, and the allocator's rounding and unused memory.
#[test]
fn a_session_in_a_large_registry_takes_at_most_one_kibibyte() {
    if env::var_os("SIGN_IN").is_none() {
        if let Some(grown) = run_in_own_process(
            "registry::a_session_in_a_large_registry_takes_at_most_one_kibibyte",
            [("SIGN_IN", "yes")],
        ) {
            let each = grown / SESSIONS;
            println!("{each} bytes for each of {SESSIONS} sessions");
            assert!((600..=1024).contains(&each), "{each} bytes");
        }
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let refresh = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
        let sessions = SessionRegistry::builder(Session::builder(refresh)).max_sessions(SESSIONS).build().unwrap();
        let sign_in = async |user: u128| {
            // The lengths of a small JWT and of an opaque refresh token.
            let access = AccessToken::new(format!("{user:0>230}")).unwrap();
            let refresh = RefreshToken::new(format!("{user:0>64}")).unwrap();
            let tokens = Tokens::new(access, refresh).with_expires_in(Duration::from_secs(300));
            drop(sessions.sign_in(user, tokens).await.unwrap());
        };
        // One-time allocations are made by the first sign-in.
        sign_in(0).await;
        let before = memory("VmRSS:");
        for user in 1..SESSIONS {
            sign_in(user as u128).await;
        }
        report(before.zip(memory("VmRSS:")).map(|(before, after)| after - before));
    });
}
