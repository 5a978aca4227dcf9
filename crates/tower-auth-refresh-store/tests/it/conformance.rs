//! The conformance suite, with two handles in one process and with two processes.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh_store::FileStore;
use tower_auth_refresh_testkit::conformance::{self, Handles};

use crate::peer::{Peer, file_url};
use crate::support::TestDirectory;

/// Far longer than some writes to the disk, on a machine that does other things as well.
pub(crate) const LEASE: Duration = Duration::from_millis(600);

fn plain(path: &Path) -> Arc<dyn TokenStore> {
    FileStore::open_single(path).unwrap()
}

#[cfg(feature = "encryption")]
fn encrypted(path: &Path) -> Arc<dyn TokenStore> {
    let keys = tower_auth_refresh_store::Keys::new("1", &[7; 32]).unwrap();
    FileStore::builder(path).namespace("tests").keys(keys).open().unwrap().store("ada")
}

/// Returns a function that opens two handles on a new store. The directories last as long as the function.
fn two_handles(open: fn(&Path) -> Arc<dyn TokenStore>) -> impl AsyncFn() -> Handles {
    let directories = RefCell::new(Vec::new());
    async move || {
        let directory = TestDirectory::new();
        let handles = [open(directory.path()), open(directory.path())];
        directories.borrow_mut().push(directory);
        handles
    }
}

/// Returns a function that opens a handle on a new store in this process, and one in another process.
fn two_processes() -> impl AsyncFn() -> Handles {
    let directories = RefCell::new(Vec::new());
    async move || {
        let directory = TestDirectory::new();
        let handles: Handles = [plain(directory.path()), Arc::new(Peer::start(&file_url(&directory)).await)];
        directories.borrow_mut().push(directory);
        handles
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_store_conforms() {
    conformance::stores(LEASE, two_handles(plain)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_on_a_file_store_conform() {
    conformance::sessions(LEASE, two_handles(plain)).await;
}

#[cfg(feature = "encryption")]
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_file_store_conforms() {
    conformance::stores(LEASE, two_handles(encrypted)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_a_file_store_conform() {
    conformance::stores(LEASE, two_processes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_two_processes_on_a_file_store_conform() {
    conformance::sessions(LEASE, two_processes()).await;
}

/// Serves a store to the test that has started this process.
#[test]
fn a_second_process() {
    crate::peer::serve();
}
