//! What every [`TokenStore`] must do, as tests to run it through; and [`FaultyStore`], to try a session over a store
//! that fails.
//!
//! A store's own tests say how to open it, twice over the same record, and run [`stores`] and [`sessions`]:
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
//!     // Another store opens its file, or connects to its server, twice.
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
//! Claims are made to expire by waiting. Where the store goes by `tokio`'s clock, pause it; where it goes by a real
//! one, don't, and choose a lease that is short and still much longer than a call to the store: 200 ms, say.

mod faulty;
mod sessions;
mod stores;

use std::sync::Arc;

use tower_auth_refresh::store::TokenStore;

pub use self::faulty::{Call, FaultyStore, StoreFault};
pub use self::sessions::sessions;
pub use self::stores::stores;

/// Two handles on one store, as two processes would hold them.
pub type Handles = [Arc<dyn TokenStore>; 2];
