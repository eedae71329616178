//! TU6: the estimator against two tokenizers on corpora of four kinds.
//!
//! `tests/corpus/*.txt` are ours: prose and letters written for this purpose, our own sources and some more languages,
//! JSON of the kinds that agents send. `tests/corpus/reference.json` holds the counts of `@anthropic-ai/tokenizer`,
//! written by `tests/corpus/reference.mjs`; `o200k_base` is counted here.
//!
//! The Chinese corpus is about half what developers write and half prose, mixed so that these weights hold: on prose alone
//! the two tokenizers lie up to 36 % apart and the weights were 21.6 % below one of them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use kiro_messages::proto::translate::estimate::Estimator;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Largest error of a corpus's total, in per cent.
const TOLERANCE: f64 = 15.0;

#[test]
fn tu6_corpora_are_counted_within_15_per_cent() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let reference: Value = serde_json::from_slice(&fs::read(folder.join("reference.json")).unwrap()).unwrap();
    let o200k = tiktoken_rs::o200k_base().unwrap();
    let mut outside = Vec::new();
    for name in ["english", "code", "json", "chinese"] {
        let text = fs::read_to_string(folder.join(format!("{name}.txt"))).unwrap();
        assert!(text.len() >= 50 * 1024, "{name}: {} bytes are too few", text.len());
        let counted = &reference["counts"][name];
        assert_eq!(counted["sha256"].as_str().unwrap(), sha256(&text), "{name}: run tests/corpus/reference.mjs");
        let mut estimator = Estimator::default();
        estimator.text(&text);
        let estimate = estimator.tokens() as f64;
        for (tokenizer, tokens) in [
            ("anthropic", counted["tokens"].as_f64().unwrap()),
            ("o200k_base", o200k.encode_ordinary(&text).len() as f64),
        ] {
            let error = (estimate / tokens - 1.0) * 100.0;
            println!("{name}: {estimate} estimated, {tokens} by {tokenizer}: {error:+.1} %");
            if error.abs() > TOLERANCE {
                outside.push(format!("{name} by {tokenizer}: {error:+.1} %"));
            }
        }
    }
    assert!(outside.is_empty(), "{outside:?}");
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}
