//! The steps of a write, at each of which the tests make the operating system fail or the process die.

/// The next call to the operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Lock,
    Create,
    Write,
    SyncFile,
    Rename,
    SyncDirectory,
    Remove,
    /// All calls of one operation have been made.
    Return,
}

/// Precedes each step of a write in this directory.
#[cfg(not(all(test, unix)))]
#[expect(clippy::unnecessary_wraps, reason = "it fails in tests")]
pub(super) fn reach(_: &std::path::Path, _: Step) -> std::io::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
pub(super) use super::tests::steps::reach;
