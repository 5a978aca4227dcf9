//! Random numbers for jitter and epochs: `SplitMix64` in each thread, seeded by the standard library from the operating
//! system. A crate less for apps to build.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};

thread_local! {
    static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
}

/// Returns 64 random bits.
pub(crate) fn bits() -> u64 {
    let state = STATE.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Returns a number in `0.0..1.0`.
#[expect(clippy::cast_precision_loss, reason = "the 53 bits fit")]
pub(crate) fn fraction() -> f64 {
    const BITS: u32 = f64::MANTISSA_DIGITS;
    (bits() >> (u64::BITS - BITS)) as f64 / (1_u64 << BITS) as f64
}

/// Seeds the random numbers of this thread, so that a simulation can be repeated. No part of the public API.
#[doc(hidden)]
pub fn seed_random_numbers(seed: u64) {
    STATE.set(seed);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_differ_and_fractions_are_spread_over_their_range() {
        let numbers: HashSet<u64> = (0..10_000).map(|_| bits()).collect();
        assert_eq!(numbers.len(), 10_000);
        let fractions: Vec<f64> = (0..10_000).map(|_| fraction()).collect();
        assert!(fractions.iter().all(|fraction| (0.0..1.0).contains(fraction)));
        let mean = fractions.iter().sum::<f64>() / 10_000.0;
        assert!((0.47..0.53).contains(&mean), "{mean}");
    }

    #[test]
    fn the_numbers_are_those_of_the_reference_implementation() {
        seed_random_numbers(0);
        assert_eq!([bits(), bits(), bits()], [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]);
    }

    #[test]
    fn a_seed_repeats_the_numbers() {
        let numbers = || {
            seed_random_numbers(7);
            [bits(), bits(), bits()]
        };
        assert_eq!(numbers(), numbers());
    }
}
