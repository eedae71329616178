//! The request half, one core: parsing, translation, both together, and the estimate.
//! Targets: parse + translate ≥ 500 MB/s on a conversation of 1 MB with 40 tools; estimate ≥ 200 MB/s.
//!
//! `cargo bench --no-default-features --bench translate`
#![allow(clippy::unwrap_used, reason = "bench code")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kiro_messages::proto::kiro::request::Form;
use kiro_messages::proto::kiro::route::Shape;
use kiro_messages::proto::messages::request::{Purpose, Request};
use kiro_messages::proto::translate::estimate::{Estimator, request_tokens};
use kiro_messages::proto::translate::request::translate;
use serde_json::Value;

#[path = "inputs/requests.rs"]
mod requests;

use requests::{CHINESE, CODE, ENGLISH, context, conversation};

criterion_group!(benches, request, spellings, estimator);
criterion_main!(benches);

const MEGABYTE: usize = 1 << 20;

fn request(c: &mut Criterion) {
    let body = Bytes::from(serde_json::to_vec(&conversation(MEGABYTE)).unwrap());
    let mut group = c.benchmark_group("1 MB, 40 tools");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("parse", |b| b.iter(|| Request::parse(&body, Purpose::Messages).unwrap()));
    let parsed = Request::parse(&body, Purpose::Messages).unwrap();
    group.bench_function("translate", |b| b.iter(|| translate(&parsed, &context(Some(&body))).unwrap()));
    group.bench_function("parse + translate, ready to send", |b| {
        b.iter(|| {
            let request = Request::parse(&body, Purpose::Messages).unwrap();
            let profile_arn = Some("arn:aws:codewhisperer:us-east-1:1:profile/X");
            translate(&request, &context(Some(&body)))
                .unwrap()
                .body
                .parts(&Form { profile_arn, ..Form::full(Shape::Q) })
        });
    });
    group.bench_function("estimate", |b| b.iter(|| request_tokens(&parsed)));
    // For scale: what reading into a tree and writing it again would cost.
    group.bench_function("serde_json: read into a Value, write", |b| {
        b.iter(|| serde_json::to_vec(&serde_json::from_slice::<Value>(&body).unwrap()).unwrap());
    });
    group.finish();
}

/// The same conversation from clients that spell JSON otherwise.
fn spellings(c: &mut Criterion) {
    let conversation = conversation(MEGABYTE);
    let pretty = serde_json::to_vec_pretty(&conversation).unwrap();
    let escaped = serde_json::to_string(&conversation).unwrap().replace('<', "\\u003c").replace('>', "\\u003e");
    let mut group = c.benchmark_group("other spellings");
    for (name, body) in [("pretty", &pretty[..]), ("with \\u003c", escaped.as_bytes())] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| translate(&Request::parse(body, Purpose::Messages).unwrap(), &context(None)).unwrap());
        });
    }
    group.finish();
}

fn estimator(c: &mut Criterion) {
    let mut group = c.benchmark_group("estimator");
    for (name, text) in [("English", ENGLISH), ("code", CODE), ("Chinese", CHINESE)] {
        let text = text.repeat(MEGABYTE / text.len());
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut estimator = Estimator::default();
                estimator.text(black_box(&text));
                estimator.tokens()
            });
        });
    }
    group.finish();
}
