//! Replays the corpus of the fuzz targets. The files are not in the published package.

use std::fs;
use std::path::Path;

use crate::fuzzed;

fn replay(target: &str, check: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let Ok(files) = fs::read_dir(&corpus) else {
        eprintln!("skipped: no corpus here");
        return;
    };
    let mut replayed = 0;
    for file in files {
        check(&fs::read(file.unwrap().path()).unwrap());
        replayed += 1;
    }
    assert!(replayed > 0, "the corpus of {target} is empty");
}

#[test]
fn answers() {
    replay("answer", fuzzed::answer);
}

#[test]
fn retry_after() {
    replay("retry_after", fuzzed::retry_after);
}

#[test]
fn challenges() {
    replay("challenge", fuzzed::challenge);
}

#[test]
fn cookies() {
    replay("cookie", fuzzed::cookie);
}
