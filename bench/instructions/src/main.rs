//! One fixed input, for counting instructions (`npm run bench:instructions`): no clock, nothing random.
//!
//! `instructions CASE COUNT` does COUNT units of a case. The difference of two counts is free of what comes before and
//! after.
#![allow(clippy::unwrap_used, clippy::panic, reason = "bench code")]

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use kiro_messages::proto::kiro::request::Form;
use kiro_messages::proto::kiro::route::Shape;
use kiro_messages::proto::messages::request::{Purpose, Request};
use kiro_messages::proto::pipeline::{Mode, Pipeline, Step};
use kiro_messages::proto::translate::estimate::request_tokens;
use kiro_messages::proto::translate::request::translate;

#[path = "../../../benches/inputs/answers.rs"]
#[allow(dead_code, reason = "shared with other benches")]
mod answers;
#[path = "../../../benches/inputs/requests.rs"]
#[allow(dead_code, unused_imports, reason = "shared with other benches")]
mod requests;

/// Events in a chunk.
const BURST: usize = 20;

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(case), Some(count)) = (args.next(), args.next()) else {
        panic!("instructions CASE COUNT; cases: text, tool, stops, request, tokens")
    };
    let count: usize = count.parse().unwrap();
    match case.as_str() {
        "text" => deltas(answers::pipeline(false, Mode::Stream), &answers::texts(BURST), count),
        "tool" => {
            let mut pipeline = answers::pipeline(false, Mode::Stream);
            assert_eq!(pipeline.push(answers::opening(), &mut BytesMut::new()), Step::Continue);
            deltas(pipeline, &answers::inputs(BURST), count);
        }
        "stops" => deltas(answers::with_stops(), &answers::texts(BURST), count),
        "request" => request(count),
        "tokens" => tokens(count),
        _ => panic!("no case {case}"),
    }
}

/// So many deltas through one pipeline, in chunks.
fn deltas(mut pipeline: Pipeline, chunk: &Bytes, count: usize) {
    let mut out = BytesMut::with_capacity(16 << 10);
    for _ in 0..count / BURST {
        out.clear();
        assert_eq!(pipeline.push(chunk.clone(), &mut out), Step::Continue);
        black_box(out.len());
    }
}

/// A request of 1 MB with 40 tools, so many times, up to the bytes that go out.
fn request(count: usize) {
    let body = Bytes::from(serde_json::to_vec(&requests::conversation(1 << 20)).unwrap());
    for _ in 0..count {
        let request = Request::parse(&body, Purpose::Messages).unwrap();
        let translated = translate(&request, &requests::context(Some(&body))).unwrap();
        black_box(translated.body.parts(&Form::full(Shape::Q)));
    }
}

/// The estimate of its tokens (TU7), so many times.
fn tokens(count: usize) {
    let body = serde_json::to_vec(&requests::conversation(1 << 20)).unwrap();
    let request = Request::parse(&body, Purpose::Messages).unwrap();
    for _ in 0..count {
        black_box(request_tokens(black_box(&request)));
    }
}
