//! Random numbers from the operating system.

use crate::error::Problem;

/// Returns random bytes. A store works with them or not at all: versions that repeat would break its promises.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], Problem> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Problem::io("get random numbers", error))?;
    Ok(bytes)
}

/// Returns a new version or claim identifier, unlike any other.
#[cfg(feature = "_record")]
pub(crate) fn identifier() -> Result<u128, Problem> {
    bytes().map(u128::from_be_bytes)
}
