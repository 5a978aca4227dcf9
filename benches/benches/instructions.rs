//! Instructions of one call, counted by valgrind. Unlike times, counts are the same in every run.
//!
//! A count that exceeds its baseline by more than the tolerance fails. A count well below its baseline calls for a new
//! baseline. See `benches/README.md` for the command: without the profile that it sets, counts depend on how the
//! compiler partitions the crates into codegen units.

#![expect(missing_docs, reason = "the macros generate undocumented items")]

use std::convert::Infallible;
use std::hint::black_box;

use bytes::Bytes;
use futures_util::stream;
use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind, LibraryBenchmarkConfig};
use http::Request;
use http_body::Frame;
use http_body_util::StreamBody;
use tower::Layer;
use tower_auth_refresh::{AuthRefresh, Session};
use tower_auth_refresh_benches::api::Api;
use tower_auth_refresh_benches::shape::{self, ORIGIN, Requests, Shape};
use tower_auth_refresh_benches::stack;

/// The largest allowed ratio of a count to its baseline. Toolchains and C libraries differ by less.
const TOLERANCE: f64 = 1.05;

const GET0: u64 = 1_781;
const POST6: u64 = 3_428;
const BODY: u64 = 39_532;

type Client = AuthRefresh<Api, Session>;

fn limit(baseline: u64) -> LibraryBenchmarkConfig {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "thousands"
    )]
    let limit = (baseline as f64 * TOLERANCE) as u64;
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::default().hard_limits([(EventKind::Ir, limit)]));
    config
}

/// Returns a warmed-up client and a request.
fn call_setup(shape: Shape) -> (Client, Request<shape::Body>) {
    let (client, requests) = warm_client();
    (client, requests.batch(shape, 1).remove(0))
}

/// Returns a warmed-up client and an upload of 128 KiB in frames of 1 KiB, which exceeds the replay limit.
fn upload_setup() -> (Client, Request<Frames>) {
    let (client, _) = warm_client();
    let frame = Bytes::from(vec![7; 1024]);
    let body: Frames =
        StreamBody::new(stream::iter((0..128).map(|_| Ok(Frame::data(frame.clone()))).collect::<Vec<_>>()));
    (client, Request::post(ORIGIN).body(body).expect("valid request"))
}

type Frames = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

fn warm_client() -> (Client, Requests) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime starts");
    let session = runtime.block_on(stack::session());
    let mut client = stack::ours(&session).layer(<Api>::new());
    let requests = Requests::new(session);
    for request in requests.batch(Shape::Get0, 4) {
        stack::call(&mut client, request);
    }
    (client, requests)
}

#[library_benchmark]
#[bench::get0(args = (Shape::Get0), setup = call_setup, config = limit(GET0))]
#[bench::post6(args = (Shape::Post6), setup = call_setup, config = limit(POST6))]
fn call((mut client, request): (Client, Request<shape::Body>)) -> Client {
    stack::call(&mut client, black_box(request));
    client
}

#[library_benchmark]
#[bench::frames(args = (), setup = upload_setup, config = limit(BODY))]
fn body((mut client, request): (Client, Request<Frames>)) -> Client {
    stack::call(&mut client, black_box(request));
    client
}

library_benchmark_group!(name = instructions, benchmarks = [call, body]);
main!(library_benchmark_groups = instructions);
