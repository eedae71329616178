//! The request half, one core: parsing, translation, both together, and the estimate.
//! Targets: parse + translate ≥ 500 MB/s on a conversation of 1 MB with 40 tools; estimate ≥ 200 MB/s.
//!
//! `cargo bench --no-default-features --bench translate`
#![allow(clippy::unwrap_used, reason = "bench code")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::sync::LazyLock;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kiro_messages::proto::kiro::request::Form;
use kiro_messages::proto::kiro::route::Shape;
use kiro_messages::proto::messages::request::{Purpose, Request};
use kiro_messages::proto::translate::estimate::{Estimator, request_tokens};
use kiro_messages::proto::translate::ids::{ConversationKey, Ids};
use kiro_messages::proto::translate::model::Models;
use kiro_messages::proto::translate::request::{
    CachePoints, Context, LeaveOut, MAX_CACHE_POINTS, Replay, SystemPlace, translate,
};
use serde_json::{Value, json};

criterion_group!(benches, request, spellings, estimator);
criterion_main!(benches);

const MEGABYTE: usize = 1 << 20;

static IDS: LazyLock<Ids> = LazyLock::new(|| Ids {
    conversation: "00000000-0000-4000-8000-000000000001".into(),
    continuation: "00000000-0000-4000-8000-000000000002".into(),
    key: ConversationKey::default(),
});

fn context() -> Context<'static> {
    Context {
        models: Models::embedded(),
        fallback: None,
        system_text: SystemPlace::Pair,
        cache_points: CachePoints::Off,
        cache_limit: MAX_CACHE_POINTS,
        ids: &IDS,
        replay: Replay::Everything,
        source: None,
        pictures: None,
        leave_out: LeaveOut::default(),
        other_model_id: false,
    }
}

fn request(c: &mut Criterion) {
    let body = serde_json::to_vec(&conversation(MEGABYTE)).unwrap();
    let mut group = c.benchmark_group("1 MB, 40 tools");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("parse", |b| b.iter(|| Request::parse(&body, Purpose::Messages).unwrap()));
    let parsed = Request::parse(&body, Purpose::Messages).unwrap();
    group.bench_function("translate", |b| b.iter(|| translate(&parsed, &context()).unwrap()));
    group.bench_function("parse + translate, ready to send", |b| {
        b.iter(|| {
            let request = Request::parse(&body, Purpose::Messages).unwrap();
            let profile_arn = Some("arn:aws:codewhisperer:us-east-1:1:profile/X");
            translate(&request, &context()).unwrap().body.parts(&Form { profile_arn, ..Form::full(Shape::Q) })
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
            b.iter(|| translate(&Request::parse(body, Purpose::Messages).unwrap(), &context()).unwrap());
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

const ENGLISH: &str = "The cache is keyed by the hash of the request, so two callers that ask for the same page at the \
    same moment share one fetch. I looked at the log of last night: the retries all came from a single worker, and \
    each of them waited the full thirty seconds before it gave up.\n\n";
const CODE: &str = "    pub fn insert(&mut self, key: K, value: V) -> Option<V> {\n        let hash = \
    self.hasher.hash_one(&key);\n        match self.table.find(hash, |(k, _)| *k == key) {\n            \
    Some(bucket) => Some(std::mem::replace(&mut bucket.1, value)),\n            None => { self.table.insert(hash, \
    (key, value)); None }\n        }\n    }\n\n    // \"quoted\" and <tagged>\n";
const CHINESE: &str = "缓存以请求的哈希值为键，因此同一时刻请求同一页面的两个调用者只会触发一次读取。\n";

/// A coding agent's conversation: prose, tool calls, long results.
fn conversation(size: usize) -> Value {
    let tools: Vec<Value> = (0..40).map(tool).collect();
    let mut messages = vec![json!({"role": "user", "content": "Please find out why the retries are so slow."})];
    let mut written = 100_000;
    let mut turn = 0;
    while written < size {
        let result = format!("{}{}", CODE.repeat(8 + turn % 13), if turn % 5 == 0 { CHINESE } else { ENGLISH });
        written += result.len() * 21 / 20 + 700;
        messages.push(json!({"role": "assistant", "content": [
            {"type": "text", "text": ENGLISH},
            {"type": "tool_use", "id": format!("toolu_{turn:024}"), "name": format!("tool_{}", turn % 40),
             "input": {"path": format!("/src/module_{turn}/file.rs"), "pattern": "fn \\w+<T>", "limit": 200, "context": 3}},
        ]}));
        messages.push(json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": format!("toolu_{turn:024}"), "content": result},
        ]}));
        turn += 1;
    }
    json!({
        "model": "claude-sonnet-4-5", "max_tokens": 32000, "stream": true,
        "system": [{"type": "text", "text": ENGLISH.repeat(40), "cache_control": {"type": "ephemeral"}}],
        "thinking": {"type": "enabled", "budget_tokens": 31999},
        "metadata": {"user_id": "{\"device_id\":\"d\",\"session_id\":\"13e2a96f-2434-496b-8db1-e2c1f1306470\"}"},
        "tools": tools, "messages": messages,
    })
}

fn tool(number: usize) -> Value {
    let properties: serde_json::Map<String, Value> = (0..6)
        .map(|place| {
            let property = json!({"type": "string", "description": "What to look for, as a regular expression.",
                "enum": ["content", "files_with_matches", "count"], "default": "content"});
            (format!("property_{place}"), property)
        })
        .collect();
    json!({
        "name": format!("tool_{number}"),
        "description": ENGLISH.repeat(3),
        "input_schema": {
            "$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "properties": properties,
            "required": ["property_0"], "additionalProperties": false,
        },
    })
}
