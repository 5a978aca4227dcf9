//! A conformance test suite for every [`TokenStore`], and [`FaultyStore`], a store that fails on demand.
//!
//! A store's tests provide a function that opens two handles on a new record, and run [`stores`] and [`sessions`]:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use tower_auth_refresh::store::{MemoryStore, TokenStore};
//! use tower_auth_refresh_testkit::conformance;
//!
//! #[tokio::test(start_paused = true)]
//! # async fn ignored() {}
//! async fn a_memory_store_conforms() {
//!     // A file store would open its file twice, and a database store would connect twice.
//!     let open = async || {
//!         let store: Arc<dyn TokenStore> = Arc::new(MemoryStore::new());
//!         [store.clone(), store]
//!     };
//!     conformance::stores(Duration::from_secs(1), open).await;
//!     conformance::sessions(Duration::from_secs(1), open).await;
//! }
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
//! #     .block_on(a_memory_store_conforms());
//! ```
//!
//! The suite waits for claims to expire. If the store uses `tokio`'s clock, pause it. If the store uses another clock,
//! don't pause `tokio`'s, and choose a short lease that is still much longer than a call to the store, such as 200 ms.

mod faulty;
mod sessions;
mod stores;

use std::sync::Arc;

use tower_auth_refresh::store::TokenStore;

pub use self::faulty::{Call, FaultyStore, StoreFault};
pub use self::sessions::sessions;
pub use self::stores::stores;

/// Two handles on one store, as two processes hold them.
pub type Handles = [Arc<dyn TokenStore>; 2];
