//! The entries of the fuzz targets `request` and `request_structured` without a fuzzer: their seeds, the golden
//! requests, those mutated, and recipes from fixed seeds.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "test code, shared with the fuzz targets")]

#[path = "../fuzz/entries/request.rs"]
mod request;
#[path = "../fuzz/entries/request_structured.rs"]
mod request_structured;
#[path = "request/mod.rs"]
mod vectors;

use std::fs;
use std::path::Path;

#[test]
fn seeds_and_golden_requests_keep_the_promises_tr1() {
    for seed in files("fuzz/seeds/request") {
        request::run(&seed);
    }
    for seed in files("fuzz/seeds/request_structured") {
        request_structured::run(&seed);
    }
    let golden = golden_requests();
    assert!(golden.len() > 100);
    golden.iter().for_each(|body| request::run(body));
}

#[test]
fn mutated_requests_are_refused_or_translated_m18() {
    let golden = golden_requests();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..4_000 {
        let mut body = golden[random.usize(..golden.len())].clone();
        for _ in 0..random.usize(1..4) {
            if body.is_empty() {
                break;
            }
            let at = random.usize(..body.len());
            match random.u8(..5) {
                0 => body[at] = random.u8(..),
                1 => body[at] = b"{}[]\",:\\n0"[random.usize(..10)],
                2 => drop(body.drain(at..(at + random.usize(..20)).min(body.len()))),
                3 => {
                    let from = random.usize(..body.len());
                    let piece = body[from..(from + random.usize(..60)).min(body.len())].to_vec();
                    drop(body.splice(at..at, piece));
                }
                _ => drop(body.splice(at..at, *b"null")),
            }
        }
        request::run(&body);
    }
}

#[test]
fn cut_requests_are_refused_m12() {
    for body in golden_requests() {
        (0..body.len()).step_by(11).for_each(|end| request::run(&body[..end]));
    }
}

#[test]
fn recipes_arrive_whole_tr18() {
    let mut random = fastrand::Rng::with_seed(11);
    for length in (0..400).cycle().take(1_500) {
        let data: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        request_structured::run(&data);
    }
}

fn golden_requests() -> Vec<Vec<u8>> {
    vectors::vectors().into_iter().flat_map(|vector| vector.cases).map(|case| case.body).collect()
}

fn files(folder: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}
