//! Stores of each kind, opened by a URL, as every process of a test opens them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh_store::FileStore;

/// Returns the store of one session, by its key.
pub(crate) type StoreFactory = Box<dyn Fn(&str) -> Arc<dyn TokenStore> + Send + Sync>;

/// Opens a store by its URL: `file:` and a directory, or that of a database and, after `#`, a namespace.
pub(crate) fn open(url: &str) -> Pin<Box<dyn Future<Output = StoreFactory> + Send + '_>> {
    Box::pin(async move {
        match url.split_once(':').unwrap() {
            ("file", directory) => {
                let files = FileStore::open(directory).unwrap();
                Box::new(move |key: &str| files.store(key)) as StoreFactory
            }
            #[cfg(feature = "redis")]
            ("redis", _) => {
                let (server, namespace) = url.split_once('#').unwrap_or((url, ""));
                let redis = tower_auth_refresh_store::RedisStores::builder(server).namespace(namespace);
                let redis = redis.connect().await.unwrap();
                Box::new(move |key: &str| redis.store(key)) as StoreFactory
            }
            #[cfg(feature = "postgres")]
            ("postgres", _) => {
                let (url, namespace) = url.split_once('#').unwrap_or((url, ""));
                let builder = tower_auth_refresh_store::PostgresStores::builder(url).namespace(namespace);
                let stores = builder.connect().await.unwrap();
                stores.migrate().await.unwrap();
                Box::new(move |key: &str| stores.store(key)) as StoreFactory
            }
            _ => panic!("{url}"),
        }
    })
}
