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

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn nothing_is_left_in_memory_of_bytes_that_are_dropped_nor_of_those_that_were_cut_off_before() {
        const LENGTH: usize = 4096;
        let secret: Vec<_> = b"secret".iter().copied().cycle().take(LENGTH).collect();
        // All is allocated before the bytes are dropped: else it might take their place.
        let (memory, mut found) = (File::open("/proc/self/mem").unwrap(), vec![0; LENGTH]);
        let mut wiped = Wiped::from(secret.clone());
        let address = wiped.as_ptr() as u64;
        wiped.truncate(LENGTH / 2);
        memory.read_exact_at(&mut found, address).unwrap();
        assert!(found == secret, "the bytes are found while they are there");
        drop(wiped);
        memory.read_exact_at(&mut found, address).unwrap();
        // The allocator may have written into it since, but not these bytes.
        assert_eq!(found.windows(6).filter(|word| word == b"secret").count(), 0);
    }
}
