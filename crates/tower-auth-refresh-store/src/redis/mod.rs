//! [`RedisStores`]: tokens in Redis or Valkey, for the replicas of a service.

mod address;
mod check;
mod connect;
mod failure;
mod line;
mod push;
mod script;
mod session;

use std::fmt;
use std::sync::Arc;

use redis::Value;
use tower_auth_refresh::store::TokenStore;
use zeroize::Zeroizing;

use self::address::Address;
use self::connect::Connector;
use self::failure::Failure;
use self::line::{CALL_TIMEOUT, Line};
use self::push::Push;
use self::script::Scripts;
use self::session::SessionStore;
#[cfg(doc)]
use crate::error::StoreErrorKind;
use crate::error::{Problem, StoreError};
use crate::gather::Gather;
#[cfg(feature = "encryption")]
use crate::keys::Keys;
use crate::random;
use crate::record::{hex, storage_key};

/// The reads that share a call. Their answers arrive together: few enough that none waits for long.
const READS_A_CALL: usize = 128;
/// The calls under way while which further reads are gathered: while the answers of one are read, the server works on
/// another, and has the next.
const READING_CALLS: usize = 4;

/// The tokens of many sessions in Redis or Valkey, for the replicas of a service (feature `redis`).
///
/// One replica refreshes a session's tokens, the others adopt them. See [the crate's documentation](crate#redis) for
/// the server's settings and for what happens in a failover.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
/// # use tower_auth_refresh::{RefreshError, RefreshRequest, Session, SessionRegistry, Tokens};
/// # use tower_auth_refresh_store::RedisStores;
/// # let refresh = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
/// let redis = RedisStores::connect("rediss://gateway:password@redis.example.com").await?;
/// redis.check().await?;
/// let sessions = SessionRegistry::builder(Session::builder(refresh))
///     .store_factory(move |user: &String| redis.store(user))
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedisStores {
    shared: Arc<Shared>,
}

/// A [`RedisStores`] that is being set up.
#[derive(Clone)]
#[must_use]
pub struct RedisStoresBuilder {
    url: Zeroizing<String>,
    namespace: String,
    replicas: usize,
    roots: Option<Vec<u8>>,
    sentinel_user: Option<(String, Zeroizing<String>)>,
    #[cfg(feature = "encryption")]
    keys: Option<Keys>,
}

/// The part of the stores that all sessions share.
struct Shared {
    line: Line,
    /// Of values by the storage keys of their sessions.
    reads: Gather<[u8; 32], Value, Failure>,
    scripts: Scripts,
    /// The URL without its credentials.
    resource: String,
    namespace: String,
    channel: String,
    push: Push,
    #[cfg(feature = "encryption")]
    keys: Option<Keys>,
}

impl RedisStores {
    /// Connects to a server with the default settings.
    ///
    /// # Errors
    ///
    /// Those of [`RedisStoresBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Sets up stores on a server.
    ///
    /// | URL | the server |
    /// | --- | --- |
    /// | `redis://user:password@host:6379/0` | one host. Its name is resolved again for each connection |
    /// | `redis+sentinel://user:password@host:26379,host:26379/main/0` | that which the sentinels name as `main` |
    /// | `rediss://…`, `rediss+sentinel://…` | by TLS |
    ///
    /// User, password, ports and database may be left out. A password alone is written `:password@`; characters such as
    /// `/` in it as `%2F`.
    pub fn builder(url: &str) -> RedisStoresBuilder {
        RedisStoresBuilder {
            url: Zeroizing::new(url.to_owned()),
            namespace: String::new(),
            replicas: 0,
            roots: None,
            sentinel_user: None,
            #[cfg(feature = "encryption")]
            keys: None,
        }
    }

    /// Returns the store of one session, by its key. Makes no call.
    ///
    /// # Cancel safety
    ///
    /// A call that is dropped may still take effect. A claim that was under way is given back.
    #[must_use]
    pub fn store(&self, key: impl AsRef<[u8]>) -> Arc<dyn TokenStore> {
        let storage_key = storage_key(&self.shared.namespace, key.as_ref());
        Arc::new(SessionStore { shared: Arc::clone(&self.shared), storage_key })
    }
}

impl RedisStores {
    /// Tests that the server can be used safely: its version, role, settings and permissions, and each operation.
    ///
    /// A program may call it at its start, and show the error, which says how to mend it.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](StoreErrorKind::Misconfigured) if the server is older than version 7, is a read-only replica,
    /// evicts records when its memory is full, keeps nothing on its disk, has fewer replicas than writes
    /// [wait](RedisStoresBuilder::wait) for, or refuses a command; [`Unavailable`](StoreErrorKind::Unavailable) if it
    /// can't be reached or has no memory left.
    pub async fn check(&self) -> Result<(), StoreError> {
        let shared = &self.shared;
        let checked = async {
            check::check(shared).await.map_err(Failure::Refused)?;
            let storage_key = random::bytes().map_err(Failure::Refused)?;
            SessionStore { shared: Arc::clone(shared), storage_key }.check().await
        };
        checked.await.map_err(|failure| failure.problem().of(&shared.resource))
    }

    /// Deletes the records that are past their end: none, since the server does so itself.
    ///
    /// # Errors
    ///
    /// None.
    #[expect(clippy::unused_async, reason = "as for the other stores")]
    pub async fn delete_expired(&self) -> Result<u64, StoreError> {
        Ok(0)
    }
}

impl RedisStoresBuilder {
    /// Keeps the sessions apart from those of other programs on the server. Default: none.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Encrypts the records with the first of these keys. Default: they are in clear (feature `encryption`).
    #[cfg(feature = "encryption")]
    pub fn keys(mut self, keys: Keys) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Makes writes wait until this number of replicas has them. Default: 0.
    ///
    /// Otherwise a failover may lose the last writes, although they were acknowledged. A write waits for at most 1 s, on one
    /// of 8 connections that such writes have for themselves: while a replica is away, other calls are answered at once, and
    /// more than 8 writes queue, for at most 4 s. If too few replicas have
    ///
    /// - a claim, it is given back and the refresh fails: no refresh token is presented whose claim a failover could
    ///   lose;
    /// - a sign-out, it waits again, for at most 4 s in all, then fails. The record is deleted on the primary by then, so
    ///   that the session's next attempt finds none and is done: a failover before a replica has caught up brings the
    ///   record back, and the user must be signed out again;
    /// - a sign-in or the tokens of a refresh, these are stored all the same: the authorization server has issued them
    ///   already, and a session that has them in memory writes them back after a failover.
    pub fn wait(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Trusts the root certificates in this PEM text, and no others, for TLS. Default: Mozilla's.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots = Some(pem.into());
        self
    }

    /// Sets the user and the password at the sentinels. Default: none; those of the URL are for the server.
    ///
    /// `user` is empty for sentinels that ask for a password alone.
    pub fn sentinel_credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.sentinel_user = Some((user.into(), Zeroizing::new(password.into())));
        self
    }

    /// Connects to the server.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](StoreErrorKind::Misconfigured) if the URL is invalid, the server refuses the password, or its
    /// certificate isn't trusted; [`Unavailable`](StoreErrorKind::Unavailable) if there is no connection within 4 s.
    pub async fn connect(self) -> Result<RedisStores, StoreError> {
        let address = Address::parse(&self.url).map_err(|problem| problem.of("Redis"))?;
        let resource = address.to_string();
        let shared = self.build(address, &resource).map_err(|problem| problem.of(&resource))?;
        let connected = tokio::time::timeout(CALL_TIMEOUT, shared.line.connection()).await;
        let connected = connected.unwrap_or_else(|_| Err(shared.line.last_problem()));
        connected.map_err(|problem| problem.of(&resource))?;
        Ok(RedisStores { shared: Arc::new(shared) })
    }

    fn build(self, address: Address, resource: &str) -> Result<Shared, Problem> {
        let tls = address.uses_tls.then(|| connect::trust(self.roots.as_deref())).transpose()?;
        let channel = storage_key(&self.namespace, b"the channel");
        Ok(Shared {
            line: Line::new(Connector::new(address, tls, self.sentinel_user), self.replicas),
            reads: Gather::new(READS_A_CALL, READING_CALLS),
            scripts: Scripts::new(),
            resource: resource.to_owned(),
            channel: format!("tar:changed:{}", hex(&channel[..8])),
            namespace: self.namespace,
            push: Push::new(random::bytes()?),
            #[cfg(feature = "encryption")]
            keys: self.keys,
        })
    }
}

impl fmt::Debug for RedisStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { resource, namespace, push, .. } = &*self.shared;
        f.debug_struct("RedisStores")
            .field("url", resource)
            .field("namespace", namespace)
            .field("watched", &push.watched())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RedisStoresBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStoresBuilder").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
