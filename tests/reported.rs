//! Requests that failed in November 2026 (tests/reported/), each sent through the real server to the simulated Kiro, with
//! the right outcome. A request's upstream part stands in its prompt (docs/simulator.md).
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use serde_json::{Value, json};
use world::{Reply, World, base, events, with};

fn reported(name: &str) -> Value {
    let path = format!("{}/tests/reported/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

impl World {
    async fn sends(&self, name: &str) -> Reply {
        self.messages(&reported(name)).await
    }

    /// The body of the last conversation that upstream saw.
    fn seen(&self) -> Value {
        let stats = self.simulated.control().stats_with_bodies();
        let calls = stats["last"].as_array().unwrap().iter();
        let body = calls.rev().find_map(|call| {
            let body: Value = serde_json::from_str(call["body"].as_str()?).ok()?;
            body.get("conversationState").is_some().then_some(body)
        });
        body.unwrap()["conversationState"].clone()
    }
}

/// `(stop_reason, the text, the inputs of tool calls)` of a stream.
fn answer(reply: &Reply) -> (String, String, Vec<String>) {
    assert_eq!(reply.status, 200, "{}", reply.text);
    let (mut stop, mut text, mut inputs) = (String::new(), String::new(), Vec::new());
    for event in events(&reply.text) {
        match event["type"].as_str().unwrap() {
            "content_block_start" if event["content_block"]["type"] == "tool_use" => inputs.push(String::new()),
            "content_block_delta" => {
                text += event["delta"]["text"].as_str().unwrap_or_default();
                if let Some(piece) = event["delta"]["partial_json"].as_str() {
                    inputs.last_mut().unwrap().push_str(piece);
                }
            }
            "message_delta" => event["delta"]["stop_reason"].as_str().unwrap().clone_into(&mut stop),
            "error" => panic!("{event}"),
            _ => {}
        }
    }
    (stop, text, inputs)
}

#[tokio::test]
async fn ids_of_other_models_are_the_same_in_use_and_result_d1_d2_tr63() {
    let world = World::new(&[]).await;
    for name in ["d01-tool-id-pipe", "d02-tool-id-colon"] {
        assert_eq!(world.sends(name).await.status, 200, "{name}");
        let seen = world.seen();
        let used = &seen["history"][1]["assistantResponseMessage"]["toolUses"][0]["toolUseId"];
        let context = &seen["currentMessage"]["userInputMessage"]["userInputMessageContext"];
        assert_eq!(*used, context["toolResults"][0]["toolUseId"], "{name}");
        let id = used.as_str().unwrap();
        assert!(id.starts_with("tooluse_") && id.len() == 30, "{name}: {id}");
    }
}

#[tokio::test]
async fn combinations_at_the_top_of_a_schema_leave_the_tool_usable_d3_d4_d5_tr64() {
    let world = World::new(&[]).await;
    let side = json!({ "properties": { "a": { "type": "string" } }, "required": ["a"] });
    let both = json!({ "allOf": [side, { "properties": { "b": { "type": "number" } } }] });
    let named = json!({ "$ref": "#/$defs/all", "$defs": { "all": both } });
    let tool = |schema| with(json!({ "tools": [{ "name": "find", "input_schema": schema }] }));
    for (name, body) in [
        ("D3", reported("d03-schema-anyof-at-top")),
        ("D4", reported("d04-schema-oneof-at-top")),
        ("D5, allOf", tool(both)),
        ("D5, $ref", tool(named)),
    ] {
        assert_eq!(world.messages(&body).await.status, 200, "{name}");
        let seen = world.seen();
        let context = &seen["currentMessage"]["userInputMessage"]["userInputMessageContext"];
        let schema = &context["tools"][0]["toolSpecification"]["inputSchema"]["json"];
        for keyword in ["anyOf", "oneOf", "allOf", "$ref"] {
            assert!(schema.get(keyword).is_none(), "{name}: {schema}");
        }
        assert_eq!(schema["type"], "object");
        assert!(schema["properties"].as_object().unwrap().len() >= 2, "{name}: {schema}");
    }
}

#[tokio::test]
async fn a_result_without_anything_says_so_tr65() {
    let world = World::new(&[]).await;
    assert_eq!(world.sends("tr65-empty-tool-result").await.status, 200);
    let context = &world.seen()["currentMessage"]["userInputMessage"]["userInputMessageContext"];
    assert_eq!(context["toolResults"][0]["content"], json!([{ "text": "(no output)" }]));
}

#[tokio::test]
async fn of_six_documents_the_newest_five_go_out_d7_tr66() {
    let world = World::new(&[]).await;
    assert_eq!(world.sends("d07-six-documents").await.status, 200);
    let message = &world.seen()["currentMessage"]["userInputMessage"];
    assert_eq!(message["documents"].as_array().unwrap().len(), 5);
    assert!(message["content"].as_str().unwrap().contains("[1 earlier document omitted]"), "{message}");
}

#[tokio::test]
async fn tools_that_the_client_runs_are_declared_m73() {
    let world = World::new(&[]).await;
    for (name, declared) in [
        ("m73-bash-tool", vec!["bash"]),
        ("m73-memory-tool-and-client-tool", vec!["memory", "str_replace_based_edit_tool", "get_weather"]),
    ] {
        assert_eq!(world.sends(name).await.status, 200, "{name}");
        let tools = world.seen()["currentMessage"]["userInputMessage"]["userInputMessageContext"]["tools"].clone();
        let tools = tools.as_array().unwrap().iter().map(|tool| &tool["toolSpecification"]);
        assert_eq!(tools.clone().map(|tool| &tool["name"]).collect::<Vec<_>>(), declared, "{name}");
        for tool in tools {
            assert!(!tool["inputSchema"]["json"]["properties"].as_object().unwrap().is_empty(), "{tool}");
        }
    }
}

#[tokio::test]
async fn the_model_reads_which_tool_was_loaded_tr59() {
    let world = World::new(&[]).await;
    assert_eq!(world.sends("tr59-tool-reference").await.status, 200);
    let context = &world.seen()["currentMessage"]["userInputMessage"]["userInputMessageContext"];
    assert_eq!(context["toolResults"][0]["content"], json!([{ "text": "Tool loaded: get_weather" }]));
    assert_eq!(context["tools"][1]["toolSpecification"]["name"], "get_weather");
}

#[tokio::test]
async fn openais_form_of_a_tool_is_named_d11_m84() {
    let world = World::new(&[]).await;
    let refused = world.sends("d11-tools-in-openai-form").await;
    let sentence = "tools.0.type: this is OpenAI's form; the Messages API wants name, description and input_schema";
    refused.is_error("d11", 400, "invalid_request_error", sentence);
    assert_eq!(world.upstream_calls(), 0);
}

#[tokio::test]
async fn a_doubled_v1_and_every_version_of_event_logging_are_served_d12_m84() {
    let world = World::new(&[]).await;
    let doubled = world.post("/v1/v1/messages", base().to_string()).await;
    assert_eq!(doubled.status, 200, "{}", doubled.text);
    assert_eq!(world.post("/api/event_logging/v2/batch", "{}").await.status, 200);
}

#[tokio::test]
async fn a_filtered_answer_and_a_full_window_have_reasons_of_their_own_d14_ts38_m57() {
    let world = World::new(&[]).await;
    let (stop, text, _) = answer(&world.sends("d14-stop-reason-filtered").await);
    assert_eq!((stop.as_str(), text.as_str()), ("refusal", "partial answer"));
    let (stop, ..) = answer(&world.sends("d14-stop-reason-window").await);
    assert_eq!(stop, "model_context_window_exceeded");
    // Folded, in lower case, and before a tool's own reason.
    let steps = json!({ "steps": [
        { "event": "toolUseEvent", "payload": { "toolUseId": "t", "name": "f", "input": "{}", "stop": true } },
        { "event": "metadataEvent", "payload": { "stopReason": "guardrail_intervened" } },
    ] });
    let asked = with(json!({ "messages": [{ "role": "user", "content": format!("[[sim {steps}]]") }] }));
    assert_eq!(world.messages(&asked).await.json()["stop_reason"], "refusal");
}

#[tokio::test]
async fn pieces_of_a_tool_without_its_id_are_one_whole_call_d15_ts39() {
    let world = World::new(&[]).await;
    let (stop, _, inputs) = answer(&world.sends("d15-tool-event-without-id").await);
    assert_eq!((stop.as_str(), inputs), ("tool_use", vec![r#"{"city":"Oslo"}"#.to_owned()]));
}

#[tokio::test]
async fn a_note_that_cant_be_read_fails_no_answer_d16_ts40() {
    let world = World::new(&[]).await;
    let (stop, text, _) = answer(&world.sends("d16-note-that-is-null").await);
    assert_eq!((stop.as_str(), text.as_str()), ("end_turn", "done"));
    for note in ["contextUsageEvent", "metadataEvent", "meteringEvent"] {
        for payload in [json!(null), json!([]), json!("x"), json!(5)] {
            let steps = json!({ "steps": [{ "text": "done" }, { "event": note, "payload": payload }] });
            let asked =
                json!({ "stream": true, "messages": [{ "role": "user", "content": format!("[[sim {steps}]]") }] });
            let (stop, text, _) = answer(&world.messages(&with(asked)).await);
            assert_eq!((stop.as_str(), text.as_str()), ("end_turn", "done"), "{note} {payload}");
        }
    }
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_said_in_the_words_that_clients_know_d17_d18_ts41() {
    let world = World::new(&[]).await;
    let wrapped = world.sends("d17-prompt-too-long-wrapped").await;
    let sentence = "prompt is too long: 213432 tokens > 200000 maximum";
    wrapped.is_error("d17", 400, "invalid_request_error", sentence);
    assert!(wrapped.json()["error"]["message"].as_str().unwrap() == sentence, "{}", wrapped.text);

    // The bare refusal: of a short prompt a bad request, of one beyond the window or the largest body too long.
    let bare = r#"[[sim {"http":{"status":400,"message":"Improperly formed request."}}]]"#;
    let says = |padding: String| {
        let asked = with(json!({ "messages": [{ "role": "user", "content": format!("{padding} {bare}") }] }));
        let world = &world;
        async move { world.messages(&asked).await.json()["error"]["message"].as_str().unwrap().to_owned() }
    };
    assert!(!says(String::new()).await.contains("too long"));
    let beyond_the_window = says("word ".repeat(210_000)).await;
    assert!(beyond_the_window.starts_with("prompt is too long: "), "{beyond_the_window}");
    assert!(beyond_the_window.ends_with(" tokens > 200000 maximum"), "{beyond_the_window}");
    let large_body = says(" ".repeat(1_100_000)).await;
    assert!(large_body.starts_with("prompt is too long: "), "{large_body}");
}

/// `(stop_reason, stop_sequence, text, output_tokens)` of a folded answer.
fn folded(reply: &Reply) -> (String, Value, String, u64) {
    assert_eq!(reply.status, 200, "{}", reply.text);
    let message = reply.json();
    let text = message["content"][0]["text"].as_str().unwrap_or_default().to_owned();
    let reason = message["stop_reason"].as_str().unwrap().to_owned();
    (reason, message["stop_sequence"].clone(), text, message["usage"]["output_tokens"].as_u64().unwrap())
}

#[tokio::test]
async fn a_stop_sequence_ends_the_answer_and_upstreams_call_m82() {
    let world = World::new(&[]).await;
    let (reason, sequence, text, _) = folded(&world.sends("d09-stop-sequence").await);
    assert_eq!((reason.as_str(), sequence, text.as_str()), ("stop_sequence", json!("STOP"), "alpha "));
    // Streamed, over two deltas, while upstream would go on.
    let scene = json!({ "steps": [{ "text": "alpha ST" }, { "text": "OP beta" }], "end": "hang" });
    let asked = json!({
        "stream": true, "stop_sequences": ["\n\nHuman:", "STOP"],
        "messages": [{ "role": "user", "content": format!("[[sim {scene}]]") }],
    });
    let reply = world.messages(&with(asked)).await;
    let (stop, text, _) = answer(&reply);
    assert_eq!((stop.as_str(), text.as_str()), ("stop_sequence", "alpha "));
    let end = events(&reply.text).into_iter().find(|event| event["type"] == "message_delta").unwrap();
    assert_eq!(end["delta"], json!({ "stop_reason": "stop_sequence", "stop_sequence": "STOP" }));
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let streams = &world.simulated.control().stats()["streams"];
    assert_eq!((&streams["open"], &streams["closed_by_client"]), (&json!(0), &json!(1)), "{streams}");
    assert_eq!(world.gateway.health().accounts.healthy, 1, "the account has done nothing wrong");
}

#[tokio::test]
async fn a_probe_of_one_token_gets_one_word_m83() {
    let world = World::new(&[]).await;
    let (reason, sequence, text, output) = folded(&world.sends("d10-probe-of-one-token").await);
    assert_eq!((reason.as_str(), sequence, text.as_str(), output), ("max_tokens", Value::Null, "Hello!", 1));
    let long = |model: &str, tokens: u64| {
        let scene = json!({ "text": "word ".repeat(1_000) });
        let content = format!("{model} {tokens} [[sim {scene}]]");
        with(json!({ "model": model, "max_tokens": tokens, "messages": [{ "role": "user", "content": content }] }))
    };
    let (reason, _, text, output) = folded(&world.messages(&long("claude-sonnet-4-5", 100)).await);
    assert!(reason == "max_tokens" && text.ends_with("word") && (100..=125).contains(&output), "{output}: {text}");
    assert_eq!(folded(&world.messages(&long("claude-sonnet-4-5", 5_000)).await).0, "end_turn");
    // Where upstream has a place for it, it is upstream's; below the least of it, it is ours.
    assert_eq!(folded(&world.messages(&long("claude-opus-5-5", 1_024)).await).0, "end_turn");
    assert_eq!(folded(&world.messages(&long("claude-opus-5-5", 100)).await).0, "max_tokens");
}
