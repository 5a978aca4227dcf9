//! `require_token`: a request without a token is refused and not sent.

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use http_body_util::Full;
use tokio::task::JoinHandle;
use tower::{BoxError, Service, ServiceExt};
use tower_auth_refresh::layer::RequireToken;
use tower_auth_refresh::{
    AuthRefresh, AuthRefreshLayer, NotRefreshed, RefreshError, RefreshReport, Session, SkipAuth, Tokens,
};
use tower_layer::Layer;

use crate::refusal::{Step, refusal};
use crate::strict::{Broken, Req, Strict};
use crate::support::*;

type Within<ResB> = Strict<Script<Req, Response<ResB>, Broken>>;

/// A client that requires a token, over a strict service.
struct It<ResB> {
    session: Session,
    client: AuthRefresh<RequireToken<Within<ResB>>, Session>,
    within: std::sync::Arc<crate::strict::Shared>,
    api: Calls<Req, Response<ResB>, Broken>,
    auth: AuthCalls,
}

impl<ResB: http_body::Body + Send + 'static> It<ResB> {
    async fn with(tokens: Option<Tokens>) -> Self {
        let (service, auth) = script();
        let builder = Session::builder(service);
        let session = match tokens {
            Some(tokens) => builder.tokens(tokens),
            None => builder,
        };
        let session = session.build().await.unwrap();
        let (service, api) = script();
        let strict = Strict::new(service);
        let within = strict.shared();
        let client = AuthRefreshLayer::new(session.clone(), origin()).require_token().layer(strict);
        Self { session, client, within, api, auth }
    }

    fn send(&self, request: Request<Full<Bytes>>) -> JoinHandle<Result<Response<ResB>, BoxError>> {
        tokio::spawn(self.client.clone().oneshot(request))
    }

    fn get(&self) -> JoinHandle<Result<Response<ResB>, BoxError>> {
        self.send(get())
    }
}

fn get() -> Request<Full<Bytes>> {
    Request::get(ORIGIN).body(Full::default()).unwrap()
}

/// The reason for which a request was refused.
fn refused<T>(result: Result<T, BoxError>) -> NotRefreshed {
    let error = result.err().expect("the request is refused");
    match error.downcast_ref::<RefreshReport>() {
        Some(RefreshReport::NotRefreshed(why)) => why.clone(),
        _ => panic!("{error:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_of_a_signed_out_or_ended_session_is_refused_and_not_sent() {
    let mut it = It::<Full<Bytes>>::with(None).await;
    assert!(matches!(refused(it.get().await.unwrap()), NotRefreshed::SignedOut));
    it.session.sign_in(pair(1)).await.unwrap();
    let answer = it.get();
    it.api.next().await.answer(Ok(response(401)));
    it.auth.next().await.answer(Err(RefreshError::rejected("no")));
    assert_eq!(answer.await.unwrap().unwrap().status(), 401);
    let why = refused(it.get().await.unwrap());
    assert!(matches!(why, NotRefreshed::Ended(_)));
    assert!(it.api.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_keeps_no_reservation_of_the_inner_service() {
    let mut it = It::<Full<Bytes>>::with(None).await;
    for _ in 0..3 {
        let answer = it.client.ready().await.unwrap().call(get()).await;
        assert!(matches!(refused(answer), NotRefreshed::SignedOut));
        assert_eq!(it.within.reserved(), 0);
    }
    it.session.sign_in(pair(1)).await.unwrap();
    let answer = tokio::spawn(it.client.ready().await.unwrap().call(get()));
    it.api.next().await.answer(Ok(response(200)));
    assert_eq!(answer.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_in_vain_for_its_first_token_is_refused_with_the_failed_refresh() {
    let mut it = It::<Full<Bytes>>::with(Some(Tokens::from_refresh_token(refresh("r1")))).await;
    let waiting = it.get();
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no")));
    assert!(matches!(refused(waiting.await.unwrap()), NotRefreshed::Failed(_)));
    assert!(matches!(refused(it.get().await.unwrap()), NotRefreshed::CoolingDown(_)));
    assert!(it.api.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_is_refused_if_the_user_signs_out_meanwhile() {
    let mut it = It::<Full<Bytes>>::with(Some(Tokens::from_refresh_token(refresh("r1")))).await;
    let waiting = it.get();
    let late = it.auth.next().await;
    it.session.sign_out().await.unwrap();
    late.answer(Ok(pair(2)));
    assert!(matches!(refused(waiting.await.unwrap()), NotRefreshed::SessionChanged));
    assert!(it.api.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_would_carry_no_token_is_refused() {
    let mut it = It::with(Some(pair(1))).await;
    let request = it.get();
    it.api.next().await.answer(Ok(refusal([Step::Stall], None).0));
    it.auth.next().await.answer(Ok(pair(2)));
    settle().await;
    // While the 401 is being read.
    it.session.sign_in(pair(3)).await.unwrap();
    assert!(matches!(refused(request.await.unwrap()), NotRefreshed::SessionChanged));
    assert!(it.api.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_session_of_its_own_is_refused() {
    let it = It::<Full<Bytes>>::with(Some(pair(1))).await;
    let (service, mut api) = script();
    let client = AuthRefreshLayer::per_request(origin()).require_token().layer(Strict::new(service));
    let why = refused::<Response<Full<Bytes>>>(client.clone().oneshot(get()).await);
    assert!(matches!(why, NotRefreshed::NoSession));
    let mut request = get();
    request.extensions_mut().insert(it.session.clone());
    let request = tokio::spawn(client.oneshot(request));
    let call: Call<Req, Response<Full<Bytes>>, Broken> = api.next().await;
    assert_eq!(call.request.headers()[AUTHORIZATION], "Bearer a1");
    call.answer(Ok(response(200)));
    assert_eq!(request.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn requests_that_pass_untouched_are_sent() {
    let mut it = It::<Full<Bytes>>::with(None).await;
    for request in [
        Request::get("https://other.example.com/"),
        Request::get(ORIGIN).extension(SkipAuth),
        Request::get(ORIGIN).header(AUTHORIZATION, "Bearer mine"),
    ] {
        let answer = it.send(request.body(Full::default()).unwrap());
        it.api.next().await.answer(Ok(response(401)));
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.status(), 401);
        assert!(answer.extensions().get::<RefreshReport>().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_token_is_refreshed_and_replayed_as_usual_and_errors_are_the_inner_services() {
    let mut it = It::<Full<Bytes>>::with(Some(pair(1))).await;
    let request = it.get();
    it.api.next().await.answer(Ok(response(401)));
    it.auth.next().await.answer(Ok(pair(2)));
    let call = it.api.next().await;
    assert_eq!(call.request.headers()[AUTHORIZATION], "Bearer a2");
    call.answer(Ok(response(200)));
    assert_eq!(request.await.unwrap().unwrap().status(), 200);
    let request = it.get();
    it.api.next().await.answer(Err(Broken::Called));
    assert_eq!(request.await.unwrap().unwrap_err().downcast_ref(), Some(&Broken::Called));
    it.within.break_one();
    assert_eq!(it.get().await.unwrap().unwrap_err().downcast_ref(), Some(&Broken::Unready));
}
