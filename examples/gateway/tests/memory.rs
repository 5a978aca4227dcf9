//! A gibibyte each way at flat memory: in a process of its own, so that its memory can be measured.

#![expect(clippy::unwrap_used, reason = "what fails in a test, fails the test")]

#[path = "support/world.rs"]
#[expect(dead_code, reason = "made for more than this")]
mod world;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use self::world::World;

const MEBIBYTE: u64 = 1 << 20;
const GIBIBYTE: u64 = 1 << 30;

/// What a gibibyte may add, buffers of three sockets included.
const MARGIN: u64 = 48 * MEBIBYTE;

/// The tests measure the same process.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_gibibyte_is_downloaded_at_flat_memory() {
    measured(async |world| {
        let browser = world.browser("ada").await;
        // Expired on the way: the download is the answer to the replay.
        world.kit.expire_access_tokens();
        let request = browser.request(Method::GET, &format!("/api/bytes/{GIBIBYTE}")).body(Body::empty()).unwrap();
        is_a_gibibyte(browser.send(request).await.into_body()).await;
        assert_eq!(world.kit.counters().granted, 1);
    });
}

/// There a task reads for the client.
#[test]
fn a_gibibyte_is_downloaded_over_http_2_at_flat_memory() {
    measured(async |world| {
        let browser = world.browser("ada").await;
        let request = browser.request(Method::GET, &format!("/api/bytes/{GIBIBYTE}")).body(Body::empty()).unwrap();
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        is_a_gibibyte(client.request(request).await.unwrap().into_body()).await;
    });
}

async fn is_a_gibibyte(mut body: Incoming) {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        // Byte i is i % 251: one of each frame will do.
        assert!(data.is_empty() || u64::from(data[0]) == length % 251);
        length += data.len() as u64;
    }
    assert_eq!(length, GIBIBYTE);
}

#[test]
fn a_gibibyte_is_uploaded_at_flat_memory() {
    measured(async |world| {
        let browser = world.browser("ada").await;
        let part = Bytes::from(vec![7; 256 * 1024]);
        let parts = 4 * 1024;
        let parts = stream::iter(std::iter::repeat_n(part, parts).map(Ok::<_, std::io::Error>));
        let request = browser.request(Method::POST, "/api/swallow").body(Body::from_stream(parts)).unwrap();
        let answer = browser.ask(request).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["body_length"], GIBIBYTE);
    });
}

fn measured(transfer: impl AsyncFnOnce(&World)) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::start_with(|settings| settings.body_limit = GIBIBYTE).await;
        let Some(before) = resident() else {
            println!("skipped: this system doesn't tell how much memory a process uses");
            return;
        };
        let done = Arc::new(AtomicBool::new(false));
        let watch = std::thread::spawn({
            let done = done.clone();
            move || {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(resident().unwrap_or_default());
                    std::thread::sleep(Duration::from_millis(5));
                }
                most
            }
        });
        transfer(&world).await;
        done.store(true, Ordering::Relaxed);
        let grown = watch.join().unwrap().saturating_sub(before);
        println!("a gibibyte took {} KiB of memory", grown / 1024);
        assert!(grown < MARGIN, "{} MiB", grown / MEBIBYTE);
    });
}

/// The memory of this process, in bytes, where the system tells.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
