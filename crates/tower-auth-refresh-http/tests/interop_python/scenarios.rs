//! The scenarios, each against one server.

use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use serde_json::json;
use tokio::time::MissedTickBehavior;
use tower::ServiceExt;
use tower_auth_refresh::{
    ChallengePolicy, NotRefreshed, RefreshErrorKind, RefreshReport, RefreshRequest, Rotation, Session, SessionBuilder,
    SessionState, Tokens,
};

use crate::framework::{Framework, Refresher};
use crate::proxy::FaultProxy;
use crate::server::{Behaviour, Events, Server, User};
use crate::stack::Stack;

const CALLERS: u32 = 50;

/// The number of access tokens that expire under load.
const EXPIRIES: u64 = 10;

/// The time from one call of a caller to its next. The replays of fifty callers have to reach a server in Python within
/// the two seconds of a token's life, on a machine that does other work too.
const PACE: Duration = Duration::from_secs(1);

/// The grace period of the servers that have one.
pub(crate) const GRACE_PERIOD: Duration = Duration::from_secs(10);

/// The server of a scenario; ends the scenario if it can't be had.
macro_rules! shared {
    ($framework:expr, $behaviour:expr) => {
        match Server::shared($framework, $behaviour) {
            Some(server) => server,
            None => return,
        }
    };
}

/// A signed-in user.
struct SignedIn {
    user: User,
    tokens: Tokens,
    refresher: Refresher,
}

impl SignedIn {
    async fn at(server: &Server) -> Self {
        let user = server.create_user().await;
        let tokens = server.framework.sign_in(server, &user).await;
        let refresher = server.framework.refresher(&server.url(""), &user);
        Self { user, tokens, refresher }
    }

    fn builder(&self) -> SessionBuilder {
        Session::builder(self.refresher.clone()).tokens(self.tokens.clone())
    }

    async fn session(&self) -> Session {
        self.builder().build().await.unwrap()
    }

    async fn presented(&self, server: &Server) -> u64 {
        server.events(&self.user).await.presented
    }
}

/// Calls an API route in `CALLERS` tasks until ten access tokens have expired.
pub(crate) async fn fifty_callers(framework: Framework) {
    let server = shared!(framework, Behaviour::Strict);
    let signed_in = SignedIn::at(server).await;
    let session = signed_in.session().await;
    let stack = Stack::new(server, &session);
    let last = session.generation().get() + EXPIRIES;

    let start = tokio::time::Instant::now();
    let callers = (0..CALLERS).map(|caller| {
        let (stack, session) = (stack.clone(), session.clone());
        tokio::spawn(async move {
            // Half of the callers send at once, and the other half in between.
            let mut ticks = tokio::time::interval_at(start + PACE * (caller % 2) / 2, PACE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let (mut answered, mut failed) = (0, Vec::new());
            while session.generation().get() < last {
                match stack.get(framework.notes()).await {
                    Ok(answer) if answer.status == StatusCode::OK => answered += 1,
                    failure => failed.push(failure),
                }
                ticks.tick().await;
            }
            (answered, failed)
        })
    });
    let (mut answered, mut failures) = (0, Vec::new());
    for caller in callers.collect::<Vec<_>>() {
        let (more, failed) = caller.await.unwrap();
        answered += more;
        failures.extend(failed);
    }

    let Events { presented, granted, refused, repeated } = server.events(&signed_in.user).await;
    let expiries = stack.expiries();
    println!(
        "{framework}: {CALLERS} callers, {answered} requests answered 200 in {:.1} s, {} failures; {expiries} \
         expiries, {} answers 401; {presented} refresh calls, {granted} granted, {refused} refused, {repeated} with a token \
         presented before",
        start.elapsed().as_secs_f64(),
        failures.len(),
        stack.refusals(),
    );
    assert!(failures.is_empty(), "{failures:?}");
    assert!(expiries as u64 >= EXPIRIES);
    assert_eq!((presented, granted, repeated), (expiries as u64, expiries as u64, 0));
    assert_eq!(session.state(), SessionState::Active);
}

pub(crate) async fn revoked_grant(framework: Framework) {
    let server = shared!(framework, Behaviour::Strict);
    let signed_in = SignedIn::at(server).await;
    let session = signed_in.session().await;
    let stack = Stack::new(server, &session);
    assert_eq!(stack.status(framework.notes()).await, StatusCode::OK);

    server.revoke(&signed_in.user).await;
    let answer = first_failure(&stack, framework).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(matches!(answer.report, Some(RefreshReport::NotRefreshed(NotRefreshed::Ended(_)))), "{answer:?}");
    assert!(session.state().is_ended());
    assert_eq!(signed_in.presented(server).await, 1);
}

/// Calls until the answer isn't 200: a JWT lives on for a while after its user is gone.
async fn first_failure(stack: &Stack, framework: Framework) -> crate::stack::Answer {
    let start = Instant::now();
    loop {
        let answer = stack.get(framework.notes()).await.unwrap();
        if answer.status != StatusCode::OK {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "the token never expires");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(crate) async fn restart(framework: Framework) {
    let Some(mut server) = Server::of_its_own(framework, Behaviour::Strict, "restart") else { return };
    let signed_in = SignedIn::at(&server).await;
    let session = signed_in.session().await;
    let stack = Stack::new(&server, &session);
    assert_eq!(stack.status(framework.notes()).await, StatusCode::OK);

    server.kill();
    stack.get(framework.notes()).await.unwrap_err();
    let Err(NotRefreshed::Failed(error)) = session.refresh().await else { panic!("the server is away") };
    assert_eq!(error.kind(), RefreshErrorKind::Unavailable);
    tokio::time::sleep(framework.longest_lifetime()).await;
    session.refresh().await.unwrap_err();
    stack.get(framework.notes()).await.unwrap_err();
    assert!(matches!(session.state(), SessionState::Failing(_)));
    assert_eq!(session.tokens(), signed_in.tokens);

    server.restart();
    let start = Instant::now();
    let mut refused = 0;
    // The session cools down for some seconds after the refreshes that failed.
    let last = loop {
        let answer = stack.get(framework.notes()).await.unwrap();
        if answer.status == StatusCode::OK || session.state().is_ended() {
            break answer;
        }
        refused += 1;
        assert!(start.elapsed() < Duration::from_secs(60), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let events = server.events(&signed_in.user).await;
    println!(
        "{framework}: {:.1} s after the restart the answer is {}, after {refused} answers 401; {events:?}",
        start.elapsed().as_secs_f64(),
        last.status
    );
    if framework.forgets() {
        // The server has spoken: it knows no such refresh token.
        assert!(session.state().is_ended());
        assert_eq!(events, Events { presented: 1, granted: 0, refused: 1, repeated: 0 });
    } else {
        assert_eq!(last.status, StatusCode::OK);
        assert_eq!(events, Events { presented: 1, granted: 1, refused: 0, repeated: 0 });
    }
}

pub(crate) async fn sign_out(framework: Framework) {
    let server = shared!(framework, Behaviour::Strict);
    let signed_in = SignedIn::at(server).await;
    let revoker = framework.revoker(server, &signed_in.user);
    let session = signed_in.builder().revoke(revoker).build().await.unwrap();
    let tokens = session.refresh().await.unwrap();

    session.sign_out().await.unwrap();
    assert_eq!(session.state(), SessionState::SignedOut);
    let error = signed_in.refresher.oneshot(RefreshRequest::new(tokens)).await.unwrap_err();
    assert_eq!(error.kind(), RefreshErrorKind::Rejected);
    assert_eq!(server.events(&signed_in.user).await, Events { presented: 2, granted: 1, refused: 1, repeated: 0 });
}

/// The routes that answer as RFC 6750 has it: 401 to an expired token, 403 to one that doesn't suffice.
pub(crate) async fn forbidden_beside_expired(framework: Framework) {
    let server = shared!(framework, Behaviour::Strict);
    let signed_in = SignedIn::at(server).await;
    let session = signed_in.session().await;
    let stack = Stack::new(server, &session);

    let answer = stack.get(framework.admin()).await.unwrap();
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(answer.report.is_none(), "{answer:?}");
    assert_eq!(signed_in.presented(server).await, 0);

    tokio::time::sleep(framework.longest_lifetime()).await;
    let answer = stack.get(framework.notes()).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    assert!(matches!(answer.report, Some(RefreshReport::Replayed)), "{answer:?}");
    assert_eq!(signed_in.presented(server).await, 1);
}

/// The routes that answer 403 to an expired token as to one that doesn't suffice, with nothing in the headers that
/// differs.
pub(crate) async fn forbidden_like_expired(framework: Framework) {
    let server = shared!(framework, Behaviour::Strict);
    let (notes, admin) = (framework.forbidding_notes(), framework.forbidding_admin());

    // The default policy: a 403 passes, and nothing is refreshed.
    let signed_in = SignedIn::at(server).await;
    let session = signed_in.session().await;
    let stack = Stack::new(server, &session);
    tokio::time::sleep(framework.longest_lifetime()).await;
    for path in [notes, admin] {
        let answer = stack.get(path).await.unwrap();
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert!(answer.report.is_none(), "{answer:?}");
    }
    assert_eq!(signed_in.presented(server).await, 0);
    assert_eq!(session.state(), SessionState::Active);

    // A policy that takes a 403 for a challenge: an expired token is replaced, and a forbidden request costs refreshes.
    let usual = ChallengePolicy::bearer();
    let policy =
        ChallengePolicy::when(move |response| response.status() == StatusCode::FORBIDDEN || usual.matches(response));
    let stack = Stack::with_policy(server, &session, policy);
    let answer = stack.get(notes).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    assert!(matches!(answer.report, Some(RefreshReport::Replayed)), "{answer:?}");
    assert_eq!(signed_in.presented(server).await, 1);
    for _ in 0..20 {
        let answer = stack.get(admin).await.unwrap();
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert!(answer.report.is_some());
    }
    let of_forbidden = signed_in.presented(server).await - 1;
    assert!((1..=10).contains(&of_forbidden), "{of_forbidden}");
    assert_eq!(session.state(), SessionState::Active);

    // An early refresh, by the default policy: the token is replaced before it expires, and a 403 means forbidden.
    let signed_in = SignedIn::at(server).await;
    let session = signed_in.builder().refresh_early(Duration::from_secs(1)).build().await.unwrap();
    let stack = Stack::new(server, &session);
    let start = Instant::now();
    let (mut answered, mut late) = (0, 0);
    while start.elapsed() < 3 * framework.longest_lifetime() {
        let (sent, expiry) = (SystemTime::now(), session.tokens().expires_at().unwrap());
        match stack.status(notes).await {
            StatusCode::OK => answered += 1,
            // The token was good when it was sent; it expired on the way to a busy server.
            StatusCode::FORBIDDEN if sent < expiry => late += 1,
            status => panic!("{status}"),
        }
        assert_eq!(stack.status(admin).await, StatusCode::FORBIDDEN);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let Events { presented, refused, repeated, .. } = server.events(&signed_in.user).await;
    println!(
        "{framework}, 403 to an expired token: 20 forbidden requests cause {of_forbidden} refreshes if a 403 is a \
         challenge; with early refreshes {answered} requests are answered 200 and {late} are late, with {presented} \
         refreshes"
    );
    assert!(late * 10 <= answered, "{late} of {answered}");
    assert!(presented >= 2);
    assert_eq!((refused, repeated), (0, 0));
}

/// The end of a session whose refresh call lost its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// The same flight presents the token again, and gets tokens.
    RecoveredAtOnce,
    /// The flight fails in doubt. The next one presents the token again, and gets tokens.
    RecoveredByTheNext,
    /// The same flight presents the token again, and is rejected.
    EndedAtOnce,
    /// The flight fails in doubt. The next one presents the token again, and is rejected.
    EndedByTheNext,
}

/// Loses the answer to a refresh call after the server has rotated.
pub(crate) async fn lost_answer(framework: Framework, behaviour: Behaviour, policy: Rotation, outcome: Outcome) {
    let server = shared!(framework, behaviour);
    let proxy = FaultProxy::start(server.address()).await;
    let signed_in = SignedIn::at(server).await;
    let refresher = framework.refresher(&proxy.base(), &signed_in.user);
    let session = Session::builder(refresher).tokens(signed_in.tokens.clone()).rotation(policy).build().await.unwrap();

    proxy.lose_next_answer();
    let mut result = session.refresh().await;
    if matches!(outcome, Outcome::RecoveredByTheNext | Outcome::EndedByTheNext) {
        let Err(NotRefreshed::Failed(error)) = &result else { panic!("{outcome:?}: {result:?}") };
        assert_eq!(error.kind(), RefreshErrorKind::InDoubt);
        assert_eq!(signed_in.presented(server).await, 1);
        // The user stays signed in: the server has given no definite answer.
        assert!(matches!(session.state(), SessionState::Failing(_)));
        assert_eq!(session.tokens(), signed_in.tokens);
        result = session.refresh().await;
    }
    let events = server.events(&signed_in.user).await;
    println!("{framework}, {behaviour}: an answer lost under {policy:?}: {outcome:?}, {events:?}");
    assert_eq!((events.presented, events.repeated), (2, 1));
    match outcome {
        Outcome::RecoveredAtOnce | Outcome::RecoveredByTheNext => {
            assert_eq!(events.granted, 2);
            let tokens = result.unwrap();
            let kept = tokens.refresh_token() == signed_in.tokens.refresh_token();
            assert_eq!(kept, behaviour == Behaviour::Reusable);
            // The successor is accepted, and so are the access tokens.
            session.refresh().await.unwrap();
            assert_eq!(Stack::new(server, &session).status(framework.notes()).await, StatusCode::OK);
        }
        Outcome::EndedAtOnce | Outcome::EndedByTheNext => {
            assert!(matches!(result, Err(NotRefreshed::Ended(_))), "{result:?}");
            assert!(session.state().is_ended());
        }
    }
}

pub(crate) async fn wrong_client_secret(framework: Framework) {
    let server = shared!(framework, Behaviour::Strict);
    let signed_in = SignedIn::at(server).await;
    let wrong = framework.refresher_with_secret(&server.url(""), &signed_in.user, "wrong");
    let session = Session::builder(wrong).tokens(signed_in.tokens.clone()).build().await.unwrap();

    let Err(NotRefreshed::Failed(error)) = session.refresh().await else { panic!("the secret is wrong") };
    assert_eq!(error.kind(), RefreshErrorKind::Misconfigured);
    assert!(matches!(session.state(), SessionState::Failing(_)));
    assert_eq!(session.tokens(), signed_in.tokens);

    // The refresh token is still good.
    signed_in.session().await.refresh().await.unwrap();
}

pub(crate) async fn deactivated_user() {
    let framework = Framework::SimpleJwt;
    let server = shared!(framework, Behaviour::Strict);
    let signed_in = SignedIn::at(server).await;
    let session = signed_in.session().await;
    let stack = Stack::new(server, &session);

    server.post("/test/deactivate", &json!({"owner": signed_in.user.owner})).await;
    let answer = first_failure(&stack, framework).await;
    assert!(matches!(answer.report, Some(RefreshReport::NotRefreshed(NotRefreshed::Ended(_)))), "{answer:?}");
    assert!(session.state().is_ended());
}

pub(crate) async fn fresh_token_required() {
    let framework = Framework::FlaskJwtExtended;
    let server = shared!(framework, Behaviour::Strict);
    let signed_in = SignedIn::at(server).await;
    let session = signed_in.session().await;
    let stack = Stack::new(server, &session);
    assert_eq!(stack.status("/fresh").await, StatusCode::OK);
    session.refresh().await.unwrap();

    // The answer is a 401 without a challenge, like the one to an expired token. No refresh helps.
    for _ in 0..20 {
        let answer = stack.get("/fresh").await.unwrap();
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(answer.report.is_some());
    }
    let of_fresh = signed_in.presented(server).await - 1;
    println!("{framework}: 20 requests that need the token of a sign-in cause {of_fresh} refreshes");
    assert!((1..=10).contains(&of_fresh), "{of_fresh}");
    assert_eq!(session.state(), SessionState::Active);
    assert_eq!(stack.status(framework.notes()).await, StatusCode::OK);
}
