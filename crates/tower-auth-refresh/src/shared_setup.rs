//! [`Setup`]: the part of a service that its clones and their requests share.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use crate::options::Options;

/// The part of a service that its clones and their requests share.
#[derive(Debug)]
pub(crate) struct Setup<Svc, S> {
    /// A clone of the inner service that was never made ready, and so reserves nothing. The few requests that are held
    /// back or replayed clone it; a clone for each request would cost more than the rest of this crate.
    spare: Mutex<Svc>,
    pub(crate) source: S,
    pub(crate) options: Arc<Options>,
}

/// A request's reference to the setup of its service.
pub(crate) type SharedSetup<Svc, S> = PerCloneRef<Setup<Svc, S>>;

impl<Svc, S> Setup<Svc, S> {
    pub(crate) fn new(spare: Svc, source: S, options: Arc<Options>) -> Self {
        Self { spare: Mutex::new(spare), source, options }
    }
}

impl<Svc: Clone, S> Setup<Svc, S> {
    /// Clones the inner service, which is not made ready.
    pub(crate) fn inner(&self) -> Svc {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A shared value with a reference count of its own for each clone.
///
/// A single count would be written by each request on each thread: cache-line contention. So the references that
/// requests hold are counted per clone, and the count that all clones share changes only when a `PerClone` is cloned
/// or dropped.
#[derive(Debug)]
pub(crate) struct PerClone<T> {
    /// Until the first reference: many a clone is only cloned from, and needs no count.
    unused: Option<Arc<T>>,
    /// From the first reference on.
    used: Option<PerCloneRef<T>>,
}

/// A reference to the value of a [`PerClone`], on the count of that clone.
#[derive(Debug)]
#[expect(clippy::redundant_allocation, reason = "the outer count belongs to one clone, the inner one to all clones")]
pub(crate) struct PerCloneRef<T>(Arc<Arc<T>>);

impl<T> PerClone<T> {
    pub(crate) fn new(value: T) -> Self {
        Self::of(Arc::new(value))
    }

    fn of(value: Arc<T>) -> Self {
        Self { unused: Some(value), used: None }
    }

    /// Returns one more reference.
    #[inline]
    pub(crate) fn reference(&mut self) -> PerCloneRef<T> {
        match &self.used {
            Some(used) => used.clone(),
            None => self.first_reference(),
        }
    }

    /// Moves the shared reference into the new count, so that the count that all clones share isn't written.
    #[inline(never)]
    fn first_reference(&mut self) -> PerCloneRef<T> {
        let value = self.unused.take().expect("a value is either unused or used");
        self.used.insert(PerCloneRef(Arc::new(value))).clone()
    }

    pub(crate) fn value(&self) -> &Arc<T> {
        let used = self.used.as_ref().map(|used| &*used.0);
        used.or(self.unused.as_ref()).expect("a value is either unused or used")
    }

    /// The number of references that are held, this clone's own one aside.
    #[cfg(test)]
    pub(crate) fn references(&self) -> usize {
        self.used.as_ref().map_or(0, |used| Arc::strong_count(&used.0) - 1)
    }
}

impl<T> Clone for PerClone<T> {
    fn clone(&self) -> Self {
        Self::of(Arc::clone(self.value()))
    }
}

impl<T> Clone for PerCloneRef<T> {
    #[inline]
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for PerCloneRef<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}
