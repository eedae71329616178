//! What a scenario says is what comes: events, pieces, pauses, ends, faults.

use std::time::{Duration, Instant};

use kiro_messages::proto::kiro::fault::{Fault, FaultKind};
use kiro_messages::simulator::PROFILE_ARN;
use serde_json::{Value, json};

use super::client::{End, body, chat, events, header, payload, play, simulator, text_of};

#[tokio::test]
async fn the_demo_answer_names_itself_simulated_and_ends_with_usage() {
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
