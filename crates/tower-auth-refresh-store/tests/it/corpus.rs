//! The corpora of the fuzz targets, in an ordinary test. The files are not in the published package.

use std::fs;

use crate::fuzzed;

#[test]
fn records() {
    for input in inputs_of("record") {
        fuzzed::record(&input);
    }
}

#[test]
fn claims() {
    for input in inputs_of("claim") {
        fuzzed::claim(&input);
    }
}

fn inputs_of(target: &str) -> Vec<Vec<u8>> {
    let corpus = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let Ok(files) = fs::read_dir(&corpus) else {
        eprintln!("skipped: there is no {corpus}");
        return Vec::new();
    };
    let inputs: Vec<_> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!inputs.is_empty(), "{corpus} is empty");
    inputs
}
