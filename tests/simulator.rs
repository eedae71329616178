//! The simulator over a real socket, read by `aws-smithy-eventstream` and a plain HTTP reader of this file: nothing of
//! ours judges what it sends.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use aws_smithy_types::event_stream::Message;
use bytes::{Buf, Bytes};
use kiro_messages::proto::kiro::fault::{Fault, FaultKind};
use kiro_messages::simulator::{PROFILE_ARN, Running, Simulator};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn simulator() -> Running {
    Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap().spawn().unwrap()
}

fn body(content: &str) -> Value {
    json!({
        "conversationState": {
            "chatTriggerType": "MANUAL", "conversationId": "7a1f6e0c-0000-4000-8000-000000000000",
            "currentMessage": { "userInputMessage": { "content": content, "modelId": "claude-sonnet-4.5", "origin": "AI_EDITOR" } },
        },
    })
}

fn marked(scenario: &Value) -> Value {
    body(&format!("Please do this: [[sim {scenario}]]"))
}

/// One answer to a chat request whose prompt holds `scenario`.
async fn play(simulator: &Running, scenario: &Value) -> Answer {
    chat(simulator, "token", &marked(scenario)).await
}

async fn chat(simulator: &Running, token: &str, body: &Value) -> Answer {
    Client::connect(simulator).await.chat(token, body).await
}

/// The events of an answer that must be whole: type and payload.
async fn events(simulator: &Running, scenario: &Value) -> Vec<(String, Value)> {
    let answer = play(simulator, scenario).await;
    assert_eq!((answer.status, answer.end), (200, End::Whole), "{scenario}: {}", answer.text());
    answer.events()
}

/// The text that an answer's events add up to.
fn text_of(events: &[(String, Value)]) -> String {
    let texts = events.iter().filter(|(kind, _)| kind == "assistantResponseEvent");
    texts.map(|(_, payload)| payload["content"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_demo_answer_says_that_it_is_simulated_and_ends_with_usage() {
    let simulator = simulator();
    let answer = chat(&simulator, "token", &body("Hi")).await;
    assert_eq!(answer.headers["content-type"], "application/vnd.amazon.eventstream");
    assert_eq!(answer.headers["x-amzn-codewhisperer-conversation-id"], "7a1f6e0c-0000-4000-8000-000000000000");
    let events = answer.events();
    assert!(text_of(&events).contains("simulated"));
    let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds[..20], ["assistantResponseEvent"; 20]);
    assert_eq!(kinds[20..], ["contextUsageEvent", "metadataEvent", "meteringEvent"]);
    assert_eq!(events[20].1, json!({ "contextUsagePercentage": 1.25 }));
    assert_eq!(events[21].1, json!({}));
    assert_eq!(events[22].1, json!({ "usage": 0.05, "unit": "credit", "unitPlural": "credits" }));
}

#[tokio::test]
async fn text_tools_thinking_and_literal_events_come_as_the_scenario_says() {
    let simulator = simulator();
    let scenario = json!({
        "thinking": "Hm. Yes.", "signature": "abcd", "signature_pieces": 2, "redacted": "AAEC",
        "text": "a \"quot\" 😀é", "pieces": 2, "model": "claude-sonnet-4.5",
        "tools": [
            { "id": "t1", "name": "f", "input": { "x": [1, "é"] }, "pieces": 2 },
            { "id": "t2", "name": "g", "input": { "y": 1 }, "object": true, "open": false, "stop": "last" },
            { "name": "h", "stop": "never" },
        ],
        "steps": [
            { "event": "followupPromptEvent", "payload": { "followupPrompt": { "content": "?" } } },
            { "event": "assistantResponseEvent", "raw": "{ \"content\":\"\\ud83d\"}" },
            { "headers": { ":event-type": "odd" } },
        ],
        "usage": { "percent": 2.5, "tokens": { "uncachedInputTokens": 7, "outputTokens": 1 }, "stop_reason": "END_TURN" },
    });
    let event = |kind: &str, payload: Value| (kind.to_owned(), payload);
    let reasoning = |payload| event("reasoningContentEvent", payload);
    let text =
        |content: &str| event("assistantResponseEvent", json!({ "content": content, "modelId": "claude-sonnet-4.5" }));
    let expected = [
        reasoning(json!({ "text": "Hm. " })),
        reasoning(json!({ "text": "Yes." })),
        reasoning(json!({ "signature": "ab" })),
        reasoning(json!({ "signature": "cd" })),
        reasoning(json!({ "redactedContent": "AAEC" })),
        text("a \"qu"),
        text("ot\" 😀é"),
        event("toolUseEvent", json!({ "toolUseId": "t1", "name": "f" })),
        event("toolUseEvent", json!({ "toolUseId": "t1", "name": "f", "input": "{\"x\":[" })),
        event("toolUseEvent", json!({ "toolUseId": "t1", "name": "f", "input": "1,\"é\"]}" })),
        event("toolUseEvent", json!({ "toolUseId": "t1", "name": "f", "stop": true })),
        event("toolUseEvent", json!({ "toolUseId": "t2", "name": "g", "input": { "y": 1 }, "stop": true })),
        event("toolUseEvent", json!({ "toolUseId": "tooluse_simulated_3", "name": "h" })),
        event("followupPromptEvent", json!({ "followupPrompt": { "content": "?" } })),
        event("assistantResponseEvent", Value::Null),
        event("odd", Value::Null),
        event("contextUsageEvent", json!({ "contextUsagePercentage": 2.5 })),
        event(
            "metadataEvent",
            json!({ "tokenUsage": { "uncachedInputTokens": 7, "outputTokens": 1 }, "stopReason": "END_TURN" }),
        ),
    ];
    let answer = play(&simulator, &scenario).await;
    assert_eq!(answer.events(), expected);
    let messages = answer.messages();
    assert_eq!(messages[14].payload().as_ref(), br#"{ "content":"\ud83d"}"#, "as it was written");
    assert_eq!((messages[15].headers().len(), messages[15].payload().len()), (1, 0));
    for message in &messages[..15] {
        assert_eq!(header(message, ":message-type").as_deref(), Some("event"), "K3");
    }
}

#[tokio::test]
async fn parallel_tools_interleave() {
    let simulator = simulator();
    let tools = json!([
        { "id": "a", "name": "f", "input": "{\"x\":1}", "pieces": 2 },
        { "id": "b", "name": "g", "input": "{}" },
    ]);
    let in_order = |events: &[(String, Value)]| -> String {
        events.iter().filter_map(|(_, payload)| payload["toolUseId"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(in_order(&events(&simulator, &json!({ "tools": tools })).await), "aaaabbb");
    assert_eq!(in_order(&events(&simulator, &json!({ "tools": tools, "interleave": true })).await), "abababa");
}

#[tokio::test]
async fn thinking_in_tags_is_cut_like_text() {
    let simulator = simulator();
    let read = events(&simulator, &json!({ "thinking": "why", "tags": true, "text": "so", "pieces": 9 })).await;
    assert_eq!(text_of(&read), "<thinking>\nwhy\n</thinking>\n\nso");
    assert_eq!(read.iter().filter(|(kind, _)| kind == "assistantResponseEvent").count(), 9);
}

#[tokio::test]
async fn ten_thousand_numbered_events_arrive_in_order_and_equal_ones_are_not_merged() {
    let simulator = simulator();
    let read = events(&simulator, &json!({ "count": 10_000 })).await;
    let expected: String = (0..10_000).map(|n| format!("{n} ")).collect();
    assert_eq!((read.len(), text_of(&read)), (10_003, expected));
    let read = events(&simulator, &json!({ "text": "ha", "count": 3, "usage": false })).await;
    assert_eq!((read.len(), text_of(&read).as_str()), (3, "hahaha"));
    let read = events(&simulator, &json!({ "text": "{n}/\"{n}\" ", "count": 3, "usage": false })).await;
    assert_eq!(text_of(&read), "0/\"0\" 1/\"1\" 2/\"2\" ");
}

#[tokio::test]
async fn bursts_and_splits_are_writes_of_their_own() {
    let simulator = simulator();
    let answer = play(&simulator, &json!({ "count": 10, "burst": 4, "usage": false })).await;
    let sizes: Vec<usize> = answer.chunks.iter().map(|chunk| chunk.len() / (answer.body().len() / 10)).collect();
    assert_eq!(sizes, [4, 4, 2]);

    let whole = play(&simulator, &json!({ "text": "abc", "count": 3 })).await.body();
    for size in [1, 7, 100] {
        let answer = play(&simulator, &json!({ "text": "abc", "count": 3, "write_bytes": size })).await;
        assert_eq!(answer.body(), whole);
        assert!(answer.chunks.iter().all(|chunk| chunk.len() <= size));
        assert!(answer.chunks.len() >= whole.len().div_ceil(size));
    }
}

#[tokio::test]
async fn pauses_are_kept() {
    let simulator = simulator();
    let start = Instant::now();
    let scenario = json!({ "head_ms": 60, "first_ms": 60, "text": "abcd", "pieces": 4, "gap_ms": 40, "usage": false });
    let answer = play(&simulator, &scenario).await;
    let at: Vec<u128> = answer.arrived.iter().map(|arrived| arrived.duration_since(start).as_millis()).collect();
    assert_eq!(at.len(), 4);
    for (n, at) in at.iter().enumerate() {
        let due = 120 + 40 * n as u128;
        assert!((due..due + 1000).contains(at), "event {n} at {at} ms, due at {due}");
    }
    let start = Instant::now();
    let steps = json!({ "steps": [{ "text": "a" }, { "wait_ms": 100 }, { "text": "b" }] });
    let answer = play(&simulator, &steps).await;
    assert_eq!(answer.chunks.len(), 2);
    assert!(answer.arrived[0] < answer.arrived[1]);
    assert!(answer.arrived[1].duration_since(start) >= Duration::from_millis(100));
}

#[tokio::test]
async fn streams_end_as_the_scenario_says() {
    let simulator = simulator();
    let with_end = |end: &str| json!({ "text": "abc", "pieces": 3, "end": end });
    for (end, http, wire) in [
        ("clean", End::Whole, Ok(0)),
        ("cut", End::Cut, Ok(0)),
        ("reset", End::Reset, Ok(0)),
        ("leftover", End::Whole, Ok(1)),
        ("corrupt_crc", End::Whole, Err("checksum")),
        ("corrupt_prelude", End::Whole, Err("checksum")),
        ("corrupt_length", End::Whole, Ok(1)),
    ] {
        let answer = play(&simulator, &with_end(end)).await;
        assert_eq!((answer.status, answer.end), (200, http), "{end}");
        let (messages, read) = answer.decode();
        // A clean end brings the usage events.
        assert_eq!(messages.len(), if end == "clean" { 6 } else { 3 }, "{end}");
        match wire {
            Ok(left) => assert_eq!(read.map(|bytes| bytes.min(1)), Ok(left), "{end}"),
            Err(word) => assert!(read.as_ref().is_err_and(|error| error.contains(word)), "{end}: {read:?}"),
        }
    }

    let answer = play(&simulator, &json!({ "text": "abc", "limit_bytes": 100, "end": "cut" })).await;
    assert_eq!((answer.body().len(), answer.end), (100, End::Cut));
    let answer = play(&simulator, &json!({ "text": "abc", "limit_bytes": 0 })).await;
    assert_eq!((answer.body().len(), answer.end), (0, End::Whole));
    let answer = play(&simulator, &json!({ "count": 5, "content_length": true })).await;
    assert_eq!((answer.headers["content-length"].parse(), answer.end), (Ok(answer.body().len()), End::Whole));
    assert_eq!(answer.events().len(), 8);
    let answer = play(&simulator, &json!({ "count": 5, "content_length": true, "limit_bytes": 300 })).await;
    assert_eq!(answer.end, End::Cut, "content length not reached");
    for (how, end) in [("close", End::Cut), ("reset", End::Reset)] {
        let answer = play(&simulator, &json!({ "drop": how })).await;
        assert_eq!((answer.status, answer.end), (0, end), "{how}");
    }
}

#[tokio::test]
async fn exceptions_and_error_frames_stand_where_they_are_put() {
    let simulator = simulator();
    let exception = json!({ "type": "ThrottlingException", "message": "m", "reason": "r" });
    let scenario = json!({ "text": "a", "exception": exception, "error": { "code": "c", "message": "é" } });
    let messages = play(&simulator, &scenario).await.messages();
    assert_eq!(messages.len(), 3, "no usage events before a failure that isn't a ghost");
    assert_eq!(header(&messages[1], ":message-type").as_deref(), Some("exception"));
    assert_eq!(header(&messages[1], ":exception-type").as_deref(), Some("ThrottlingException"));
    assert_eq!(payload(&messages[1]), json!({ "message": "m", "reason": "r" }));
    assert_eq!(header(&messages[2], ":message-type").as_deref(), Some("error"));
    assert_eq!(header(&messages[2], ":error-code").as_deref(), Some("c"));
    assert_eq!(header(&messages[2], ":error-message").as_deref(), Some("é"));

    let ghost = chat(&simulator, "sim-ghost", &body("Hi")).await.messages();
    let kinds: Vec<_> = ghost.iter().map(|message| header(message, ":message-type").unwrap()).collect();
    assert_eq!(kinds, ["event", "event", "event", "event", "exception"]);
    let steps = json!({ "steps": [{ "exception": "error" }, { "text": "on" }] });
    assert_eq!(play(&simulator, &steps).await.messages().len(), 2);
}

/// One preset for every row of the fault table, judged by the classification that the gateway uses.
#[tokio::test]
async fn every_row_of_the_fault_table_has_a_token() {
    let simulator = simulator();
    let rows = [
        ("prompt-too-long", FaultKind::PromptTooLong),
        ("reason-PROMPT_TOO_LONG", FaultKind::PromptTooLong),
        ("413", FaultKind::TooLarge),
        ("unknown-model", FaultKind::UnknownModel),
        ("thinking-signature", FaultKind::ThinkingSignature),
        ("profile-arn", FaultKind::ProfileArn),
        ("400", FaultKind::BadRequest),
        ("reason-TOOL_SCHEMA_INVALID", FaultKind::BadRequest),
        ("conversation-limit", FaultKind::BadRequest),
        ("401", FaultKind::TokenRejected),
        ("403-invalid-token", FaultKind::TokenRejected),
        ("403-expired-token", FaultKind::TokenRejected),
        ("suspended", FaultKind::Suspended),
        ("suspended-by-message", FaultKind::Suspended),
        ("403", FaultKind::Forbidden),
        ("409", FaultKind::Forbidden),
        ("402", FaultKind::QuotaMonth),
        ("402-plain", FaultKind::QuotaMonth),
        ("overage", FaultKind::QuotaMonth),
        ("daily", FaultKind::QuotaDay),
        ("suspicious", FaultKind::Suspicious),
        ("capacity", FaultKind::ModelCapacity),
        ("unavailable", FaultKind::ModelCapacity),
        ("high-traffic", FaultKind::ModelCapacity),
        ("529", FaultKind::ModelCapacity),
        ("429", FaultKind::RateLimited),
        ("429-user-rate", FaultKind::RateLimited),
        ("429-retry-after-7", FaultKind::RateLimited),
        ("429-retry-after-date", FaultKind::RateLimited),
        ("400-throttling", FaultKind::RateLimited),
        ("500", FaultKind::ServerError),
        ("503", FaultKind::ServerError),
        ("502-html", FaultKind::ServerError),
        ("408", FaultKind::ServerError),
        ("200-json", FaultKind::RateLimited),
        ("404", FaultKind::Endpoint),
        ("405", FaultKind::Endpoint),
        ("415", FaultKind::Endpoint),
    ];
    let mut with_reasoning = body("Hi");
    with_reasoning["conversationState"]["history"] = json!([
        { "userInputMessage": { "content": "a" } },
        { "assistantResponseMessage": { "content": "b", "reasoningContent": { "reasoningText": { "text": "t" } } } },
    ]);
    for (name, kind) in rows {
        let answer = chat(&simulator, &format!("sim-{name}.someone"), &with_reasoning).await;
        let header = |name: &str| answer.headers.get(name).map(String::as_str);
        let fault =
            Fault::from_http(answer.status, header("x-amzn-errortype"), header("retry-after"), &answer.body(), false);
        assert_eq!(fault.kind, kind, "{name}: {}", answer.text());
        assert_eq!(fault.retry_after.is_some(), name.starts_with("429-retry-after"), "{name}");
        assert_eq!(answer.end, End::Whole, "{name}");
    }
    let answer = chat(&simulator, "sim-429-retry-after-7", &body("Hi")).await;
    assert_eq!(answer.headers["retry-after"], "7");
    let answer = chat(&simulator, "sim-429-retry-after-date", &body("Hi")).await;
    assert!(answer.headers["retry-after"].ends_with(" GMT"), "{:?}", answer.headers);
}

#[tokio::test]
async fn two_faults_pass_once_they_are_cured() {
    let simulator = simulator();
    assert_eq!(chat(&simulator, "sim-thinking-signature", &body("Hi")).await.status, 200, "no reasoning was sent");
    let mut request = body("Hi");
    assert_eq!(chat(&simulator, "sim-profile-arn", &request).await.status, 400);
    request["profileArn"] = "arn:aws:codewhisperer:us-east-1:1:profile/OTHER".into();
    assert_eq!(chat(&simulator, "sim-profile-arn", &request).await.status, 400);
    request["profileArn"] = PROFILE_ARN.into();
    assert_eq!(chat(&simulator, "sim-profile-arn", &request).await.status, 200);
}

#[tokio::test]
async fn script_before_token_before_prompt_before_default() {
    let simulator = simulator();
    let control = simulator.control();
    control.script(json!({ "token": "sim-429", "scenarios": ["500", null], "times": 2 })).unwrap();
    control.script(json!({ "default": { "text": "the default" } })).unwrap();
    let asks_for_402 = marked(&json!("402"));
    for expected in [500, 402, 500, 402, 429, 429] {
        assert_eq!(chat(&simulator, "sim-429", &asks_for_402).await.status, expected);
    }
    assert_eq!(chat(&simulator, "sim-ok", &asks_for_402).await.status, 402);
    let answer = chat(&simulator, "sim-ok.any", &body("Hi")).await;
    assert_eq!(text_of(&answer.events()), "the default");
    let conditional = marked(&json!({ "when": "reasoning", "http": { "status": 500 } }));
    assert_eq!(chat(&simulator, "token", &conditional).await.status, 200);

    control.script(json!([{ "token": "t", "scenarios": ["429", "500"], "forever": true }])).unwrap();
    for expected in [429, 500, 500, 500] {
        assert_eq!(chat(&simulator, "t", &body("Hi")).await.status, expected);
    }
    control.reset();
    assert!(text_of(&chat(&simulator, "t", &body("Hi")).await.events()).contains("simulated"));
}

#[tokio::test]
async fn mistakes_in_a_scenario_are_answered_with_400_that_names_them() {
    let simulator = simulator();
    for (scenario, named) in [
        (json!({ "txet": "a" }), "unknown key `txet` in `scenario`"),
        (json!({ "text": 1 }), "`scenario.text`"),
        (json!({ "steps": [{ "text": "a" }, { "texts": "b" }] }), "unknown key `texts` in `scenario.steps[1]`"),
        (json!({ "steps": [{}] }), "`scenario.steps[0]` sends nothing"),
        (json!({ "tools": [{ "id": "a" }] }), "`scenario.tools[0].name` is missing"),
        (json!({ "tools": [{ "name": "a", "stop": "now" }] }), "`scenario.tools[0].stop`"),
        (json!({ "http": { "status": 99 } }), "`http.status`"),
        (json!({ "http": { "status": 200, "colour": 1 } }), "unknown key `colour` in `http`"),
        (json!({ "http": { "headers": { "a b": "c" } } }), "`http.headers.a b`"),
        (json!({ "end": "soon" }), "`soon`"),
        (json!({ "pieces": 0 }), "`scenario.pieces` is at least 1"),
        (json!({ "steps": [{ "corrupt": "all" }] }), "corrupt_all"),
        (json!({ "headers": { "a": "x".repeat(40_000) } }), "no frame can hold this"),
        (json!("no-such"), "no preset is called `no-such`"),
        (json!(7), "not 7"),
    ] {
        let answer = play(&simulator, &scenario).await;
        assert_eq!(answer.status, 400, "{scenario}");
        assert!(answer.json()["message"].as_str().unwrap().contains(named), "{scenario}: {}", answer.text());
    }
    for (content, named) in [("[[sim {", "not JSON"), ("[[sim ", "empty"), ("[[sim {}", "end with `]]`")] {
        let answer = chat(&simulator, "token", &body(content)).await;
        assert!(answer.status == 400 && answer.text().contains(named), "{content}: {}", answer.text());
    }
    let answer = chat(&simulator, "sim-no-such.one", &body("Hi")).await;
    assert!(answer.status == 400 && answer.text().contains("`no-such`"));
    let control = simulator.control();
    for (script, named) in [
        (json!({ "token": "t", "scenario": [] }), "scenarios"),
        (json!({ "token": "t", "scenarios": [], "on": "lunch" }), "lunch"),
        (json!({ "refresh_token": "t", "answers": [{ "texpires_in": 1 }] }), "texpires_in"),
        (json!(1), "not 1"),
    ] {
        assert!(control.script(script.clone()).is_err_and(|error| error.contains(named)), "{script}");
    }
}

#[tokio::test]
async fn what_kiro_refuses_is_refused() {
    let simulator = simulator();
    let answer = chat(&simulator, "token", &body("")).await;
    assert_eq!((answer.status, &answer.json()["reason"]), (400, &json!("REQUEST_BODY_INVALID")));
    assert_eq!(answer.headers["x-amzn-errortype"], "ValidationException");
    let mut client = Client::connect(&simulator).await;
    client.request("POST", "/generateAssistantResponse", &[], "{}").await;
    let answer = client.read().await;
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("bearer token"));
    client.request("GET", "/nothing", &[], "").await;
    assert_eq!(client.read().await.status, 404);
}

#[tokio::test]
async fn a_client_that_goes_away_is_noticed_at_once_even_in_silence() {
    let simulator = simulator();
    for (scenario, before_events) in [
        (json!({ "end": "hang" }), 0),
        (json!({ "head_ms": 60_000 }), 0),
        (json!({ "count": 100_000, "gap_ms": 20 }), 1),
    ] {
        simulator.control().reset();
        let mut client = Client::connect(&simulator).await;
        client.send("gone", &marked(&scenario)).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(simulator.control().stats()["streams"]["open"], 1, "{scenario}");
        drop(client);
        let dropped = Instant::now();
        loop {
            let stats = simulator.control().stats();
            if stats["streams"]["open"] == 0 {
                let close = &stats["closed_by_client"][0];
                assert_eq!(close["token"], "gone");
                let after = close["after_ms"].as_u64().unwrap();
                assert!((50..1000).contains(&after), "{scenario}: closed after {after} ms");
                assert!(close["events"].as_u64().unwrap() >= before_events);
                assert_eq!(stats["streams"]["closed_by_client"], 1);
                assert_eq!(stats["streams"]["completed"], 0);
                break;
            }
            assert!(dropped.elapsed() < Duration::from_millis(500), "{scenario}: not noticed");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_all_is_counted() {
    let simulator = simulator();
    let mut client = Client::connect(&simulator).await;
    for n in 0..100 {
        let answer = client.chat(if n % 4 == 0 { "sim-429" } else { "a" }, &marked(&json!({ "text": "x" }))).await;
        assert_eq!(answer.end, End::Whole);
    }
    client.request("GET", "/_sim/stats?bodies=1", &[], "").await;
    let stats = client.read().await.json();
    assert_eq!(stats["connections"], json!({ "open": 1, "open_max": 1, "accepted": 1 }));
    assert_eq!(stats["requests"], json!({ "POST /generateAssistantResponse": 100 }));
    assert_eq!(stats["calls_by_token"], json!({ "a": 75, "sim-429": 25 }));
    let streams = &stats["streams"];
    assert_eq!((&streams["completed"], &streams["answered_otherwise"]), (&json!(75), &json!(25)));
    assert_eq!((&streams["open"], &streams["open_max"], &streams["events"]), (&json!(0), &json!(1), &json!(75 * 4)));
    assert_eq!(stats["last"].as_array().map(Vec::len), Some(64));
    let last = &stats["last"][63];
    assert_eq!((&last["method"], &last["target"]), (&json!("POST"), &json!("/generateAssistantResponse")));
    assert_eq!(last["headers"]["authorization"], "Bearer a");
    assert_eq!(last["body"], marked(&json!({ "text": "x" })).to_string());
    client.request("POST", "/_sim/reset", &[], "").await;
    client.read().await;
    let stats = simulator.control().stats();
    assert_eq!((&stats["streams"]["completed"], &stats["connections"]["open"]), (&json!(0), &json!(1)));
    assert!(stats.get("last").is_none());
    client.request("POST", "/_sim/script", &[], r#"{"token":"a","scenarios":["413"]}"#).await;
    assert_eq!(client.read().await.status, 200);
    assert_eq!(client.chat("a", &body("Hi")).await.status, 413);
    client.request("POST", "/_sim/script", &[], r#"{"tokens":"a"}"#).await;
    let answer = client.read().await;
    assert!(answer.status == 400 && answer.text().contains("script.token"), "{}", answer.text());
}

#[tokio::test]
async fn refresh_tokens_rotate_and_each_refusal_has_a_name() {
    let simulator = simulator();
    let mut client = Client::connect(&simulator).await;
    let mut refresh = async |path: &str, body: Value| {
        client.request("POST", path, &[("content-type", "application/json")], &body.to_string()).await;
        let answer = client.read().await;
        (answer.status, answer.json(), answer.headers.get("x-amzn-errortype").cloned())
    };
    let (status, first, _) = refresh("/refreshToken", json!({ "refreshToken": "old" })).await;
    let expected = json!({
        "accessToken": "sim-ok.1.old", "refreshToken": "old~1", "expiresIn": 3600, "profileArn": PROFILE_ARN,
    });
    assert_eq!((status, first), (200, expected));
    let (status, again, _) = refresh("/refreshToken", json!({ "refreshToken": "old" })).await;
    assert_eq!((status, again), (400, json!({ "message": "Invalid refresh token" })), "it was replaced");
    let idc = |token: &str| json!({ "refreshToken": token, "clientId": "c", "clientSecret": "s", "grantType": "refresh_token" });
    let (status, second, _) = refresh("/token", idc("old~1")).await;
    assert_eq!((status, &second["refreshToken"], &second["profileArn"]), (200, &json!("old~2"), &Value::Null));
    assert_ne!(second["idToken"], second["accessToken"]);

    let mut form = idc("x");
    form["grant_type"] = form["grantType"].take();
    assert_eq!(refresh("/token", form).await.0, 400, "snake case");
    for (name, status, kind) in [
        ("dead", 400, Some("InvalidGrantException")),
        ("client-expired", 401, Some("InvalidClientException")),
        ("slow-down", 400, Some("SlowDownException")),
        ("401", 401, None),
        ("500", 500, None),
        ("keep", 200, None),
    ] {
        let (answered, body, error_type) = refresh("/token", idc(&format!("sim-refresh-{name}.alice"))).await;
        assert_eq!((answered, error_type.as_deref()), (status, kind), "{name}: {body}");
        if name == "keep" {
            assert!(body.get("refreshToken").is_none());
        }
    }
    let answers = json!([{ "status": 500 }, null, { "access_token": "mine", "refresh_token": "r", "expires_in": 7, "wait_ms": 50 }]);
    simulator.control().script(json!({ "refresh_token": "r", "answers": answers })).unwrap();
    assert_eq!(refresh("/refreshToken", json!({ "refreshToken": "r" })).await.0, 500);
    assert_eq!(refresh("/refreshToken", json!({ "refreshToken": "r" })).await.1["refreshToken"], "r~4");
    let (status, third, _) = refresh("/refreshToken", json!({ "refreshToken": "r" })).await;
    assert_eq!(status, 400, "retired, whatever the script says: {third}");
    let stats = simulator.control().stats();
    assert_eq!((&stats["refresh_calls"]["old"], &stats["refresh_calls"]["r"]), (&json!(2), &json!(3)));
    assert_eq!(
        stats["refreshed"][0],
        json!({ "used": "old", "refresh_token": "old~1", "access_token": "sim-ok.1.old" })
    );
}

#[tokio::test]
async fn usage_profiles_and_models() {
    let simulator = simulator();
    let mut client = Client::connect(&simulator).await;
    let mut ask = async |method: &str, target: &str, operation: &str, token: &str| {
        let (bearer, operation) = (format!("Bearer {token}"), format!("AmazonCodeWhispererService.{operation}"));
        let headers = [("authorization", bearer.as_str()), ("x-amz-target", operation.as_str())];
        client.request(method, target, &headers, "{}").await;
        let answer = client.read().await;
        (answer.status, answer.json())
    };
    let usage = "/getUsageLimits?isEmailRequired=true&origin=AI_EDITOR&resourceType=AGENTIC_REQUEST";
    let (status, answer) = ask("GET", usage, "", "a").await;
    assert_eq!((status, &answer["usageBreakdownList"][0]["usageLimit"]), (200, &json!(1000)));
    assert_eq!(ask("GET", usage, "", "sim-402").await.1["usageBreakdownList"][0]["currentUsage"], 1000);
    let encoded = PROFILE_ARN.replace(':', "%3A").replace('/', "%2F");
    assert_eq!(ask("GET", &format!("{usage}&profileArn={encoded}"), "", "a").await.0, 200);
    let (status, answer) = ask("GET", &format!("{usage}&profileArn=arn"), "", "a").await;
    assert_eq!((status, &answer["message"]), (400, &json!("Invalid profileArn.")));
    assert_eq!(ask("GET", usage, "", "sim-429").await.0, 200, "only chat is throttled");
    assert_eq!(ask("GET", usage, "", "sim-suspended").await.0, 403, "suspended everywhere");
    simulator.control().script(json!({ "token": "a", "on": "usage", "scenarios": ["429"] })).unwrap();
    assert_eq!(ask("GET", usage, "", "a").await.0, 429);

    let (_, answer) = ask("POST", "/", "ListAvailableProfiles", "a").await;
    assert_eq!(answer["profiles"][0]["arn"], PROFILE_ARN);
    assert_eq!(ask("POST", "/", "ListAvailableProfiles", "sim-no-profile").await.1, json!({ "profiles": [] }));
    assert_eq!(ask("POST", "/", "ListAvailableProfiles", "sim-builder-id").await.0, 403);
    let (_, answer) = ask("POST", "/", "ListAvailableModels", "a").await;
    assert_eq!(answer["models"][0]["modelId"], "claude-sonnet-4.5");
    assert_eq!(ask("GET", "/ListAvailableModels?origin=AI_EDITOR", "", "a").await.1, answer);
}

#[tokio::test]
async fn shutdown_lets_an_answer_end_and_drop_does_not() {
    let simulator = simulator();
    let mut idle = Client::connect(&simulator).await;
    idle.chat("a", &marked(&json!({ "text": "x" }))).await;
    let mut busy = Client::connect(&simulator).await;
    busy.send("a", &marked(&json!({ "count": 10, "gap_ms": 30 }))).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let addr = simulator.addr();
    let (answer, ()) = tokio::join!(busy.read(), simulator.shutdown());
    assert_eq!((answer.end, answer.events().len()), (End::Whole, 13));
    assert_eq!(idle.read().await.status, 0, "idle connections are closed");
    assert!(TcpStream::connect(addr).await.is_err());

    let simulator = self::simulator();
    let mut busy = Client::connect(&simulator).await;
    busy.send("a", &marked(&json!({ "end": "hang" }))).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    drop(simulator);
    assert_ne!(busy.read().await.end, End::Whole);
}

#[tokio::test]
async fn many_streams_at_once() {
    let simulator = simulator();
    let request = marked(&json!({ "count": 20, "first_ms": 1500, "gap_ms": 10, "usage": false }));
    let expected: String = (0..20).map(|n| format!("{n} ")).collect();
    let streams = (0..200).map(|_| chat(&simulator, "a", &request));
    for answer in futures_util::future::join_all(streams).await {
        assert_eq!((answer.end, text_of(&answer.events())), (End::Whole, expected.clone()));
    }
    let stats = simulator.control().stats();
    assert_eq!((&stats["streams"]["completed"], &stats["streams"]["open_max"]), (&json!(200), &json!(200)));
}

/// Reads one answer after another from a connection, byte by byte as HTTP/1.1 has them.
struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(simulator: &Running) -> Self {
        Self { socket: TcpStream::connect(simulator.addr()).await.unwrap(), buffer: Vec::new() }
    }

    async fn chat(&mut self, token: &str, body: &Value) -> Answer {
        self.send(token, body).await;
        self.read().await
    }

    async fn send(&mut self, token: &str, body: &Value) {
        let bearer = format!("Bearer {token}");
        self.request("POST", "/generateAssistantResponse", &[("authorization", &bearer)], &body.to_string()).await;
    }

    async fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) {
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: simulator\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        self.socket.write_all(format!("{head}\r\n{body}").as_bytes()).await.unwrap();
    }

    async fn read(&mut self) -> Answer {
        let mut answer =
            Answer { status: 0, headers: HashMap::new(), chunks: Vec::new(), arrived: Vec::new(), end: End::Cut };
        let Some(head) = self.until(b"\r\n\r\n", &mut answer).await else { return answer };
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        answer.status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        answer.headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        if let Some(length) = answer.headers.get("content-length") {
            let length = length.parse().unwrap();
            if let Some(body) = self.exactly(length, &mut answer).await {
                answer.push(body);
                answer.end = End::Whole;
            }
            return answer;
        }
        while let Some(size) = self.until(b"\r\n", &mut answer).await {
            let size = usize::from_str_radix(String::from_utf8(size).unwrap().trim(), 16).unwrap();
            let Some(mut chunk) = self.exactly(size + 2, &mut answer).await else { break };
            if size == 0 {
                answer.end = End::Whole;
                break;
            }
            chunk.truncate(size);
            answer.push(chunk);
        }
        answer
    }

    async fn until(&mut self, mark: &[u8], answer: &mut Answer) -> Option<Vec<u8>> {
        loop {
            if let Some(place) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                return Some(self.buffer.drain(..place + mark.len()).collect());
            }
            self.more(answer).await?;
        }
    }

    async fn exactly(&mut self, len: usize, answer: &mut Answer) -> Option<Vec<u8>> {
        while self.buffer.len() < len {
            self.more(answer).await?;
        }
        Some(self.buffer.drain(..len).collect())
    }

    /// None when the connection ends.
    async fn more(&mut self, answer: &mut Answer) -> Option<()> {
        match self.socket.read_buf(&mut self.buffer).await {
            Ok(0) => None,
            Ok(_) => Some(()),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                answer.end = End::Reset;
                None
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The body ended as HTTP says.
    Whole,
    /// The connection was closed before.
    Cut,
    Reset,
}

#[derive(Debug)]
struct Answer {
    /// 0 when there was none.
    status: u16,
    headers: HashMap<String, String>,
    /// As the server wrote them.
    chunks: Vec<Vec<u8>>,
    arrived: Vec<Instant>,
    end: End,
}

impl Answer {
    fn push(&mut self, chunk: Vec<u8>) {
        self.chunks.push(chunk);
        self.arrived.push(Instant::now());
    }

    fn body(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body()).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body()).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    /// Frames as smithy reads them, and how many bytes are left over; an error for what it refuses.
    fn decode(&self) -> (Vec<Message>, Result<usize, String>) {
        let mut decoder = MessageFrameDecoder::new();
        let mut buffer = Bytes::from(self.body());
        let mut messages = Vec::new();
        loop {
            let left = buffer.remaining();
            match decoder.decode_frame(&mut buffer) {
                Ok(DecodedFrame::Complete(message)) => messages.push(message),
                Ok(DecodedFrame::Incomplete) => return (messages, Ok(left)),
                Err(error) => return (messages, Err(error.to_string())),
            }
        }
    }

    fn messages(&self) -> Vec<Message> {
        let (messages, end) = self.decode();
        assert_eq!(end, Ok(0));
        messages
    }

    fn events(&self) -> Vec<(String, Value)> {
        self.messages()
            .iter()
            .map(|message| (header(message, ":event-type").unwrap_or_default(), payload(message)))
            .collect()
    }
}

fn header(message: &Message, name: &str) -> Option<String> {
    let header = message.headers().iter().find(|header| header.name().as_str() == name)?;
    Some(header.value().as_string().unwrap().as_str().to_owned())
}

fn payload(message: &Message) -> Value {
    serde_json::from_slice(message.payload()).unwrap_or_default()
}
