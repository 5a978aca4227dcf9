//! Three revocations in a row, with 200 callers each: the refreshes and the failed calls of each peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_smithy_async::rt::sleep::{SharedAsyncSleep, TokioSleep};
use aws_smithy_async::time::{SharedTimeSource, SystemTimeSource};
use aws_smithy_runtime::client::identity::IdentityCache;
use aws_smithy_runtime_api::client::identity::{
    Identity, IdentityFuture, ResolveCachedIdentity, ResolveIdentity, SharedIdentityResolver,
};
use aws_smithy_runtime_api::client::runtime_components::{RuntimeComponents, RuntimeComponentsBuilder};
use aws_smithy_types::config_bag::ConfigBag;
use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use azure_core::http::headers::{AUTHORIZATION, Headers, WWW_AUTHENTICATE};
use azure_core::http::policies::auth::{Authorizer, BearerTokenAuthorizationPolicy, OnChallenge};
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{AsyncRawResponse, Context, Method};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use tokio::task::JoinSet;
use toolkit_auth::oauth2::BearerAuthAutoRefreshLayer;
use toolkit_http::HttpError;
use tower::{Layer, ServiceExt, service_fn};
use tower_auth_refresh::{RefreshError, RefreshRequest, ReplayBody, Session};
use tower_auth_refresh_benches::shape::ORIGIN;
use tower_auth_refresh_benches::stack;

use crate::cf_gears;
use crate::tokens::{CALLERS, REFRESH, Tokens};

/// The outcome of one revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// The number of tokens that were issued.
    pub refreshes: usize,
    /// The number of callers that got no 200.
    pub failures: usize,
}

/// Measures the middleware.
///
/// # Panics
///
/// If a caller panics.
pub async fn ours() -> Vec<Round> {
    let tokens = Arc::new(Tokens::new());
    let refresh = service_fn({
        let tokens = Arc::clone(&tokens);
        move |_: RefreshRequest| {
            let tokens = Arc::clone(&tokens);
            async move { Ok::<_, RefreshError>(stack::tokens(&tokens.issue().await)) }
        }
    });
    let first = stack::tokens(&tokens.issue().await);
    let session = Session::builder(refresh).tokens(first).build().await.expect("memory stores don't fail");
    let api = {
        let tokens = Arc::clone(&tokens);
        service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| {
            let tokens = Arc::clone(&tokens);
            async move { Ok::<_, std::convert::Infallible>(respond(&tokens, &request).await) }
        })
    };
    let client = stack::ours(&session).layer(api);
    rounds(&tokens, || {
        let client = client.clone();
        async move { client.oneshot(request()).await.is_ok_and(|response| response.status() == StatusCode::OK) }
    })
    .await
}

/// Measures cf-gears with its default settings.
///
/// # Panics
///
/// If a caller panics.
pub async fn cf_gears() -> Vec<Round> {
    let tokens = Arc::new(Tokens::new());
    let provider = cf_gears::provider(Arc::clone(&tokens)).await;
    let api = {
        let tokens = Arc::clone(&tokens);
        service_fn(move |request: Request<Full<Bytes>>| {
            let tokens = Arc::clone(&tokens);
            async move { Ok::<_, HttpError>(respond(&tokens, &request).await) }
        })
    };
    let client = BearerAuthAutoRefreshLayer::new(provider).layer(api);
    rounds(&tokens, || {
        let client = client.clone();
        async move { client.oneshot(request()).await.is_ok_and(|response| response.status() == StatusCode::OK) }
    })
    .await
}

/// Measures Azure's policy with a challenge handler that requests a new token.
///
/// # Panics
///
/// If a caller panics.
pub async fn azure() -> Vec<Round> {
    let tokens = Arc::new(Tokens::new());
    let credential = Arc::new(AzureCredential(Arc::clone(&tokens)));
    let policy = BearerTokenAuthorizationPolicy::new(credential, ["scope"]).with_on_challenge(Arc::new(AuthorizeAgain));
    let policy = Arc::new(policy);
    let next: Arc<[Arc<dyn Policy>]> = Arc::new([Arc::new(AzureApi(Arc::clone(&tokens)))]);
    let call = || {
        let (policy, next) = (Arc::clone(&policy), Arc::clone(&next));
        async move {
            let url = azure_core::http::Url::parse(ORIGIN).expect("valid URL");
            let mut request = azure_core::http::Request::new(url, Method::Get);
            let response = policy.send(&Context::new(), &mut request, &next).await;
            response.is_ok_and(|response| response.status() == azure_core::http::StatusCode::Ok)
        }
    };
    // Fetches a first token before the first revocation, as for the other peers.
    assert!(call().await);
    rounds(&tokens, call).await
}

/// Measures smithy's identity cache, queried before each call. The cache can't be notified of a refused identity.
///
/// # Panics
///
/// If a caller panics.
pub async fn smithy() -> Vec<Round> {
    let tokens = Arc::new(Tokens::new());
    let resolve = smithy_cache(SmithyTokens(Arc::clone(&tokens)));
    let call = || {
        let (resolve, tokens) = (resolve.clone(), Arc::clone(&tokens));
        async move {
            let Some(token) = resolve().await else { return false };
            tokens.status(Some(&format!("Bearer {token}"))).await == StatusCode::OK
        }
    };
    assert!(call().await);
    rounds(&tokens, call).await
}

/// Returns the number of failing refreshes that 50 concurrent callers cause: the middleware's, and smithy's.
///
/// # Panics
///
/// If a caller panics.
pub async fn failing() -> [usize; 2] {
    const CALLERS: usize = 50;
    let calls = Arc::new(AtomicUsize::new(0));
    let refresh = service_fn({
        let calls = Arc::clone(&calls);
        move |_: RefreshRequest| {
            calls.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(REFRESH).await;
                Err::<tower_auth_refresh::Tokens, _>(RefreshError::misconfigured("refresh fails"))
            }
        }
    });
    let session =
        Session::builder(refresh).tokens(stack::tokens("a0")).build().await.expect("memory stores don't fail");
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let session = session.clone();
        callers.spawn(async move { session.refresh().await.is_ok() });
    }
    callers.join_all().await;
    let ours = calls.swap(0, Ordering::SeqCst);

    let resolve = smithy_cache(SmithyFailure(Arc::clone(&calls)));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(resolve());
    }
    callers.join_all().await;
    [ours, calls.load(Ordering::SeqCst)]
}

/// Revokes all tokens and runs all callers, three times.
async fn rounds<F>(tokens: &Tokens, call: impl Fn() -> F) -> Vec<Round>
where
    F: Future<Output = bool> + Send + 'static,
{
    let mut rounds = Vec::new();
    for _ in 0..3 {
        tokens.revoke();
        let before = tokens.issued();
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(call());
        }
        let served = callers.join_all().await.into_iter().filter(|served| *served).count();
        let refreshes = tokens.issued() - before;
        rounds.push(Round { refreshes, failures: CALLERS - served });
    }
    rounds
}

fn request() -> Request<Full<Bytes>> {
    Request::get(ORIGIN).body(Full::default()).expect("valid request")
}

async fn respond<B>(tokens: &Tokens, request: &Request<B>) -> Response<Empty<Bytes>> {
    let token = request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let mut response = Response::new(Empty::new());
    *response.status_mut() = tokens.status(token).await;
    response
}

struct AzureCredential(Arc<Tokens>);

#[async_trait]
impl TokenCredential for AzureCredential {
    async fn get_token(&self, _: &[&str], _: Option<TokenRequestOptions<'_>>) -> azure_core::Result<AccessToken> {
        let expiry = azure_core::time::OffsetDateTime::now_utc() + azure_core::time::Duration::days(1);
        Ok(AccessToken::new(self.0.issue().await, expiry))
    }
}

struct AzureApi(Arc<Tokens>);

#[expect(elided_lifetimes_in_paths, reason = "the signature of the trait, as `async_trait` expands it")]
#[async_trait]
impl Policy for AzureApi {
    async fn send(&self, _: &Context, request: &mut azure_core::http::Request, _: &[Arc<dyn Policy>]) -> PolicyResult {
        let status = self.0.status(request.headers().get_optional_str(&AUTHORIZATION)).await;
        let mut headers = Headers::new();
        headers.insert(WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"");
        Ok(AsyncRawResponse::from_bytes(status.as_u16().into(), headers, Bytes::new()))
    }
}

#[derive(Debug)]
struct AuthorizeAgain;

#[expect(elided_lifetimes_in_paths, reason = "the signature of the trait, as `async_trait` expands it")]
#[async_trait]
impl OnChallenge for AuthorizeAgain {
    async fn on_challenge(
        &self,
        context: &Context,
        request: &mut azure_core::http::Request,
        authorizer: &dyn Authorizer,
        _: &Headers,
    ) -> azure_core::Result<()> {
        let method_options = azure_core::http::ClientMethodOptions { context: context.to_owned() };
        authorizer.authorize(request, &["scope"], TokenRequestOptions { method_options }).await
    }
}

#[derive(Clone)]
struct SmithyToken(String);

struct SmithyTokens(Arc<Tokens>);

impl ResolveIdentity for SmithyTokens {
    fn resolve_identity<'a>(&'a self, _: &'a RuntimeComponents, _: &'a ConfigBag) -> IdentityFuture<'a> {
        IdentityFuture::new(async {
            let token = SmithyToken(self.0.issue().await);
            Ok(Identity::new(token, Some(SystemTime::now() + Duration::from_hours(24))))
        })
    }
}

struct SmithyFailure(Arc<AtomicUsize>);

impl ResolveIdentity for SmithyFailure {
    fn resolve_identity<'a>(&'a self, _: &'a RuntimeComponents, _: &'a ConfigBag) -> IdentityFuture<'a> {
        self.0.fetch_add(1, Ordering::SeqCst);
        IdentityFuture::new(async {
            tokio::time::sleep(REFRESH).await;
            Err("refresh fails".into())
        })
    }
}

/// Returns a function that queries a new identity cache over `resolver` for its token.
fn smithy_cache(
    resolver: impl ResolveIdentity + 'static,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = Option<String>> + Send>> + Clone {
    let cache = IdentityCache::lazy().build();
    let resolver = SharedIdentityResolver::new(resolver);
    let components = RuntimeComponentsBuilder::for_tests()
        .with_time_source(Some(SharedTimeSource::new(SystemTimeSource::new())))
        .with_sleep_impl(Some(SharedAsyncSleep::new(TokioSleep::new())))
        .build()
        .expect("complete components");
    let components = Arc::new(components);
    move || {
        let (cache, resolver, components) = (cache.clone(), resolver.clone(), Arc::clone(&components));
        Box::pin(async move {
            let config = ConfigBag::base();
            let identity = cache.resolve_cached_identity(resolver, &components, &config).await.ok()?;
            identity.data::<SmithyToken>().map(|token| token.0.clone())
        })
    }
}

macro_rules! opaque {
    ($($type:ty),*) => {$(
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($type))
            }
        }
    )*};
}

opaque!(AzureCredential, AzureApi, SmithyToken, SmithyTokens, SmithyFailure);
