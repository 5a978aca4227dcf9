//! Memory use of a gibibyte in each direction. A process of its own, because the test measures the whole process.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/resident.rs"]
mod resident;
#[path = "support/test_gateway.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod test_gateway;

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

use self::resident::resident_memory;
use self::test_gateway::TestGateway;

const MEBIBYTE: u64 = 1 << 20;
const GIBIBYTE: u64 = 1 << 30;

/// The memory that a transfer may add, including the buffers of three sockets.
const MARGIN: u64 = 48 * MEBIBYTE;

/// Runs the tests one at a time: all measure the same process.
static SERIAL: Mutex<()> = Mutex::new(());

#[test]
fn a_gibibyte_is_downloaded_at_flat_memory() {
    measured(async |gateway| {
        let browser = gateway.browser("ada").await;
        // With an expired token, the download is the response to the replay.
        gateway.kit.expire_access_tokens();
        let request = browser.request(Method::GET, &format!("/api/bytes/{GIBIBYTE}")).body(Body::empty()).unwrap();
        assert_gibibyte(browser.send(request).await.into_body()).await;
        assert_eq!(gateway.kit.counters().granted, 1);
    });
}

/// Over HTTP/2 a task reads the upstream's body.
#[test]
fn a_gibibyte_is_downloaded_over_http_2_at_flat_memory() {
    measured(async |gateway| {
        let browser = gateway.browser("ada").await;
        let request = browser.request(Method::GET, &format!("/api/bytes/{GIBIBYTE}")).body(Body::empty()).unwrap();
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        assert_gibibyte(client.request(request).await.unwrap().into_body()).await;
    });
}

async fn assert_gibibyte(mut body: Incoming) {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        // Byte i is i % 251. One byte of each frame is enough.
        assert!(data.is_empty() || u64::from(data[0]) == length % 251);
        length += data.len() as u64;
    }
    assert_eq!(length, GIBIBYTE);
}

#[test]
fn a_gibibyte_is_uploaded_at_flat_memory() {
    measured(async |gateway| {
        let browser = gateway.browser("ada").await;
        let part = Bytes::from(vec![7; 256 * 1024]);
        let parts = 4 * 1024;
        let parts = stream::iter(std::iter::repeat_n(part, parts).map(Ok::<_, std::io::Error>));
        let request = browser.request(Method::POST, "/api/swallow").body(Body::from_stream(parts)).unwrap();
        let response = browser.fetch(request).await;
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(response.json()["body_length"], GIBIBYTE);
    });
}

fn measured(transfer: impl AsyncFnOnce(&TestGateway)) {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let gateway = TestGateway::start_with(|settings| settings.body_limit = GIBIBYTE).await;
        let Some(before) = resident_memory() else {
            println!("skipped: no /proc/self/status on this system");
            return;
        };
        let done = Arc::new(AtomicBool::new(false));
        let watch = std::thread::spawn({
            let done = done.clone();
            move || {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(resident_memory().unwrap_or_default());
                    std::thread::sleep(Duration::from_millis(5));
                }
                most
            }
        });
        transfer(&gateway).await;
        done.store(true, Ordering::Relaxed);
        let grown = watch.join().unwrap().saturating_sub(before);
        println!("a gibibyte took {} KiB of memory", grown / 1024);
        assert!(grown < MARGIN, "{} MiB", grown / MEBIBYTE);
    });
}
