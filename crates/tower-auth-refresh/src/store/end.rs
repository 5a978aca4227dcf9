//! [`End`]: a moment at which a record or a sign-in ends, as stores keep it, and [`EndOfSignIn`], as sessions keep it.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The last millisecond of the year 9999, which databases and programs of other languages still represent.
const LATEST: u64 = 253_402_300_799_999;

/// A moment by the wall clock, in whole milliseconds since 1970. Half the size of a [`SystemTime`], since each session has
/// some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End(NonZeroU64);

impl End {
    pub(crate) fn to_millis(self) -> u64 {
        self.0.get()
    }

    /// The end after so many milliseconds; `None` for 0.
    pub(crate) fn from_millis(millis: u64) -> Option<Self> {
        NonZeroU64::new(millis).map(Self)
    }
}

impl From<SystemTime> for End {
    fn from(at: SystemTime) -> Self {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(LATEST).min(LATEST);
        Self(NonZeroU64::new(millis).unwrap_or(NonZeroU64::MIN))
    }
}

impl From<End> for SystemTime {
    fn from(end: End) -> Self {
        UNIX_EPOCH + Duration::from_millis(end.0.get())
    }
}

/// The moment at which a sign-in ends, in whole seconds since 1970, until 2106. Half the size of an [`End`]: it fits between
/// the flags of a session's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndOfSignIn(NonZeroU32);

impl From<SystemTime> for EndOfSignIn {
    fn from(at: SystemTime) -> Self {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = u32::try_from(since.as_secs()).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(seconds).unwrap_or(NonZeroU32::MIN))
    }
}

impl From<EndOfSignIn> for SystemTime {
    fn from(end: EndOfSignIn) -> Self {
        UNIX_EPOCH + Duration::from_secs(end.0.get().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_kept_to_the_millisecond_between_1970_and_9999() {
        let kept = |at: SystemTime| SystemTime::from(End::from(at)).duration_since(UNIX_EPOCH).unwrap();
        let at = Duration::from_millis(2_000_000_000_123);
        assert_eq!(kept(UNIX_EPOCH + at + Duration::from_nanos(999_999)), at);
        assert_eq!(kept(UNIX_EPOCH - Duration::from_secs(1)), Duration::from_millis(1));
        assert_eq!(kept(UNIX_EPOCH + Duration::from_millis(LATEST + 1)), Duration::from_millis(LATEST));
        assert_eq!(size_of::<Option<End>>(), 8);
    }

    #[test]
    fn the_end_of_a_sign_in_is_kept_to_the_second_between_1970_and_2106() {
        let kept = |at: SystemTime| SystemTime::from(EndOfSignIn::from(at)).duration_since(UNIX_EPOCH).unwrap();
        let at = Duration::from_secs(2_000_000_000);
        assert_eq!(kept(UNIX_EPOCH + at + Duration::from_millis(999)), at);
        assert_eq!(kept(UNIX_EPOCH - Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(kept(UNIX_EPOCH + 3 * at), Duration::from_secs(u32::MAX.into()));
        assert_eq!(size_of::<Option<EndOfSignIn>>(), 4);
    }
}
