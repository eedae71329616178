//! Features of a request beyond text and client tools, each sent through the real server to the simulated Kiro.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use serde_json::{Value, json};
use world::{Reply, World, events, with};

fn ignored(reply: &Reply) -> &str {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.headers.get("x-kiro-ignored").map_or("", |value| value.to_str().unwrap())
}

/// A user's message.
fn user(content: impl Into<Value>) -> Value {
    json!({ "role": "user", "content": content.into() })
}

#[tokio::test]
async fn what_has_no_effect_is_named_in_a_header_m80_m75() {
    let world = World::new(&[]).await;
    let unheard = json!({
        "container": "c", "service_tier": "auto", "speed": "fast", "inference_geo": "eu", "fallbacks": [{}],
        "compaction": { "type": "summarize" },
        "tool_choice": { "type": "auto", "disable_parallel_tool_use": true },
        "tools": [{ "name": "f" }, { "type": "code_execution_20250825", "name": "code_execution" }],
        "messages": [user(json!([
            { "type": "text", "text": "hi" },
            { "type": "container_upload", "file_id": "f" },
            { "type": "document", "citations": { "enabled": true }, "source": { "type": "text", "data": "d" } },
        ]))],
    });
    let all = "container, service_tier, speed, inference_geo, fallbacks, compaction, \
               tool_choice.disable_parallel_tool_use, messages.0.content.1:container_upload, \
               messages.0.content.2.citations, tools.1:code_execution_20250825";
    for stream in [false, true] {
        let mut asked = with(unheard.clone());
        asked["stream"] = json!(stream);
        assert_eq!(ignored(&world.messages(&asked).await), all);
    }
    // What every client sends isn't named.
    let usual = json!({
        "temperature": 1, "top_p": 0.5, "top_k": 5, "metadata": { "user_id": "u" }, "unknown": 1, "container": null,
        "safeguards": {}, "tools": [{ "name": "f", "cache_control": { "type": "ephemeral" } }],
    });
    assert_eq!(ignored(&world.messages(&with(usual)).await), "");
}

#[tokio::test]
async fn the_list_of_what_has_no_effect_is_bounded_a189() {
    let world = World::new(&[]).await;
    let tools = (0..20).map(|n| json!({ "type": format!("x_{n}"), "name": "x\r\ny" })).chain([json!({ "name": "f" })]);
    let reply = world.messages(&with(json!({ "tools": tools.collect::<Value>() }))).await;
    let entries: Vec<_> = ignored(&reply).split(", ").collect();
    assert_eq!((entries.len(), entries[15]), (16, "tools.15:x_15"));
    let long = (0..20).map(|n| json!({ "type": format!("{}_{n}", "x".repeat(50)) })).chain([json!({ "name": "f" })]);
    let reply = world.messages(&with(json!({ "tools": long.collect::<Value>() }))).await;
    assert!((400..=512).contains(&ignored(&reply).len()), "{}", ignored(&reply));
}

impl World {
    /// The names of the tools and the current message that upstream saw last.
    fn seen(&self) -> (Vec<String>, Value) {
        let stats = self.simulated.control().stats_with_bodies();
        let mut calls = stats["last"].as_array().unwrap().iter().rev();
        let body: Value = calls
            .find_map(|call| {
                let body: Value = serde_json::from_str(call["body"].as_str()?).ok()?;
                body.get("conversationState").is_some().then_some(body)
            })
            .unwrap();
        let message = body["conversationState"]["currentMessage"]["userInputMessage"].clone();
        let tools = message["userInputMessageContext"]["tools"].as_array().cloned().unwrap_or_default();
        (tools.iter().map(|tool| tool["toolSpecification"]["name"].as_str().unwrap().to_owned()).collect(), message)
    }

    async fn counts(&self, body: &Value) -> Value {
        self.post("/v1/messages/count_tokens", body.to_string()).await.json()
    }
}

/// A prompt for the simulated Kiro: it calls this tool.
fn calls(tool: &str, input: Value) -> Value {
    let steps = json!({ "steps": [
        { "event": "toolUseEvent", "payload": { "toolUseId": "t1", "name": tool, "input": input.to_string(), "stop": true } },
    ] });
    user(format!("[[sim {steps}]]"))
}

#[tokio::test]
async fn tools_that_the_client_runs_come_back_to_it_m73_a161() {
    let world = World::new(&[]).await;
    for (name, tool) in [
        ("bash", json!({ "type": "bash_20250124", "name": "bash" })),
        (
            "str_replace_based_edit_tool",
            json!({ "type": "text_editor_20250728", "name": "str_replace_based_edit_tool" }),
        ),
        ("memory", json!({ "type": "memory_20250818", "name": "memory" })),
    ] {
        let asked = with(json!({ "tools": [tool], "messages": [calls(name, json!({ "command": "view" }))] }));
        let reply = world.messages(&asked).await;
        assert_eq!(ignored(&reply), "");
        let message = reply.json();
        assert_eq!(message["stop_reason"], "tool_use");
        assert_eq!(message["content"][0]["name"], name);
        assert_eq!(message["content"][0]["input"], json!({ "command": "view" }));
        assert_eq!(world.seen().0, [name]);
    }
}

#[tokio::test]
async fn tools_that_cant_be_served_are_named_or_refused_m73_a163_a165_a168_a170() {
    let world = World::new(&[]).await;
    let f = json!({ "name": "f", "strict": true, "eager_input_streaming": true });
    for (tools, named, declared) in [
        (
            json!([{ "name": "f" }, { "type": "code_execution_20250825", "name": "code_execution" }]),
            "tools.1:code_execution_20250825",
            vec!["f"],
        ),
        (
            json!([{ "type": "computer_20250124", "name": "computer" }, { "name": "f" }]),
            "tools.0:computer_20250124",
            vec!["f"],
        ),
        (
            json!([{ "type": "tool_search_tool_bm25_20251119", "name": "s" }, { "name": "d", "defer_loading": true }]),
            "tools.0:tool_search_tool_bm25_20251119",
            vec!["d"],
        ),
        (json!([f]), "tools.0.strict", vec!["f"]),
        (
            json!([{ "name": "f" }, { "name": "g", "allowed_callers": ["code_execution_20250825"] }]),
            "tools.1.allowed_callers",
            vec!["f"],
        ),
    ] {
        assert_eq!(ignored(&world.messages(&with(json!({ "tools": tools }))).await), named);
        assert_eq!(world.seen().0, declared);
    }
    let before = world.upstream_calls();
    let alone = json!({ "tools": [{ "type": "code_execution_20250825", "name": "code_execution" }] });
    let sentence = "tools: 'code_execution_20250825' can't be served through Kiro";
    world.messages(&with(alone)).await.is_error("alone", 400, "invalid_request_error", sentence);
    assert_eq!(world.upstream_calls(), before);
}

#[tokio::test]
async fn forty_deferred_tools_wait_until_two_are_loaded_tr59_a166_a167() {
    let world = World::new(&[]).await;
    let plain = ["p0", "p1", "p2"].map(|name| json!({ "name": name }));
    let deferred = (0..40).map(|n| json!({ "name": format!("d{n}"), "description": "d", "defer_loading": true }));
    let tools: Value = plain.into_iter().chain(deferred).collect();
    assert_eq!(world.messages(&with(json!({ "tools": tools }))).await.status, 200);
    assert_eq!(world.seen().0, ["p0", "p1", "p2"]);
    let loaded =
        json!([{ "type": "tool_reference", "tool_name": "d7" }, { "type": "tool_reference", "tool_name": "d3" }]);
    let turn = json!([
        user("q"),
        { "role": "assistant", "content": [{ "type": "tool_use", "id": "t1", "name": "p0", "input": { "q": 1 } }] },
        user(json!([{ "type": "tool_result", "tool_use_id": "t1", "content": loaded }])),
    ]);
    let mut asked = with(json!({ "tools": tools, "messages": turn }));
    assert_eq!(world.messages(&asked).await.status, 200);
    let (names, message) = world.seen();
    assert_eq!(names, ["p0", "p1", "p2", "d7", "d3"]);
    let results = &message["userInputMessageContext"]["toolResults"];
    assert_eq!(results[0]["content"], json!([{ "text": "Tool loaded: d7\nTool loaded: d3" }]));
    // A tool that isn't declared costs nothing.
    let with_all = world.counts(&asked).await["input_tokens"].as_u64().unwrap();
    asked["tools"].as_array_mut().unwrap().truncate(11);
    assert_eq!(world.counts(&asked).await["input_tokens"].as_u64().unwrap(), with_all);
}

#[test]
fn as_many_whole_examples_as_fit_stand_behind_a_description_tr58_a169() {
    use kiro_messages::proto::messages::request::{Purpose, Request};
    use kiro_messages::proto::translate::estimate::request_tokens;
    let long = "x".repeat(10_240);
    let body = |examples: Value| {
        let tools = json!([{ "name": "f", "description": "d", "input_examples": examples }]);
        with(json!({ "tools": tools })).to_string()
    };
    let tokens = |body: &str| request_tokens(&Request::parse(body.as_bytes(), Purpose::Messages).unwrap());
    assert!(tokens(&body(json!([{ "q": 1 }]))) > tokens(&body(json!([]))));
    let description = |body: &str| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let world = World::new(&[]).await;
            assert_eq!(world.post("/v1/messages", body.to_owned()).await.status, 200);
            let tools = world.seen().1["userInputMessageContext"]["tools"].clone();
            tools[0]["toolSpecification"]["description"].as_str().unwrap().to_owned()
        })
    };
    assert_eq!(description(&body(json!([{ "q": long }, { "q": 2 }]))), "d\n\nInput examples:\n{\"q\":2}");
    assert_eq!(description(&body(json!([{ "q": long }]))), "d");
}

/// Five pairs of use and result; the first is of another tool.
fn five_pairs(edits: Value) -> Value {
    let mut messages = vec![user("q")];
    for n in 0..5 {
        let (id, name) = (format!("t{n}"), if n == 0 { "g" } else { "f" });
        messages.push(json!({ "role": "assistant", "content": [{ "type": "tool_use", "id": id, "name": name, "input": { "n": n } }] }));
        messages.push(user(json!([{ "type": "tool_result", "tool_use_id": id, "content": "word ".repeat(100) }])));
    }
    with(json!({
        "tools": [{ "name": "f" }, { "name": "g" }], "messages": messages, "context_management": { "edits": edits },
    }))
}

/// `context_management` of the last event, and of the folded message.
async fn reports(world: &World, asked: &Value) -> (Value, Value) {
    let folded = world.messages(asked).await.json()["context_management"].clone();
    let mut asked = asked.clone();
    asked["stream"] = json!(true);
    let events = events(&world.messages(&asked).await.text);
    let delta = events.into_iter().find(|event| event["type"] == "message_delta").unwrap();
    (delta["context_management"].clone(), folded)
}

#[tokio::test]
async fn what_was_cleared_is_reported_m77_a171_a172_a174_a176() {
    let world = World::new(&[]).await;
    let edit = |least: u64, worth: u64| {
        json!([{
            "type": "clear_tool_uses_20250919", "trigger": { "type": "tool_uses", "value": least },
            "keep": { "type": "tool_uses", "value": 2 }, "exclude_tools": ["g"],
            "clear_at_least": { "type": "input_tokens", "value": worth },
        }])
    };
    let asked = five_pairs(edit(4, 1));
    let (delta, folded) = reports(&world, &asked).await;
    assert_eq!(delta, folded);
    let [applied] = &delta["applied_edits"].as_array().unwrap()[..] else { panic!("{delta}") };
    assert_eq!((&applied["type"], &applied["cleared_tool_uses"]), (&json!("clear_tool_uses_20250919"), &json!(2)));
    let cleared = applied["cleared_input_tokens"].as_u64().unwrap();
    assert!(cleared > 150, "{cleared}");

    // Counting says the figure after the edits and the one before (A176).
    let count = world.counts(&asked).await;
    let (after, before) = (&count["input_tokens"], &count["context_management"]["original_input_tokens"]);
    let saved = before.as_u64().unwrap() - after.as_u64().unwrap();
    assert!(saved.abs_diff(cleared) <= 1, "{saved} {cleared}");
    let mut plain = asked.clone();
    plain.as_object_mut().unwrap().remove("context_management");
    assert_eq!(world.counts(&plain).await, json!({ "input_tokens": before }));

    for untouched in [edit(6, 1), edit(4, 100_000), json!([{ "type": "compact_20260112" }])] {
        let asked = five_pairs(untouched);
        assert_eq!(reports(&world, &asked).await, (json!({ "applied_edits": [] }), json!({ "applied_edits": [] })));
    }
    let compact = five_pairs(json!([{ "type": "compact_20260112" }]));
    assert_eq!(ignored(&world.messages(&compact).await), "context_management.edits.0");
    // Without edits there is no report.
    assert_eq!(reports(&world, &plain).await, (Value::Null, Value::Null));
}

#[tokio::test]
async fn cleared_thinking_is_reported_a173() {
    let world = World::new(&[]).await;
    let thought = |n: u32| {
        let thinking = json!({ "type": "thinking", "thinking": "some thought", "signature": format!("s{n}") });
        json!({ "role": "assistant", "content": [thinking, { "type": "text", "text": "x" }] })
    };
    let asked = |model: &str, keep: Value| {
        with(json!({
            "model": model, "messages": [user("a"), thought(1), user("b"), thought(2), user("c")],
            "context_management": { "edits": [{ "type": "clear_thinking_20251015", "keep": keep }] },
        }))
    };
    let one = json!({ "type": "thinking_turns", "value": 1 });
    for (model, keep, turns) in
        [("claude-opus-5", json!("all"), 0), ("claude-opus-5", one.clone(), 1), ("claude-fable-5-1", one, 0)]
    {
        let (report, _) = reports(&world, &asked(model, keep)).await;
        let applied = report["applied_edits"].as_array().unwrap();
        assert_eq!(applied.len(), turns, "{model} {report}");
        for edit in applied {
            assert_eq!(edit["cleared_thinking_turns"], 1);
            assert!(edit["cleared_input_tokens"].as_u64().unwrap() > 0);
        }
    }
}
