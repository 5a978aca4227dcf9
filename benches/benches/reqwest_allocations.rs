//! Allocations of a request of reqwest, the server's included: `reqwest/allocations/{bare,ours}`.
//!
//! A binary of its own, since a counting allocator costs time.

use tower_auth_refresh::Origin;
use tower_auth_refresh_benches::loopback::Server;
use tower_auth_refresh_benches::stack::{self, TOKEN};
use tower_auth_refresh_reqwest::reqwest::{Client, Response, Result};
use tower_auth_refresh_reqwest::{ApiClient, ReqwestService};

/// The requests that are counted, behind one that opens the connection.
const REQUESTS: u64 = 1000;

async fn read(response: Result<Response>) {
    response.and_then(Response::error_for_status).expect("a response").bytes().await.expect("a complete body");
}

fn main() {
    // Only this thread's allocations are counted: the runtime is single-threaded.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime starts");
    let (server, session) = runtime.block_on(async { (Server::start().await, stack::session().await) });
    let builder = || Client::builder().no_proxy();
    let bare = builder().build().expect("a client");
    let service = ReqwestService::new(builder()).expect("a client");
    let api = ApiClient::new(session, Origin::parse(&server.url("")).expect("loopback origin"), service);
    let url = server.url("/");
    let count = |name, send: &mut dyn FnMut()| {
        send();
        let counted = allocation_counter::measure(|| (0..REQUESTS).for_each(|_| send()));
        println!(
            "reqwest/allocations/{name}: {}, {} bytes",
            counted.count_total / REQUESTS,
            counted.bytes_total / REQUESTS
        );
    };
    count("bare", &mut || {
        runtime.block_on(async { read(bare.get(&url).bearer_auth(TOKEN).send().await).await });
    });
    count("ours", &mut || runtime.block_on(async { read(api.get(&url).send().await).await }));
}
