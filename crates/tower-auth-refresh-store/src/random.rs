//! Random numbers from the operating system.

#[cfg(feature = "_record")]
use std::time::Duration;

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

/// Returns a time between half of this one and all of it, so that those that wait don't try again together.
#[cfg(feature = "_record")]
pub(crate) fn jittered(pause: Duration) -> Duration {
    let [chance] = bytes().unwrap_or([128]);
    part(pause, chance)
}

#[cfg(feature = "_record")]
fn part(pause: Duration, chance: u8) -> Duration {
    pause * (256 + u32::from(chance)) / 512
}

#[cfg(all(test, feature = "_record"))]
mod tests {
    use super::*;

    #[test]
    fn a_pause_with_jitter_lasts_from_half_of_it_to_all_of_it() {
        let millis = |chance| part(Duration::from_millis(512), chance).as_millis();
        assert_eq!([0, 128, 255].map(millis), [256, 384, 511]);
        let pauses: Vec<_> = (0..100).map(|_| jittered(Duration::from_millis(512))).collect();
        assert!(pauses.iter().all(|pause| (256..512).contains(&pause.as_millis())), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
