#![no_main]

#[path = "../entries/said.rs"]
mod said;

libfuzzer_sys::fuzz_target!(|data: &[u8]| said::run(data));
