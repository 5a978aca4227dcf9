//! [`Wiped`]: bytes that leave no copy behind.

use std::ops::{Deref, DerefMut};

use zeroize::Zeroize;

/// Bytes that are wiped when they are dropped, and all capacity with them.
///
/// At once: `Zeroizing<Vec<u8>>` would write each byte by itself, which takes as long as parsing the record.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wiped(Vec<u8>);

impl From<Vec<u8>> for Wiped {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Wiped {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Wiped {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        // All of the allocation is then unused capacity, which is wiped as a whole.
        self.0.clear();
        self.0.zeroize();
    }
}
