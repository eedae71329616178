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
use kiro_messages::proto::kiro::client_identity::{NODE, VERSION, VERSION_FLOOR};
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
    assert_eq!(kinds[20..], ["metadataEvent", "contextUsageEvent", "meteringEvent"]);
    assert_eq!(events[20].1, json!({ "stopReason": "END_TURN" }));
    assert_eq!(events[21].1, json!({ "contextUsagePercentage": 1.25 }));
    assert_eq!(events[22].1, json!({ "usage": 0.002, "unit": "credit", "unitPlural": "credits" }), "two characters");
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
        event(
            "metadataEvent",
            json!({ "tokenUsage": { "uncachedInputTokens": 7, "outputTokens": 1 }, "stopReason": "END_TURN" }),
        ),
        event("contextUsageEvent", json!({ "contextUsagePercentage": 2.5 })),
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

    let whole = play(&simulator, &json!({ "text": "abc", "count": 3, "usage": false })).await.body();
    for size in [1, 7, 100] {
        let answer = play(&simulator, &json!({ "text": "abc", "count": 3, "usage": false, "write_bytes": size })).await;
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
        ("expected-results", FaultKind::BadRequest),
        ("context-limit", FaultKind::PromptTooLong),
        ("not-buffered", FaultKind::TooLarge),
        ("invalid-token", FaultKind::TokenRejected),
        ("not-authorized", FaultKind::Forbidden),
        ("was-throttled", FaultKind::RateLimited),
        ("old-version", FaultKind::ClientVersion),
        ("no-replay", FaultKind::ThinkingSignature),
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
        let fault = Fault::from_http(
            answer.status,
            header("x-amzn-errortype"),
            header("retry-after"),
            &answer.body(),
            false,
            &Default::default(),
        );
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
    client.request("POST", "/generateAssistantResponse", &[("content-type", "application/json")], "{}").await;
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
async fn a_refresh_token_works_once_and_an_access_token_ends() {
    let simulator = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let simulator = simulator.world(json!(["any-client", "one-time-tokens-1", { "refresh_ms": 50 }])).unwrap();
    let simulator = simulator.spawn().unwrap();
    let refresh = async |path: &str, token: &str| {
        let body = json!({ "refreshToken": token, "clientId": "c", "clientSecret": "s", "grantType": "refresh_token" });
        let mut client = Client::connect(&simulator).await;
        client.request("POST", path, &[("content-type", "application/json")], &body.to_string()).await;
        let answer = client.read().await;
        (answer.status, answer.headers.get("x-amzn-errortype").cloned(), answer.json())
    };
    for (path, refused, root) in
        [("/refreshToken", None, "alice"), ("/token", Some("InvalidGrantException"), "sim-acct-builder.bob")]
    {
        // At the same time: one of them gets it.
        let since = Instant::now();
        let (one, other) = tokio::join!(refresh(path, root), refresh(path, root));
        assert!(since.elapsed() >= Duration::from_millis(50));
        let (granted, dead) = if one.0 == 200 { (one, other) } else { (other, one) };
        assert_eq!((granted.0, dead.0, dead.1.as_deref()), (200, 400, refused), "{}", dead.2);
        assert_eq!(granted.2["expiresIn"], 1);
        let access = granted.2["accessToken"].as_str().unwrap().to_owned();
        let next = granted.2["refreshToken"].as_str().unwrap().to_owned();
        let listed = simulator.control().accounts()[root].clone();
        let expected = json!({
            "refreshes": 1, "dead_refreshes": 1, "expired_calls": 0, "refresh_token": next, "access_token": access,
            "refreshed_ms": listed["refreshed_ms"],
        });
        assert_eq!(listed, expected);

        let mut asked = body("Hi");
        if root.starts_with("sim-acct") {
            asked["profileArn"] = "arn:aws:codewhisperer:us-east-1:638616132270:profile/AAAACCCCXXXX".into();
        }
        assert_eq!(chat(&simulator, &access, &asked).await.status, 200);
        tokio::time::sleep_until((since + Duration::from_millis(1200)).into()).await;
        let answer = chat(&simulator, &access, &asked).await;
        assert_eq!(answer.status, 403);
        assert!(answer.text().contains("ExpiredToken"), "{}", answer.text());
        assert_eq!(simulator.control().accounts()[root]["expired_calls"], 1);
        assert_eq!(refresh(path, &next).await.0, 200);
        assert_eq!(refresh(path, &next).await.0, 400);
    }
    // The connection breaks in the only moment at which that costs the login.
    simulator.control().script(json!({ "refresh_token": "carol", "answers": ["drop", "lost"] })).unwrap();
    for _ in 0..2 {
        let mut client = Client::connect(&simulator).await;
        let kind = [("content-type", "application/json")];
        client.request("POST", "/refreshToken", &kind, r#"{"refreshToken":"carol"}"#).await;
        assert_eq!(client.read().await.status, 0, "no answer");
    }
    let mut client = Client::connect(&simulator).await;
    client.request("GET", "/_sim/accounts", &[], "").await;
    let carol = client.read().await.json()["carol"].clone();
    assert_eq!((&carol["refreshes"], &carol["dead_refreshes"]), (&json!(1), &json!(0)), "{carol}");
    assert_eq!(refresh("/refreshToken", "carol").await.0, 400);
    assert_eq!(refresh("/refreshToken", carol["refresh_token"].as_str().unwrap()).await.0, 200);
}

#[tokio::test]
async fn usage_profiles_and_models() {
    let simulator = simulator();
    let mut client = Client::connect(&simulator).await;
    let mut ask = async |method: &str, target: &str, operation: &str, token: &str| {
        let (bearer, operation) = (format!("Bearer {token}"), format!("AmazonCodeWhispererService.{operation}"));
        let json = ("content-type", "application/x-amz-json-1.0");
        let headers = [("authorization", bearer.as_str()), json, ("x-amz-target", operation.as_str())];
        client.request(method, target, &headers[..if method == "POST" { 3 } else { 1 }], "{}").await;
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
    assert_eq!(answer["models"][0]["modelId"], "auto");
    assert_eq!(answer["defaultModel"]["modelId"], "claude-sonnet-4.5");
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

/// A request as the gateway sends it in shape `runtime`, with some headers changed; an empty value takes one away.
async fn runtime(simulator: &Running, target: &str, changes: &[(&str, &str)], body: &Value) -> Answer {
    let ide = format!("KiroIDE-{VERSION}-{}-KAS/0.66.7", "0a".repeat(32));
    let (api, mode) = match target {
        "KiroControlPlaneBearerService.ListAvailableModels" | "" => ("kirocontrolplanebearer", "N,E"),
        _ => ("kiroruntime", "N"),
    };
    let agent =
        format!("aws-sdk-js/1.0.0 ua/2.1 os/linux#6.1.0 lang/js md/nodejs#{NODE} api/{api}#1.0.0 m/{mode} {ide}");
    let amz = format!("aws-sdk-js/1.0.0 {ide}");
    let host = if api == "kiroruntime" { "runtime.us-east-1.localhost" } else { "management.us-east-1.localhost" };
    let usual = [
        ("host", host),
        ("authorization", "Bearer token"),
        ("content-type", "application/x-amz-json-1.0"),
        ("x-amz-target", target),
        ("user-agent", agent.as_str()),
        ("x-amz-user-agent", amz.as_str()),
    ];
    let changed = |name: &str| changes.iter().find(|(other, _)| *other == name);
    let headers: Vec<(&str, &str)> = usual
        .iter()
        .filter(|(name, _)| changed(name).is_none())
        .chain(changes)
        .filter(|(name, value)| !value.is_empty() && *name != ":path")
        .copied()
        .collect();
    let path = changed(":path").map_or(if target.is_empty() { "/List-Available-Profiles" } else { "/" }, |path| path.1);
    let mut client = Client::connect(simulator).await;
    client.request("POST", path, &headers, &body.to_string()).await;
    client.read().await
}

/// A request of shape `q`, with some headers added to the usual ones.
async fn q(simulator: &Running, method: &str, target: &str, changes: &[(&str, &str)], body: &Value) -> Answer {
    let (path, operation) = target.split_once(' ').unwrap_or((target, ""));
    let kind = if operation.is_empty() { "application/json" } else { "application/x-amz-json-1.0" };
    let usual = [("authorization", "Bearer token"), ("content-type", kind), ("x-amz-target", operation)];
    let changed = |name: &str| changes.iter().any(|(other, _)| *other == name);
    let usual = usual.iter().filter(|(name, value)| !changed(name) && !value.is_empty());
    let headers: Vec<(&str, &str)> = usual.chain(changes).filter(|(_, value)| !value.is_empty()).copied().collect();
    let mut client = Client::connect(simulator).await;
    client.request(method, path, &headers, &body.to_string()).await;
    client.read().await
}

/// Status, reason and whether the message holds `text`.
#[track_caller]
fn refused(answer: &Answer, status: u16, reason: Value, text: &str) {
    let body = answer.json();
    let message = body["message"].as_str().unwrap_or_default();
    assert_eq!((answer.status, &body["reason"]), (status, &reason), "{}", answer.text());
    assert!(message.contains(text), "`{text}` is not in: {message}");
}

const CHAT: &str = "KiroRuntimeService.GenerateAssistantResponse";
const PROFILES: &str = "/ AmazonCodeWhispererService.ListAvailableProfiles";
const MODELS: &str = "/ AmazonCodeWhispererService.ListAvailableModels";
const USAGE: &str = "/getUsageLimits?origin=AI_EDITOR";
const BUILDER_ID: &str = "arn:aws:codewhisperer:us-east-1:638616132270:profile/AAAACCCCXXXX";
const SOCIAL: &str = "arn:aws:codewhisperer:us-east-1:699475941385:profile/EHGA3GRVQMUK";
const E1: &str = "arn:aws:codewhisperer:us-east-1:111122223333:profile/EEEE1";
const E2: &str = "arn:aws:codewhisperer:eu-central-1:111122223333:profile/EEEE2";

#[tokio::test]
async fn k141_two_shapes_and_what_each_refuses() {
    let simulator = simulator();
    let body = body("Hi");
    assert_eq!(q(&simulator, "POST", "/generateAssistantResponse", &[], &body).await.status, 200);
    let by_target = "/ AmazonCodeWhispererStreamingService.GenerateAssistantResponse";
    let agents = agents("/generateAssistantResponse", VERSION);
    let agents = [("user-agent", agents[0].as_str()), ("x-amz-user-agent", agents[1].as_str())];
    assert_eq!(q(&simulator, "POST", by_target, &agents, &body).await.status, 200);
    let answer = runtime(&simulator, CHAT, &[], &body).await;
    let (first, payload) = &answer.events()[0];
    assert_eq!((answer.status, first.as_str(), payload), (200, "initial-response", &json!({})));
    assert_eq!(runtime(&simulator, CHAT, &[("host", "127.0.0.1:1")], &body).await.status, 200, "by the target");
    let models = "KiroControlPlaneBearerService.ListAvailableModels";
    assert_eq!(runtime(&simulator, models, &[], &json!({})).await.status, 200);
    assert_eq!(runtime(&simulator, "", &[], &json!({})).await.status, 200, "profiles");

    let invalid = || json!("REQUEST_BODY_INVALID");
    let path = "/generateAssistantResponse";
    let answer = q(&simulator, "POST", path, &[("x-amz-target", CHAT), ("host", "q.us-east-1.localhost")], &body).await;
    refused(&answer, 400, invalid(), "x-amz-target on a path");
    let answer = runtime(&simulator, CHAT, &[("x-amz-target", ""), (":path", path)], &body).await;
    refused(&answer, 400, invalid(), "a path on the runtime host");
    let answer = runtime(&simulator, CHAT, &[("x-amzn-kiro-agent-mode", "vibe")], &body).await;
    refused(&answer, 400, invalid(), "x-amzn-kiro-agent-mode");
    let answer = runtime(&simulator, CHAT, &[("content-type", "application/json")], &body).await;
    refused(&answer, 415, Value::Null, "application/x-amz-json-1.0");
    let answer = q(&simulator, "POST", path, &[("content-type", "application/x-amz-json-1.0")], &body).await;
    refused(&answer, 415, Value::Null, "application/json");
    for target in ["KiroRuntimeService.Invent", "AmazonCodeWhispererService.ListAvailableModels"] {
        let answer = runtime(&simulator, target, &[], &body).await;
        let kind = answer.json()["__type"].as_str().unwrap().to_owned();
        assert!(answer.status == 404 && kind.ends_with("#UnknownOperationException"), "{target}: {kind}");
        assert!(!answer.headers.contains_key("x-amzn-errortype"));
    }

    for (member, on_q, on_runtime) in [("agentMode", 400, 200), ("systemPrompt", 400, 400)] {
        let mut body = body.clone();
        body[member] = "vibe".into();
        assert_eq!(chat(&simulator, "token", &body).await.status, on_q, "{member}");
        assert_eq!(runtime(&simulator, CHAT, &[], &body).await.status, on_runtime, "{member}");
    }
    let mut with_root = body.clone();
    with_root["conversationState"]["rootConversationId"] = "c".into();
    refused(&chat(&simulator, "token", &with_root).await, 400, invalid(), "rootConversationId");
    assert_eq!(runtime(&simulator, CHAT, &[], &with_root).await.status, 200);
    let mut with_point = body.clone();
    with_point["conversationState"]["currentMessage"]["userInputMessage"]["userInputMessageContext"] =
        json!({ "tools": [{ "cachePoint": { "type": "default" } }] });
    refused(&chat(&simulator, "token", &with_point).await, 400, Value::Null, "Improperly formed request.");
}

#[tokio::test]
async fn k141_old_clients_and_strangers_are_refused_by_call_host_and_account() {
    let simulator = simulator();
    let text = "This version of Kiro is no longer supported. Please update to the latest version of Kiro to continue.";
    let ask = async |target: &str, version: &str, token: &str| {
        let [agent, amz] = agents(target, version);
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("user-agent", &agent), ("x-amz-user-agent", &amz)];
        let (method, body) = match target {
            "/generateAssistantResponse" => ("POST", body("Hi")),
            "/refreshToken" => ("POST", json!({ "refreshToken": "r" })),
            _ => ("GET", Value::Null),
        };
        q(&simulator, method, target, &headers, &body).await
    };
    for target in ["/generateAssistantResponse", "/refreshToken", USAGE, "/ListAvailableModels"] {
        let old = ask(target, "0.8.140", "t").await;
        refused(&old, 400, Value::Null, text);
        assert_eq!(ask(target, VERSION_FLOOR, "t").await.status, 200, "{target}");
        let strange = ask(target, "1.1", "t").await;
        refused(&strange, 400, Value::Null, "(simulator: user-agent)");
    }
    assert_eq!(ask("/generateAssistantResponse", VERSION, "sim-old-version").await.status, 400);
    assert_eq!(ask(USAGE, VERSION, "sim-old-version-usage").await.status, 400);
    assert_eq!(ask("/generateAssistantResponse", VERSION, "sim-old-version-usage").await.status, 200);
    assert_eq!(ask("/generateAssistantResponse", "1.1", "sim-any-client").await.status, 200);

    let control = simulator.control();
    control.world(json!({ "min_version": { "runtime": "9.0.0", "eu-central-1": "9.0.0" } })).unwrap();
    refused(&runtime(&simulator, CHAT, &[], &body("Hi")).await, 400, Value::Null, text);
    assert_eq!(ask("/generateAssistantResponse", VERSION, "t").await.status, 200);
    let elsewhere = [("host", "q.eu-central-1.localhost")];
    refused(
        &q(&simulator, "POST", "/generateAssistantResponse", &elsewhere, &body("Hi")).await,
        400,
        Value::Null,
        text,
    );
    control.script(json!({ "token": "mine", "world": { "min_version": "9.0.0" } })).unwrap();
    assert_eq!(ask("/generateAssistantResponse", VERSION, "mine").await.status, 400);
    control.script(json!({ "token": "mine", "world": null })).unwrap();
    assert_eq!(ask("/generateAssistantResponse", VERSION, "mine").await.status, 200);
}

#[tokio::test]
async fn k141_models_by_page_by_account_and_their_fields() {
    let simulator = simulator();
    let control = simulator.control();
    let on = |model: &str| {
        let mut body = body("Hi");
        body["conversationState"]["currentMessage"]["userInputMessage"]["modelId"] = model.into();
        body
    };
    let with = |model: &str, fields: Value| {
        let mut body = on(model);
        body["additionalModelRequestFields"] = fields;
        body
    };
    assert_eq!(chat(&simulator, "t", &on("claude-opus-5.5")).await.status, 200);
    let unknown = json!("INVALID_MODEL_ID");
    refused(&chat(&simulator, "t", &on("claude-opus-6")).await, 400, unknown.clone(), "select a different model");
    refused(&chat(&simulator, "sim-free-tier.a", &on("claude-opus-5")).await, 400, unknown, "Invalid model");
    assert_eq!(chat(&simulator, "sim-free-tier.a", &on("claude-opus-4.5")).await.status, 200);

    control.script(json!({ "token": "t", "world": ["new-model", { "models_page": 10 }] })).unwrap();
    let (mut pages, mut ids, mut next) = (0, Vec::new(), None::<String>);
    loop {
        let mut ask = json!({ "origin": "AI_EDITOR", "maxResults": 50 });
        ask["nextToken"] = next.as_deref().into();
        let page = q(&simulator, "POST", MODELS, &[("authorization", "Bearer t")], &ask).await.json();
        pages += 1;
        ids.extend(page["models"].as_array().unwrap().clone());
        match page["nextToken"].as_str() {
            Some(token) => next = Some(token.to_owned()),
            None => break,
        }
    }
    let new = ids.iter().find(|model| model["modelId"] == "claude-opus-9.9").unwrap();
    assert_eq!((pages, &new["tokenLimits"]["maxInputTokens"]), (3, &json!(2_000_000)));
    let opus = ids.iter().find(|model| model["modelId"] == "claude-opus-5.5").unwrap();
    let schema = &opus["additionalModelRequestFieldsSchema"]["properties"];
    assert_eq!(schema["max_tokens"], json!({ "type": "integer", "minimum": 1024, "maximum": 128_000 }));
    assert_eq!(schema["thinking"]["properties"]["type"]["enum"], json!(["adaptive"]));

    let adaptive =
        json!({ "thinking": { "type": "adaptive", "display": "summarized" }, "output_config": { "effort": "xhigh" } });
    for (token, model, fields, text) in [
        ("t", "claude-opus-5", adaptive.clone(), ""),
        ("t", "claude-opus-5", json!({}), "additionalModelRequestFields"),
        ("t", "claude-sonnet-4.5", adaptive.clone(), "additionalModelRequestFields is not supported for this model"),
        ("sim-no-fields", "claude-opus-5", adaptive.clone(), "is not supported for this model"),
        ("sim-fields-strict", "claude-opus-5", adaptive.clone(), "property 'display' is not defined in the schema"),
        (
            "sim-no-xhigh",
            "claude-opus-5",
            adaptive.clone(),
            "$.output_config.effort: does not have a value in the enumeration",
        ),
        ("sim-no-max-tokens", "claude-opus-5.5", json!({ "max_tokens": 2000 }), "property 'max_tokens'"),
    ] {
        let answer = chat(&simulator, token, &with(model, fields)).await;
        match text {
            "" => assert_eq!(answer.status, 200, "{}", answer.text()),
            text => refused(&answer, 400, json!("REQUEST_BODY_INVALID"), text),
        }
    }
    control.script(json!({ "token": "t", "world": { "schemas": { "claude-opus-5": null } } })).unwrap();
    assert_eq!(chat(&simulator, "t", &with("claude-opus-5", adaptive)).await.status, 400);
}

/// What Kiro's accounts, calls and texts are (contract/accounts.md).
#[tokio::test]
async fn k141_each_kind_of_account_has_its_profile() {
    let simulator = simulator();
    let ask = async |token: &str, arn: Option<&str>, token_type: &str, host: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("tokentype", token_type), ("host", host)];
        let mut body = body("Hi");
        if let Some(arn) = arn {
            body["profileArn"] = arn.into();
        }
        let answer = q(&simulator, "POST", "/generateAssistantResponse", &headers, &body).await;
        let message = if answer.status == 200 { String::new() } else { answer.json()["message"].to_string() };
        (answer.status, message)
    };
    const US: &str = "us-east-1.localhost";
    const EU: &str = "q.eu-central-1.localhost";
    let (no, bearer, required) = ("not authorized to make this call", "bearer token", "profileArn is required");
    let a1 = "arn:aws:codewhisperer:us-east-1:111122223333:profile/AAAA1";
    let c3 = "arn:aws:codewhisperer:us-east-1:111122223333:profile/CCCC3";
    for (token, arn, token_type, host, status, text) in [
        ("sim-acct-builder", Some(BUILDER_ID), "", US, 200, ""),
        ("sim-acct-builder.x", None, "", US, 400, required),
        ("sim-acct-builder", Some(SOCIAL), "", US, 400, "Invalid profileArn"),
        ("sim-acct-builder", Some(BUILDER_ID), "API_KEY", US, 403, bearer),
        ("sim-acct-builder-strict", Some(BUILDER_ID), "", US, 403, no),
        ("sim-acct-builder-strict", None, "", US, 200, ""),
        ("sim-acct-builder-strict-token", Some(BUILDER_ID), "", US, 403, bearer),
        ("sim-acct-builder-strict-token.x", None, "", US, 200, ""),
        ("sim-acct-social", Some(SOCIAL), "", US, 200, ""),
        ("sim-acct-social", Some(E1), "", US, 400, "Invalid profileArn"),
        ("sim-acct-enterprise", Some(E1), "", US, 200, ""),
        ("sim-acct-enterprise", Some(E1), "", "127.0.0.1", 200, ""),
        ("sim-acct-enterprise", Some(BUILDER_ID), "", US, 403, bearer),
        ("sim-acct-enterprise", None, "", US, 403, no),
        ("sim-acct-enterprise-eu-central-1.x", Some(E2), "", EU, 200, ""),
        ("sim-acct-enterprise-eu-central-1", Some(E2), "", US, 400, "Improperly formed"),
        ("sim-acct-enterprise-eu-central-1", None, "", US, 403, no),
        ("sim-acct-enterprise2", Some(a1), "", US, 403, no),
        ("sim-acct-enterprise2", Some(c3), "", US, 200, ""),
        ("sim-acct-external", Some(E1), "EXTERNAL_IDP", US, 200, ""),
        ("sim-acct-external", Some(E1), "", US, 403, "Invalid token"),
        ("sim-acct-noprofile", None, "", US, 403, no),
        ("sim-acct-key", None, "API_KEY", US, 200, ""),
        ("sim-acct-key", Some(E1), "API_KEY", US, 403, no),
        ("sim-acct-key", None, "", US, 403, bearer),
        ("sim-acct-noble", None, "", US, 400, "no kind of account"),
    ] {
        let (answered, message) = ask(token, arn, token_type, host).await;
        assert!(answered == status && message.contains(text), "{token} {arn:?} {host}: {answered} {message}");
    }

    let profiles = async |token: &str, host: &str, token_type: &str, body: Value| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("host", host), ("tokentype", token_type)];
        let answer = q(&simulator, "POST", PROFILES, &headers, &body).await;
        (answer.status, answer.json())
    };
    let arns = |(status, body): (u16, Value)| {
        assert_eq!(status, 200, "{body}");
        let profiles = body["profiles"].as_array().unwrap().clone();
        profiles.iter().map(|profile| profile["arn"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = || json!({ "maxResults": 10 });
    let none: [&str; 0] = [];
    assert_eq!(arns(profiles("sim-acct-enterprise", US, "", all()).await), [E1]);
    assert_eq!(arns(profiles("sim-acct-enterprise-eu-central-1", US, "", all()).await), none);
    assert_eq!(arns(profiles("sim-acct-enterprise-eu-central-1", EU, "", all()).await), [E2]);
    assert_eq!(arns(profiles("sim-acct-enterprise2", US, "", all()).await), [a1, c3]);
    assert_eq!(arns(profiles("sim-acct-external", US, "EXTERNAL_IDP", all()).await), [E1]);
    assert_eq!(arns(profiles("sim-acct-external", US, "", all()).await), none);
    assert_eq!(arns(profiles("sim-acct-noprofile", US, "", all()).await), none);
    assert_eq!(profiles("sim-acct-builder", US, "", all()).await.0, 403);
    let listed = json!([{ "arn": a1, "status": "INACTIVE" }, { "arn": E1 }, { "arn": c3, "status": "ACTIVE" }]);
    let world = json!({ "profiles": listed, "profiles_page": 1 });
    simulator.control().script(json!({ "token": "sim-acct-enterprise", "world": world })).unwrap();
    let (_, page) = profiles("sim-acct-enterprise", US, "", all()).await;
    assert_eq!((&page["profiles"][0]["arn"], &page["nextToken"]), (&json!(a1), &json!("1")));
    let (_, page) = profiles("sim-acct-enterprise", US, "", json!({ "nextToken": "2" })).await;
    assert_eq!((&page["profiles"][0]["arn"], &page["nextToken"]), (&json!(c3), &Value::Null));
    assert_eq!(ask("sim-acct-enterprise", Some(a1), "", US).await.0, 403);
    assert_eq!(ask("sim-acct-enterprise", Some(c3), "", US).await.0, 200);

    for (token, arn, status) in [
        ("sim-acct-builder", "", 200),
        ("sim-acct-builder", BUILDER_ID, 200),
        ("sim-acct-social", E1, 400),
        ("sim-acct-enterprise-eu-central-1", "", 403),
        ("sim-usage-without-arn", PROFILE_ARN, 400),
        ("sim-usage-without-arn", "", 200),
        ("sim-usage-needs-arn", "", 400),
        ("sim-usage-needs-arn", PROFILE_ARN, 200),
    ] {
        let bearer = format!("Bearer {token}");
        let target = if arn.is_empty() { USAGE.to_owned() } else { format!("{USAGE}&profileArn={arn}") };
        let answer = q(&simulator, "GET", &target, &[("authorization", &bearer), ("host", US)], &Value::Null).await;
        assert_eq!(answer.status, status, "{token} {arn}: {}", answer.text());
    }
}

#[tokio::test]
async fn k141_a_refresh_in_the_wrong_region_looks_like_a_dead_token() {
    let simulator = simulator();
    let refresh = async |token: &str, region: &str| {
        let body = json!({ "refreshToken": token, "clientId": "c", "clientSecret": "s", "grantType": "refresh_token" });
        let host = format!("oidc.{region}.localhost");
        q(&simulator, "POST", "/token", &[("host", &host)], &body).await
    };
    let token = "sim-acct-enterprise-eu-central-1@us-west-2.x";
    for (how, status, error, kind) in [
        ("invalid_grant", 400, "invalid_grant", "InvalidGrantException"),
        ("invalid_request", 400, "invalid_request", "InvalidRequestException"),
        ("invalid_client", 401, "invalid_client", "InvalidClientException"),
        ("named", 400, "invalid_request", "InvalidRequestRegionException"),
    ] {
        simulator.control().world(json!({ "wrong_region": how })).unwrap();
        let answer = refresh(token, "us-east-1").await;
        assert_eq!((answer.status, &answer.json()["error"]), (status, &json!(error)));
        assert_eq!(answer.headers["x-amzn-errortype"], kind);
        assert_eq!(answer.json()["region"], if how == "named" { json!("us-west-2") } else { Value::Null });
    }
    let tokens = refresh(token, "us-west-2").await.json();
    assert_eq!(tokens["accessToken"], "sim-acct-enterprise-eu-central-1.x~1");
    assert_eq!(tokens["refreshToken"], format!("{token}~1"));
    let again = refresh(&format!("{token}~1"), "us-west-2").await.json();
    assert_eq!(again["accessToken"], "sim-acct-enterprise-eu-central-1.x~2");
}

#[tokio::test]
async fn k141_thoughts_as_each_model_has_them() {
    let simulator = simulator();
    let ask = async |token: &str, model: &str, prompt: &str, fields: Value| {
        let mut body = body(prompt);
        body["conversationState"]["currentMessage"]["userInputMessage"]["modelId"] = model.into();
        if !fields.is_null() {
            body["additionalModelRequestFields"] = fields;
        }
        let answer = chat(&simulator, token, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let names = |value: &Value| value.as_object().unwrap().keys().next().cloned();
        let events = answer.events();
        let thoughts = events.iter().filter(|(kind, _)| kind == "reasoningContentEvent");
        let thoughts: Vec<String> = thoughts.filter_map(|(_, payload)| names(payload)).collect();
        (thoughts.join(" "), text_of(&events).contains("<thinking>"))
    };
    let adaptive = |display: &str| json!({ "thinking": { "type": "adaptive", "display": display } });
    let none = Value::Null;
    for (token, model, prompt, fields, thoughts, tags) in [
        ("t", "claude-opus-5", "Hi", adaptive("summarized"), "text signature", false),
        ("t", "claude-opus-5", "Hi", adaptive("omitted"), "signature", false),
        ("t", "claude-opus-5", "Hi", json!({ "output_config": { "effort": "low" } }), "text signature", false),
        ("t", "claude-opus-5", "Hi", json!({ "thinking": { "type": "disabled" } }), "", false),
        ("t", "claude-opus-5", "Hi", none.clone(), "", false),
        ("t", "claude-opus-5.5", "Hi", none.clone(), "text signature", false),
        ("t", "claude-haiku-5.5", "Hi", none.clone(), "", false),
        ("t", "claude-sonnet-4.5", "<thinking_mode>enabled</thinking_mode>Hi", none.clone(), "", true),
        ("t", "claude-sonnet-4.5", "Hi", none.clone(), "", false),
        ("t", "claude-opus-4.6", "Hi", json!({ "thinking": { "type": "adaptive" } }), "text signature", false),
        ("t", "gpt-5.6-sol", "Hi", json!({ "reasoning": { "effort": "max" } }), "redactedContent", false),
        (
            "sim-segments",
            "claude-opus-5",
            "Hi",
            adaptive("summarized"),
            "text signature text signature text signature",
            false,
        ),
        ("sim-signature-only", "claude-opus-5", "Hi", adaptive("summarized"), "signature", false),
        ("sim-no-signature", "claude-opus-5", "Hi", adaptive("summarized"), "text", false),
        ("sim-no-thinking", "claude-opus-5", "Hi", adaptive("summarized"), "", false),
    ] {
        let seen = ask(token, model, prompt, fields.clone()).await;
        assert_eq!(seen, (thoughts.to_owned(), tags), "{token} {model} {fields}");
    }
}

#[tokio::test]
async fn k141_signatures_are_bound_as_the_world_says() {
    let simulator = simulator();
    let turn = |conversation: &str, thoughts: &[&str]| {
        let mut body = body("next");
        body["conversationState"]["conversationId"] = conversation.into();
        body["conversationState"]["currentMessage"]["userInputMessage"]["modelId"] = "claude-opus-5".into();
        body["additionalModelRequestFields"] = json!({ "thinking": { "type": "adaptive" } });
        let mut history = Vec::new();
        for thought in thoughts {
            history
                .push(json!({ "userInputMessage": { "content": if history.is_empty() { "next" } else { "more" } } }));
            let reasoning = json!({ "reasoningText": { "text": "t", "signature": thought } });
            history.push(json!({ "assistantResponseMessage": { "content": "b", "reasoningContent": reasoning } }));
        }
        if !history.is_empty() {
            body["conversationState"]["history"] = history.into();
        }
        body
    };
    let sign = async |token: &str, body: &Value| {
        let events = chat(&simulator, token, body).await.events();
        let signature = events.iter().find_map(|(_, payload)| payload["signature"].as_str().map(str::to_owned));
        let signature = signature.unwrap();
        assert!(signature.len() == 44 && signature.ends_with('='), "{signature}");
        signature
    };
    let first = sign("a", &turn("c", &[])).await;
    let second = sign("a", &turn("c", &[&first])).await;
    let (reason, bound) = (json!("THINKING_SIGNATURE_INVALID"), "bound to a different conversation");
    refused(&chat(&simulator, "b", &turn("c", &[&first])).await, 400, reason.clone(), "Invalid signature");
    assert_eq!(chat(&simulator, "a", &turn("other", &[&first])).await.status, 200);
    assert_eq!(chat(&simulator, "a", &turn("c", &["foreign"])).await.status, 200);

    simulator.control().world("signature-bound").unwrap();
    assert_eq!(chat(&simulator, "a", &turn("c", &[&first, &second])).await.status, 200);
    refused(&chat(&simulator, "b", &turn("c", &[&first])).await, 400, reason, "Invalid signature");
    for (conversation, thoughts) in [("other", vec![first.as_str()]), ("c", vec!["foreign"]), ("c", vec![&second])] {
        refused(&chat(&simulator, "a", &turn(conversation, &thoughts)).await, 400, Value::Null, bound);
    }
    simulator.control().world("signature-free").unwrap();
    assert_eq!(chat(&simulator, "b", &turn("other", &["foreign", &second])).await.status, 200);
    let answer = chat(&simulator, "sim-no-replay", &turn("c", &["foreign"])).await;
    refused(&answer, 400, Value::Null, bound);
    assert_eq!(chat(&simulator, "sim-no-replay", &turn("c", &[])).await.status, 200);
}

#[tokio::test]
async fn k141_what_was_sent_before_costs_a_tenth() {
    let simulator = simulator();
    let x = "x".repeat(1000);
    let turn = |turns: usize| {
        let mut body = body(&x);
        let pair = [
            json!({ "userInputMessage": { "content": x } }),
            json!({ "assistantResponseMessage": { "content": "y".repeat(500) } }),
        ];
        let history: Vec<Value> = (0..turns).flat_map(|_| pair.clone()).collect();
        if turns > 0 {
            body["conversationState"]["history"] = history.into();
        }
        body
    };
    let credits = async |token: &str, body: &Value| {
        let events = chat(&simulator, token, body).await.events();
        events.iter().find(|(kind, _)| kind == "meteringEvent").unwrap().1["usage"].as_f64().unwrap()
    };
    let near = |seen: f64, expected: f64| assert!((seen - expected).abs() < 1e-9, "{seen}, not {expected}");
    near(credits("a", &turn(0)).await, 1.0);
    near(credits("a", &turn(1)).await, 0.1 + 1.5);
    near(credits("a", &turn(2)).await, 0.25 + 1.5);
    near(credits("a", &turn(2)).await, 0.4);
    near(credits("b", &turn(2)).await, 4.0);
    near(credits("sim-no-discount", &turn(2)).await, 4.0);
    near(credits("sim-no-discount", &turn(2)).await, 4.0);
}

/// Every preset in which the world differs, as a world and as one account's token: the request that it is about gets
/// what it says, and the plain one doesn't.
#[tokio::test]
async fn k141_each_world_differs_in_one_thing() {
    let plain = body("Hi");
    let change = |pointer: &str, member: &str, value: Value| {
        let mut body = plain.clone();
        body.pointer_mut(pointer).unwrap()[member] = value;
        body
    };
    let user = "/conversationState/currentMessage/userInputMessage";
    let image = |len: usize| json!([{ "format": "png", "source": { "bytes": "A".repeat(len) } }]);
    let tool = |schema: Value| json!({ "tools": [{ "toolSpecification": { "name": "f", "description": "d", "inputSchema": { "json": schema } } }] });
    let context = |value: Value| change(user, "userInputMessageContext", value);
    let object = json!({ "type": "object", "properties": { "pattern": { "type": "string" } } });
    let pattern = json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "x" } } });
    let mut after_tool = context(tool(object.clone()));
    after_tool.pointer_mut(user).unwrap()["images"] = image(4);
    let results = json!([{ "toolUseId": "t", "content": [{ "text": "r" }], "status": "success" }]);
    after_tool.pointer_mut(user).unwrap()["userInputMessageContext"]["toolResults"] = results;
    after_tool["conversationState"]["history"] = json!([
        { "userInputMessage": { "content": "a" } },
        { "assistantResponseMessage": { "content": "b", "toolUses": [{ "toolUseId": "t", "name": "f", "input": {} }] } },
    ]);
    let document = json!([{ "name": "d", "format": "txt", "source": { "bytes": "AAAA" } }]);
    let with_arn = change("", "profileArn", BUILDER_ID.into());
    let continued = change("/conversationState", "agentContinuationId", "c".into());
    let mut full = continued.clone();
    full["agentMode"] = "vibe".into();
    for (world, runtime_only, differs, status, same) in [
        ("gone-q", false, plain.clone(), 410, None),
        ("gone-runtime", true, plain.clone(), 410, None),
        ("deprecated-q", false, plain.clone(), 403, None),
        ("throttled-q", false, plain.clone(), 429, None),
        ("throttled-runtime", true, plain.clone(), 429, None),
        ("wrong-app", false, plain.clone(), 403, None),
        ("no-continuation", true, full, 400, Some(plain.clone())),
        ("needs-arn", false, plain.clone(), 400, Some(with_arn.clone())),
        ("needs-arn-runtime", true, plain.clone(), 400, Some(with_arn.clone())),
        ("no-service-arn", false, with_arn, 403, Some(plain.clone())),
        ("plain-schemas", false, context(tool(pattern)), 400, Some(context(tool(object)))),
        ("no-result-images", false, after_tool, 400, Some(change(user, "images", image(4)))),
        ("no-documents", false, change(user, "documents", document), 400, Some(plain.clone())),
        ("no-cache-points", false, change(user, "cachePoint", json!({ "type": "default" })), 400, Some(plain.clone())),
        ("small-bodies", false, body(&"x".repeat(200_001)), 400, Some(body(&"x".repeat(190_000)))),
        ("small-pictures", false, change(user, "images", image(400_004)), 400, Some(change(user, "images", image(4)))),
        ("suspicious", false, plain.clone(), 429, None),
    ] {
        let simulator = simulator();
        let ask = async |token: &str, runtime_shape: bool, body: &Value| {
            let bearer = format!("Bearer {token}");
            match runtime_shape {
                true => runtime(&simulator, CHAT, &[("authorization", &bearer)], body).await.status,
                false => chat(&simulator, token, body).await.status,
            }
        };
        let token = format!("sim-{world}.someone");
        assert_eq!(ask(&token, runtime_only, &differs).await, status, "{token}");
        assert_eq!(ask("t", runtime_only, &differs).await, 200, "{world} of another account");
        simulator.control().world(world).unwrap();
        assert_eq!(simulator.control().stats()["world"], json!(["2026-11", world]));
        assert_eq!(ask("t", runtime_only, &differs).await, status, "{world}");
        if let Some(same) = same {
            assert_eq!(ask("t", runtime_only, &same).await, 200, "{world}, what it isn't about");
        }
        simulator.control().world(Value::Null).unwrap();
        assert_eq!(ask("t", runtime_only, &differs).await, 200, "taken back");
    }
    let simulator = simulator();
    let gone = q(&simulator, "GET", USAGE, &[("authorization", "Bearer sim-gone-q")], &Value::Null).await;
    assert_eq!(gone.status, 410, "the whole host");
    let answer = chat(&simulator, "sim-throttled-q", &plain).await;
    assert_eq!(answer.headers["retry-after"], "7");
    for (world, expected) in
        [("no-end-events", vec![]), ("other-end-order", vec!["meteringEvent", "metadataEvent", "contextUsageEvent"])]
    {
        let events = chat(&simulator, &format!("sim-{world}"), &plain).await.events();
        let notes: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).skip(20).collect();
        assert_eq!(notes, expected, "{world}");
    }
    for (world, window) in [("token-usage", 200_000.0), ("usage-window", 454_000.0)] {
        let events = chat(&simulator, &format!("sim-{world}"), &plain).await.events();
        let total = events[20].1["tokenUsage"]["totalTokens"].as_f64().unwrap();
        assert_eq!(total, window * 1.25 / 100.0, "{world}");
    }
    for (wrong, named) in [
        (json!("no-such"), "`no-such`"),
        (json!({ "min_version": "1" }), "`1` is no version"),
        (json!({ "bind": "tight" }), "off, account, strict"),
        (json!({ "colour": 1 }), "unknown key `colour` in `world`"),
        (json!({ "rules": [{ "when": { "moon": "full" }, "gone": true }] }), "unknown key `moon` in `when`"),
        (json!([{ "end": ["late"] }]), "`late`"),
    ] {
        assert!(simulator.control().world(wrong.clone()).is_err_and(|error| error.contains(named)), "{wrong}");
    }
}

#[tokio::test]
async fn k141_last_winters_kiro() {
    let bound = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let simulator = bound.world("2025-12").unwrap().spawn().unwrap();
    let mut old = body("Hi");
    old["conversationState"]["currentMessage"]["userInputMessage"]["modelId"] = "claude-anything".into();
    old["agentMode"] = "vibe".into();
    let agents = agents("/generateAssistantResponse", "0.8.140");
    let headers = [("user-agent", agents[0].as_str()), ("x-amz-user-agent", ""), ("content-type", "text/plain")];
    let answer = q(&simulator, "POST", "/generateAssistantResponse", &headers, &old).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let kinds: Vec<String> = answer.events().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds[20..], ["contextUsageEvent", "metadataEvent", "meteringEvent"]);
    assert_eq!(runtime(&simulator, CHAT, &[], &body("Hi")).await.status, 404, "there was one host");
    assert_eq!(chat(&simulator, "sim-acct-builder", &body("Hi")).await.status, 200, "no ARN was needed");
    let models = q(&simulator, "POST", MODELS, &[], &json!({})).await.json();
    assert_eq!(models["models"].as_array().map(Vec::len), Some(3));
    assert_eq!(models["models"][0]["modelId"], "claude-sonnet-4.5");
    simulator.control().world("2026-11").unwrap();
    assert_eq!(chat(&simulator, "t", &old).await.status, 400);
    simulator.control().reset();
    assert_eq!(chat(&simulator, "t", &old).await.status, 200, "a reset goes back to the world it began in");
}

#[tokio::test]
async fn k141_web_search_on_both_shapes() {
    let simulator = simulator();
    let call = |method: &str, query: Value| {
        let params = json!({ "name": "web_search", "arguments": { "query": query } });
        json!({ "id": "web_search_tooluse_1", "jsonrpc": "2.0", "method": method, "params": params })
    };
    let search = async |token: &str, body: &Value| {
        let bearer = format!("Bearer {token}");
        q(&simulator, "POST", "/mcp", &[("authorization", &bearer)], body).await
    };
    let tools = search("t", &call("tools/list", Value::Null)).await.json();
    assert_eq!(tools["result"]["tools"][0]["name"], "web_search");
    assert_eq!(tools["result"]["tools"][0]["inputSchema"]["required"], json!(["query"]));
    let found = search("t", &call("tools/call", json!("rust"))).await.json();
    assert_eq!((&found["id"], &found["result"]["isError"]), (&json!("web_search_tooluse_1"), &json!(false)));
    let text: Value = serde_json::from_str(found["result"]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!((text["totalResults"].as_u64(), &text["query"]), (Some(3), &json!("rust")));
    assert_eq!(text["results"][0]["url"], "https://site1.test/rust");
    assert_eq!(found, search("t", &call("tools/call", json!("rust"))).await.json(), "always the same");
    assert_eq!(search("t", &call("tools/call", json!(" "))).await.json()["error"]["code"], -32602);
    assert_eq!(search("t", &call("tools/none", json!("x"))).await.json()["error"]["code"], -32601);
    assert_eq!(search("sim-search-down", &call("tools/call", json!("x"))).await.status, 500);

    let mut body = call("tools/call", json!("rust"));
    body["profileArn"] = E1.into();
    let target = "KiroRuntimeService.InvokeMCP";
    let arn = ("x-amzn-kiro-profile-arn", E1);
    assert_eq!(runtime(&simulator, target, &[arn], &body).await.json(), found);
    refused(&runtime(&simulator, target, &[], &body).await, 400, json!("REQUEST_BODY_INVALID"), "header and body");
    assert_eq!(search("sim-acct-builder", &call("tools/call", json!("x"))).await.status, 400, "no ARN");
    for (way, status, holds) in [
        ("rate", 429, "Too many"),
        ("forbidden", 403, "not authorized"),
        ("error", 500, "failed"),
        ("empty", 200, r#"\"totalResults\":0"#),
        ("null", 200, r#"\"results\":null"#),
        ("badjson", 200, r#""{\"results\":[""#),
        ("invalid", 200, "-32602"),
        ("slow:20", 200, "site3.test"),
    ] {
        simulator.control().world(json!({ "search": way })).unwrap();
        let answer = search("t", &call("tools/call", json!("x"))).await;
        assert!(answer.status == status && answer.text().contains(holds), "{way}: {}", answer.text());
    }
    let queries = &simulator.control().stats()["shapes"]["runtime"]["mcp"]["queries"];
    assert_eq!(queries, &json!(["rust"]));
}

#[tokio::test]
async fn k141_statistics_by_shape_and_call() {
    let simulator = simulator();
    let mut request = body("Hi");
    request["profileArn"] = PROFILE_ARN.into();
    request["conversationState"]["history"] = json!([
        { "userInputMessage": { "content": "a", "cachePoint": { "type": "default" } } },
        { "assistantResponseMessage": { "content": "b", "reasoningContent": { "reasoningText": { "text": "t", "signature": "s" } } } },
    ]);
    chat(&simulator, "t", &request).await;
    chat(&simulator, "t", &body("Hi")).await;
    runtime(&simulator, CHAT, &[], &request).await;
    q(&simulator, "GET", USAGE, &[], &Value::Null).await;
    q(&simulator, "POST", "/refreshToken", &[], &json!({ "refreshToken": "r" })).await;
    let shapes = &simulator.control().stats()["shapes"];
    let chats = &shapes["q"]["chat"];
    assert_eq!((&chats["count"], &chats["reasoning"], &chats["cache_points"]), (&json!(2), &json!(1), &json!(1)));
    assert_eq!(chats["targets"], json!({ "/generateAssistantResponse": 2 }));
    assert_eq!(chats["hosts"], json!({ "simulator": 2 }));
    assert_eq!(chats["conversations"], json!({ "7a1f6e0c-0000-4000-8000-000000000000": 2 }));
    assert_eq!(chats["models"], json!({ "claude-sonnet-4.5": 2 }));
    let members = ["conversationState", "chatTriggerType", "conversationId", "currentMessage"];
    assert_eq!(chats["members"], json!(members), "the last one's");
    assert_eq!(shapes["runtime"]["chat"]["targets"], json!({ CHAT: 1 }));
    assert_eq!(shapes["runtime"]["chat"]["hosts"], json!({ "runtime.us-east-1.localhost": 1 }));
    assert_eq!(shapes["runtime"]["chat"]["headers"]["x-amz-target"], CHAT);
    assert_eq!((&shapes["q"]["usage"]["count"], &shapes["refresh"]["social"]["count"]), (&json!(1), &json!(1)));
}

/// What the gateway's user agents look like for a call of shape `q`, by its address.
fn agents(target: &str, version: &str) -> [String; 2] {
    let ide = format!("KiroIDE-{version}-{}", "0a".repeat(32));
    let agent = |sdk: &str, api: &str, mode: &str, ide: &str| {
        let os = "linux#6.1.0";
        format!("aws-sdk-js/{sdk} ua/2.1 os/{os} lang/js md/nodejs#{NODE} api/{api}#{sdk} m/{mode} {ide}")
    };
    match target {
        "/generateAssistantResponse" | "/mcp" => {
            [agent("1.0.34", "codewhispererstreaming", "E", &ide), format!("aws-sdk-js/1.0.34 {ide}")]
        }
        "/refreshToken" => [ide, String::new()],
        "/token" => [agent("3.980.0", "sso-oidc", "E", "KiroIDE"), "aws-sdk-js/3.980.0 KiroIDE".to_owned()],
        _ => [agent("1.0.0", "codewhispererruntime", "N,E", &ide), format!("aws-sdk-js/1.0.0 {ide}")],
    }
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
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        self.request("POST", "/generateAssistantResponse", &headers, &body.to_string()).await;
    }

    async fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) {
        let mut head = format!("{method} {target} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        let agents = agents(target, VERSION);
        let usual =
            [("host", "simulator"), ("user-agent", agents[0].as_str()), ("x-amz-user-agent", agents[1].as_str())];
        let usual = usual.iter().filter(|(name, _)| headers.iter().all(|(own, _)| own != name));
        for (name, value) in usual.chain(headers) {
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
