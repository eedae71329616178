#![no_main]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../entries/pipeline.rs"]
mod pipeline;

libfuzzer_sys::fuzz_target!(|data: &[u8]| pipeline::run(data));
