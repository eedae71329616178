//! The promises of the fuzz target `record` (fuzz/README.md), held without a fuzzer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::path::Path;

#[path = "../fuzz/entries/record.rs"]
mod entry;

fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/record");
    let seeds: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|seed| std::fs::read(seed.unwrap().path()).unwrap()).collect();
    assert!(seeds.len() > 10);
    seeds
}

#[test]
fn record_seeds_keep_the_promises() {
    for seed in seeds() {
        entry::run(&seed);
    }
}

#[test]
fn cut_and_changed_seeds_keep_the_promises() {
    let mut random = fastrand::Rng::with_seed(19);
    for seed in seeds() {
        for end in 0..seed.len() {
            entry::run(&seed[..end]);
        }
        for _ in 0..2_000 {
            let mut data = seed.clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(0..data.len());
                match random.u8(0..4) {
                    0 => data[at] = random.u8(..),
                    1 => data[at] = *random.choice(b"{}[]\",:\\u0e-.trfn ").unwrap(),
                    2 => data.insert(at, *random.choice(b"{}[]\",:\\u0e-.").unwrap()),
                    _ => {
                        data.remove(at);
                        if data.is_empty() {
                            break;
                        }
                    }
                }
            }
            entry::run(&data);
        }
    }
}

#[test]
fn the_limits_hold() {
    let long = |length: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(length)).into_bytes();
    for length in [(1 << 20) - 100, (1 << 20) - 20, (1 << 20) - 8, (1 << 20) - 7, 2 << 20] {
        entry::run(&long(length));
    }
    for levels in [1, 63, 64, 65, 127, 200, 100_000] {
        entry::run(format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels)).as_bytes());
    }
}

/// Texts put together from what the grammar is made of, so that many are nearly JSON and some are: the scan and serde_json
/// must agree on each.
#[test]
fn serde_json_agrees_on_valid_json_r9() {
    use kiro_messages::proto::record::{Limits, Object, Unusable};
    const PARTS: [&str; 33] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"\"",
        "\"a\"",
        "\"a\\u0061\"",
        "\"\\ud800\"",
        "\"\\x\"",
        "\"\\u00g0\"",
        "0",
        "-0",
        "01",
        "-",
        "1.",
        "1.5",
        "1e",
        "1E+9",
        "1e999",
        "true",
        "fals",
        "false",
        "null",
        "nul",
        " ",
        "\n",
        "\t",
        "\"\u{e9}\u{2028}\"",
        "\"\u{1}\"",
        "\u{feff}",
        "{\"a\":",
    ];
    let limits = Limits { bytes: 1 << 20, depth: 64 };
    let mut random = fastrand::Rng::with_seed(65);
    let mut sound = 0;
    for _ in 0..200_000 {
        let mut text = String::new();
        let mut open = Vec::new();
        let mut value = true;
        for _ in 0..random.usize(1..24) {
            // Mostly what may stand here, so that depth and separators are met.
            if random.u8(0..40) == 0 {
                text.push_str(random.choice(PARTS).unwrap());
            } else if value {
                match random.u8(0..5) {
                    0 | 1 => {
                        text.push_str("{\"k\" : ");
                        open.push('}');
                        continue;
                    }
                    2 => {
                        text.push('[');
                        open.push(']');
                        continue;
                    }
                    3 => text.push_str(random.choice(["{}", "[ ]", "{ }", "[]"]).unwrap()),
                    _ => text.push_str(random.choice(["1", "-2.5e-7", "\"s\"", "null", "true"]).unwrap()),
                }
                value = false;
            } else if let Some(end) = open.last() {
                if random.bool() {
                    text.push_str(if *end == '}' { " ,\"k\":" } else { ", " });
                    value = true;
                } else {
                    text.push(*end);
                    open.pop();
                }
            }
        }
        if value {
            text.push('0');
        }
        text.extend(open.iter().rev());
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        match Object::parse(text.as_bytes(), limits) {
            Ok(_) | Err(Unusable::NotObject | Unusable::TooDeep { .. }) => assert!(is_json, "{text}"),
            Err(Unusable::NotJson { at }) => assert!(!is_json && at <= text.len(), "{text}"),
            Err(error) => panic!("{error} {text}"),
        }
        sound += usize::from(is_json);
    }
    assert!((20_000..190_000).contains(&sound), "{sound}");
}
