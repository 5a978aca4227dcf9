//! Against four servers in Python: django-oauth-toolkit, Django REST framework with `SimpleJWT`, Authlib,
//! Flask-JWT-Extended.
//!
//! `just tools` installs them into `target/interop-venv`. Without that, these tests are skipped, unless `CI` is `true`.
//! The servers are in `tests/interop/python`, one file each. Each test prints its figures (`-- --nocapture`).

#![cfg(feature = "client")]
#![expect(clippy::unwrap_used, reason = "what fails in a test, fails the test")]

mod framework;
mod proxy;
mod scenarios;
mod server;
mod stack;

use tower_auth_refresh::Rotation::{Grace, Reusable, Strict};

use self::framework::Framework::{self, Authlib, DjangoOAuthToolkit, SimpleJwt};
use self::scenarios::{GRACE_PERIOD, Outcome, lost_answer};
use self::server::Behaviour;

/// Runs a scenario against all servers at once: most of its time it waits for tokens to expire.
async fn at_each_server<F>(scenario: impl Fn(Framework) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let running: Vec<_> =
        Framework::ALL.into_iter().map(|framework| (framework, tokio::spawn(scenario(framework)))).collect();
    let mut failed = Vec::new();
    for (framework, scenario) in running {
        if scenario.await.is_err() {
            failed.push(framework.to_string());
        }
    }
    assert!(failed.is_empty(), "failed at {}", failed.join(", "));
}

macro_rules! at_each_server {
    ($($test:ident: $scenario:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            at_each_server(scenarios::$scenario).await;
        }
    )*};
}

at_each_server! {
    fifty_callers_see_no_failure_through_ten_expiries: fifty_callers,
    a_revoked_grant_ends_the_session: revoked_grant,
    a_server_that_restarts_ends_no_session_by_being_away: restart,
    sign_out_revokes_the_refresh_token: sign_out,
    a_forbidden_request_passes_and_an_expired_one_is_replayed: forbidden_beside_expired,
    a_server_that_answers_403_to_an_expired_token_needs_a_policy_or_an_early_refresh: forbidden_like_expired,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_of_a_rotating_server_ends_the_session_by_the_servers_word_only() {
    at_each_server(|framework| async move {
        lost_answer(framework, Behaviour::Strict, Strict, Outcome::EndedByTheNext).await;
        lost_answer(framework, Behaviour::Strict, Grace(GRACE_PERIOD), Outcome::EndedAtOnce).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_of_a_server_that_does_not_rotate_costs_nothing() {
    at_each_server(|framework| async move {
        lost_answer(framework, Behaviour::Reusable, Strict, Outcome::RecoveredByTheNext).await;
        lost_answer(framework, Behaviour::Reusable, Reusable, Outcome::RecoveredAtOnce).await;
    })
    .await;
}

#[tokio::test]
async fn a_lost_answer_within_the_grace_period_of_django_oauth_toolkit_is_requested_again() {
    lost_answer(DjangoOAuthToolkit, Behaviour::Grace, Strict, Outcome::RecoveredByTheNext).await;
    lost_answer(DjangoOAuthToolkit, Behaviour::Grace, Grace(GRACE_PERIOD), Outcome::RecoveredAtOnce).await;
}

#[tokio::test]
async fn a_lost_answer_within_the_grace_period_of_an_authlib_app_is_requested_again() {
    lost_answer(Authlib, Behaviour::Grace, Strict, Outcome::RecoveredByTheNext).await;
    lost_answer(Authlib, Behaviour::Grace, Grace(GRACE_PERIOD), Outcome::RecoveredAtOnce).await;
}

#[tokio::test]
async fn a_lost_answer_of_simplejwt_without_a_blacklist_is_requested_again() {
    lost_answer(SimpleJwt, Behaviour::Rotating, Strict, Outcome::RecoveredByTheNext).await;
    lost_answer(SimpleJwt, Behaviour::Rotating, Reusable, Outcome::RecoveredAtOnce).await;
}

#[tokio::test]
async fn a_wrong_client_secret_at_django_oauth_toolkit_keeps_the_tokens_and_says_misconfigured() {
    scenarios::wrong_client_secret(DjangoOAuthToolkit).await;
}

#[tokio::test]
async fn a_wrong_client_secret_at_authlib_keeps_the_tokens_and_says_misconfigured() {
    scenarios::wrong_client_secret(Authlib).await;
}

#[tokio::test]
async fn a_user_that_django_has_deactivated_ends_the_session() {
    scenarios::deactivated_user().await;
}

#[tokio::test]
async fn a_flask_route_that_needs_the_token_of_a_sign_in_causes_few_refreshes() {
    scenarios::fresh_token_required().await;
}
