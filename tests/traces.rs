//! OpenTelemetry: what a collector gets from the built server, over OTLP/HTTP (feature `otel`).
#![cfg(all(feature = "server", feature = "otel"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use prost::Message;
use serde_json::json;

#[path = "operations/place.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod place;
#[path = "support/redis_server.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;

use place::{FAR, Server, add_account, client, scene, social};
use redis_server::RedisServer;

/// The part of opentelemetry/proto/collector/trace/v1 that the test reads.
#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
}

fn table(attributes: &[KeyValue]) -> BTreeMap<&str, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::Text(text)) => text.clone(),
        Some(Value::Bool(yes)) => yes.to_string(),
        Some(Value::Int(number)) => number.to_string(),
        Some(Value::Double(number)) => number.to_string(),
        None => String::new(),
    };
    attributes.iter().map(|pair| (pair.key.as_str(), text(pair))).collect()
}

/// A collector: takes `POST /v1/traces` and hands on what it decodes.
fn collector() -> (String, Receiver<Export>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (heard, exports) = channel();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let heard = heard.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while let Some(body) = posted(&mut reader) {
                    let _test_over = heard.send(Export::decode(&body[..]).unwrap());
                    let mut stream = &stream;
                    stream
                        .write_all(
                            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n",
                        )
                        .unwrap();
                }
            });
        }
    });
    (url, exports)
}

fn posted(reader: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut length = 0;
    let mut first = true;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if std::mem::take(&mut first) {
            assert_eq!(line.trim(), "POST /v1/traces HTTP/1.1");
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

/// One request over two accounts is three spans of one trace, the client's own; they tell models and tokens and nothing
/// that anybody said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_a_trace_with_genai_attributes() {
    let (url, exports) = collector();
    let redis = RedisServer::start();
    add_account(&mut redis.connection(), "aiclient:", 0, &social("sim-429.secret-4711", FAR));
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("REDIS_URL", &redis.url()),
        ("KIRO_ACCOUNT_CACHE_TTL", "100ms"),
    ];
    let mut server = Server::start(&[], &environment);
    while client().get(format!("http://{}/health", server.address())).send().await.unwrap().status() != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The rate-limited account first, since it is the only one; then the other.
    assert_eq!(server.ask("", &scene(&json!({ "text": "answer-4711" }))).await.status(), 429);
    add_account(&mut redis.connection(), "aiclient:", 1, &social("good.secret-4711", FAR));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let mut body = scene(&json!({ "text": "answer-4711" }));
    body["stream"] = json!(true);
    loop {
        let asked = client().post(format!("http://{}/v1/messages", server.address()));
        let asked = asked.header("traceparent", format!("00-{trace}-b7ad6b7169203331-01")).body(body.to_string());
        let reply = asked.send().await.unwrap();
        let done = reply.status() == 200;
        reply.bytes().await.unwrap();
        if done {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What is left goes out at the end.
    server.signal("-TERM");
    assert_eq!(server.ended(), 0);
    let exports: Vec<Export> = exports.try_iter().collect();
    assert!(!exports.is_empty(), "nothing came:\n{}", server.lines().join("\n"));
    let resource = exports[0].resource_spans[0].resource.as_ref().unwrap();
    assert_eq!(table(&resource.attributes)["service.name"], "kiro-server");
    let spans: Vec<&Span> = exports
        .iter()
        .flat_map(|export| &export.resource_spans)
        .flat_map(|all| &all.scope_spans)
        .flat_map(|all| &all.spans)
        .collect();

    let of_client = |span: &&&Span| hex(&span.trace_id) == trace;
    let request = spans.iter().filter(of_client).find(|span| {
        span.name.starts_with("chat ")
            && table(&span.attributes).get("http.response.status_code").is_some_and(|code| code == "200")
    });
    let request = request.unwrap_or_else(|| panic!("no span of the good request in {spans:?}"));
    assert_eq!((request.kind, hex(&request.parent_span_id).as_str()), (2, "b7ad6b7169203331"));
    assert!(request.end > request.start);
    let attributes = table(&request.attributes);
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "aws.kiro"),
        ("gen_ai.system", "aws.kiro"),
        ("gen_ai.request.model", "claude-sonnet-4-5"),
        ("gen_ai.response.finish_reasons", "end_turn"),
        ("kiro.account", "00000001"),
        ("kiro.attempts", "1"),
    ] {
        assert_eq!(attributes.get(key).map(String::as_str), Some(value), "{key} in {attributes:?}");
    }
    assert!(!attributes["gen_ai.response.model"].is_empty());
    for tokens in ["gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"] {
        assert!(attributes[tokens].parse::<u64>().unwrap() > 0, "{tokens} in {attributes:?}");
    }
    let attempt = spans.iter().find(|span| span.parent_span_id == request.span_id).expect("the call of upstream");
    assert_eq!((attempt.name.as_str(), attempt.kind), ("generateAssistantResponse", 3));
    assert_eq!(attempt.trace_id, request.trace_id);

    // The one that failed: its own trace, an error in both spans.
    let failed = spans
        .iter()
        .find(|span| table(&span.attributes).get("error.type").is_some_and(|kind| kind == "KIRO_RATE_LIMITED"));
    let failed = failed.expect("the failed request");
    assert_eq!(failed.status.as_ref().unwrap().code, 2);
    let attempt = spans.iter().find(|span| span.parent_span_id == failed.span_id).expect("its call of upstream");
    assert_eq!(table(&attempt.attributes)["error.type"], "RateLimited");
    assert_eq!(table(&attempt.attributes)["http.response.status_code"], "429");
    assert!(!format!("{spans:?}").contains("4711"), "something secret went out");
}

/// A collector that takes a connection and says nothing holds the end up for its time-out, but not against a second signal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_does_not_wait_for_the_collector() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut server =
        Server::start(&[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), ("OTEL_BSP_SCHEDULE_DELAY", "600000")]);
    assert_eq!(server.ask("", &scene(&json!({ "text": "a" }))).await.status(), 200);
    server.signal("-TERM");
    // The rest is still being sent.
    let (_held, _) = silent.accept().unwrap();
    let began = Instant::now();
    server.signal("-TERM");
    assert_eq!(server.ended(), 1);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
