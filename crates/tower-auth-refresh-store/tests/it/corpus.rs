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

macro_rules! targets {
    ($($target:ident),*) => {$(
        #[test]
        fn $target() {
            replay(stringify!($target), fuzzed::$target);
        }
    )*};
}

targets!(record, claim);
