//! Features of a request beyond text and client tools, each sent through the real server to the simulated Kiro.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use serde_json::{Value, json};
use world::{Reply, World, with};

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
        "tool_choice": { "type": "auto", "disable_parallel_tool_use": true },
        "tools": [{ "name": "f" }, { "type": "code_execution_20250825", "name": "code_execution" }],
        "messages": [user(json!([
            { "type": "text", "text": "hi" },
            { "type": "container_upload", "file_id": "f" },
            { "type": "document", "citations": { "enabled": true }, "source": { "type": "text", "data": "d" } },
        ]))],
    });
    let all = "container, service_tier, speed, inference_geo, fallbacks, tool_choice.disable_parallel_tool_use, \
               messages.0.content.1:container_upload, messages.0.content.2.citations, tools.1:code_execution_20250825";
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
