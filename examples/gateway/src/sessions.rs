//! A thin stand-in for `tower_auth_refresh::Sessions`, behind the same calls.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use tower_auth_refresh::{Session, SessionBuilder, SessionError, Tokens};

pub(crate) struct Sessions<K> {
    template: Box<dyn Fn() -> SessionBuilder + Send + Sync>,
    capacity: usize,
    map: Mutex<HashMap<K, Session>>,
}

#[derive(Debug)]
pub(crate) enum SessionsError {
    Full,
    Session(SessionError),
}

impl fmt::Display for SessionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Session(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SessionsError {}

impl<K: Eq + Hash + Clone> Sessions<K> {
    pub(crate) fn new(template: impl Fn() -> SessionBuilder + Send + Sync + 'static, capacity: usize) -> Self {
        Self { template: Box::new(template), capacity, map: Mutex::default() }
    }

    #[expect(clippy::unused_async, reason = "stand-in")]
    pub(crate) async fn get(&self, key: &K) -> Result<Option<Session>, SessionsError> {
        Ok(self.map.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    pub(crate) async fn sign_in(&self, key: K, tokens: Tokens) -> Result<Session, SessionsError> {
        if self.len() >= self.capacity {
            return Err(SessionsError::Full);
        }
        let session = (self.template)().tokens(tokens).build().await.map_err(SessionsError::Session)?;
        self.map.lock().unwrap_or_else(PoisonError::into_inner).insert(key, session.clone());
        Ok(session)
    }

    pub(crate) async fn sign_out(&self, key: &K) -> Result<(), SessionError> {
        let session = self.map.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        match session {
            Some(session) => session.sign_out().await,
            None => Ok(()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.map.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
