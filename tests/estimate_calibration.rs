//! TU6: the estimator against two tokenizers, on corpora of the kinds that clients send.
//!
//! `tests/corpus/*.txt` are ours: prose and letters written for this purpose, our own sources and some more languages,
//! JSON and tool definitions of the kinds that agents send. `tests/corpus/reference.json` holds the counts of
//! `@anthropic-ai/tokenizer`, written by `tests/corpus/reference.mjs`; `o200k_base` is counted here. What comes out
//! stands in docs/usage.md, which `KIRO_BLESS=1` writes again.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use kiro_messages::proto::translate::estimate::Estimator;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Largest error of a class's total, in per cent.
const TOLERANCE: f64 = 15.0;

/// The classes, the corpora that each is made of, and their least size in bytes.
const CLASSES: [(&str, &[&str], usize); 5] = [
    ("English prose", &["english"], 50 << 10),
    ("code", &["code"], 50 << 10),
    ("JSON", &["json"], 50 << 10),
    ("tool definitions", &["schemas"], 20 << 10),
    // Half of it prose, half what developers write: the two lie on different sides of what the weights give.
    ("Chinese", &["chinese-prose", "chinese-technical"], 50 << 10),
];

/// Counts of one text or of several.
#[derive(Default, Clone, Copy)]
struct Counts {
    bytes: usize,
    estimated: f64,
    anthropic: f64,
    o200k: f64,
}

impl Counts {
    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            estimated: self.estimated + other.estimated,
            anthropic: self.anthropic + other.anthropic,
            o200k: self.o200k + other.o200k,
        }
    }

    /// Errors of the estimate in per cent.
    fn errors(self) -> [f64; 2] {
        [self.anthropic, self.o200k].map(|tokens| (self.estimated / tokens - 1.0) * 100.0)
    }

    /// The larger error of a count that lies best between the two tokenizers, in per cent: nothing that looks at the
    /// text alone can have a smaller one against both.
    fn best(self) -> f64 {
        let ratio = self.anthropic.max(self.o200k) / self.anthropic.min(self.o200k);
        (ratio - 1.0) / (ratio + 1.0) * 100.0
    }

    fn row(self, name: &str) -> String {
        let [anthropic, o200k] = self.errors();
        format!("| {name} | {} KB | {anthropic:+.1} % | {o200k:+.1} % | ±{:.1} % |\n", self.bytes / 1000, self.best())
    }
}

#[test]
fn classes_are_counted_within_15_per_cent_tu6() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let reference: Value = serde_json::from_slice(&fs::read(folder.join("reference.json")).unwrap()).unwrap();
    let o200k = tiktoken_rs::o200k_base().unwrap();
    let count = |name: &str| {
        let text = fs::read_to_string(folder.join(format!("{name}.txt"))).unwrap();
        let counted = &reference["counts"][name];
        assert_eq!(counted["sha256"].as_str().unwrap(), sha256(&text), "{name}: run tests/corpus/reference.mjs");
        let mut estimator = Estimator::default();
        estimator.text(&text);
        Counts {
            bytes: text.len(),
            estimated: estimator.tokens() as f64,
            anthropic: counted["tokens"].as_f64().unwrap(),
            o200k: o200k.encode_ordinary(&text).len() as f64,
        }
    };
    let mut table = String::new();
    let mut outside = Vec::new();
    for (class, corpora, least) in CLASSES {
        let parts: Vec<_> = corpora.iter().map(|name| (*name, count(name))).collect();
        let total = parts.iter().fold(Counts::default(), |sum, (_, counts)| sum.add(*counts));
        assert!(total.bytes >= least, "{class}: {} bytes are too few", total.bytes);
        table.push_str(&total.row(class));
        if parts.len() > 1 {
            parts
                .iter()
                .for_each(|(name, counts)| table.push_str(&counts.row(&format!("– {}", name.replace('-', ", ")))));
        }
        for (tokenizer, error) in ["anthropic", "o200k_base"].into_iter().zip(total.errors()) {
            if error.abs() > TOLERANCE {
                outside.push(format!("{class} by {tokenizer}: {error:+.1} %"));
            }
        }
    }
    println!("{table}");
    assert!(outside.is_empty(), "{outside:?}");
    same_as_documented(&table);
}

/// docs/usage.md holds the table between two marks.
fn same_as_documented(table: &str) {
    const MARKS: [&str; 2] = ["<!-- table: made by tests/estimate_calibration.rs -->\n", "<!-- end of table -->\n"];
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/usage.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).unwrap();
    let (_, after) = rest.split_once(MARKS[1]).unwrap();
    let head = "| text | size | `@anthropic-ai/tokenizer` 0.0.4 | `o200k_base` | at best |\n|---|---|---|---|---|\n";
    let made = format!("{before}{}{head}{table}{}{after}", MARKS[0], MARKS[1]);
    if std::env::var_os("KIRO_BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, &made).unwrap();
        return;
    }
    assert!(text == made, "docs/usage.md: KIRO_BLESS=1 cargo test --test estimate_calibration writes it again");
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}
