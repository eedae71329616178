//! The response half, one core: frames in, SSE bytes out, in chunks of 20 text events of about 30 characters.
//! Target: ≥ 2 M text deltas/s.
//!
//! `cargo bench --no-default-features --bench pipeline`; callgrind with
//! `valgrind --tool=callgrind target/release/deps/pipeline-… --bench text/raw --profile-time 1`
#![allow(clippy::unwrap_used, reason = "bench code")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kiro_messages::proto::eventstream::{Decoder, HeaderValue, encode};
use kiro_messages::proto::pipeline::{Extras, Mode, Pipeline, Settings, Step, StopSequences, UsageSplit};
use std::hint::black_box;

/// Events in a chunk.
const BURST: usize = 20;

criterion_group!(benches, text, other_events);
criterion_main!(benches);

/// Text deltas: copied, decoded and escaped, out of tags, into a fold.
fn text(c: &mut Criterion) {
    let chunk =
        events("assistantResponseEvent", BURST, |n| format!("{{\"content\":\"{}\"}}", SENTENCES[n % SENTENCES.len()]));
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
    let tool = events("toolUseEvent", BURST, |n| {
        format!(
            "{{\"toolUseId\":\"tooluse_abcdefghijklmnop\",\"name\":\"Write\",\"input\":\"{}\"}}",
            INPUTS[n % INPUTS.len()]
        )
    });
    // The pieces are the inside of a string.
    let open = events("toolUseEvent", 1, |_| {
        r#"{"toolUseId":"tooluse_abcdefghijklmnop","name":"Write","input":"{\"text\":\""}"#.into()
    });
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

/// As many and as long as they are likely to be (M82).
fn stop_sequences() -> Vec<String> {
    let starts = ["\n\nHuman:", "\n\nAssistant:", "</answer>", "```", "END", "###", "Observation:", "Question:"];
    let long = |text: &str| format!("{text:.<20}");
    starts.iter().flat_map(|start| [long(start), long(&format!("{start} more"))]).collect()
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

fn pipeline(thinking: bool, mode: Mode) -> Pipeline {
    Pipeline::new(settings(thinking, mode))
}

fn with_stops() -> Pipeline {
    let extras = Extras { stop_sequences: StopSequences::new(stop_sequences()), ..Extras::default() };
    Pipeline::new(Settings { extras, ..settings(false, Mode::Stream) })
}

fn settings(thinking: bool, mode: Mode) -> Settings {
    Settings {
        message_id: "msg_0123456789abcdefghijklmn".into(),
        request_id: "req_0123456789abcdefghijklmn".into(),
        model: "claude-sonnet-4-5".into(),
        thinking,
        drop_thinking_text: false,
        tool_names: Default::default(),
        window: 172_500,
        usage_window: 172_500,
        usage_split: UsageSplit::Ratio,
        input_estimate: 10,
        mode,
        extras: Extras::default(),
    }
}

fn events(event_type: &str, count: usize, payload: impl Fn(usize) -> String) -> Bytes {
    let headers = [
        (":message-type", HeaderValue::Text("event")),
        (":event-type", HeaderValue::Text(event_type)),
        (":content-type", HeaderValue::Text("application/json")),
    ];
    let mut wire = Vec::new();
    for n in 0..count {
        encode(&headers, payload(n).as_bytes(), &mut wire).unwrap();
    }
    Bytes::from(wire)
}

/// As JSON string literals, 24 to 36 characters.
const SENTENCES: [&str; 5] = [
    "The quick brown fox jumps over ",
    " the lazy dog, and then it rests",
    ".\\n\\nHere is `main.rs`, fixed:\\n",
    "    let x = \\\"a string\\\";\\n    x",
    "; which is 42 in 2026, isn't it?",
];
const WIDE: [&str; 3] =
    ["敏捷的棕色狐狸跳过了那只懒狗，然后休息。", "\\u4f60\\u597d\\uff0c世界！", "naïve façade — “quoted” 😀"];
const INPUTS: [&str; 3] =
    [r"fn main() {\\n    let x = 1;\\n", r#"    println!(\\\"{x} items\\\");\\n}"#, "// and nothing else to see here"];
