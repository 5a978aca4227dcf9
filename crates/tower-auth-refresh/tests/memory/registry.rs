//! A session among many takes a kibibyte at most, of all that their process takes.

use std::env;
use std::time::Duration;

use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionRegistry, Tokens};

use crate::{alone, memory, tell};

const SESSIONS: usize = 100_000;

/// All in: what the allocator rounds up and leaves unused, the table and the store too.
#[test]
fn a_session_among_many_takes_a_kibibyte_at_most() {
    if env::var_os("SIGN_IN").is_none() {
        if let Some(grown) = alone("registry::a_session_among_many_takes_a_kibibyte_at_most", [("SIGN_IN", "yes")]) {
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
            // As long as a small JWT, and as an opaque refresh token.
            let access = AccessToken::new(format!("{user:0>230}")).unwrap();
            let refresh = RefreshToken::new(format!("{user:0>64}")).unwrap();
            let tokens = Tokens::new(access, refresh).with_expires_in(Duration::from_secs(300));
            drop(sessions.sign_in(user, tokens).await.unwrap());
        };
        // What is made once is made by then.
        sign_in(0).await;
        let before = memory("VmRSS:");
        for user in 1..SESSIONS {
            sign_in(user as u128).await;
        }
        tell(before.zip(memory("VmRSS:")).map(|(before, after)| after - before));
    });
}
