#![no_main]

#[expect(dead_code, reason = "the other target uses the rest")]
#[path = "../../tests/it/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzed::record(data));
