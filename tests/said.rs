//! The promises of the fuzz target `said` (fuzz/README.md), held without a fuzzer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use proptest::prelude::*;

#[path = "../fuzz/entries/said.rs"]
mod entry;

#[test]
fn no_seed_passes_a_secret_on_k48() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/said");
    let seeds: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|seed| std::fs::read(seed.unwrap().path()).unwrap()).collect();
    assert!(seeds.len() > 3);
    for seed in seeds {
        for end in 0..=seed.len() {
            entry::run(&seed[..end]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_text_passes_a_secret_on_k48(data in prop::collection::vec(any::<u8>(), 0..200)) {
        entry::run(&data);
    }

    /// Bytes of the alphabets that secrets are made of.
    #[test]
    fn no_word_passes_a_secret_on_k48(text in "[a-fA-F0-9 @.:=\"-]{0,120}(Bearer |token=|arn:)?[a-zA-Z0-9_@.:/-]{0,80}") {
        entry::run(text.as_bytes());
    }
}
