//! The response half, one core: frames in, SSE bytes out, in chunks of 20 text events of about 30 characters.
//! Target: ≥ 2 M text deltas/s.
//!
//! `cargo bench --no-default-features --bench pipeline`; callgrind with
//! `valgrind --tool=callgrind target/release/deps/pipeline-… --bench text/raw --profile-time 1`
#![allow(clippy::unwrap_used, reason = "bench code")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kiro_messages::proto::eventstream::Decoder;
use kiro_messages::proto::pipeline::{Mode, Pipeline, Step};

#[path = "inputs/answers.rs"]
mod answers;

use answers::{SENTENCES, WIDE, events, inputs, opening, pipeline, texts, with_stops};

/// Events in a chunk.
const BURST: usize = 20;

criterion_group!(benches, text, other_events);
criterion_main!(benches);

/// Text deltas: copied, decoded and escaped, out of tags, into a fold.
fn text(c: &mut Criterion) {
    let chunk = texts(BURST);
    let with_model = events("assistantResponseEvent", BURST, |n| {
        format!("{{\"content\":\"{}\",\"modelId\":\"claude-sonnet-4.5\"}}", SENTENCES[n % SENTENCES.len()])
    });
    let wide = events("assistantResponseEvent", BURST, |n| format!("{{\"content\":\"{}\"}}", WIDE[n % WIDE.len()]));
    let mut group = c.benchmark_group("text");
    group.throughput(Throughput::Elements(BURST as u64));
    group.bench_function("raw copy", |b| feed(b, pipeline(false, Mode::Stream), &chunk));
    group.bench_function("raw copy, with a model id", |b| feed(b, pipeline(false, Mode::Stream), &with_model));
    group.bench_function("raw copy, Chinese and escapes", |b| feed(b, pipeline(false, Mode::Stream), &wide));
    group.bench_function("without the raw copy", |b| {
        feed(b, pipeline(false, Mode::Stream).without_raw_copy(), &chunk);
    });
    group.bench_function("stop sequences", |b| feed(b, with_stops(), &chunk));
    group.bench_function("tag mode", |b| feed(b, pipeline(true, Mode::Stream), &chunk));
    // A fold grows without end: a new one for every 50 chunks.
    group.throughput(Throughput::Elements(50 * BURST as u64));
    group.bench_function("fold", |b| {
        b.iter(|| {
            let mut pipeline = pipeline(false, Mode::Fold);
            let mut out = BytesMut::new();
            for _ in 0..50 {
                pipeline.push(chunk.clone(), &mut out);
            }
            assert_eq!(pipeline.finish(&mut out), Step::Done);
            black_box(pipeline.message())
        })
    });
    group.throughput(Throughput::Elements(BURST as u64));
    group.bench_function("frames alone", |b| {
        let mut decoder = Decoder::new();
        b.iter(|| {
            decoder.push(chunk.clone());
            while let Some(frame) = decoder.next().unwrap() {
                black_box(frame.payload());
            }
        })
    });
    group.finish();
}

fn other_events(c: &mut Criterion) {
    let (open, tool) = (opening(), inputs(BURST));
    let thought =
        events("reasoningContentEvent", BURST, |n| format!("{{\"text\":\"{}\"}}", SENTENCES[n % SENTENCES.len()]));
    let mut group = c.benchmark_group("other");
    group.throughput(Throughput::Elements(BURST as u64));
    group.bench_function("tool input", |b| {
        let mut pipeline = pipeline(false, Mode::Stream);
        pipeline.push(open.clone(), &mut BytesMut::new());
        feed(b, pipeline, &tool);
    });
    group.bench_function("reasoning", |b| feed(b, pipeline(true, Mode::Stream), &thought));
    group.finish();
}

/// One chunk after the other through a running pipeline, as a driver does.
fn feed(b: &mut criterion::Bencher<'_>, mut pipeline: Pipeline, chunk: &Bytes) {
    let mut out = BytesMut::with_capacity(16 << 10);
    b.iter(|| {
        out.clear();
        assert_eq!(pipeline.push(chunk.clone(), &mut out), Step::Continue);
        black_box(out.len())
    });
}
