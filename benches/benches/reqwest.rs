//! Throughput of reqwest on loopback, 64 requests in flight: `reqwest/{h1,h2}/{bare,ours}`.
//!
//! Also prints the throughput beside that of the bare client, as the median ratio of rounds that take turns.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use tower_auth_refresh::{Origin, Session};
use tower_auth_refresh_benches::loopback::{Http, IN_FLIGHT, Server};
use tower_auth_refresh_benches::rounds::ratio;
use tower_auth_refresh_benches::stack::{self, TOKEN};
use tower_auth_refresh_reqwest::reqwest::{Client, ClientBuilder, Response, Result};
use tower_auth_refresh_reqwest::{ApiClient, ReqwestService};

/// Requests of a round.
const REQUESTS: usize = 3200;

fn builder(http: Http) -> ClientBuilder {
    let builder = Client::builder().no_proxy();
    if http == Http::H2 { builder.http2_prior_knowledge() } else { builder }
}

/// Sends the requests by this client, and returns the elapsed time.
async fn time<C: Clone + Send + 'static, F>(client: C, send: fn(&C) -> F) -> Duration
where
    F: Future<Output = Result<Response>> + Send + 'static,
{
    let start = Instant::now();
    let calls = (0..IN_FLIGHT).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            for _ in 0..REQUESTS / IN_FLIGHT {
                let response = send(&client).await.and_then(Response::error_for_status).expect("a response");
                response.bytes().await.expect("a complete body");
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("no caller panics");
    }
    start.elapsed()
}

/// Times a new client, since the assignment of connections to threads lasts as long as they do.
async fn time_bare(server: &Server, http: Http) -> Duration {
    let client = builder(http).build().expect("a client");
    time((client, server.url("/")), |(client, url)| client.get(url).bearer_auth(TOKEN).send()).await
}

/// As [`time_bare`], with the token of the session.
async fn time_ours(server: &Server, http: Http, session: &Session) -> Duration {
    let service = ReqwestService::new(builder(http)).expect("a client");
    let api = ApiClient::new(session.clone(), Origin::parse(&server.url("")).expect("loopback origin"), service);
    time((api, server.url("/")), |(api, url)| api.get(url).send()).await
}

fn reqwest(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("runtime starts");
    let (server, session) = runtime.block_on(async { (Server::start().await, stack::session().await) });
    for (name, http) in [("h1", Http::H1), ("h2", Http::H2)] {
        let bare = async || time_bare(&server, http).await;
        let ours = async || time_ours(&server, http, &session).await;
        let ratio = runtime.block_on(ratio(ours, bare, Duration::from_secs(60)));
        println!("reqwest/{name}: {:.4} of the bare client, {:.4} – {:.4}", ratio.value, ratio.low, ratio.high);
        let mut group = criterion.benchmark_group(format!("reqwest/{name}"));
        group.throughput(Throughput::Elements(REQUESTS as u64)).sample_size(10);
        group.bench_function("bare", |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| runtime.block_on(bare())).sum());
        });
        group.bench_function("ours", |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| runtime.block_on(ours())).sum());
        });
        group.finish();
    }
}

criterion_group!(benches, reqwest);
criterion_main!(benches);
