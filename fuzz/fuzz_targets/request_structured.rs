#![no_main]

#[path = "../entries/request.rs"]
mod request;
#[path = "../entries/request_structured.rs"]
mod request_structured;

libfuzzer_sys::fuzz_target!(|data: &[u8]| request_structured::run(data));
