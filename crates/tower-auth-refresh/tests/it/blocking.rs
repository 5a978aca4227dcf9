//! Sessions on real threads, without an async runtime.

mod clients;
mod thread;

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread as os;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use tower_auth_refresh::blocking::{Session, is_challenge, service_fn};
use tower_auth_refresh::session::SessionErrorKind;
use tower_auth_refresh::{
    AccessToken, NotRefreshed, RefreshError, RefreshErrorKind, RefreshRequest, SessionBuilder, SessionState, Tokens,
};

use crate::support::*;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A session whose refreshes the test answers.
fn started(configure: impl FnOnce(SessionBuilder) -> SessionBuilder) -> (Session, AuthCalls) {
    let (service, auth) = script();
    let builder = configure(tower_auth_refresh::Session::builder(service));
    (Session::start(builder.build()).unwrap(), auth)
}

/// The same, signed in with [`pair`]`(1)`.
fn signed_in() -> (Session, AuthCalls) {
    started(|builder| builder.tokens(pair(1)))
}

/// An API that accepts one token, and the tokens that it was sent.
struct Api {
    accepts: &'static str,
    sent: Mutex<Vec<String>>,
}

impl Api {
    fn accepting(accepts: &'static str) -> Self {
        Self { accepts, sent: Mutex::default() }
    }

    fn call(&self, token: &AccessToken) -> u16 {
        self.sent.lock().unwrap().push(token.expose_secret().to_owned());
        if token.expose_secret() == self.accepts { 200 } else { 401 }
    }

    fn sent(&self) -> Vec<String> {
        self.sent.lock().unwrap().clone()
    }
}

/// Sends a request to the API.
fn send(session: &Session, api: &Api) -> Result<u16, NotRefreshed> {
    session.send(|token| api.call(token), |status| *status == 401)
}

/// Sends a request, and answers the one refresh that it causes.
fn send_and_refresh(
    session: &Session,
    auth: &mut AuthCalls,
    api: &Api,
    answer: Result<Tokens, RefreshError>,
) -> Result<u16, NotRefreshed> {
    os::scope(|scope| {
        let sending = scope.spawn(|| send(session, api));
        session.block_on(auth.next()).answer(answer);
        sending.join().unwrap()
    })
}

fn token_in_force(session: &Session) -> String {
    session.credential().unwrap().access_token().expose_secret().to_owned()
}

#[test]
fn a_token_that_is_accepted_is_sent_once() {
    let (session, _auth) = signed_in();
    let api = Api::accepting("a1");
    assert_eq!(send(&session, &api).unwrap(), 200);
    assert_eq!(api.sent(), ["a1"]);
}

#[test]
fn a_refused_token_is_replaced_and_the_request_sent_again() {
    let (session, mut auth) = signed_in();
    let api = Api::accepting("a2");
    assert_eq!(send_and_refresh(&session, &mut auth, &api, Ok(pair(2))).unwrap(), 200);
    assert_eq!(api.sent(), ["a1", "a2"]);
}

#[test]
fn a_second_refusal_is_returned() {
    let (session, mut auth) = signed_in();
    let api = Api::accepting("none");
    assert_eq!(send_and_refresh(&session, &mut auth, &api, Ok(pair(2))).unwrap(), 401);
    assert_eq!(api.sent(), ["a1", "a2"]);
}

#[test]
fn the_first_answer_is_dropped_before_the_second_request() {
    let (session, auth) = signed_in();
    auth.serve_in(&session, |_| Ok(pair(2)));
    let connection = Mutex::new(());
    let answer = session.send(
        |token| (token.expose_secret().to_owned(), connection.try_lock().expect("one connection")),
        |(token, _)| token == "a1",
    );
    assert_eq!(answer.unwrap().0, "a2");
}

#[test]
fn an_expired_token_is_refreshed_before_the_request() {
    let (session, mut auth) = started(|builder| builder.tokens(pair(1).with_expires_at(SystemTime::UNIX_EPOCH)));
    let api = Api::accepting("a2");
    assert_eq!(send_and_refresh(&session, &mut auth, &api, Ok(pair(2))).unwrap(), 200);
    assert_eq!(api.sent(), ["a2"]);
}

#[test]
fn fifty_threads_that_are_refused_at_once_make_one_refresh() {
    let (session, auth) = signed_in();
    let refreshes = auth.serve_in(&session, |_| Ok(pair(2)));
    let (api, refused) = (Api::accepting("a2"), Barrier::new(50));
    os::scope(|scope| {
        for _ in 0..50 {
            let (session, api, refused) = (session.clone(), &api, &refused);
            scope.spawn(move || {
                let call = |token: &AccessToken| {
                    let status = api.call(token);
                    if status == 401 {
                        refused.wait();
                    }
                    status
                };
                assert_eq!(session.send(call, |status| *status == 401).unwrap(), 200);
            });
        }
    });
    assert_eq!((refreshes.load(Ordering::SeqCst), api.sent().len()), (1, 100));
}

#[test]
fn a_failed_network_is_reported_keeps_the_tokens_and_passes() {
    let (session, mut auth) = signed_in();
    let api = Api::accepting("a2");
    let failure = Err(RefreshError::misconfigured("a firewall's page"));
    let why = send_and_refresh(&session, &mut auth, &api, failure).unwrap_err();
    assert!(matches!(why, NotRefreshed::Failed(_)) && !why.requires_sign_in());
    // Nothing is sent with a token that is known to be refused.
    let why = send(&session, &api).unwrap_err();
    assert!(matches!(why, NotRefreshed::CoolingDown(_)), "{why:?}");
    assert_eq!(api.sent(), ["a1"]);

    let refreshed = os::scope(|scope| {
        let refreshing = scope.spawn(|| session.refresh());
        let call = session.block_on(auth.next());
        assert_eq!(call.presented(), "r1");
        call.answer(Ok(pair(2)));
        refreshing.join().unwrap()
    });
    assert_eq!(refreshed.unwrap(), pair(2));
    assert_eq!(send(&session, &api).unwrap(), 200);
}

#[test]
fn an_ended_session_sends_nothing_until_a_user_signs_in() {
    let (session, mut auth) = signed_in();
    let api = Api::accepting("a3");
    let why = send_and_refresh(&session, &mut auth, &api, Err(RefreshError::rejected("revoked"))).unwrap_err();
    assert!(matches!(why, NotRefreshed::Ended(_)) && why.requires_sign_in());
    assert!(send(&session, &api).unwrap_err().requires_sign_in());
    assert!(session.as_async().state().is_ended());
    assert_eq!(api.sent(), ["a1"]);

    session.sign_in(pair(3)).unwrap();
    assert_eq!(send(&session, &api).unwrap(), 200);
}

#[test]
fn a_user_signs_in_and_out_and_the_tokens_are_revoked() {
    let (revoke, revoked) = revocations();
    let (session, _auth) = started(|builder| builder.revoke(revoke));
    let api = Api::accepting("a1");
    assert!(matches!(send(&session, &api), Err(NotRefreshed::SignedOut)));
    assert_eq!(session.sign_in(Tokens::default()).unwrap_err().kind(), SessionErrorKind::NoTokens);
    session.sign_in(pair(1)).unwrap();
    assert_eq!(send(&session, &api).unwrap(), 200);
    session.sign_out().unwrap();
    assert!(matches!(send(&session, &api), Err(NotRefreshed::SignedOut)));
    assert_eq!((api.sent().len(), revoked.lock().unwrap().as_slice()), (1, &[pair(1)][..]));
}

#[test]
fn the_token_api_names_the_token_that_was_refused() {
    let (session, auth) = signed_in();
    let refreshes = auth.serve_in(&session, |_| Ok(pair(2)));
    let refused = session.credential().unwrap();
    assert_eq!(session.renewed(&refused).unwrap().access_token().expose_secret(), "a2");
    // A late refusal of the old token.
    assert_eq!(session.renewed(&refused).unwrap().access_token().expose_secret(), "a2");
    assert_eq!(refreshes.load(Ordering::SeqCst), 1);
}

#[test]
fn tokens_that_live_for_seconds_and_are_accepted_are_renewed_as_often_as_they_expire() {
    let generation = AtomicUsize::new(1);
    let (session, auth) = signed_in();
    auth.serve_in(&session, |request| {
        let presented = request.refresh_token().unwrap().expose_secret()[1..].parse::<u32>().unwrap();
        Ok(pair(presented + 1))
    });
    // More than the loop guard would allow, if the API had accepted none of them.
    for _ in 0..20 {
        let accepted = format!("a{}", generation.fetch_add(1, Ordering::SeqCst) + 1);
        let call = |token: &AccessToken| token.expose_secret() == accepted;
        assert!(session.send(call, |accepted| !accepted).unwrap());
    }
}

#[test]
fn a_panic_of_the_function_leaves_the_session_as_it_was() {
    let (session, auth) = signed_in();
    auth.serve_in(&session, |_| Ok(pair(2)));
    let panics_with = |which: &'static str| {
        let call = |token: &AccessToken| assert_ne!(token.expose_secret(), which, "the function's own panic");
        let sent = catch_unwind(AssertUnwindSafe(|| session.send(call, |()| true)));
        *sent.unwrap_err().downcast::<String>().unwrap()
    };
    assert!(panics_with("a1").contains("the function's own panic"));
    assert_eq!(token_in_force(&session), "a1");
    assert!(panics_with("a2").contains("the function's own panic"));
    assert_eq!(token_in_force(&session), "a2");
}

#[test]
fn a_blocking_refresh_function_runs_beside_the_sessions_thread_and_its_errors_are_classified() {
    let outcomes = Mutex::new(vec![Err(RefreshError::rejected("revoked")), Ok(pair(2))]);
    let threads = Arc::new(Mutex::new(Vec::new()));
    let refresh = {
        let threads = Arc::clone(&threads);
        service_fn(move |_: RefreshRequest| {
            threads.lock().unwrap().push(os::current().name().unwrap_or_default().to_owned());
            outcomes.lock().unwrap().pop().unwrap()
        })
    };
    let builder = tower_auth_refresh::Session::builder(refresh).tokens(pair(1));
    let session = Session::start(builder.build()).unwrap();
    assert_eq!(session.refresh().unwrap(), pair(2));
    assert!(matches!(session.refresh(), Err(NotRefreshed::Ended(why)) if why.kind() == RefreshErrorKind::Rejected));
    let threads = threads.lock().unwrap();
    assert!(threads.len() == 2 && threads.iter().all(|name| name != "auth-refresh"), "{threads:?}");
}

#[test]
fn a_blocking_refresh_function_that_panics_fails_as_any_refresh_service_does() {
    let kind = |builder: SessionBuilder| {
        let session = Session::start(builder.tokens(pair(1)).build()).unwrap();
        match session.refresh() {
            Err(NotRefreshed::Failed(error)) => format!("{error:?}"),
            other => panic!("{other:?}"),
        }
    };
    let blocking = service_fn(|_: RefreshRequest| -> Result<Tokens, RefreshError> { panic!("the service's own") });
    let panicking = async |_: RefreshRequest| -> Result<Tokens, RefreshError> { panic!("the service's own") };
    let expected = kind(tower_auth_refresh::Session::builder(tower::service_fn(panicking)));
    assert_eq!(kind(tower_auth_refresh::Session::builder(blocking)), expected);
}

#[test]
fn no_token_is_in_any_debug_output() {
    let (session, _auth) = signed_in();
    let bearer = session.credential().unwrap().access_token().bearer();
    assert_eq!(bearer, "Bearer a1");
    let shown = format!("{session:?} {bearer:?}");
    assert!(!shown.contains("a1") && shown.contains("Active"), "{shown}");
}

#[test]
fn the_failure_to_build_a_session_is_returned() {
    let (service, _auth) = script::<RefreshRequest, Tokens, RefreshError>();
    let builder = tower_auth_refresh::Session::builder(service).tokens(Tokens::default());
    assert_eq!(Session::start(builder.build()).unwrap_err().kind(), SessionErrorKind::NoTokens);
    let failed = Session::start(async { Err::<_, tower::BoxError>("no such issuer".into()) });
    assert_eq!(failed.unwrap_err().to_string(), "no such issuer");
}

#[test]
fn a_401_is_a_challenge_unless_its_header_says_otherwise() {
    let with = |value: &str| HeaderMap::from_iter([(http::header::WWW_AUTHENTICATE, value.parse().unwrap())]);
    assert!(is_challenge(StatusCode::UNAUTHORIZED, &HeaderMap::new()));
    assert!(is_challenge(StatusCode::UNAUTHORIZED, &with(r#"Bearer error="invalid_token""#)));
    assert!(!is_challenge(StatusCode::UNAUTHORIZED, &with(r#"Bearer error="insufficient_scope""#)));
    assert!(!is_challenge(StatusCode::FORBIDDEN, &HeaderMap::new()));
}

impl AuthCalls {
    /// Answers every refresh from now on, on the session's thread, and counts them.
    fn serve_in(
        self,
        session: &Session,
        mut answer: impl FnMut(&RefreshRequest) -> Result<Tokens, RefreshError> + Send + 'static,
    ) -> Arc<AtomicUsize> {
        let refreshes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&refreshes);
        session.block_on(async {
            self.serve(move |request| {
                counted.fetch_add(1, Ordering::SeqCst);
                answer(request)
            });
        });
        refreshes
    }
}

/// The innermost cause of an error.
fn root_cause(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => root_cause(source),
        None => error.to_string(),
    }
}
