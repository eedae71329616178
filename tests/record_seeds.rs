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
fn seeds_hold() {
    for seed in seeds() {
        entry::run(&seed);
    }
}

#[test]
fn seeds_cut_and_changed_hold() {
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
