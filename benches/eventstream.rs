//! Frame decoding, one core, against `aws-smithy-eventstream` in the same run.
//! Targets: ≥ 2 GB/s on frames of 4 KiB, ≥ 5 M frames/s on frames of 150 bytes, faster than smithy on every size.
//!
//! `cargo bench --no-default-features --bench eventstream`
#![allow(clippy::unwrap_used, reason = "bench code")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kiro_messages::proto::eventstream::{Decoder, HeaderValue, encode};
use std::hint::black_box;

const HEADERS: [(&str, HeaderValue<'static>); 3] = [
    (":message-type", HeaderValue::Text("event")),
    (":event-type", HeaderValue::Text("assistantResponseEvent")),
    (":content-type", HeaderValue::Text("application/json")),
];
/// A frame of text has this many bytes around its content.
const AROUND: usize = 16 + 92 + r#"{"content":""}"#.len();
/// A chunk as HTTP delivers it in a burst.
const CHUNK: usize = 64 << 10;

criterion_group!(benches, decode, encode_frames);
criterion_main!(benches);

fn decode(c: &mut Criterion) {
    for size in [150, 4 << 10, 64 << 10] {
        let count = CHUNK / size;
        let chunk = Bytes::from(frame(size).repeat(count));

        let mut group = c.benchmark_group(format!("decode/{size}"));
        group.throughput(Throughput::ElementsAndBytes { elements: count as u64, bytes: chunk.len() as u64 });
        group.bench_function("ours", |b| b.iter(|| ours(&mut Decoder::new(), chunk.clone())));
        group.bench_function("ours, its three names read", |b| {
            b.iter(|| {
                let mut decoder = Decoder::new();
                decoder.push(chunk.clone());
                while let Some(frame) = decoder.next().unwrap() {
                    black_box((frame.text(":message-type"), frame.text(":event-type"), frame.payload()));
                }
            })
        });
        group.bench_function("smithy", |b| b.iter(|| smithy(&mut MessageFrameDecoder::new(), chunk.clone())));
        group.finish();
    }

    // One frame a chunk, and every frame cut in two.
    let frame = Bytes::from(frame(150));
    let mut group = c.benchmark_group("decode/chunks");
    for cut in [0, 100] {
        let chunks = [frame.slice(..cut), frame.slice(cut..)];
        group.throughput(Throughput::Elements(1));
        let mut decoder = Decoder::new();
        group.bench_function(BenchmarkId::new("ours, cut at", cut), |b| {
            b.iter(|| chunks.iter().for_each(|chunk| ours(&mut decoder, chunk.clone())))
        });
    }
    group.finish();
}

fn encode_frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode/150");
    let payload = format!("{{\"content\":\"{}\"}}", "x".repeat(150 - AROUND));
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::new();
    group.bench_function("ours", |b| {
        b.iter(|| {
            out.clear();
            encode(&HEADERS, payload.as_bytes(), &mut out).unwrap();
            black_box(&out);
        })
    });
    group.finish();
}

fn ours(decoder: &mut Decoder, chunk: Bytes) {
    decoder.push(chunk);
    while let Some(frame) = decoder.next().unwrap() {
        black_box(frame.payload());
    }
}

fn smithy(decoder: &mut MessageFrameDecoder, mut chunk: Bytes) {
    while let DecodedFrame::Complete(message) = decoder.decode_frame(&mut chunk).unwrap() {
        black_box(message.payload());
    }
}

/// A text event whose frame has `size` bytes.
fn frame(size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&HEADERS, format!("{{\"content\":\"{}\"}}", "x".repeat(size - AROUND)).as_bytes(), &mut out).unwrap();
    assert_eq!(out.len(), size);
    out
}
